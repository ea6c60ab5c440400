"""What is told of the parts, and what Ray is given."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster import stack
from cluster.stack import parts, processes
from cluster.stack.state import Paths, write


@pytest.mark.parametrize("form", ["redis://:hid@den@{}/0", "redis://{}/0?password=hid@den"])
def test_what_is_told_of_a_redis_does_not_hold_its_password(tmp_path: Path, form: str) -> None:
    paths = Paths(tmp_path)
    paths.make()
    paths.redis_password.write_text("hid@den")
    port = parts.free_port()
    process, _ = parts.start_redis(paths, os.environ, port)
    try:
        url = form.format(f"127.0.0.1:{port}")
        log = paths.log("redis")
        told = parts.wait_for("redis", lambda: parts.redis_answers(url), process=process, log=log, timeout=30)
    finally:
        processes.end([process])
    assert f"127.0.0.1:{port}/0" in told
    assert "hid" not in told and "den" not in told


def test_a_url_that_is_none_is_told_without_its_password() -> None:
    with pytest.raises(stack.StackError, match=r"redis: redis://\*\*\* is not the URL of a Redis") as error:
        parts.redis_answers("redis://:hid/den@127.0.0.1:1/0")
    assert "hid" not in str(error.value)


@pytest.mark.parametrize("body", ["<html>", "5", "{}"])
def test_a_part_whose_port_another_service_took_is_unreachable(tmp_path: Path, body: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{other.server_port}"
            Paths(tmp_path).make()
            write(
                tmp_path, stack.Stack("redis://127.0.0.1:1/0", "127.0.0.1:1", url, url, None, own_redis=False)
            )
            told = {part.name: part for part in stack.status(tmp_path)}
        finally:
            other.shutdown()
    for name, what in (("ray", "not Ray's dashboard"), ("serve", "not this service")):
        assert told[name].state == "unreachable"
        assert what in told[name].detail


def test_what_ray_opens_to_everyone_is_in_a_folder_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._common.utils import try_to_create_directory

    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    paths = Paths(tmp_path / ("long" * 12))
    paths.make()
    folder = parts.ray_temporary(paths)
    try:
        monkeypatch.setattr(processes, "start", lambda name, argv, *_: argv)
        argv: Any = parts.start_ray(paths, {}, port=1, dashboard_port=2, cpus=None, temporary=folder)
        given = argv[argv.index("--temp-dir") + 1]
        try_to_create_directory(given)  # as `ray start` does
        assert Path(given).stat().st_mode & 0o777 == 0o777
        assert Path(given).parent == folder
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(folder)
