"""What `up` does when it is killed, interrupted or told otherwise; Ray, which takes long, is left out."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
    monkeypatch.setattr(control, "port", lambda **_: 8000)


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
    psutil.Process(pid).kill()
    deadline = time.monotonic() + 10
    while redises(home):
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
