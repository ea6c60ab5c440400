from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from jobs.config import JobConfig
from jobs.dispatcher import Capacity, Dispatcher, Timings
from jobs.queue import Entry, Queue
from jobs.service import LAUNCH_GRACE, Service
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, EventKind, JobState, Store, StoreUnavailable

from ..conftest import DATABASES as DATABASES
from ..conftest import Clock, RedisServer
from .conftest import AddJob, At, Cluster, end, running


def test_a_job_is_opened_and_launched(
    make: Callable[..., Dispatcher],
    service: Service,
    cluster: Cluster,
    config: JobConfig,
    settings: Settings,
):
    dispatcher = At(make(Timings(claim_lease=60)))
    job = service.submit(config).job
    dispatcher.step()
    assert cluster.started == [f"{job.id}-1"]
    assert cluster.arguments[f"{job.id}-1"]["job"] == job.id
    assert cluster.arguments[f"{job.id}-1"]["number"] == 1
    assert Settings.from_dict(cluster.arguments[f"{job.id}-1"]["settings"]) == settings
    assert service.store.job(job.id).state is JobState.RUNNING
    assert service.queue.leases([job.id]) == {job.id: 1}
    dispatcher.step(3)
    assert len(cluster.started) == 1
    assert service.queue.cluster() == {
        "total_cpus": 4,
        "total_gpus": 2,
        "free_cpus": 4,
        "free_gpus": 2,
    }


def test_jobs_run_side_by_side_while_they_fit(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob
):
    for id, cpus, gpus in (("one", 2, 0), ("two", 1, 2), ("three", 1, 1), ("four", 1, 0)):
        add_job(id, cpus=cpus, gpus=gpus)
    dispatcher.step()
    # The third waits for a GPU; the fourth would fit, but must not overtake it for ever.
    assert running(service.store) == ["one-1", "two-1"]
    end(service, cluster, "two")
    dispatcher.step()
    assert running(service.store) == ["four-1", "one-1", "three-1"]


def test_what_others_use_of_the_cluster_is_not_free(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob
):
    add_job("one", cpus=2)
    cluster.capacity = Capacity(4, 2, 1, 2)
    dispatcher.step()
    assert running(service.store) == []
    cluster.capacity = Capacity(4, 2, 2, 2)
    dispatcher.step()
    assert running(service.store) == ["one-1"]


def test_what_others_use_is_not_given_to_two_jobs_that_start_at_once(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob
):
    cluster.capacity = Capacity(4, 2, 2, 2)  # others hold 2 CPUs
    add_job("one", cpus=2)
    add_job("two", cpus=2)
    dispatcher.step(3)
    # The ranks of the first may not be placed yet: what the cluster says is free is meant for them.
    assert running(service.store) == ["one-1"]
    cluster.capacity = Capacity(6, 2, 2, 2)  # they are, and 2 more CPUs have come
    service.store.start_attempt("one", 1)
    dispatcher.step()
    assert running(service.store) == ["one-1", "two-1"]


def test_a_job_larger_than_the_cluster_is_told_of_once(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob
):
    add_job("large", gpus=8)
    add_job("small")
    dispatcher.step(3)
    assert running(service.store) == ["small-1"]
    unfit = [event for event in service.store.events("large") if event.kind is EventKind.UNFIT]
    assert [event.detail["reason"] for event in unfit] == ["needs 8 GPUs, the cluster has 2"]
    cluster.capacity = Capacity(8, 8, 7, 8)
    dispatcher.step()
    assert running(service.store) == ["large-1", "small-1"]


def test_an_entry_of_a_job_that_is_not_recorded_holds_nobody_up(
    dispatcher: At, service: Service, add_job: AddJob
):
    """A Redis of an older day, or of two services, has entries that this store knows nothing of."""
    add_job("one")
    dispatcher.dispatcher._service.reconcile_queue()
    service.queue.push([Entry("stranger", 1, 5, 1)])
    assert [attempt.job for attempt in dispatcher.dispatcher.launch()] == ["one"]


def test_a_cluster_without_cpus_is_not_there_yet(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob
):
    add_job("one")
    cluster.capacity = Capacity(0, 0, 0, 0)
    dispatcher.step(2)
    assert running(service.store) == []
    assert [event.kind for event in service.store.events("one")] == [EventKind.SUBMITTED]


def test_two_dispatchers_never_launch_a_job_twice(
    make: Callable[..., Dispatcher], store: Store, cluster: Cluster, add_job: AddJob
):
    jobs = [f"job-{n:02}" for n in range(30)]
    for id in jobs:
        add_job(id, cpus=0.1)
    dispatchers = [At(make()) for _ in range(3)]
    barrier = threading.Barrier(3)

    def work(at: At) -> None:
        barrier.wait()
        at.step(3)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, dispatchers))
    assert sorted(cluster.started) == [f"{id}-1" for id in jobs]
    assert running(store) == sorted(cluster.started)


def test_attempts_that_wait_for_a_slow_launch_are_not_taken_for_lost(
    make: Callable[..., Dispatcher],
    store: Store,
    redis_server: RedisServer,
    cluster: Cluster,
    add_job: AddJob,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
):
    """They are open, and the process that could show that they are alive is still to be started."""
    for id in ("one", "two", "three"):
        add_job(id)
    first, second = make(Timings(claim_lease=3)), make()
    server = redis.Redis.from_url(redis_server.url)
    start = cluster.start

    def slow(name: str, *arguments: Any) -> None:
        if name == "one-1":
            # Until the claim of the next one is renewed, or has ended.
            before = after = server.pttl("textvae:lease:two")
            while 0 < after <= before:
                before, after = after, server.pttl("textvae:lease:two")
            clock.forward(LAUNCH_GRACE + 1)
            second.watch(0.0)
        start(name, *arguments)

    monkeypatch.setattr(cluster, "start", slow)
    assert len(first.launch()) == 3
    server.close()
    assert running(store) == sorted(cluster.started) == ["one-1", "three-1", "two-1"]


def test_an_attempt_that_was_ended_before_its_launch_is_not_launched(
    dispatcher: At,
    service: Service,
    cluster: Cluster,
    add_job: AddJob,
    monkeypatch: pytest.MonkeyPatch,
):
    """A dispatcher that was frozen for a while goes on with what others have given up."""
    add_job("one")
    add_job("two")
    start = cluster.start

    def frozen(name: str, *arguments: Any) -> None:
        if name == "one-1":
            service.finish("two", 1, AttemptState.LOST, by="another", cause=Cause.NEVER_STARTED)
        start(name, *arguments)

    monkeypatch.setattr(cluster, "start", frozen)
    assert [attempt.actor for attempt in dispatcher.dispatcher.launch()] == ["one-1"]
    assert cluster.started == ["one-1"]
    dispatcher.step()
    assert cluster.started == ["one-1", "two-2"]


def test_a_crash_between_opening_and_launching_is_healed(
    dispatcher: At,
    make: Callable[..., Dispatcher],
    store: Store,
    cluster: Cluster,
    add_job: AddJob,
    clock: Clock,
):
    add_job("one")
    cluster.starts = False
    dispatcher.step()
    assert running(store) == ["one-1"]
    assert cluster.started == []
    cluster.starts = True
    after = At(make())  # the next dispatcher
    after.step()
    assert running(store) == ["one-1"]  # it could be coming up just now
    clock.forward(LAUNCH_GRACE + 1)
    time.sleep(0.25)  # the claim's lease ends, in Redis' own time
    after.step()
    assert cluster.started == ["one-2"]
    assert [a.cause for a in store.attempts("one")] == [Cause.NEVER_STARTED, None]


def test_a_launch_that_fails_is_told_of_with_its_ids_and_keeps_nobody_else_waiting(
    dispatcher: At,
    store: Store,
    cluster: Cluster,
    add_job: AddJob,
    lines: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
):
    add_job("one")
    add_job("two")
    start = cluster.start

    def silent(name: str, *arguments: Any) -> None:
        if name == "one-1":
            raise RuntimeError("starting one-1: Ray has not answered for 60 s")
        start(name, *arguments)

    def away(job: str, number: int) -> None:
        raise StoreUnavailable("the database does not answer")

    monkeypatch.setattr(cluster, "start", silent)
    monkeypatch.setattr(store, "check_attempt", away)
    assert not dispatcher.dispatcher.step(1.0)
    assert cluster.started == ["two-1"]
    told = [(line["message"], line.get("job"), line.get("attempt")) for line in lines()]
    assert told == [
        ("one-1 is launched unseen, and looks by itself: the database does not answer", "one", 1),
        ("one-1 could not be launched: starting one-1: Ray has not answered for 60 s", "one", 1),
        ("two-1 is launched unseen, and looks by itself: the database does not answer", "two", 1),
        ("launched two-1", "two", 1),
        ("launching attempts: not every attempt could be launched", None, None),
    ]


def test_a_crash_between_claiming_and_opening_is_healed(
    make: Callable[..., Dispatcher],
    store: Store,
    queue: Queue,
    cluster: Cluster,
    service: Service,
    add_job: AddJob,
):
    add_job("one")
    service.reconcile_queue()
    assert queue.take({"one": 1}, 0.1) == {"one"}
    assert queue.entries() == {}
    after = At(make())
    deadline = time.monotonic() + 10
    while not cluster.started:
        assert time.monotonic() < deadline
        after.step()
    assert cluster.started == ["one-1"]
