"""The checks of `doctor`, each a function without arguments that looks at one part."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import httpx

from jobs.cli import output, service, stack
from jobs.settings import sqlite_path
from textvae.urls import masked

_SHOWN = ("torch", "ray", "redis", "sqlalchemy", "pyarrow", "click")
_LITTLE_SPACE = 2e9  # bytes
_SECONDS = 5.0  # for an answer over HTTP


@dataclass(frozen=True)
class Result:
    """What one check found."""

    part: str
    mark: Literal["ok", "warn", "fail"]
    found: str


def python() -> Result:
    """The interpreter."""
    mark: Literal["ok", "fail"] = "ok" if sys.version_info >= (3, 11) else "fail"
    need = "" if mark == "ok" else "; 3.11 or newer is needed"
    return Result("python", mark, f"{platform.python_version()} at {sys.executable}{need}")


def packages() -> Result:
    """The installed versions against those that this package asks for."""
    from packaging.requirements import Requirement

    wrong = []
    for line in metadata.requires("textvae-jobs") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return Result("packages", "fail", "; ".join(wrong))
    return Result("packages", "ok", ", ".join(f"{name} {metadata.version(name)}" for name in _SHOWN))


def home() -> Result:
    """The home folder: writable, private, with room."""
    folder = service.settings().home
    if not folder.exists():
        return Result("home", "ok", f"{folder} is made at first use")
    if problem := _not_writable(folder):
        return Result("home", "fail", problem)
    free = shutil.disk_usage(folder).free
    if folder.stat().st_mode & 0o077:
        return Result("home", "warn", f"{folder} is open to other users; close it with: chmod 700 {folder}")
    if free < _LITTLE_SPACE:
        return Result("home", "warn", f"{folder} has only {output.size(free)} left")
    return Result("home", "ok", f"{folder}, {output.size(free)} free")


def database() -> Result:
    """The database opens, and its tables are the newest."""
    from jobs.migrations import HEAD

    path = sqlite_path(service.settings().database_url)
    if path is not None and not path.exists():
        return Result("database", "ok", f"{path} is made at first use")
    jobs = service.store().count()
    return Result("database", "ok", f"opens; tables at revision {HEAD}, {output.several(jobs, 'job')}")


def storage() -> Result:
    """The artifact store can be written to."""
    root = service.settings().storage
    if "://" in root:
        from textvae.artifacts import Artifacts

        return Result(
            "storage", "ok", f"{masked(root)} answers; {len(Artifacts(root).list('models'))} model versions"
        )
    folder = Path(root)
    if not folder.exists():
        return Result("storage", "ok", f"{folder} is made at first use")
    problem = _not_writable(folder)
    return Result("storage", "fail" if problem else "ok", problem or f"{folder} can be written to")


def redis_server() -> Result:
    """The redis-server that `up` would start."""
    from cluster.stack import StackError
    from cluster.stack.parts import redis_server

    try:
        path, version = redis_server()
    except StackError as error:
        given = service.settings().origins.get("redis_url") == "TEXTVAE_REDIS_URL"
        return Result("redis-server", "warn" if given else "fail", str(error))
    note = "" if mended(version) else f"; {_CVE}: it is kept to this machine and behind a generated password"
    return Result("redis-server", "ok", f"{'.'.join(map(str, version))} at {path}{note}")


def redis() -> Result:
    """Redis answers; one that is not ours should be mended."""
    from jobs.queue import QueueUnavailable

    settings = service.settings()
    if settings.redis_url is None:
        return Result("redis", "ok", "not running")
    try:
        version = service.queue().ping()
    except QueueUnavailable as error:
        return Result("redis", "fail", str(error))
    if settings.origins.get("redis_url") == "TEXTVAE_REDIS_URL" and not mended(
        tuple(int(part) for part in version.split(".")[:3])
    ):
        return Result("redis", "warn", f"version {version} answers; {_CVE}: upgrade that server")
    return Result("redis", "ok", f"version {version} answers")


_CVE = "older than the fix of CVE-2025-49844 (Lua; it takes a client that knows the password)"
_MENDED = {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2}  # the first mended version of each line


def mended(version: tuple[int, ...]) -> bool:
    line = version[:2]
    return version[2] >= _MENDED[line] if line in _MENDED else line > max(_MENDED)


def ray() -> Result:
    """Ray's head answers, and only to those who have the token."""
    settings = service.settings()
    if settings.dashboard_url is None:
        return Result(
            "ray",
            "ok",
            f"{settings.ray_address} is not the local stack's" if settings.ray_address else "not running",
        )
    url = f"{settings.dashboard_url}/api/version"
    try:
        token = settings.token_path.read_text(encoding="utf-8").strip() if settings.token_path else ""
    except OSError as error:
        return Result("ray", "fail", f"{settings.token_path} cannot be read: {error.strerror or error}")
    try:
        with httpx.Client(timeout=_SECONDS, trust_env=False) as client:
            open_to_all = client.get(url).is_success
            answer = client.get(url, headers={"Authorization": f"Bearer {token}"})
    except httpx.HTTPError as error:
        return Result("ray", "fail", f"{url} does not answer ({error})")
    if not answer.is_success:
        return Result("ray", "fail", f"{url} answers {answer.status_code} to our token")
    version = answer.json().get("ray_version")
    if open_to_all:
        return Result("ray", "warn", f"version {version} answers anyone: token authentication is off")
    if version != metadata.version("ray"):
        return Result("ray", "fail", f"the head runs {version}, here is {metadata.version('ray')}")
    return Result("ray", "ok", f"version {version} answers; token authentication is on")


def dispatcher() -> Result:
    """The dispatcher looks at the cluster."""
    from jobs.queue import QueueUnavailable

    if service.settings().redis_url is None:
        return Result("dispatcher", "ok", "not running")
    try:
        cluster = service.queue().cluster()
    except QueueUnavailable:
        return Result("dispatcher", "warn", "nothing to be known of it without Redis")
    if cluster is None:
        return Result(
            "dispatcher",
            "warn",
            f"has not told what it sees; its log is {stack.log_of(service.settings().home, 'dispatcher')}",
        )
    return Result("dispatcher", "ok", ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in cluster.items()))


def served_model() -> Result:
    """The HTTP server answers."""
    url = service.settings().serve_url
    if url is None:
        return Result("served model", "ok", "not running")
    try:
        answer = httpx.get(f"{url}/healthz", timeout=_SECONDS, trust_env=False)
    except httpx.HTTPError as error:
        return Result("served model", "warn", f"{url} does not answer ({error})")
    if answer.status_code == 503:
        return Result("served model", "ok", f"{url} answers; no model is served yet")
    return Result(
        "served model", "ok" if answer.is_success else "warn", f"{url}/healthz answers {answer.status_code}"
    )


def gpus() -> Result:
    """What torch could train on."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Result("gpus", "ok", ", ".join(names))
    if shutil.which("nvidia-smi"):
        return Result("gpus", "warn", f"this machine has GPUs, but torch {torch.__version__} sees none")
    return Result("gpus", "ok", f"none; training on {os.cpu_count()} CPUs")


def ports() -> Result:
    """The default ports are free, or the running stack's own."""
    if service.settings().serve_url is not None:
        return Result("ports", "ok", "in use by the running service")
    taken = [port for port in (stack.DASHBOARD_PORT, stack.SERVE_PORT) if not _free(port)]
    if taken:
        return Result("ports", "warn", f"{', '.join(map(str, taken))} taken; up takes others")
    return Result("ports", "ok", f"{stack.DASHBOARD_PORT} and {stack.SERVE_PORT} are free")


ALL: tuple[Callable[[], Result], ...] = (
    python,
    packages,
    home,
    database,
    storage,
    redis_server,
    redis,
    ray,
    dispatcher,
    served_model,
    gpus,
    ports,
)


def _not_writable(folder: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder} cannot be written to: {error.strerror or error}"


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
