from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import redis
from filelock import FileLock

from cluster import stack
from cluster.stack import parts, processes
from cluster.stack.processes import Process
from cluster.stack.state import Paths, write

SLEEP = "import time; time.sleep(600)"
READY = (
    "import os, pathlib\n"
    "path = pathlib.Path(os.environ['TEXTVAE_HOME'], 'run', 'dispatcher.ready')\n"
    "path.touch(mode=0o600)\n"
    "path.write_text(str(os.getpid()))\n"
)
DISPATCHER = [sys.executable, "-c", READY + SLEEP]
STUBBORN = (
    "import os, signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "print('ready', flush=True)\n"
    "time.sleep(600)\n"
)


@pytest.fixture
def bystander() -> Iterator[psutil.Popen]:
    """A process of someone else, which must live on."""
    process = psutil.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def until(condition: object, timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def test_importing_the_stack_imports_neither_ray_nor_torch() -> None:
    code = "import sys, cluster.stack; print([m for m in ('ray', 'torch', 'redis') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_pid_given_to_someone_else_is_never_signalled(bystander: psutil.Popen) -> None:
    boot, _, ticks = processes._birth(bystander.pid).partition("/")
    for birth in (f"{boot}/{int(ticks) - 1}", f"another-boot/{ticks}", ""):
        reused = Process("part", bystander.pid, birth)
        assert not reused.alive()
        assert processes.end([reused], grace=1) == 0
    assert bystander.is_running()


@pytest.mark.parametrize("hours", [1, -1])
def test_a_part_is_known_again_when_the_clock_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    started = processes.start("part", [sys.executable, "-c", SLEEP], os.environ, tmp_path / "log")
    try:
        # The kernel reckons the moment of the boot from the clock of now.
        boot = psutil._pslinux.boot_time()
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot + hours * 3600)
        assert started.alive()
    finally:
        assert processes.end([started], grace=5) == 1


def test_a_record_of_an_older_version_is_read(tmp_path: Path, bystander: psutil.Popen) -> None:
    paths = Paths(tmp_path)
    paths.make()
    write(tmp_path, stack.Stack("", "", "", "", None))
    record = json.loads(paths.stack.read_text())
    born = bystander.create_time()
    record["processes"] = [
        {"name": "redis", "pid": bystander.pid, "started": born},
        {"name": "ray", "pid": bystander.pid, "started": born - 60},  # the pid was someone else's then
    ]
    paths.stack.write_text(json.dumps(record))
    known = stack.read(tmp_path)
    assert known is not None
    assert [process.alive() for process in known.processes] == [True, False]


def test_a_family_is_ended_with_those_that_left_its_session_and_refuse_to_end(tmp_path: Path) -> None:
    started = processes.start("part", [sys.executable, "-c", STUBBORN], os.environ, tmp_path / "log")
    until(lambda: (tmp_path / "log").read_text().count("ready") == 2)
    family = processes.family([started])
    assert len(family) == 2
    assert len({os.getsid(member.pid) for member in family}) == 2
    assert processes.end([started], grace=0.2) == 2
    assert not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family)


def test_orphans_are_found_by_their_mark(tmp_path: Path, bystander: psutil.Popen) -> None:
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); print('ready')"
    environment = {**os.environ, processes.MARK: "a-mark-of-this-test"}
    started = processes.start("part", [sys.executable, "-c", code], environment, tmp_path / "log")
    until(lambda: not started.alive())
    orphans = processes.family([started], "a-mark-of-this-test")
    assert len(orphans) == 1
    assert processes.end([started], "a-mark-of-this-test", grace=5) == 1
    assert processes.family([], "a-mark-of-this-test") == []
    assert bystander.is_running()


def test_the_default_port_gives_way_and_says_so_another_one_does_not() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        chosen, note = parts.choose_port("serve", None, port)
        assert chosen > port
        assert note == f"port {port} is taken: serve listens on {chosen}"
        assert parts.choose_port("serve", port, port)[0] == chosen
        with pytest.raises(stack.StackError, match=f"serve: port {port} is taken"):
            parts.choose_port("serve", port, port + 1)


@pytest.mark.parametrize(("version", "taken"), [("9.9.9", True), ("1.0.0", False)])
def test_the_newest_redis_server_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, taken: bool
) -> None:
    other = tmp_path / "redis-server"
    other.write_text(f"#!/bin/sh\necho Redis server v={version} sha=00000000:0 malloc=libc bits=64\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path, found = parts.redis_server()
    assert (path == other) is taken
    assert found >= (6, 2, 0)


def test_a_part_that_dies_while_starting_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "ray.log"
    code = "print('first'); raise SystemExit('no such port')"
    process = processes.start("ray", [sys.executable, "-c", code], os.environ, log)

    def never() -> str:
        raise stack.StackError("ray: no answer")

    with pytest.raises(stack.StackError, match=r"ray: ended while starting(.|\n)*no such port"):
        parts.wait_for("ray", never, process=process, log=log, timeout=20)
    with pytest.raises(stack.StackError, match=r"ray: not ready after 0 s \(ray: no answer\)(.|\n)*first"):
        parts.wait_for("ray", never, process=None, log=log, timeout=0)


def test_a_dispatcher_is_up_once_it_says_so_itself(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.make()
    paths.dispatcher_ready.write_text("1")  # of one that ran before
    known = stack.Stack("", "", "", "", None)
    environment = {**os.environ, "TEXTVAE_HOME": str(tmp_path)}
    for code, says in ((SLEEP, False), (READY + SLEEP, True)):
        process = parts.start_dispatcher(paths, [sys.executable, "-c", code], environment, known)
        try:
            if says:
                until(lambda: paths.dispatcher_ready.exists())
                assert parts.dispatcher_answers(paths, process) == f"pid {process.pid}"
            else:
                with pytest.raises(stack.StackError, match="dispatcher: it has not reached the database"):
                    parts.dispatcher_answers(paths, process)
        finally:
            processes.end([process], grace=2)


def test_what_was_started_is_ended_when_a_later_part_fails(tmp_path: Path) -> None:
    import socket

    heard: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(stack.StackError, match=f"ray dashboard: port {port} is taken"):
            stack.up(
                tmp_path,
                dispatcher=None,
                dashboard_port=port,
                on_part=lambda part, _: heard.append(part),
            )
    assert heard == ["redis"]
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])
    ]
    assert [part.state for part in stack.status(tmp_path)] == ["stopped"] * 4
    assert stack.down(tmp_path) == []


def test_an_external_redis_is_asked_not_started(tmp_path: Path) -> None:
    url = f"redis://:hid@den@127.0.0.1:{parts.free_port()}/0"
    with pytest.raises(
        stack.StackError, match=r"redis: no answer from redis://:\*\*\*@127\.0\.0\.1"
    ) as error:
        stack.up(tmp_path, dispatcher=None, redis_url=url, timeout=1)
    assert "den" not in str(error.value)


def test_one_up_at_a_time(tmp_path: Path) -> None:
    paths = Paths(tmp_path.resolve())
    paths.make()
    with FileLock(paths.lock), pytest.raises(stack.StackError, match="another up or down of"):
        stack.up(tmp_path, dispatcher=None, timeout=0.1)


def test_a_full_disk_where_ray_would_be_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    paths = Paths(tmp_path)
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(stack.StackError, match=r"^ray: /\S+ cannot be made: No space left on device$"):
        parts.ray_temporary(paths)


def test_all_sockets_of_ray_fit_below_the_longest_folder_that_it_is_given() -> None:
    from ray.dashboard.subprocesses.module import SubprocessModule
    from ray.dashboard.utils import get_all_modules

    modules = get_all_modules(SubprocessModule)
    sockets = ["plasma_store", "raylet", *(f"dash_{each.__name__}" for each in modules)]
    longest = max(len(name) for name in sockets)
    assert len(parts._LONGEST_SOCKET.rpartition("/")[2]) == longest
    assert parts._LONGEST_TEMPORARY + len(parts._LONGEST_SOCKET) == 107


@pytest.mark.parametrize("over", [0, 1])
def test_a_home_too_deep_for_the_sockets_has_them_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: int
) -> None:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        room = parts._LONGEST_TEMPORARY + over - len("/run/ray")
        paths = Paths(Path(short) / ("x" * (room - len(short) - 1)))
        paths.make()
        folder = parts.ray_temporary(paths)
        assert len(str(folder)) <= parts._LONGEST_TEMPORARY
        assert (folder == paths.run / "ray") == (not over)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("y" * 40)))
        if over:
            with pytest.raises(stack.StackError, match=r"set TMPDIR to a folder of at most \d+ characters$"):
                parts.ray_temporary(paths)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, stack.Stack]]:
    # A path that is too long for Ray's sockets.
    home = tmp_path_factory.mktemp("home") / ("long" * 12)
    try:
        yield home.resolve(), up(home)
    finally:
        stack.down(home)


def up(home: Path) -> stack.Stack:
    known = stack.read(home)
    ports = [int(url.rsplit(":", 1)[1]) for url in (known.dashboard_url, known.serve_url)] if known else []
    dashboard, serve = ports or (parts.free_port(), parts.free_port())
    return stack.up(home, dispatcher=DISPATCHER, cpus=1, dashboard_port=dashboard, serve_port=serve)


@pytest.mark.ray
def test_every_part_answers_on_loopback_alone_and_to_nobody_without_a_secret(
    running: tuple[Path, stack.Stack],
) -> None:
    home, started = running
    assert [(part.name, part.state) for part in stack.status(home)] == [
        (part, "running") for part in ("redis", "ray", "serve", "dispatcher")
    ]
    members = processes.family(started.processes, started.mark)
    assert len(members) > 10
    password = Paths(home).redis_password.read_text()
    for member in members:
        command = " ".join(member.cmdline())
        assert password not in command
        assert started.token() not in command  # type: ignore[operator]
        for connection in member.net_connections():
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1", (command, connection)
    for secret in Paths(home).run.iterdir():
        if secret.is_file() and secret.suffix != ".lock":
            assert secret.stat().st_mode & 0o077 == 0, secret
    assert started.temporary is not None
    assert started.temporary.stat().st_mode & 0o077 == 0
    assert [path.name for path in started.temporary.iterdir()] == [parts.ray_sessions(Path()).name]
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(port=int(started.redis_url.rsplit(":", 1)[1].split("/")[0])).ping()
    refused = httpx.get(f"{started.dashboard_url}/api/serve/applications/", trust_env=False)
    assert refused.status_code == 401
    assert httpx.get(f"{started.serve_url}/healthz", trust_env=False).json() == {
        "status": "no model",
        "models": [],
    }


@pytest.mark.ray
def test_the_dispatcher_is_told_where_everything_is(running: tuple[Path, stack.Stack]) -> None:
    home, started = running
    process = started.process("dispatcher")
    assert process is not None
    environment = psutil.Process(process.pid).environ()
    assert environment["TEXTVAE_HOME"] == str(home)
    assert environment["TEXTVAE_REDIS_URL"] == started.redis_url
    assert environment["RAY_ADDRESS"] == started.ray_address
    assert environment["RAY_AUTH_MODE"] == "token"
    assert Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text() == started.token()


@pytest.mark.ray
def test_up_starts_what_is_missing_and_leaves_the_rest(running: tuple[Path, stack.Stack]) -> None:
    home, started = running
    assert up(home) == started
    redis.Redis.from_url(started.redis_url).set("kept", "1")
    for name in ("redis", "dispatcher"):
        process = started.process(name)
        assert process is not None
        psutil.Process(process.pid).kill()
        until(lambda process=process: not process.alive())
    assert {part.name: part.state for part in stack.status(home)} == {
        "redis": "stopped",
        "ray": "running",
        "serve": "running",
        "dispatcher": "stopped",
    }
    again = up(home)
    assert again.redis_url == started.redis_url
    assert again.process("ray") == started.process("ray")
    assert again.process("dispatcher") != started.process("dispatcher")
    assert redis.Redis.from_url(again.redis_url).get("kept") == b"1"
    assert all(part.state == "running" for part in stack.status(home))


@pytest.mark.ray
def test_parts_that_were_given_are_used_and_left_alone(
    running: tuple[Path, stack.Stack], tmp_path: Path
) -> None:
    _, given = running
    now = stack.read(running[0])
    assert now is not None
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(given.token_path)}
    used = stack.up(
        tmp_path,
        dispatcher=DISPATCHER,
        redis_url=given.redis_url,
        ray_address=given.ray_address,
        environment=environment,
        serve_port=int(given.serve_url.rsplit(":", 1)[1]),
    )
    assert [process.name for process in used.processes] == ["dispatcher"]
    assert (used.redis_url, used.ray_address) == (given.redis_url, given.ray_address)
    assert (used.dashboard_url, used.serve_url) == (given.dashboard_url, given.serve_url)
    assert [part.state for part in stack.status(tmp_path)] == ["running"] * 4
    assert stack.down(tmp_path) == ["dispatcher"]
    assert all(process.alive() for process in now.processes)
    assert all(part.state == "running" for part in stack.status(running[0]))


@pytest.mark.ray
def test_down_leaves_nothing_of_the_stack_and_everything_else(
    running: tuple[Path, stack.Stack], bystander: psutil.Popen
) -> None:
    home, _ = running
    now = stack.read(home)
    assert now is not None
    members = processes.family(now.processes, now.mark)
    assert stack.down(home) == ["dispatcher", "ray", "redis"]
    assert not [
        member for member in members if member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    ]
    assert processes.family([], now.mark) == []
    assert bystander.is_running()
    assert now.temporary is not None
    assert not now.temporary.exists()
    assert stack.read(home) is None
    assert stack.down(home) == []
