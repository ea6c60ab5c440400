from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import Store

from ..jobs.conftest import RedisServer
from ..local_ray import LocalRay, await_head, end_ray, short_folder, start_head, start_node


@pytest.fixture
def two_nodes() -> Iterator[LocalRay]:
    """Two raylets of 1 CPU each under one head; who uses it connects from a process of its own."""
    with short_folder() as folder:
        head, process = start_head(folder, cpus=1)
        started = [process]
        try:
            await_head(head, process)
            started.append(start_node(head))
            yield head
        finally:
            for each in reversed(started):
                end_ray(each)


@pytest.fixture
def settings(tmp_path: Path, local_ray: LocalRay) -> Iterator[Settings]:
    """Those of a service on the session's Ray; pytest shows the logs of a test that fails."""
    redis = RedisServer(tmp_path)
    redis.start()
    settings = local_ray.settings(tmp_path / "home", redis.url)
    yield settings
    redis.stop()
    print("\n".join(f"{log}:\n{log.read_text()}" for log in settings.logs.rglob("*.log")))


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    store, queue = Store(settings.database_url), Queue(settings.redis_url)
    yield Service(store, queue)
    queue.close()
    store.close()
