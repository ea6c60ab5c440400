"""Where a chaos test takes place: a home, a Redis like the local stack's, the processes that it may kill."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from cluster.stack import parts, processes
from cluster.stack.state import Paths, StackError
from jobs.settings import Settings
from jobs.store import Conflict, StaleAttempt, Store

from .forking import Nursery, gone
from .launcher import Processes
from .serving import FileServer

# Of a model so small that a real job of it takes a second.
_SMALL = {
    "vocabulary": {"kind": "words", "size": 40, "max_length": 16},
    "model": {"embedding": 8, "encoder_hidden": 8, "latent": 4, "decoder_hidden": 8},
}


class Redis:
    """A Redis as the local stack starts it, append-only file included; one that is killed can come back."""

    def __init__(self, home: Path):
        self._paths = Paths(home)
        self._paths.make()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._process: processes.Process | None = None
        self.url = self.start()

    def start(self) -> str:
        """Start it, and wait until it answers; its URL."""
        self._process, url = parts.start_redis(self._paths, {}, self._port)
        parts.wait_for(
            "redis",
            lambda: parts.redis_answers(url),
            process=self._process,
            log=self._paths.log("redis"),
            timeout=30,
        )
        return url

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def folder(self) -> Path:
        """Where its append-only file is."""
        return self._paths.redis_data

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """Kill it with -9."""
        if self._process is not None:
            processes.end([self._process], grace=0)
            self._process = None

    def flush(self) -> None:
        import redis

        client = redis.Redis.from_url(self.url)
        client.flushall()
        client.close()

    def set_clock(self, seconds: float) -> None:
        """What a jump of the clock makes of its keys, for each of which it keeps the moment of its end."""
        import redis

        client = redis.Redis.from_url(self.url)
        for key in client.scan_iter():
            left = client.pttl(key)
            if left > 0:
                client.pexpire(key, round(left - seconds * 1000))
        client.close()

    def configure(self, name: str, value: str) -> None:
        import redis

        client = redis.Redis.from_url(self.url)
        client.config_set(name, value)
        client.close()


class Ground:
    """One home with its parts. `pace` is how many seconds a step of a stub job takes.

    Without a `database_url` its database is an SQLite file in it.
    """

    def __init__(
        self,
        home: Path,
        nursery: Nursery,
        redis_url: str,
        *,
        pace: float = 0.01,
        cpus: float = 4,
        database_url: str | None = None,
    ):
        self.nursery = nursery
        self.home = home
        self.cpus = cpus
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.settings = Settings(
            home=home,
            database_url=database_url or f"sqlite:///{home / 'textvae.db'}",
            storage=str(home / "storage"),
            redis_url=redis_url,
        )
        self.attempt_order: dict[str, Any] = {"mother": nursery.address, "pace": pace}
        self._numbers = itertools.count()

    @property
    def processes(self) -> Processes:
        """The attempts of this home."""
        return Processes(self.home / "attempts", self.nursery.address, {}, cpus=self.cpus)

    def config(self, model: str, seed: int, epochs: int, *, data: Path | None = None) -> Path:
        """A config's file: of a stub job or, with `data`, of a real one."""
        training: dict[str, Any] = {"epochs": epochs, "keep_last": 2, "batch_size": 20}
        # Patient with whoever kills it, and at once.
        retry = {"max_attempts": 100, "max_infrastructure": 100, "backoff": 0}
        config: dict[str, Any] = {"name": model, "seed": seed, "retry": retry, "training": training}
        if data is not None:
            config |= _SMALL | {"data": {"source": "files", "train": [str(data)]}}
        path = self.home / f"{model}-{seed}-{epochs}.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        return path

    def client(self, *words: str, **more: Any) -> Client:
        """`textvae-jobs WORDS` in a process of its own."""
        return Client(self, words, next(self._numbers), more)

    def dispatcher(self, **more: Any) -> int:
        """A dispatcher in a process of its own; its pid."""
        order = {
            "settings": self.settings.to_dict(),
            "folder": str(self.home / "attempts"),
            "mother": self.nursery.address,
            "attempt": self.attempt_order,
            "cpus": self.cpus,
            **more,
        }
        return self.nursery.spawn("dispatcher", order, self.log("dispatcher"))

    def serves_what_is_promoted(self, store: Store) -> bool:
        """Whether the dispatchers have served every promotion; they do so a moment after it."""
        serves = FileServer(self.home).current()
        want = {version.model: version.version for version in store.served()}
        return {model: version["version"] for model, version in serves.items()} == want

    def settle(self, store: Store) -> None:
        """Wait until every process of an attempt is gone and what is promoted is served."""
        until(lambda: not self.processes.living(), "everything to leave")
        until(lambda: self.serves_what_is_promoted(store), "what is promoted to be served")

    def log(self, name: str) -> Path:
        """Where processes of that kind write what they print."""
        folder = self.home / "logs"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.log"


class Client:
    """One command of a user."""

    def __init__(self, ground: Ground, words: tuple[str, ...], number: int, more: Mapping[str, Any]):
        self._answer = ground.home / f"client-{number}.code"
        environment = {
            "TEXTVAE_HOME": str(ground.home),
            "TEXTVAE_REDIS_URL": str(ground.settings.redis_url),
            "TEXTVAE_DATABASE_URL": ground.settings.database_url,
        }
        order = {"environment": environment, "words": list(words), "answer": str(self._answer), **more}
        self.pid = ground.nursery.spawn("cli", order, ground.log("clients"))

    @property
    def done(self) -> bool:
        """Whether its process has ended, one way or the other."""
        return gone(self.pid)

    @property
    def code(self) -> int | None:
        """Its exit code; none if it was killed before it had one."""
        return int(self._answer.read_text()) if self._answer.exists() else None

    def wait(self) -> int | None:
        until(lambda: self.done, "a client to end")
        return self.code


def until(what: Callable[[], Any], words: str, seconds: float = 60, pause: float = 0.005) -> Any:
    """The value of `what` once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {words}"
        time.sleep(pause)
    return value


def writable(database: Path) -> bool:
    """Whether nobody holds the lock of this SQLite file: who is frozen with it keeps all others out."""
    with closing(sqlite3.connect(database, timeout=0)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
    return True


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Call them all at the same moment; what each returned, or the StaleAttempt or Conflict that it raised.

    Raises whatever else one of them raises.
    """
    together = threading.Barrier(len(calls))

    def work(call: Callable[[], object]) -> object:
        together.wait()
        try:
            return call()
        except (StaleAttempt, Conflict) as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(work, calls))


def end(pid: int, number: signal.Signals = signal.SIGTERM) -> None:
    """End a child and wait until it is gone."""
    if not gone(pid):
        os.kill(pid, number)
    until(lambda: gone(pid), f"process {pid} to end")


__all__ = ["Client", "Ground", "Redis", "StackError", "at_once", "end", "until", "writable"]
