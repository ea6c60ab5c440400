"""An attempt that is there and frozen is ended; one that is merely out of reach is not."""

from __future__ import annotations

from jobs.queue import Queue
from jobs.store import AttemptState, Cause, JobState, Store

from ..conftest import DATABASES as DATABASES
from ..conftest import Clock, RedisServer
from .conftest import AddJob, At, Cluster, running


def pass_by(dispatcher: At, clock: Clock, seconds: int) -> None:
    """Let time pass for the dispatcher and for the store."""
    for _ in range(seconds // 10):
        dispatcher.now += 9
        clock.forward(10)
        dispatcher.step()


def start(dispatcher: At, store: Store, add_job: AddJob, queue: Queue) -> None:
    add_job("one")
    dispatcher.step()
    store.join_attempt("one", 1, host="here")
    store.start_attempt("one", 1)
    queue.release("one", 1)  # its lease has ended


def test_a_frozen_attempt_is_killed_and_tried_again(
    dispatcher: At,
    store: Store,
    queue: Queue,
    cluster: Cluster,
    add_job: AddJob,
    clock: Clock,
):
    start(dispatcher, store, add_job, queue)
    pass_by(dispatcher, clock, 50)
    assert cluster.stopped == []
    pass_by(dispatcher, clock, 30)
    assert cluster.stopped == ["one-1"]
    (first, *_) = store.attempts("one")
    assert (first.state, first.cause) == (AttemptState.LOST, Cause.LEASE_LOST)
    assert store.job("one").state in (JobState.QUEUED, JobState.RUNNING)


def test_one_that_cannot_be_killed_is_not_replaced(
    dispatcher: At, store: Store, queue: Queue, cluster: Cluster, add_job: AddJob, clock: Clock
):
    start(dispatcher, store, add_job, queue)
    cluster.immortal.add("one-1")
    pass_by(dispatcher, clock, 100)
    assert running(store) == ["one-1"]


def test_a_lease_or_a_write_is_a_sign_of_life(
    dispatcher: At, store: Store, queue: Queue, cluster: Cluster, add_job: AddJob, clock: Clock
):
    start(dispatcher, store, add_job, queue)
    pass_by(dispatcher, clock, 50)
    queue.renew("one", 1, 60)
    pass_by(dispatcher, clock, 30)
    queue.release("one", 1)
    pass_by(dispatcher, clock, 50)
    # It cannot reach Redis: the database hears of it, by the clock of a node that is an hour behind.
    for _ in range(10):
        clock.forward(-3600)
        store.see_attempt("one", 1)
        clock.forward(3600)
        pass_by(dispatcher, clock, 30)
    assert cluster.stopped == []


def test_without_redis_nobody_is_taken_for_frozen(
    dispatcher: At,
    store: Store,
    queue: Queue,
    cluster: Cluster,
    add_job: AddJob,
    clock: Clock,
    redis_server: RedisServer,
):
    start(dispatcher, store, add_job, queue)
    pass_by(dispatcher, clock, 50)
    redis_server.stop()
    pass_by(dispatcher, clock, 200)
    redis_server.start()
    pass_by(dispatcher, clock, 50)
    assert cluster.stopped == []
    assert running(store) == ["one-1"]
