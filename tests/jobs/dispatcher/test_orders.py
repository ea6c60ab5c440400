"""What people order, the dispatcher does: holds, moments, dependencies, time limits, drains, retries."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

from jobs.dispatcher import Dispatcher
from jobs.service import Service
from jobs.store import AttemptState, Cause, EventKind, JobState, Retry, Store

from ..conftest import DATABASES as DATABASES
from ..conftest import Clock
from .conftest import AddJob, At, Cluster, end, running


def settle(clock: Clock, seconds: float = 1) -> None:
    """Let a while pass: of the clock, and enough of Redis' own time for a claim's lease to end."""
    clock.forward(seconds)
    time.sleep(0.25)


def test_a_held_job_is_passed_over_until_it_is_released(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob
):
    add_job("one", held=True)
    add_job("two")
    dispatcher.step(2)
    assert running(service.store) == ["two-1"]
    service.release("one", by="ada")
    dispatcher.step()
    assert running(service.store) == ["one-1", "two-1"]


def test_a_job_starts_at_its_moment_without_being_told(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("later", not_before=clock.now + timedelta(minutes=10))
    dispatcher.step(2)
    clock.forward(599)
    dispatcher.step(2)
    assert running(service.store) == []
    clock.forward(1)
    dispatcher.step()
    assert running(service.store) == ["later-1"]


def test_a_job_starts_after_what_it_comes_after(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob
):
    add_job("first")
    add_job("second", after=["first"])
    add_job("any", after_any=["second"])
    dispatcher.step(2)
    assert running(service.store) == ["first-1"]
    end(service, cluster, "first")
    dispatcher.step()
    assert running(service.store) == ["second-1"]
    service.finish("second", 1, AttemptState.FAILED, by="attempt", cause=Cause.BAD_CONFIG, error="oh")
    cluster.alive.discard("second-1")
    dispatcher.step()
    assert running(service.store) == ["any-1"]


def test_a_drained_service_finishes_what_is_under_way_and_starts_nothing(
    make: Callable[..., Dispatcher], service: Service, cluster: Cluster, add_job: AddJob
):
    dispatcher = At(make())
    add_job("one")
    dispatcher.step()
    add_job("two")
    service.drain(by="ada")
    dispatcher.step(2)
    restarted = At(make())
    restarted.step(2)
    assert running(service.store) == ["one-1"]
    end(service, cluster, "one")
    restarted.step()
    assert running(service.store) == []
    service.drain(False, by="ada")
    dispatcher.step()
    assert running(service.store) == ["two-1"]


def test_an_attempt_that_outlives_its_time_limit_is_killed(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("one", time_limit=600, retry=Retry(max_attempts=2, on=("timeout",)))
    dispatcher.step()
    clock.forward(100)
    service.store.start_attempt("one", 1)  # from here on its time runs
    service.queue.renew("one", 1, 1000)
    dispatcher.step()
    dispatcher.later(600 + 29)
    assert cluster.stopped == []  # it may stop by itself, with a checkpoint
    dispatcher.later(1)
    assert cluster.stopped == ["one-1"]
    (ended, again) = service.store.attempts("one")
    assert (ended.state, ended.cause, again.number) == (AttemptState.FAILED, Cause.TIMEOUT, 2)
    assert service.store.job("one").errors_used == 1


def test_a_requeued_attempt_that_does_not_make_way_is_killed_and_its_job_goes_on(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("one", retry=Retry(max_attempts=1, max_infrastructure=1))
    dispatcher.step()
    service.store.start_attempt("one", 1)
    service.requeue("one", by="ada")
    dispatcher.step()
    dispatcher.later(30)
    assert cluster.stopped == ["one-1"]
    job = service.store.job("one")
    assert (job.state, job.errors_used, job.infrastructure_used) == (JobState.RUNNING, 0, 0)
    assert running(service.store) == ["one-2"]


def test_a_retry_waits_for_its_backoff(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock, store: Store
):
    add_job("one", retry=Retry(max_attempts=5, backoff=60))
    for number, waits in ((1, 0), (2, 60), (3, 120)):
        dispatcher.step()
        assert running(store) == [f"one-{number}"]
        service.finish("one", number, AttemptState.FAILED, by="attempt", cause=Cause.ERROR, error="oh")
        cluster.alive.clear()
        if waits:
            settle(clock, waits - 1)
            dispatcher.step(2)
            assert running(store) == []
            settle(clock)
    dispatcher.step()
    assert running(store) == ["one-4"]


def test_the_history_says_which_dispatcher_it_was(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("one")
    dispatcher.step()
    service.store.join_attempt("one", 1, host="here")
    cluster.alive.clear()
    settle(clock, 30)
    dispatcher.step()
    me = f"dispatcher {socket.gethostname()}:{os.getpid()}"
    told = {(event.kind, event.actor) for event in service.store.events("one")}
    assert {(EventKind.CLAIMED, me), (EventKind.FINISHED, me), (EventKind.REQUEUED, me)} <= told
