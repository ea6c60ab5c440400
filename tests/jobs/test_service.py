from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from sqlalchemy import insert

from jobs.config import JobConfig, default_owner, from_mapping
from jobs.queue import Entry, Queue, QueueUnavailable
from jobs.service import ALPHABET, LAUNCH_GRACE, InvalidRequest, Service
from jobs.store import (
    Ambiguous,
    AttemptState,
    Cause,
    Conflict,
    EventKind,
    Job,
    JobState,
    NewCheckpoint,
    NotFound,
    Retry,
    Store,
)
from jobs.store.tables import JobRow

from .conftest import DATABASES as DATABASES
from .conftest import Clock, RedisServer

AddJob = Callable[..., Job]


class Cluster:
    """A launcher that says what the test wants."""

    def __init__(self, **states: Literal["alive", "dead", "unknown"]):
        self.states = states

    def state(self, name: str) -> Literal["alive", "dead", "unknown"]:
        return self.states[name.replace("-", "_")]


@pytest.fixture
def offline(store: Store) -> Service:
    """The service while Redis is away."""
    return Service(store, Queue("redis://127.0.0.1:1/0"))


def test_a_submitted_job_is_recorded_and_queued(service: Service, config: JobConfig):
    done = service.submit(config, owner="ada", priority=2)
    assert (done.created, done.queued, done.problem) == (True, True, None)
    assert len(done.job.id) == 8
    assert set(done.job.id) <= set(ALPHABET)
    assert (done.job.owner, done.job.priority, done.job.name) == ("ada", 2, "reviews")
    assert service.queue.entries() == {done.job.id: 1}
    assert from_mapping(service.store.config(done.job.id)) == config
    assert service.submit(config).job.owner == default_owner()


def test_an_id_that_is_taken_is_made_again(store: Store, queue: Queue, config: JobConfig):
    first = Service(store, queue, randomness=random.Random(1)).submit(config).job.id
    other = config.model_copy(update={"seed": 5})
    again = Service(store, queue, randomness=random.Random(1)).submit(other)
    assert again.created
    assert again.job.id != first


def test_a_made_id_never_finds_an_equal_job(store: Store, queue: Queue, config: JobConfig):
    first = Service(store, queue, randomness=random.Random(1)).submit(config).job.id
    again = Service(store, queue, randomness=random.Random(1)).submit(config)
    assert again.created
    assert again.job.id != first


def test_the_same_client_id_is_the_same_job(service: Service, config: JobConfig):
    first = service.submit(config, id="nightly-7")
    again = service.submit(config, id="nightly-7")
    assert again.job == first.job
    assert (first.created, again.created) == (True, False)
    with pytest.raises(Conflict, match="another config"):
        service.submit(config.model_copy(update={"seed": 5}), id="nightly-7")
    assert len(service.store.jobs()) == 1


def test_of_twenty_that_submit_one_id_one_makes_it(service: Service, config: JobConfig):
    barrier = threading.Barrier(20)

    def submit(_: int) -> tuple[str, bool]:
        barrier.wait()
        done = service.submit(config, id="nightly-7")
        return done.job.id, done.created

    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(submit, range(20)))
    assert sorted(made) == [("nightly-7", False)] * 19 + [("nightly-7", True)]
    assert len(service.store.jobs()) == 1
    assert service.queue.entries() == {"nightly-7": 1}


@pytest.mark.parametrize("id", ["ab", "A-job", "with space", "x" * 41, "under_score", ""])
def test_an_id_that_cannot_be_is_refused(service: Service, config: JobConfig, id: str):
    with pytest.raises(InvalidRequest, match="3 to 40"):
        service.submit(config, id=id)


def test_a_priority_out_of_range_is_refused(service: Service, config: JobConfig):
    with pytest.raises(InvalidRequest, match="from -1000 to 1000"):
        service.submit(config, priority=1001)
    assert service.store.jobs() == []


def test_an_owner_whom_no_database_could_name_is_refused(service: Service, config: JobConfig):
    assert service.submit(config, owner="x" * 200).created
    with pytest.raises(InvalidRequest, match="has 201 characters; there may be 200"):
        service.submit(config, owner="x" * 201)


def test_submitting_needs_no_redis(service: Service, offline: Service, config: JobConfig):
    done = offline.submit(config)
    assert (done.created, done.queued) == (True, False)
    assert "does not answer" in (done.problem or "")
    assert offline.cancel(offline.submit(config).job.id).state is JobState.CANCELLED
    service.reconcile_queue()  # Redis is back
    assert service.queue.entries() == {done.job.id: 1}


def test_submitting_again_queues_what_redis_has_lost(
    service: Service, config: JobConfig, redis_server: RedisServer
):
    service.submit(config, id="nightly-7")
    redis_server.flush()
    assert service.submit(config, id="nightly-7").queued
    assert service.queue.entries() == {"nightly-7": 1}


def test_cancelling_a_queued_job_takes_it_out_of_the_queue(service: Service, config: JobConfig):
    job = service.submit(config).job
    assert service.cancel(job.id[:6], by="ada").state is JobState.CANCELLED
    assert service.queue.entries() == {}


def test_cancelling_a_running_job_rings_its_bell(service: Service, add_job: AddJob):
    add_job("first")
    service.store.open_attempt("first", 1, by="test")
    bell = service.queue.bell("first")
    assert service.cancel("first").state is JobState.RUNNING
    assert bell.wait(5)


def test_cancelling_what_is_not_one_job_is_refused(service: Service, add_job: AddJob):
    add_job("first-a")
    add_job("first-b")
    with pytest.raises(Ambiguous):
        service.cancel("first")
    with pytest.raises(NotFound):
        service.cancel("second")


def test_a_retried_job_is_queued_for_its_next_attempt(service: Service, add_job: AddJob):
    add_job("first")
    service.store.open_attempt("first", 1, by="test")
    service.finish("first", 1, AttemptState.FAILED, by="test", cause=Cause.BAD_CONFIG, error="x")
    assert service.queue.entries() == {}
    done = service.retry("fir", by="ada")
    assert (done.job.state, done.job.errors_used, done.queued) == (JobState.QUEUED, 0, True)
    assert service.queue.entries() == {"first": 2}
    with pytest.raises(Conflict, match="is queued"):
        service.retry("first")


def test_an_ended_attempt_gives_its_lease_back_and_queues_its_job(service: Service, add_job: AddJob):
    add_job("first")
    service.store.open_attempt("first", 1, by="test")
    service.queue.renew("first", 1, 60)
    dispatchers = service.queue.bell()
    service.finish("first", 1, AttemptState.LOST, by="test", cause=Cause.DIED)
    assert service.queue.leases(["first"]) == {}
    assert service.queue.entries() == {"first": 2}
    assert dispatchers.wait(5)
    service.store.open_attempt("first", 2, by="test")
    service.queue.remove(["first"])
    service.finish("first", 2, AttemptState.SUCCEEDED, by="test")
    assert service.queue.entries() == {}
    assert dispatchers.wait(5)  # what it held is free


def test_emptying_redis_loses_nothing(
    service: Service, store: Store, config: JobConfig, redis_server: RedisServer
):
    priorities = random.Random(5)
    values = {"name": "reviews", "owner": "ada", "ranks": 1, "cpus": 1, "gpus": 0}
    rows = [
        {
            "id": f"job-{n:04}",
            "priority": priorities.randint(-3, 3),
            "config": {},
            "state": "queued",
            **values,
        }
        for n in range(1000)
    ]
    with store.writing() as connection:
        connection.execute(insert(JobRow).values(attempt=0, created=store.clock()), rows)
    service.reconcile_queue()
    before = list(service.queue.entries())
    assert before == [job.id for job in store.queued()]
    assert len(before) == 1000
    redis_server.flush()
    assert service.queue.entries() == {}
    service.reconcile_queue()
    assert list(service.queue.entries()) == before


def test_reconciling_makes_redis_say_what_the_store_says(service: Service, add_job: AddJob):
    for id in ("kept", "missing", "running", "cancelled", "requeued"):
        add_job(id)
    service.reconcile_queue()
    service.queue.remove(["missing"])
    service.store.open_attempt("running", 1, by="test")
    service.store.request_cancel("cancelled", "test")
    service.store.open_attempt("requeued", 1, by="test")
    service.store.finish_attempt("requeued", 1, AttemptState.LOST, by="test")
    assert service.queue.entries() == {"kept": 1, "running": 1, "cancelled": 1, "requeued": 1}
    service.reconcile_queue()
    assert service.queue.entries() == {"kept": 1, "missing": 1, "requeued": 2}


def test_redis_of_a_time_when_the_ids_were_other_jobs_is_put_in_order(service: Service, add_job: AddJob):
    for id in ("one", "two", "three"):
        add_job(id)
    order = ["one", "two", "three"]
    for wrong in ([Entry("two", 1, 9, 7)], [Entry("two", 1, 9, 7), Entry("one", 1, 0, 900)]):
        service.queue.remove(order)
        service.queue.push(wrong)
        service.reconcile_queue()
        assert list(service.queue.entries()) == order


def test_a_job_submitted_while_reconciling_is_not_taken_for_foreign(
    service: Service, store: Store, config: JobConfig, monkeypatch: pytest.MonkeyPatch
):
    queued = store.queued

    def submitted_in_between() -> list[Job]:
        found = queued()
        monkeypatch.undo()
        service.submit(config, id="in-between")
        return found

    monkeypatch.setattr(store, "queued", submitted_in_between)
    service.reconcile_queue()
    assert service.queue.entries() == {"in-between": 1}


def test_a_dead_attempt_is_retried_only_when_it_is_surely_dead(
    service: Service, add_job: AddJob, clock: Clock
):
    for id in ("alive", "unknown", "leased", "dead"):
        add_job(id)
        service.store.open_attempt(id, 1, by="test")
        service.store.join_attempt(id, 1, host="here")
        service.store.start_attempt(id, 1)
    service.queue.renew("leased", 1, 60)
    cluster = Cluster(alive_1="alive", unknown_1="unknown", leased_1="dead", dead_1="dead")
    assert [attempt.job for attempt in service.reconcile(cluster)] == ["dead"]
    (attempt,) = service.store.attempts("dead")
    assert (attempt.state, attempt.cause) == (AttemptState.LOST, Cause.DIED)
    assert service.store.job("dead").state is JobState.QUEUED
    assert service.queue.entries() == {"dead": 2}
    for id in ("alive", "unknown", "leased"):
        assert service.store.job(id).state is JobState.RUNNING
    service.queue.release("leased", 1)
    assert [attempt.job for attempt in service.reconcile(cluster)] == ["leased"]


def test_the_cancel_of_a_dead_attempt_does_not_wait_for_its_lease(
    service: Service, add_job: AddJob, clock: Clock
):
    for id in ("starting", "training", "launching"):
        add_job(id)
        service.store.open_attempt(id, 1, by="test")
        service.queue.renew(id, 1, 60)
    for id in ("starting", "training"):
        service.store.join_attempt(id, 1, host="here")
    service.store.start_attempt("training", 1)
    cluster = Cluster(starting_1="dead", training_1="dead", launching_1="dead")
    assert service.reconcile(cluster) == []
    for id in ("starting", "training", "launching"):
        service.cancel(id, by="ada")
    assert {attempt.job for attempt in service.reconcile(cluster)} == {"starting", "training"}
    for id in ("starting", "training"):
        assert service.store.job(id).state is JobState.CANCELLED
        assert service.store.attempts(id)[0].cause is Cause.DIED
    assert service.queue.leases(["starting", "training"]) == {}
    assert service.store.job("launching").state is JobState.RUNNING  # its process may be about to come up


def test_the_cancel_of_a_dead_attempt_does_not_wait_for_redis(
    service: Service, add_job: AddJob, redis_server: RedisServer
):
    for id in ("another", "cancelled"):
        add_job(id)
        service.store.open_attempt(id, 1, by="test")
        service.store.join_attempt(id, 1, host="here")
        service.store.start_attempt(id, 1)
    redis_server.stop()
    service.cancel("cancelled", by="ada")
    with pytest.raises(QueueUnavailable):
        service.reconcile(Cluster(another_1="dead", cancelled_1="dead"))
    assert service.store.job("cancelled").state is JobState.CANCELLED
    assert service.store.job("another").state is JobState.RUNNING  # nobody knows of its lease


def test_attempts_that_die_one_after_the_other_fail_the_job(service: Service, add_job: AddJob, clock: Clock):
    add_job("first", retry=Retry(max_attempts=1, max_infrastructure=1))
    for number in (1, 2):
        service.store.open_attempt("first", number, by="test")
        service.store.join_attempt("first", number, host="here")
        service.store.start_attempt("first", number)
        service.reconcile(Cluster(first_1="dead", first_2="dead"))
    job = service.store.job("first")
    assert (job.state, job.errors_used) == (JobState.FAILED, 0)
    assert job.error == (
        "attempt 2 died without a word; infrastructure failed 2 times in a row, without a new checkpoint in "
        "between"
    )
    assert service.queue.entries() == {}


def test_a_crash_between_opening_and_launching_is_healed(service: Service, add_job: AddJob, clock: Clock):
    add_job("first")
    service.store.open_attempt("first", 1, by="test")
    cluster = Cluster(first_1="dead")
    assert service.reconcile(cluster) == []  # the process may be about to come up
    clock.forward(LAUNCH_GRACE + 1)
    assert [attempt.job for attempt in service.reconcile(cluster)] == ["first"]
    (attempt,) = service.store.attempts("first")
    assert (attempt.state, attempt.cause) == (AttemptState.LOST, Cause.NEVER_STARTED)
    assert service.store.job("first").state is JobState.QUEUED


def test_one_that_never_started_is_found_although_the_clock_was_set_back(
    service: Service, add_job: AddJob, clock: Clock
):
    add_job("first")
    service.store.open_attempt("first", 1, by="test")
    clock.forward(-3600)
    assert [attempt.job for attempt in service.reconcile(Cluster(first_1="dead"))] == ["first"]


def test_an_attempt_that_ends_by_itself_while_reconciling_keeps_its_own_word(
    service: Service, add_job: AddJob, clock: Clock
):
    add_job("first")
    service.store.open_attempt("first", 1, by="test")
    service.store.start_attempt("first", 1)

    class EndsJustNow(Cluster):
        def state(self, name: str) -> Literal["alive", "dead", "unknown"]:
            service.store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
            return "dead"

    assert service.reconcile(EndsJustNow()) == []
    assert service.store.job("first").state is JobState.SUCCEEDED


def test_a_dead_attempt_of_a_cancelled_job_is_not_retried(service: Service, add_job: AddJob, clock: Clock):
    add_job("first")
    service.store.open_attempt("first", 1, by="test")
    service.store.start_attempt("first", 1)
    service.cancel("first")
    service.reconcile(Cluster(first_1="dead"))
    assert service.store.job("first").state is JobState.CANCELLED


def test_waiting_ends_when_the_job_does(service: Service, add_job: AddJob):
    add_job("first")
    service.store.open_attempt("first", 1, by="test")

    def end() -> None:
        service.finish("first", 1, AttemptState.SUCCEEDED, by="test")

    timer = threading.Timer(0.1, end)
    timer.start()
    began = time.monotonic()
    assert service.wait("fir", timeout=20).state is JobState.SUCCEEDED
    assert time.monotonic() - began < 5
    timer.join()


def test_waiting_works_without_redis(offline: Service, add_job: AddJob):
    add_job("first")
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            offline.store.request_cancel("first", "ada")

    assert offline.wait("first", sleep=sleep).state is JobState.CANCELLED
    assert naps == [1.0, 1.0]


def test_waiting_gives_up_after_its_timeout(service: Service, add_job: AddJob):
    add_job("first")
    assert service.wait("first", timeout=0.05).state is JobState.QUEUED
    assert service.wait("first", timeout=0).state is JobState.QUEUED


def test_promoting_rings_the_dispatchers_bell(service: Service, add_job: AddJob, tmp_path: Path):
    store = service.store
    for number, value in enumerate((0.5, 0.6), start=1):
        id = f"job-{number}"
        add_job(id)
        store.open_attempt(id, 1, by="test")
        metrics = {"sentiment_accuracy": value}
        made = store.record_checkpoint(
            id, 1, NewCheckpoint("epoch-01", "x", "d" * 64, 1, 1, 0, value, metrics)
        )
        version = store.reserve_version(id, 1, "reviews")
        store.record_version(
            id,
            1,
            model="reviews",
            version=version,
            checkpoint=made.id,
            location="x",
            metric="sentiment_accuracy",
            mode="max",
            reason="",
        )
    bell = service.queue.bell()
    assert service.rollback("reviews", by="ada").version == 1
    assert bell.wait(5)
    assert service.promote("reviews", 2, by="ada", reason="again").version == 2
    assert bell.wait(5)
    assert [event.kind for event in store.events()][-2:] == [EventKind.ROLLED_BACK, EventKind.PROMOTED]
    with pytest.raises(NotFound):
        service.promote("reviews", 9)
