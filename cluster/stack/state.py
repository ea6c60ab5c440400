"""Where the stack keeps its files, and the record of what runs: `<home>/run/stack.json`."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.stack.processes import Process

State = Literal["running", "stopped", "unreachable"]


class StackError(RuntimeError):
    """A part of the stack cannot be started or reached; the message names the part and says why."""


@dataclass(frozen=True)
class PartStatus:
    """How one part of the stack is: running (and answers), unreachable (does not answer), or stopped."""

    name: str
    state: State
    detail: str


@dataclass(frozen=True)
class Stack:
    """A stack's addresses and processes, as `stack.json` records them.

    `processes` names only what `up` itself started; a part that was given by its URL is not among them.
    `token_path` holds Ray's token: drivers read it through RAY_AUTH_TOKEN_PATH, and a browser is asked for
    it once by the dashboard (paste the file's content).
    `notes` says what differs from what was asked, such as a port that was taken.
    """

    redis_url: str
    ray_address: str
    dashboard_url: str
    serve_url: str
    token_path: Path | None
    mark: str = ""
    own_redis: bool = True  # False: it was given by its URL
    temporary: Path | None = None  # around our Ray's sessions and sockets, removed by `down`
    processes: tuple[Process, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def addresses(self) -> tuple[object, ...]:
        """What the dispatcher is told when it starts, and does not ask for again."""
        return (self.redis_url, self.ray_address, self.dashboard_url, self.serve_url, self.token_path)

    def process(self, name: str) -> Process | None:
        """The process of that part, if this stack started it."""
        return next((process for process in self.processes if process.name == name), None)

    def token(self) -> str | None:
        """Ray's token; None on a cluster without one."""
        if self.token_path is None or not self.token_path.exists():
            return None
        return self.token_path.read_text(encoding="utf-8").strip()


@dataclass(frozen=True)
class Paths:
    """The one place that knows the names of the stack's files."""

    home: Path

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def stack(self) -> Path:
        return self.run / "stack.json"

    @property
    def lock(self) -> Path:
        return self.run / "stack.lock"

    @property
    def token(self) -> Path:
        return self.run / "ray.token"

    @property
    def dispatcher_ready(self) -> Path:
        """Holds the process id of the dispatcher that said it works."""
        return self.run / "dispatcher.ready"

    @property
    def redis_password(self) -> Path:
        return self.run / "redis.password"

    @property
    def redis_config(self) -> Path:
        return self.run / "redis.conf"

    @property
    def redis_data(self) -> Path:
        return self.home / "redis"

    def log(self, part: str) -> Path:
        return self.home / "logs" / f"{part}.log"

    def make(self) -> None:
        """Make the folders; `run` and Redis' data are their owner's alone."""
        for folder in (self.run, self.redis_data):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        self.log("").parent.mkdir(parents=True, exist_ok=True)


def read(home: Path) -> Stack | None:
    """The recorded stack of a home folder; None if there is none. Raises StackError if it cannot be read."""
    path = Paths(Path(home)).stack
    try:
        return _stack(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise StackError(
            f"stack: {path} is not a record of a stack ({type(error).__name__}: {error}); "
            "end its processes, if any, and remove it to begin anew"
        ) from error


def _stack(record: dict[str, Any]) -> Stack:
    return Stack(
        redis_url=record["redis_url"],
        ray_address=record["ray_address"],
        dashboard_url=record["dashboard_url"],
        serve_url=record["serve_url"],
        token_path=Path(record["token_path"]) if record["token_path"] else None,
        mark=record["mark"],
        own_redis=record["own_redis"],
        temporary=Path(record["temporary"]) if record["temporary"] else None,
        processes=tuple(
            Process.of_older_record(**process) if "started" in process else Process(**process)
            for process in record["processes"]
        ),
        notes=tuple(record["notes"]),
    )


def write(home: Path, stack: Stack) -> None:
    """Record the stack, whole or not at all."""
    write_secret(Paths(home).stack, json.dumps(asdict(stack), default=str, indent=2) + "\n")


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    elsewhere = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(elsewhere, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    elsewhere.replace(path)


def secret(path: Path) -> str:
    """The secret in a file; made at the first call."""
    if not path.exists():
        write_secret(path, secrets.token_hex(32))
    path.chmod(0o600)
    return path.read_text(encoding="utf-8").strip()
