from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ..jobs import postgresql as databases
from ..jobs.postgresql import PostgresqlServer
from .forking import Nursery
from .ground import Ground, Redis


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _postgresql() -> Iterator[PostgresqlServer]:
    with databases.running() as server:
        yield server


@pytest.fixture
def postgresql_server(_postgresql: PostgresqlServer) -> PostgresqlServer:
    """The session's PostgreSQL. A test may stop it; the next one that needs it finds it running again."""
    if not _postgresql.running:
        _postgresql.start()
    return _postgresql


@pytest.fixture
def postgresql(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """The URL of an empty database of ours, on the server whose socket is in the folder `host`."""
    with postgresql_server.database() as url:
        yield url


@pytest.fixture
def ground(tmp_path: Path, nursery: Nursery, redis: Redis) -> Iterator[Ground]:
    ground = Ground(tmp_path / "home", nursery, redis.url)
    yield ground
    for name in ground.processes.names():
        ground.processes.stop(name)
    shutil.rmtree(ground.settings.storage, ignore_errors=True)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 reviews that show their label."""
    draw = random.Random(0)
    words = (["bad", "awful", "poor"], ["good", "great", "lovely"])
    neutral = ["the", "a", "film", "plot", "actor", "scene", "it", "was"]
    labels = [number % 2 for number in range(160)]
    texts = [
        " ".join(draw.choice(words[label] if draw.random() < 0.3 else neutral) for _ in range(12))
        for label in labels
    ]
    path = tmp_path_factory.mktemp("reviews") / "reviews.parquet"
    parquet.write_table(pa.table({"text": texts, "label": labels}), path)
    return path
