"""Redis emptied, back with what it held a while ago, full: all is as the database says, in the same order."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from sqlalchemy import insert

from cluster.stack import parts
from jobs.attempt import Timings as AttemptTimings
from jobs.config import from_mapping
from jobs.dispatcher import Timings
from jobs.queue import Entry, Queue, QueueUnavailable
from jobs.service import Service
from jobs.store import AttemptState, JobState, Store
from jobs.store.tables import JobRow

from .ground import Ground, Redis, end, until
from .oracle import Expected, problems

ALL = os.environ.get("TEXTVAE_CHAOS") == "all"
AWAY = 60 if ALL else 3  # seconds
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


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", ["emptied", "gone", "old"])
def test_thousands_of_queued_jobs_are_back_in_the_same_order(ground: Ground, redis: Redis, how: str):
    """With the timings of production, while two attempts train, which go on: Redis is emptied; or gone, for a
    minute in `make chaos`, and back empty, or with an append-only file of other jobs and an old lease."""
    store, queue = Store(ground.settings.database_url), Queue(redis.url)
    queue.push([Entry("job-00001", 1, 5, 1), Entry("of-another", 1, 0, 1)])
    queue.renew("first", 0, 600)
    redis.stop()
    old = shutil.copytree(redis.folder, ground.home / "old")
    redis.start()
    redis.flush()
    ground.cpus = 2
    ground.attempt_order |= {"pace": 0.3, "timings": asdict(AttemptTimings())}
    training = ("first", "second")
    for number, id in enumerate(training):
        config = str(ground.config("stub", number, 500))
        assert ground.client("submit", config, "--id", id, "--priority", "9").wait() == 0
    submit_many(store, JOBS)
    dispatcher = ground.dispatcher(timings=asdict(Timings()))
    until(lambda: all(store.checkpoints(id) for id in training), "both to train")
    until(lambda: len(queue) == JOBS, "all to be queued")
    order = [job.id for job in store.queued()]
    assert list(queue.entries()) == order
    assert len(order) == JOBS

    def steps() -> dict[str, int]:
        return {id: store.checkpoints(id)[0].step for id in training}

    def gone_on(since: dict[str, int]) -> bool:
        return all(step > since[id] for id, step in steps().items())

    if how == "emptied":
        redis.flush()
    else:
        redis.stop()
        gone, before = time.monotonic(), steps()
        time.sleep(AWAY)
        until(lambda: gone_on(before), "both to go on without Redis", 30)
        print(f"{how}: without Redis for {time.monotonic() - gone:.0f} s, from {before} to {steps()}")
        shutil.rmtree(redis.folder)
        if how == "old":
            shutil.copytree(old, redis.folder)
        else:
            redis.folder.mkdir()
        redis.start()
    began = time.monotonic()
    before = steps()
    until(lambda: list(queue.entries()) == order, "all to be back", 10, pause=0.1)
    print(f"{how}: {JOBS} jobs were back in {time.monotonic() - began:.1f} s")
    until(lambda: queue.leases(training) == dict.fromkeys(training, 1), "the leases to be taken again", 10)
    until(lambda: gone_on(before), "both to go on")
    assert [(a.job, a.number) for a in store.attempts(active=True)] == [(id, 1) for id in training]
    end(dispatcher)
    queue.close()
    store.close()


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


def fill(redis: Redis, what: str) -> None:
    """Leave no room, in memory or on the disk: its file may not grow any more."""
    if what == "memory":
        redis.configure("maxmemory", "1")
    else:
        resource.prlimit(redis.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


def make_room(redis: Redis, what: str) -> None:
    if what == "memory":
        redis.configure("maxmemory", "0")
    else:
        resource.prlimit(redis.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def refuses(queue: Queue) -> bool:
    try:
        queue.ring()
    except QueueUnavailable as error:
        return "refuses" in str(error)
    return False


@pytest.mark.parametrize("what", ["memory", "disk"])
def test_a_full_redis_refuses_and_loses_nothing(
    what: str, ground: Ground, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A job that runs ends well; one that comes waits for room, or for nothing."""
    executable, version = parts.redis_server()
    wrapper = tmp_path / "redis-server"
    # The kernel ends who writes beyond the largest size; a full disk only fails the call.
    wrapper.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec '{executable}' \"$@\"\n")
    wrapper.chmod(0o700)
    monkeypatch.setattr(parts, "redis_server", lambda: (wrapper, version))
    redis.stop()
    redis.start()
    ground.attempt_order["pace"] = 0.1
    dispatcher, store, queue = ground.dispatcher(), Store(ground.settings.database_url), Queue(redis.url)
    # It trains for longer than an attempt may be silent.
    assert ground.client("submit", str(ground.config("stub", 3, 8)), "--id", "running").wait() == 0
    until(lambda: store.checkpoints("running"), "a checkpoint")
    fill(redis, what)
    until(lambda: refuses(queue), "Redis to refuse", pause=0.1)
    assert not store.job("running").state.final
    assert ground.client("submit", str(ground.config("stub", 4, 2)), "--id", "late").wait() == 0
    until(lambda: store.job("running").state.final, "the job that runs to end")
    if what == "disk":  # without memory Redis still takes a job out of the queue, which needs none
        assert store.job("late").attempt == 0
    assert refuses(queue)
    make_room(redis, what)
    until(lambda: store.job("late").state.final, "the job that waits to end")
    ground.settle(store)
    end(dispatcher)
    queue.close()
    assert problems(store, ground.settings, [Expected("running", 3, 8), Expected("late", 4, 2)]) == []
    assert [attempt.number for id in ("running", "late") for attempt in store.attempts(id)] == [1, 1]
    store.close()
