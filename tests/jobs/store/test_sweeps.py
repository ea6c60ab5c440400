"""Sweeps: a parent whose children are made once, and that ends once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jobs.store import (
    AttemptState,
    Cause,
    Conflict,
    EventKind,
    Job,
    JobState,
    NewTrial,
    NotFound,
    Store,
    best_trial,
    repairs,
)

from ..conftest import DATABASES as DATABASES
from ..conftest import Clock
from .conftest import AddJob, checkpoint, child, kinds, report


def children(first: int, last: int) -> list[NewTrial]:
    return [child(number) for number in range(first, last + 1)]


@pytest.fixture
def sweep(add_job: AddJob) -> Callable[..., Job]:
    def add(trials: int = 3, **more: Any) -> Job:
        return add_job("sweep", cpus=0, trials=trials, **more)

    return add


def finish(store: Store, job: str, state: AttemptState = AttemptState.SUCCEEDED, value: float = 0.5) -> None:
    number = store.job(job).attempt + 1
    assert store.open_attempt(job, number, by="test") is not None
    store.start_attempt(job, number)
    store.record_checkpoint(job, number, checkpoint(1, value, attempt=number), report(1))
    cause = {AttemptState.FAILED: Cause.ERROR}.get(state)
    store.finish_attempt(job, number, state, by="attempt", cause=cause, error=cause and "it broke")


def test_children_are_jobs_with_the_sweeps_name_owner_and_priority(
    store: Store, sweep: Callable[..., Job], clock: Clock
):
    parent = sweep(priority=7)
    assert (parent.state, parent.trials, parent.parent) == (JobState.QUEUED, 3, None)
    made = store.add_trials("sweep", children(1, 2), by="dispatcher")
    assert [job.id for job in made] == ["sweep.1", "sweep.2"]
    first = made[0]
    assert (first.name, first.owner, first.priority, first.parent) == ("reviews", "ada", 7, "sweep")
    assert (first.cpus, first.retry.max_attempts, first.time_limit) == (1, 1, 60)
    assert store.config("sweep.2") == {"seed": 2}
    assert [(t.number, t.job, t.parameters) for t in store.trials("sweep")] == [
        (1, "sweep.1", {"seed": 1}),
        (2, "sweep.2", {"seed": 2}),
    ]
    now = store.job("sweep")
    assert (now.state, now.started, now.attempt) == (JobState.RUNNING, clock.now, 0)
    assert kinds(store, "sweep") == [EventKind.SUBMITTED, EventKind.CHILD, EventKind.CHILD]
    assert [e.job for e in store.events("sweep", children=True)].count("sweep.1") == 1
    assert repairs.contradictions(store) == []


def test_a_sweep_itself_is_never_scheduled(store: Store, sweep: Callable[..., Job]):
    sweep()
    assert store.queued() == []
    assert store.waiting_among(["sweep"]) == []
    assert store.open_attempt("sweep", 1, by="test") is None
    store.add_trials("sweep", children(1, 1), by="test")
    assert [job.id for job in store.queued()] == ["sweep.1"]
    assert not store.request_yield("sweep", "ada")
    assert store.running() == []


@pytest.mark.parametrize("wrong", [[], [child(2)], [child(1), child(3)], children(1, 4), [child(0)]], ids=str)
def test_only_the_next_children_are_made(store: Store, sweep: Callable[..., Job], wrong: list[NewTrial]):
    sweep()
    assert store.add_trials("sweep", wrong, by="test") == []
    assert store.trials("sweep") == []
    assert store.job("sweep").state is JobState.QUEUED


def test_children_are_made_once_however_many_make_them_at_once(
    store: Store, sweep: Callable[..., Job], database_url: str
):
    sweep(trials=12)
    barrier = threading.Barrier(4)

    def make(_: int) -> int:
        other = Store(database_url)
        made = 0
        barrier.wait()
        while (have := len(other.trials("sweep"))) < 12:
            made += len(other.add_trials("sweep", children(have + 1, min(have + 3, 12)), by="test"))
        other.close()
        return made

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(make, range(4))) == 12
    assert [trial.number for trial in store.trials("sweep")] == list(range(1, 13))
    assert kinds(store, "sweep").count(EventKind.CHILD) == 12
    assert repairs.contradictions(store) == []


def test_no_children_while_it_is_held_waits_or_the_service_is_drained(
    store: Store, sweep: Callable[..., Job], add_job: AddJob, clock: Clock
):
    add_job("first")
    sweep(after=["first"], held=True)
    three = children(1, 3)
    assert store.add_trials("sweep", three, by="test") == []
    store.release("sweep", "ada")
    waiting = store.waiting("sweep")
    assert waiting is not None and waiting.blocked_by == ("first",)
    assert store.add_trials("sweep", three, by="test") == []
    finish(store, "first")
    store.drain("ada")
    assert store.add_trials("sweep", three, by="test") == []
    store.end_drain("ada")
    assert len(store.add_trials("sweep", three, by="test")) == 3
    with pytest.raises(NotFound, match="no sweep"):
        store.add_trials("first", three, by="test")


def test_what_it_comes_after_fails_and_it_is_cancelled_without_children(
    store: Store, sweep: Callable[..., Job], add_job: AddJob
):
    add_job("first")
    sweep(after=["first"])
    store.request_cancel("first", "ada")
    assert store.job("sweep").state is JobState.CANCELLED
    assert store.sweeps() == []


def test_it_ends_once_when_its_last_child_has_ended(
    store: Store, sweep: Callable[..., Job], add_job: AddJob, database_url: str
):
    sweep(trials=2)
    add_job("later", after=["sweep"])
    store.add_trials("sweep", children(1, 1), by="test")
    finish(store, "sweep.1", value=0.6)
    assert store.end_sweep("sweep", by="test") is None  # one is still to be made
    store.add_trials("sweep", children(2, 2), by="test")
    assert store.end_sweep("sweep", by="test") is None
    finish(store, "sweep.2", AttemptState.FAILED, value=0.9)
    barrier = threading.Barrier(4)

    def end(_: int) -> bool:
        other = Store(database_url)
        barrier.wait()
        ended = other.end_sweep("sweep", by="test")
        other.close()
        return ended is not None

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(end, range(4))) == [False, False, False, True]
    assert store.job("sweep").state is JobState.SUCCEEDED
    (ended,) = [event for event in store.events("sweep") if event.kind is EventKind.SUCCEEDED]
    assert ended.detail == {"succeeded": 1, "failed": 1}
    later = store.waiting("later")
    assert later is not None and later.eligible
    # The best is of those that succeeded: the other made no version.
    best = best_trial(store.trials("sweep"), "max")
    assert best is not None and (best.job, best.value, best.epochs) == ("sweep.1", 0.6, 1)


def test_it_fails_if_no_child_succeeds_and_so_does_what_needs_it(
    store: Store, sweep: Callable[..., Job], add_job: AddJob
):
    sweep(trials=2)
    add_job("later", after=["sweep"])
    store.add_trials("sweep", children(1, 2), by="test")
    finish(store, "sweep.1", AttemptState.FAILED)
    store.request_cancel("sweep.2", "ada")
    ended = store.end_sweep("sweep", by="test")
    assert ended is not None and ended.state is JobState.FAILED
    assert ended.error == "none of its children succeeded: 1 failed, 1 cancelled"
    assert store.job("later").state is JobState.CANCELLED


def test_a_cancel_takes_every_child_with_it_and_makes_no_more(store: Store, sweep: Callable[..., Job]):
    sweep(trials=4)
    store.add_trials("sweep", children(1, 3), by="test")
    finish(store, "sweep.1")
    store.open_attempt("sweep.2", 1, by="test")
    cancelled = store.request_cancel("sweep", "ada")
    assert cancelled.state is JobState.RUNNING and cancelled.cancel_requested is not None
    states = {trial.job: (trial.state, trial.cancel_requested is not None) for trial in store.trials("sweep")}
    assert states == {
        "sweep.1": (JobState.SUCCEEDED, False),
        "sweep.2": (JobState.RUNNING, True),
        "sweep.3": (JobState.CANCELLED, True),
    }
    assert store.add_trials("sweep", [child(4)], by="test") == []
    assert store.end_sweep("sweep", by="test") is None  # its attempt has to stop first
    store.finish_attempt("sweep.2", 1, AttemptState.CANCELLED, by="attempt", cause=Cause.CANCELLED)
    ended = store.end_sweep("sweep", by="test")
    assert ended is not None and ended.state is JobState.CANCELLED
    assert store.request_cancel("sweep", "ada") == ended  # asking again changes nothing


def test_a_cancel_ends_it_at_once_if_nothing_runs(store: Store, sweep: Callable[..., Job]):
    sweep(trials=4)
    store.add_trials("sweep", children(1, 2), by="test")
    assert store.request_cancel("sweep", "ada").state is JobState.CANCELLED
    assert kinds(store, "sweep")[-1] is EventKind.CANCELLED
    assert store.queued() == []


def test_a_retry_queues_failed_and_cancelled_children_and_makes_the_rest(
    store: Store, sweep: Callable[..., Job]
):
    sweep(trials=5)
    store.add_trials("sweep", children(1, 4), by="test")
    finish(store, "sweep.1")
    finish(store, "sweep.2", AttemptState.FAILED)
    store.open_attempt("sweep.3", 1, by="test")
    store.stop_early("sweep.3", "far behind", by="dispatcher")
    store.finish_attempt("sweep.3", 1, AttemptState.CANCELLED, by="attempt", cause=Cause.STOPPED_EARLY)
    store.request_cancel("sweep", "ada")
    again = store.retry("sweep", "ada")
    assert (again.state, again.cancel_requested, again.finished) == (JobState.RUNNING, None, None)
    assert {trial.number: str(trial.state) for trial in store.trials("sweep")} == {
        1: "succeeded",
        2: "queued",
        3: "cancelled",
        4: "queued",
    }
    assert len(store.add_trials("sweep", [child(5)], by="test")) == 1
    with pytest.raises(Conflict, match="sweep is running"):
        store.retry("sweep", "ada")


def test_a_retry_of_one_without_children_begins_anew(store: Store, sweep: Callable[..., Job]):
    sweep()
    store.request_cancel("sweep", "ada")
    assert store.retry("sweep", "ada").state is JobState.QUEUED
    assert len(store.add_trials("sweep", children(1, 3), by="test")) == 3


def test_stopping_early_is_a_cancel_with_a_reason(store: Store, sweep: Callable[..., Job]):
    sweep()
    store.add_trials("sweep", children(1, 3), by="test")
    store.open_attempt("sweep.1", 1, by="test")
    asked = store.stop_early("sweep.1", "far behind", by="dispatcher")
    assert asked is not None and asked.state is JobState.RUNNING
    assert (asked.stopped, asked.cancel_requested is not None) == ("far behind", True)
    assert store.stop_early("sweep.1", "again", by="dispatcher") is None
    ended = store.finish_attempt(
        "sweep.1", 1, AttemptState.CANCELLED, by="attempt", cause=Cause.STOPPED_EARLY, error="far behind"
    )
    assert (ended.state, ended.error, ended.stopped) == (JobState.CANCELLED, "far behind", "far behind")
    # One that waits to be tried again ends at once.
    waits = store.stop_early("sweep.2", "behind too", by="dispatcher")
    assert waits is not None and (waits.state, waits.error) == (JobState.CANCELLED, "behind too")
    assert kinds(store, "sweep.2")[-2:] == [EventKind.STOP_REQUESTED, EventKind.CANCELLED]
    # Whoever cancelled it first is the one who did.
    store.open_attempt("sweep.3", 1, by="test")
    store.request_cancel("sweep.3", "ada")
    assert store.stop_early("sweep.3", "late", by="dispatcher") is None
    assert store.job("sweep.3").stopped is None


def test_a_child_that_was_stopped_and_is_retried_is_spared(store: Store, sweep: Callable[..., Job]):
    sweep(trials=1)
    store.add_trials("sweep", children(1, 1), by="test")
    store.stop_early("sweep.1", "far behind", by="dispatcher")
    again = store.retry("sweep.1", "ada")
    assert (again.state, again.stopped, again.error) == (JobState.QUEUED, None, None)
    assert [trial.spared for trial in store.trials("sweep")] == [True]


def test_a_sweep_that_can_make_no_more_fails_after_its_children(store: Store, sweep: Callable[..., Job]):
    sweep()
    store.add_trials("sweep", children(1, 1), by="test")
    assert store.make_no_more("sweep", "no config", by="dispatcher")
    assert not store.make_no_more("sweep", "no config", by="dispatcher")
    assert store.add_trials("sweep", [child(2)], by="test") == []
    assert store.end_sweep("sweep", by="test") is None
    finish(store, "sweep.1")
    ended = store.end_sweep("sweep", by="test")
    assert ended is not None and (ended.state, ended.error) == (JobState.FAILED, "no config")


def test_a_hold_holds_its_children(store: Store, sweep: Callable[..., Job]):
    sweep()
    store.add_trials("sweep", children(1, 2), by="test")
    finish(store, "sweep.1")
    store.hold("sweep", "ada")
    assert [(job.id, job.eligible) for job in store.queued()] == [("sweep.2", False)]
    assert store.add_trials("sweep", [child(3)], by="test") == []
    store.release("sweep", "ada")
    assert [(job.id, job.eligible) for job in store.queued()] == [("sweep.2", True)]


def test_a_beginning_of_an_id_means_the_sweep(store: Store, sweep: Callable[..., Job], add_job: AddJob):
    sweep()
    store.add_trials("sweep", children(1, 3), by="test")
    assert store.job("swe").id == "sweep"
    assert store.job("sweep.2").id == "sweep.2"
    add_job("plain")
    assert [job.id for job in store.jobs(children=False)] == ["plain", "sweep"]
    assert [job.id for job in store.jobs(parent="sweep")] == ["sweep.3", "sweep.2", "sweep.1"]
    finish(store, "sweep.1")
    tally = store.tally(["sweep"])["sweep"]
    assert (tally.made, tally.ended) == (3, 1)


def test_what_children_use_is_the_sweeps(store: Store, sweep: Callable[..., Job], clock: Clock):
    sweep()
    store.add_trials("sweep", children(1, 2), by="test")
    for job in ("sweep.1", "sweep.2"):
        store.open_attempt(job, 1, by="test")
        store.start_attempt(job, 1)
        clock.forward(10)
        store.finish_attempt(job, 1, AttemptState.SUCCEEDED, by="attempt")
    assert {job: used.cpu_seconds for job, used in store.usage_by_job().items()} == {"sweep": 20}


def test_curves_are_of_the_newest_attempt(store: Store, sweep: Callable[..., Job]):
    sweep()
    store.add_trials("sweep", children(1, 2), by="test")
    before = store.changes("sweep")
    assert store.changes("sweep") == before
    store.open_attempt("sweep.1", 1, by="test")
    store.record_report("sweep.1", 1, report(1))
    store.record_report("sweep.1", 1, report(2))
    assert store.changes("sweep") != before
    assert store.curves("sweep", "loss") == {"sweep.1": {1: 2.5, 2: 2.5}}
    assert store.curves("sweep", "kl") == {}  # NaN is not recorded


def test_numbers_that_are_missing_are_found(store: Store, sweep: Callable[..., Job]):
    from sqlalchemy import text

    sweep()
    store.add_trials("sweep", children(1, 3), by="test")
    with store.writing() as connection:
        connection.execute(text("DELETE FROM trials WHERE number = 2"))
    assert repairs.contradictions(store) == [
        ("sweep sweep", "has 2 children, not numbers 1 to 3 at most"),
        ("job sweep.2", "is a child of sweep by its own record, of None by the sweep's"),
    ]
