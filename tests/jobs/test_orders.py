"""What the service does with orders: the store first, then the queue."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from jobs.config import JobConfig
from jobs.queue import Queue
from jobs.service import Service
from jobs.store import AttemptState, Cause, Conflict, Job, JobState, NotFound, Store

from .conftest import DATABASES as DATABASES

AddJob = Callable[..., Job]


@pytest.fixture
def offline(store: Store) -> Service:
    """The service while Redis is away."""
    return Service(store, Queue("redis://127.0.0.1:1/0"))


def test_only_a_job_that_may_start_is_queued(service: Service, config: JobConfig):
    now = service.store.clock()
    service.submit(config, id="first")
    service.submit(config, id="after", after=["first"])
    service.submit(config, id="later", not_before=now + timedelta(hours=1))
    service.submit(config, id="held", held=True)
    service.submit(config, id="past", not_before=now)
    assert list(service.queue.entries()) == ["first", "past"]
    service.reconcile_queue()
    assert list(service.queue.entries()) == ["first", "past"]
    service.release("hel", by="ada")
    service.requeue("later", by="ada")
    assert list(service.queue.entries()) == ["first", "later", "held", "past"]
    service.hold("first", by="ada")
    assert list(service.queue.entries()) == ["later", "held", "past"]


def test_a_job_that_ends_queues_those_it_kept_waiting(service: Service, add_job: AddJob):
    add_job("first")
    add_job("second", after=["first"])
    add_job("third", after=["second"])
    add_job("any", after_any=["first"])
    store = service.store
    store.open_attempt("first", 1, by="test")
    service.finish("first", 1, AttemptState.SUCCEEDED, by="attempt")
    assert list(service.queue.entries()) == ["second", "any"]
    service.cancel("second")
    assert store.job("third").state is JobState.CANCELLED
    assert list(service.queue.entries()) == ["any"]


def test_orders_need_no_redis(offline: Service, service: Service, add_job: AddJob):
    for id in ("one", "two"):
        add_job(id)
    offline.hold("one")
    offline.store.open_attempt("two", 1, by="test")
    offline.requeue("two")
    offline.finish("two", 1, AttemptState.PREEMPTED, by="attempt", cause=Cause.PREEMPTED)
    offline.drain()
    offline.drain(False)
    offline.release("one")
    service.reconcile_queue()  # Redis is back
    assert service.queue.entries() == {"one": 1, "two": 2}


def test_a_config_written_by_an_older_version_is_the_same_job(
    service: Service, store: Store, config: JobConfig
):
    old = config.model_dump(mode="json")
    del old["retry"], old["time_limit"]
    old["max_attempts"] = 2
    store.add_job("nightly", config=old, name="reviews", owner="ada", priority=0, ranks=1, cpus=1, gpus=0)
    assert not service.submit(config, id="nightly").created
    with pytest.raises(Conflict, match="another config"):
        service.submit(config.model_copy(update={"time_limit": 60.0}), id="nightly")


def test_what_a_job_comes_after_is_part_of_what_it_is(service: Service, config: JobConfig):
    first = service.submit(config, id="first").job
    again = [service.submit(config, id="second", after=[first.id[:4]]) for _ in range(2)]
    assert [done.created for done in again] == [True, False]
    with pytest.raises(Conflict, match="comes after other jobs"):
        service.submit(config, id="second")
    with pytest.raises(NotFound):
        service.submit(config, id="third", after=["nobody"])
