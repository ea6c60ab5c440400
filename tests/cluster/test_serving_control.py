"""What Serve is told, by a dashboard that answers as Ray's does. No Ray is started."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cluster import serving
from cluster.serving import control
from cluster.stack import parts


def test_a_version_must_say_where_it_is() -> None:
    with pytest.raises(serving.ServingError, match="model film: the version to serve lacks digest"):
        serving.apply({"film": {"version": 1, "location": "x"}}, dashboard_url="http://127.0.0.1:1")


def test_a_dashboard_that_is_not_there_is_named() -> None:
    url = f"http://127.0.0.1:{parts.free_port()}"
    with pytest.raises(serving.ServingError, match=f"no answer from Ray's dashboard at {url}"):
        serving.apply({}, dashboard_url=url, timeout=2)
    with pytest.raises(serving.ServingError, match=f"no answer from the served application at {url}"):
        serving.current(serve_url=url)


SERVE = {"http_options": {"host": "127.0.0.1", "port": 8123}, "proxy_location": "EveryNode"}
THEIRS = {"name": "theirs", "import_path": "them:app", "route_prefix": "/theirs"}


@pytest.fixture
def dashboard(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of one that tells what the test's parameter is of Serve, and what it is told."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(request.param).encode())

        def do_PUT(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}", told
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.mark.parametrize(
    ("dashboard", "proxy", "port", "names"),
    [
        ({"applications": {}}, "HeadOnly", 8001, ["textvae"]),
        (
            {
                **SERVE,
                "applications": {
                    "theirs": {"status": "RUNNING", "source": "declarative", "deployed_app_config": THEIRS},
                    "run": {"status": "RUNNING", "source": "imperative", "deployed_app_config": None},
                    "ended": {"status": "DELETING", "source": "declarative", "deployed_app_config": None},
                },
            },
            "EveryNode",
            8123,
            ["theirs", "textvae"],
        ),
    ],
    indirect=["dashboard"],
    ids=["no Serve", "others'"],
)
def test_a_serve_that_others_use_is_left_as_it_is(
    dashboard: tuple[str, list[dict[str, Any]]], proxy: str, port: int, names: list[str]
) -> None:
    url, told = dashboard
    serving.apply({}, dashboard_url=url, http_port=8001)
    (config,) = told
    assert config["proxy_location"] == proxy
    assert config["http_options"] == {"host": "127.0.0.1", "port": port}
    assert [each["name"] for each in config["applications"]] == names
    assert all(each == THEIRS for each in config["applications"][:-1])
    found = control.running(dashboard_url=url)
    assert found == (control.Serve("127.0.0.1", 8123, applied=False) if port == 8123 else None)


@pytest.mark.parametrize(
    ("dashboard", "reason"),
    [
        (
            {"applications": {}, "http_options": {"host": "0.0.0.0", "port": 8000}},
            "Serve runs on this cluster already and listens on 0.0.0.0, where whoever",
        ),
        (
            {**SERVE, "applications": {"theirs": {"status": "DEPLOYING", "source": "declarative"}}},
            "the application theirs, which is not ours, is just being deployed",
        ),
    ],
    indirect=["dashboard"],
    ids=["open to all", "under way"],
)
def test_a_serve_that_cannot_be_used_is_left_as_it_is(
    dashboard: tuple[str, list[dict[str, Any]]], reason: str
) -> None:
    url, told = dashboard
    with pytest.raises(serving.ServingError, match=reason):
        serving.apply({}, dashboard_url=url, http_port=8001)
    assert told == []
