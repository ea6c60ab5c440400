"""Redis emptied, and back with what it held a while ago: all is as the database says, in the same order."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from jobs.config import from_mapping
from jobs.queue import Queue
from jobs.service import Service
from jobs.store import AttemptState, JobState, Store
from jobs.store.tables import JobRow

from .ground import Redis

ALL = os.environ.get("TEXTVAE_CHAOS") == "all"
JOBS = 10_000 if ALL or os.environ.get("CI") else 2_000


@pytest.fixture
def service(tmp_path: Path, redis: Redis) -> Iterator[Service]:
    store, queue = Store(f"sqlite:///{tmp_path / 'textvae.db'}"), Queue(redis.url)
    yield Service(store, queue)
    queue.close()
    store.close()


def submit_many(store: Store, number: int) -> None:
    """Record jobs of several priorities, as `submit` does, in one transaction."""
    config = from_mapping({"name": "many"})
    template = store.add_job(
        "template",
        config=config.model_dump(mode="json"),
        name="many",
        owner="ada",
        priority=0,
        ranks=1,
        cpus=1,
        gpus=0,
    )[0]
    store.request_cancel(template.id, "ada")
    with store.writing() as connection:
        row = dict(
            connection.execute(JobRow.__table__.select().where(JobRow.id == "template")).one()._mapping
        )
        del row["sequence"]
        again = {"state": JobState.QUEUED, "cancel_requested": None, "finished": None}
        rows = [row | again | {"id": f"job-{n:05}", "priority": n % 7 - 3} for n in range(number)]
        connection.execute(insert(JobRow), rows)


def test_thousands_of_queued_jobs_are_back_in_the_same_order(service: Service, redis: Redis):
    submit_many(service.store, JOBS)
    service.reconcile_queue()
    order = list(service.queue.entries())
    assert order == [job.id for job in service.store.queued()]
    assert len(order) == JOBS
    redis.flush()
    began = time.monotonic()
    service.reconcile_queue()
    print(f"{JOBS} jobs were back in {time.monotonic() - began:.1f} s")
    assert list(service.queue.entries()) == order


def test_redis_with_an_old_append_only_file_is_corrected(service: Service, redis: Redis, tmp_path: Path):
    """It knows a job as waiting that has run since, one's lease that has ended, and lacks a third."""
    store, config = service.store, from_mapping({"name": "reviews"})
    for id in ("done", "running"):
        service.submit(config, id=id)
    service.queue.renew("running", 0, 600)  # a lease of long ago
    redis.stop()
    data = tmp_path / "redis" / "redis"
    shutil.copytree(data, tmp_path / "old")
    redis.start()
    for id in ("done", "running"):
        store.open_attempt(id, 1, "test")
        store.start_attempt(id, 1)
        service.queue.remove([id])
    service.queue.renew("running", 1, 600)
    service.finish("done", 1, AttemptState.SUCCEEDED, by="attempt")
    service.submit(config, id="new")
    redis.stop()
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "old", data)
    redis.start()
    assert set(service.queue.entries()) == {"done", "running"}
    service.reconcile_queue()
    assert service.queue.entries() == {"new": 1}
    # The running attempt takes its lease again, over that of an earlier one.
    assert service.queue.renew("running", 1, 600)
    assert service.queue.leases(["running"]) == {"running": 1}
    assert [job.id for job in store.queued()] == ["new"]
