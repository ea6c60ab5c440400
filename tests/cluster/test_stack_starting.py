"""What `up` does when it is killed, interrupted or told otherwise; Ray, which takes long, is left out."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from cluster import stack
from cluster.serving import control
from cluster.stack import parts, processes
from cluster.stack.processes import Process
from cluster.stack.state import Paths

SLEEP = "import time; time.sleep(600)"
DISPATCHER = [
    sys.executable,
    "-c",
    "import os, pathlib, time\n"
    "path = pathlib.Path(os.environ['TEXTVAE_HOME'], 'run', 'dispatcher.ready')\n"
    "path.with_name('new').write_text(str(os.getpid()))\n"
    "path.with_name('new').rename(path)\n"
    "time.sleep(600)",
]
KILLED = """
import os, sys
from pathlib import Path
from cluster import stack
from cluster.stack import parts

start = parts.start_redis

def killed(*arguments):
    process, url = start(*arguments)
    answers = lambda: parts.redis_answers(url)
    parts.wait_for("redis", answers, process=process, log=Path("none"), timeout=60)
    os.kill(os.getpid(), 9)  # before it is recorded

parts.start_redis = killed
stack.up(Path(sys.argv[1]), dispatcher=None)
"""


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is a process that does nothing, and it and Serve answer; Redis and the dispatcher are real ones."""

    def start_ray(paths: Paths, environment: Mapping[str, str], **_: object) -> Process:
        return processes.start("ray", [sys.executable, "-c", SLEEP], environment, paths.log("ray"))

    monkeypatch.setattr(parts, "start_ray", start_ray)
    monkeypatch.setattr(parts, "ray_answers", lambda *_: "ray")
    monkeypatch.setattr(parts, "serve_answers", lambda *_: "serve")
    monkeypatch.setattr(control, "running", lambda **_: control.Serve("127.0.0.1", 8000, applied=True))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path.resolve()
    yield home
    stack.down(home)


def redises(home: Path) -> list[int]:
    """The pids of all redis-servers whose data are this home's."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(Paths(home).redis_data) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def kill_redis(home: Path) -> None:
    (pid,) = redises(home)
    process = psutil.Process(pid)
    process.kill()
    process.wait(10)  # it is a child of this process; now its port is free, too


def test_a_first_start_that_fails_leaves_no_folder_of_ray(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.setattr(parts, "_LONGEST_TEMPORARY", len(str(outside / "textvae-4294967295-01234567")))
    monkeypatch.setattr(tempfile, "tempdir", str(outside))
    deep = home / "far" / "too" / ("deep" * 12)

    def interrupted(*_: object) -> None:
        assert len(list(outside.iterdir())) == 1
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts, "ray_answers", interrupted)
        stack.up(deep, dispatcher=None)
    assert list(outside.iterdir()) == []
    assert stack.read(deep) is None
    up = stack.up(deep, dispatcher=None)
    assert up.temporary is not None
    assert up.temporary.parent == outside
    stack.down(deep)
    assert list(outside.iterdir()) == []


def test_a_serve_that_is_open_to_all_is_refused_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "running", lambda **_: control.Serve("0.0.0.0", 8000, applied=False))
    with pytest.raises(stack.StackError, match=r"Serve runs on this cluster already and listens on 0\.0"):
        stack.up(home, dispatcher=DISPATCHER)
    assert stack.read(home) is None
    assert redises(home) == []


def redis_of_dispatcher(up: stack.Stack) -> str:
    process = up.process("dispatcher")
    assert process is not None
    return psutil.Process(process.pid).environ()["TEXTVAE_REDIS_URL"]


def test_a_redis_that_must_move_takes_the_dispatcher_with_it(home: Path) -> None:
    first = stack.up(home, dispatcher=DISPATCHER)
    assert stack.up(home, dispatcher=DISPATCHER) == first
    kill_redis(home)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", urlsplit(first.redis_url).port))
        other.listen()
        moved = stack.up(home, dispatcher=DISPATCHER)
    assert moved.redis_url != first.redis_url
    assert redis_of_dispatcher(moved) == moved.redis_url
    assert moved.process("ray") == first.process("ray")
    old = first.process("dispatcher")
    assert old is not None
    assert not old.alive()


def test_a_ray_that_ends_while_it_is_waited_for_is_started_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stack.up(home, dispatcher=DISPATCHER).process("ray")
    assert first is not None

    def dying(*_: object) -> str:
        if first.alive():
            psutil.Process(first.pid).kill()
            raise stack.StackError("ray: no answer")
        return "ray"

    monkeypatch.setattr(parts, "ray_answers", dying)
    again = stack.up(home, dispatcher=DISPATCHER).process("ray")
    assert again is not None and again.alive()
    assert again.pid != first.pid


def test_another_redis_is_told_to_the_dispatcher_once_it_answers(home: Path, tmp_path: Path) -> None:
    there = []
    try:
        for name in ("a", "b"):
            paths = Paths(tmp_path / name)
            paths.make()
            there.append(parts.start_redis(paths, os.environ, parts.free_port()))
        (_, one), (_, two) = there
        first = stack.up(home, dispatcher=DISPATCHER, redis_url=one)
        with pytest.raises(stack.StackError, match="redis: no answer"):
            stack.up(
                home,
                dispatcher=DISPATCHER,
                redis_url=f"redis://127.0.0.1:{parts.free_port()}/0",
                timeout=0.1,
            )
        assert stack.read(home) == first
        assert all(process.alive() for process in first.processes)
        assert redis_of_dispatcher(stack.up(home, dispatcher=DISPATCHER, redis_url=two)) == two
    finally:
        processes.end([process for process, _ in there])


@pytest.mark.parametrize("change", ["ray_address", "dashboard_url", "token_path"])
def test_another_ray_is_told_to_the_dispatcher(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    found = {"ray_address": "127.0.0.1:1", "dashboard_url": "http://127.0.0.1:2"}
    tokens = [tmp_path / "one", tmp_path / "two"]
    for token in tokens:
        token.write_text("token")
    monkeypatch.setattr(parts, "find_ray", lambda *_: (found["ray_address"], found["dashboard_url"]))

    def up(token: Path) -> Process:
        environment = {"RAY_AUTH_TOKEN_PATH": str(token)}
        process = stack.up(home, dispatcher=DISPATCHER, ray_address="auto", environment=environment).process(
            "dispatcher"
        )
        assert process is not None
        return process

    first = up(tokens[0])
    assert up(tokens[0]) == first
    if change in found:
        found[change] += "0"
    second = up(tokens[change == "token_path"])
    assert second.alive()
    assert second != first
    assert not first.alive()


@pytest.mark.parametrize("then", ["down", "up"])
def test_a_redis_that_was_started_and_not_recorded_is_found(home: Path, then: str) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(home)]).returncode == -9
    (left,) = redises(home)
    assert [part.state for part in stack.status(home)] == ["stopped"] * 4
    if then == "down":
        assert stack.down(home) == ["redis"]
        assert redises(home) == []
    else:  # never two on one append-only file
        again = stack.up(home, dispatcher=None).process("redis")
        assert again is not None
        assert again.pid != left
        assert redises(home) == [again.pid]


@pytest.mark.parametrize("earlier", [False, True])
def test_a_start_that_is_interrupted_leaves_what_was_there(
    home: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    kept: tuple[Process, ...] = ()
    if earlier:
        up = stack.up(home, dispatcher=DISPATCHER)
        kept = tuple(process for process in up.processes if process.name != "redis")
        kill_redis(home)
    start = parts.start_redis

    def interrupted(*arguments: Any) -> None:
        process, url = start(*arguments)
        answers = functools.partial(parts.redis_answers, url)
        parts.wait_for("redis", answers, process=process, log=home / "none", timeout=60)
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "start_redis", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stack.up(home, dispatcher=DISPATCHER)
    assert redises(home) == []
    known = stack.read(home)
    assert (known.processes if known else ()) == kept
    assert all(process.alive() for process in kept)
