"""Jobs that may have more ranks than they need, and attempts that make way to have them."""

from __future__ import annotations

import pytest

from jobs.store import AttemptState, Cause, CauseKind, EventKind, JobState, Store

from ..conftest import DATABASES as DATABASES
from ..conftest import Clock
from .conftest import VALUES, AddJob, kinds


@pytest.fixture
def elastic(store: Store) -> str:
    job, _ = store.add_job("wide", config={}, max_ranks=6, **{**VALUES, "ranks": 2, "cpus": 4.0, "gpus": 1.0})
    assert (job.ranks, job.max_ranks, job.cpus) == (2, 6, 4)
    return job.id


def test_an_attempt_is_recorded_with_the_ranks_that_it_got(store: Store, elastic: str, clock: Clock):
    assert store.queued()[0].max_ranks == 6
    opened = store.open_attempts([(elastic, 1)], "test", known=(), ranks={elastic: 5})
    assert opened is not None
    assert [(a.ranks, a.cpus, a.gpus) for a in opened] == [(5, 10, 2.5)]
    (running,) = store.running()
    assert (running.ranks, running.max_ranks, running.cpus) == (5, 6, 10)
    assert store.committed() == (10, 2.5)
    (claimed,) = [event for event in store.events(elastic) if event.kind is EventKind.CLAIMED]
    assert claimed.detail == {"ranks": 5}
    store.start_attempt(elastic, 1)
    clock.forward(10)
    store.finish_attempt(elastic, 1, AttemptState.LOST, by="test", cause=Cause.RANK_LOST)
    assert store.ended()[0].cpus == 10
    assert store.usage()["ada"].cpu_seconds == 100  # by what it held
    again = store.open_attempt(elastic, 2, by="test")
    assert again is not None and (again.ranks, again.cpus) == (2, 4)  # what it needs, if nobody says more
    assert store.job(elastic).infrastructure_used == 1


@pytest.mark.parametrize("ranks", [0, 1, 7])
def test_no_attempt_has_fewer_ranks_than_needed_or_more_than_allowed(store: Store, elastic: str, ranks: int):
    with pytest.raises(ValueError, match=f"job wide cannot have {ranks} ranks"):
        store.open_attempt(elastic, 1, by="test", ranks=ranks)
    assert store.job(elastic).state is JobState.QUEUED
    assert store.attempts(elastic) == []


def test_a_job_of_a_fixed_number_has_that(store: Store, add_job: AddJob):
    assert add_job("first").max_ranks is None
    with pytest.raises(ValueError, match="cannot have 2 ranks"):
        store.open_attempt("first", 1, by="test", ranks=2)
    opened = store.open_attempt("first", 1, by="test", ranks=1)
    assert opened is not None and opened.ranks == 1
    assert store.events("first")[-1].detail == {}


def test_making_way_for_itself_is_no_displacement(store: Store, elastic: str):
    store.open_attempt(elastic, 1, by="test")
    assert store.request_yield(elastic, "dispatcher", "there is room for 6 ranks", cause=Cause.RESIZED)
    assert store.job(elastic).yield_cause is store.running()[0].yield_cause is Cause.RESIZED
    job = store.finish_attempt(elastic, 1, AttemptState.PREEMPTED, by="attempt", cause=Cause.RESIZED)
    assert (job.state, job.yield_cause, job.not_before) == (JobState.QUEUED, None, None)
    assert (job.errors_used, job.infrastructure_used) == (0, 0)
    assert Cause.RESIZED.kind is CauseKind.PREEMPTION
    assert store.queued()[0].preempted == 0
    assert kinds(store, elastic)[-3:] == [
        EventKind.YIELD_REQUESTED,
        EventKind.FINISHED,
        EventKind.PREEMPTED,
    ]
    finished, made_way = store.events(elastic)[-2:]
    assert finished.detail["cause"] == made_way.detail["cause"] == "resized"
    store.open_attempt(elastic, 2, by="test", ranks=6)
    store.request_yield(elastic, "dispatcher")
    assert store.job(elastic).yield_cause is Cause.PREEMPTED
    store.finish_attempt(elastic, 2, AttemptState.PREEMPTED, by="attempt", cause=Cause.PREEMPTED)
    assert store.queued()[0].preempted == 1


def test_a_person_who_requeues_displaces_nothing(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    store.request_yield("first", "ada", cause=Cause.REQUEUED)
    job = store.finish_attempt("first", 1, AttemptState.PREEMPTED, by="attempt", cause=Cause.REQUEUED)
    assert (job.state, job.errors_used, job.infrastructure_used) == (JobState.QUEUED, 0, 0)
    assert store.queued()[0].preempted == 0


def test_a_job_that_is_held_is_not_asked_to_start_again(store: Store, elastic: str):
    store.open_attempt(elastic, 1, by="test")
    store.hold(elastic, "ada")
    assert not store.request_yield(elastic, "dispatcher", cause=Cause.RESIZED)
    assert store.running()[0].yield_requested is None
    assert store.request_yield(elastic, "ada")  # but for others it makes way
