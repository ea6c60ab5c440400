"""Cancelled attempts, and stale ones."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from jobs.attempt import AttemptLog, Timings, Tools, Work
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, JobState, StaleAttempt, Store, StoreUnavailable

from .conftest import QUICK, SMALL, Train, Training, log_of, names


def test_a_cancelled_attempt_stops_with_a_checkpoint(train: Train, store: Store, service: Service):
    job = "first"

    def script(training: Training) -> str:
        training.progress(1)
        service.cancel(job)
        deadline = time.monotonic() + 10
        while not training.progress(2):
            assert time.monotonic() < deadline
        training.checkpoint(0, name="step-000123")
        return "stopped"

    train(job, script)
    assert store.job(job).state is JobState.CANCELLED
    (ended,) = store.attempts(job)
    assert (ended.state, ended.cause) == (AttemptState.CANCELLED, Cause.CANCELLED)
    assert names(store, job) == ["step-000123"]
    assert store.reports(job) == []


def test_a_child_that_is_behind_its_siblings_stops_with_a_checkpoint_and_says_why(
    train: Train, store: Store, service: Service, settings: Settings
):
    job = "first"

    def script(training: Training) -> str:
        training.progress(1)
        service.stop_early(job, "accuracy 0.1, behind the median 0.5", by="dispatcher")
        deadline = time.monotonic() + 10
        while not training.progress(2):
            assert time.monotonic() < deadline
        training.checkpoint(0, name="step-000123")
        return "stopped"

    train(job, script)
    ended = store.job(job)
    assert (ended.state, ended.error) == (JobState.CANCELLED, "accuracy 0.1, behind the median 0.5")
    (attempt,) = store.attempts(job)
    assert (attempt.state, attempt.cause) == (AttemptState.CANCELLED, Cause.STOPPED_EARLY)
    assert names(store, job) == ["step-000123"]
    assert "stopped early, as accuracy 0.1, behind the median 0.5: stopping" in log_of(settings, job)


def test_training_that_finishes_in_spite_of_a_cancel_has_succeeded(
    train: Train, store: Store, service: Service
):
    def script(training: Training) -> str:
        training.checkpoint(1, 0.5)
        service.cancel("first")
        return "finished"

    train("first", script)
    assert store.job("first").state is JobState.SUCCEEDED


@pytest.mark.parametrize("started", [False, True])
def test_a_cancel_before_any_step_ends_the_process(
    train: Train, store: Store, service: Service, left: threading.Event, started: bool
):
    """Ranks that prepare their reviews may take minutes, and do not hear of it: they are not waited for."""

    def hangs(training: Training) -> str:
        if started:
            training.say(kind="log", text="rank 0: reading reviews")
        service.cancel("first")
        assert left.wait(10)  # the ranks would be gone by now
        raise RuntimeError("killed")

    train("first", hangs)
    assert store.job("first").state is JobState.CANCELLED
    assert store.attempts("first")[0].cause is Cause.CANCELLED


def test_training_that_says_nothing_any_more_is_given_up(
    submit: Callable[..., str],
    training: Training,
    store: Store,
    queue: Queue,
    settings: Settings,
    tools: Tools,
    left: threading.Event,
):
    """By a clock that is set: as long as the ranks say anything, nothing happens."""
    job, clock = submit("first"), [0.0]
    store.open_attempt(job, 1, by="test")

    def hangs(training: Training) -> str:
        for _ in range(3):
            clock[0] += 0.9 * settings.stall_timeout
            training.progress(1)
        assert not left.is_set() and store.attempts(job)[0].state is AttemptState.RUNNING
        clock[0] += settings.stall_timeout
        assert left.wait(10)  # the ranks would be gone by now
        raise RuntimeError("killed")

    training.script = hangs
    with AttemptLog(settings.attempt_log(job, 1)) as log:
        work = Work(store, queue, settings, job, 1, log, tools, timings=QUICK, clock=lambda: clock[0])
        work.run()
    (attempt,) = store.attempts(job)
    assert (attempt.state, attempt.cause) == (AttemptState.FAILED, Cause.RANK_LOST)
    assert attempt.error is not None and "said nothing for 3600 s" in attempt.error
    assert store.job(job).state is JobState.QUEUED  # at nobody's expense


@pytest.mark.parametrize("began", [True, False])
@pytest.mark.parametrize("met", ["a lost answer", "another end", "no database"])
def test_an_attempt_that_gives_its_ranks_up_ends_its_process_whatever_its_record_meets(
    submit: Callable[..., str],
    training: Training,
    store: Store,
    settings: Settings,
    tools: Tools,
    left: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    began: bool,
    met: str,
):
    """Ranks that hang, or have not begun when a cancel comes, would else be kept for ever."""
    job, clock, finish = submit("first"), [0.0], store.finish_attempt
    tries: list[int] = []
    store.open_attempt(job, 1, by="test")

    def meets(*arguments: Any, **given: Any) -> Any:
        tries.append(1)
        if met == "no database":
            clock[0] += QUICK.patience
            raise StoreUnavailable("the database does not answer")
        if len(tries) > 1:
            return finish(*arguments, **given)
        if met == "another end":
            finish(job, 1, AttemptState.LOST, by="dispatcher")
            return finish(*arguments, **given)
        finish(*arguments, **given)
        raise StoreUnavailable("the connection broke before the answer came")

    def hangs(training: Training) -> str:
        if began:
            training.progress(1)
            clock[0] += settings.stall_timeout
        else:
            store.request_cancel(job, "ada")
        assert left.wait(10)  # the ranks would be gone by now
        raise RuntimeError("killed")

    training.script = hangs
    monkeypatch.setattr(store, "finish_attempt", meets)
    with AttemptLog(settings.attempt_log(job, 1)) as log:
        work = Work(store, Queue(None), settings, job, 1, log, tools, timings=QUICK, clock=lambda: clock[0])
        work.run()
    (attempt,) = store.attempts(job)
    ours = (AttemptState.FAILED, Cause.RANK_LOST) if began else (AttemptState.CANCELLED, Cause.CANCELLED)
    now = AttemptState.RUNNING if began else AttemptState.STARTING  # for a dispatcher to end
    recorded = {"a lost answer": ours, "another end": (AttemptState.LOST, None), "no database": (now, None)}
    assert (attempt.state, attempt.cause) == recorded[met]


def test_a_stale_attempt_ends_its_process_and_changes_nothing(
    train: Train, store: Store, service: Service, settings: Settings, left: threading.Event
):
    job = "first"

    def goes_stale(training: Training) -> str:
        training.checkpoint(1, 0.5)
        service.finish(job, 1, AttemptState.LOST, by="test", cause=Cause.DIED)
        store.open_attempt(job, 2, by="test")
        assert left.wait(10)
        for write in (lambda: training.checkpoint(2, 0.9), lambda: training.progress(9)):
            try:
                write()
            except StaleAttempt:
                continue
            raise AssertionError("a stale attempt's write was taken")
        return "finished"  # as if nothing had happened

    train(job, goes_stale)
    assert names(store, job) == ["epoch-01"]
    assert store.models() == []
    assert store.job(job).state is JobState.RUNNING
    assert [a.state for a in store.attempts(job)] == [AttemptState.LOST, AttemptState.STARTING]
    assert "not its active attempt" in log_of(settings, job)


def test_a_stale_attempt_ends_its_process_although_its_log_hangs(
    attempt: Callable[..., Work],
    submit: Callable[..., str],
    training: Training,
    store: Store,
    settings: Settings,
    left: threading.Event,
):
    """Its file is a pipe that nobody empties: a write waits for ever, as on a disk that does not answer."""
    job = submit("first")
    path = settings.attempt_log(job, 1)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    filling = os.open(path, os.O_WRONLY | os.O_NONBLOCK)

    def goes_stale(training: Training) -> str:
        training.progress(1)
        for size in (4096, 1):
            with suppress(BlockingIOError):
                while True:
                    os.write(filling, bytes(size))
        store.finish_attempt(job, 1, AttemptState.LOST, by="test")
        try:
            assert left.wait(10)
        finally:
            os.read(reading, 2**20)  # its threads go on, and end
        raise RuntimeError("killed")

    training.script = goes_stale
    attempt(job).run()
    os.close(filling)
    os.close(reading)


def test_a_checkpoint_of_a_stale_attempt_stops_training_even_if_nobody_has_looked(
    submit: Callable[..., str], training: Training, store: Store, settings: Settings, tools: Tools
):
    """The refused write itself is what ends it, whether or not the watching thread was faster."""
    job = submit("first")
    store.open_attempt(job, 1, by="test")

    def goes_stale(training: Training) -> str:
        training.progress(1)
        store.finish_attempt(job, 1, AttemptState.LOST, by="test")
        training.checkpoint(1, 0.9)
        return "finished"

    training.script = goes_stale
    slow = Timings(poll=30, renew=30, lease=60, patience=1)
    queue_away = Queue(None)
    with AttemptLog(settings.attempt_log(job, 1)) as log:
        Work(store, queue_away, settings, job, 1, log, tools, timings=slow).run()
    assert names(store, job) == []
    assert store.job(job).state is JobState.QUEUED


def test_an_attempt_that_is_stale_from_the_start_trains_nothing(
    submit: Callable[..., str], attempt: Callable[..., Work], training: Training, store: Store
):
    work = attempt(submit("first"))
    store.finish_attempt("first", 1, AttemptState.LOST, by="test")
    work.run()
    assert training.given == {}


def test_losing_the_lease_to_a_newer_attempt_ends_the_process(
    train: Train, queue: Queue, left: threading.Event
):
    def loses(training: Training) -> str:
        queue.renew("first", 2, 60)
        assert left.wait(10)
        return "finished"

    train("first", loses)
    assert queue.leases(["first"]) == {"first": 2}


def test_a_cancel_is_seen_without_redis(train: Train, store: Store):
    def script(training: Training) -> str:
        training.progress(1)
        store.request_cancel("first", "ada")
        deadline = time.monotonic() + 10
        while not training.progress(2):
            assert time.monotonic() < deadline
        return "stopped"

    train("first", script, queue=Queue(None))
    assert store.job("first").state is JobState.CANCELLED


def until_told_to_stop(training: Training) -> str:
    """A rank that trains until it is asked to stop, and leaves a checkpoint."""
    deadline = time.monotonic() + 10
    step = 1
    while not training.progress(step):
        assert time.monotonic() < deadline
        step += 1
    training.checkpoint(0, name="step-000123")
    return "stopped"


def test_an_attempt_that_is_asked_to_make_way_waits_again_at_nobodys_expense(
    train: Train, store: Store, service: Service
):
    def script(training: Training) -> str:
        training.progress(1)
        service.requeue("first", by="ada")
        return until_told_to_stop(training)

    train("first", script)
    job = store.job("first")
    assert (job.state, job.error, job.errors_used, job.infrastructure_used) == (JobState.QUEUED, None, 0, 0)
    assert (job.yield_requested, job.not_before) == (None, None)
    (ended,) = store.attempts("first")
    assert (ended.state, ended.cause) == (AttemptState.PREEMPTED, Cause.REQUEUED)
    assert names(store, "first") == ["step-000123"]
    assert service.queue.entries() == {"first": 2}


def test_a_cancel_that_comes_after_a_yield_wins(train: Train, store: Store, service: Service):
    def script(training: Training) -> str:
        training.progress(1)
        service.requeue("first")
        service.cancel("first")
        return until_told_to_stop(training)

    train("first", script)
    assert store.job("first").state is JobState.CANCELLED


def test_a_yield_before_any_rank_has_started_ends_the_process(
    train: Train, store: Store, left: threading.Event
):
    def hangs(training: Training) -> str:
        store.request_yield("first", "scheduler")
        assert left.wait(10)
        raise RuntimeError("killed")

    train("first", hangs)
    assert store.job("first").state is JobState.QUEUED
    assert store.attempts("first")[0].cause is Cause.PREEMPTED


def test_an_attempt_stops_with_a_checkpoint_when_its_time_is_over(train: Train, store: Store):
    limited = SMALL.model_copy(update={"time_limit": 0.1})
    train("first", until_told_to_stop, config=limited)
    job = store.job("first")
    assert (job.state, job.errors_used) == (JobState.FAILED, 1)
    assert job.error == (
        "it trained for 0.1 s, as long as its time_limit allows; retry.on does not name timeout"
    )
    (ended,) = store.attempts("first")
    assert (ended.state, ended.cause) == (AttemptState.FAILED, Cause.TIMEOUT)
    assert names(store, "first") == ["step-000123"]


def test_time_runs_from_the_start_of_the_ranks_and_may_be_given_again(train: Train, store: Store):
    config = SMALL.model_copy(
        update={"time_limit": 0.1, "retry": SMALL.retry.model_copy(update={"on": ("timeout",)})}
    )

    def slow_to_start(training: Training) -> str:
        time.sleep(0.3)
        return until_told_to_stop(training)

    train("first", slow_to_start, config=config)
    assert store.job("first").state is JobState.QUEUED  # max_attempts is 2
    train("first", lambda training: "finished", 2, config=config)
    assert store.job("first").state is JobState.SUCCEEDED
