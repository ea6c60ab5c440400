"""What a scheduler reads and orders: holds, moments, the drain, usage."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from jobs.store import AttemptState, Cause, Conflict, EventKind, JobState, Store

from ..conftest import DATABASES as DATABASES
from ..conftest import Clock
from .conftest import AddJob, kinds


def test_a_held_job_waits_until_it_is_released(store: Store, add_job: AddJob):
    add_job("first")
    assert store.hold("first", "ada").held is not None
    assert store.open_attempt("first", 1, by="test") is None
    assert not store.queued()[0].eligible
    assert store.release("first", "ada").held is None
    assert store.release("first", "ada").held is None
    assert store.open_attempt("first", 1, by="test") is not None
    assert kinds(store, "first") == [
        EventKind.SUBMITTED,
        EventKind.HELD,
        EventKind.RELEASED,
        EventKind.CLAIMED,
    ]


def test_holding_a_running_job_holds_its_next_attempt(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    store.hold("first", "ada")
    job = store.finish_attempt("first", 1, AttemptState.LOST, by="test", cause=Cause.DIED)
    assert (job.state, store.queued()[0].eligible) == (JobState.QUEUED, False)
    assert store.open_attempt("first", 2, by="test") is None
    store.request_cancel("first", "ada")
    for change in (store.hold, store.release):
        with pytest.raises(Conflict, match="has not ended"):
            change("first", "ada")


def test_a_job_does_not_start_before_its_moment(store: Store, add_job: AddJob, clock: Clock):
    add_job("first", not_before=clock.now + timedelta(hours=1))
    assert store.open_attempt("first", 1, by="test") is None
    assert [q.eligible for q in store.queued()] == [False]
    assert [q.eligible for q in store.queued(clock.now + timedelta(hours=2))] == [True]
    clock.forward(3600)
    assert store.open_attempt("first", 1, by="test") is not None


def test_a_job_that_waits_for_a_moment_can_be_hurried(store: Store, add_job: AddJob, clock: Clock):
    add_job("first", not_before=clock.now + timedelta(hours=1))
    assert store.hurry("first", "ada").not_before is None
    with pytest.raises(Conflict, match=r"waits for no moment$"):
        store.hurry("first", "ada")
    store.hold("first", "ada")
    with pytest.raises(Conflict, match="it is held: `textvae-jobs release first` lets it start"):
        store.hurry("first", "ada")
    store.release("first", "ada")
    assert store.open_attempt("first", 1, by="test") is not None


def test_a_yield_is_asked_for_once_and_forgotten_with_the_attempt(
    store: Store, add_job: AddJob, clock: Clock
):
    add_job("first")
    assert not store.request_yield("first", "scheduler")  # it is not running
    store.open_attempt("first", 1, by="test")
    assert store.request_yield("first", "scheduler", "room for job urgent")
    assert not store.request_yield("first", "scheduler")
    (running,) = store.running()
    assert (running.yield_requested, running.actor) == (clock.now, "first-1")
    assert store.check_attempt("first", 1).yield_requested == clock.now
    store.finish_attempt("first", 1, AttemptState.PREEMPTED, by="attempt", cause=Cause.PREEMPTED)
    store.open_attempt("first", 2, by="test")
    (running,) = store.running()
    assert (running.yield_requested, running.preempted) == (None, 1)
    store.request_cancel("first", "ada")
    assert not store.request_yield("first", "scheduler")


def test_who_decided_on_other_attempts_asks_nobody_to_make_way(store: Store, add_job: AddJob):
    for id in ("first", "second", "third"):
        add_job(id)
    store.open_attempt("first", 1, by="test")
    store.open_attempt("second", 1, by="test")
    ask = partial(store.request_yields, {"first": "room"}, "scheduler")
    both = {("first", 1): False, ("second", 1): False}
    assert ask(known={("first", 1): False}) is None  # another has been opened
    assert ask(known={**both, ("third", 1): False}) is None  # another has ended
    assert ask(known={**both, ("second", 1): True}) is None
    store.request_cancel("second", "ada")
    assert ask(known=both) is None  # another leaves
    both["second", 1] = True
    assert ask(known=both) == ["first"]
    assert ask(known=both) is None
    both["first", 1] = True
    assert ask(known=both) == []  # it makes way already
    assert kinds(store, "first").count(EventKind.YIELD_REQUESTED) == 1


def test_of_two_who_ask_others_at_once_one_does(
    store: Store, add_job: AddJob, monkeypatch: pytest.MonkeyPatch
):
    known = {("first", 1): False, ("second", 1): False}
    for job, number in known:
        add_job(job)
        store.open_attempt(job, number, by="test")
    both, request = threading.Barrier(2), store._request_yield

    def slow(*arguments: Any) -> bool:
        with suppress(threading.BrokenBarrierError):
            both.wait(1)  # both of them have looked, if both may
        return request(*arguments)

    monkeypatch.setattr(store, "_request_yield", slow)
    with ThreadPoolExecutor(2) as pool:
        asking = [
            pool.submit(store.request_yields, {job: "room"}, "scheduler", known=known) for job, _ in known
        ]
    assert [each.result() for each in asking].count(None) == 1
    assert [job.leaving for job in store.running()].count(True) == 1


def test_nothing_starts_while_the_service_is_drained(store: Store, add_job: AddJob):
    add_job("first")
    add_job("second")
    store.open_attempt("first", 1, by="test")
    assert store.draining() is None
    drain = store.drain("ada")
    assert store.draining() == drain == store.drain("bob")  # who began it remains known
    assert drain.by == "ada"
    assert store.open_attempt("second", 1, by="test") is None
    store.start_attempt("first", 1)  # what is under way goes on
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    assert store.end_drain("bob")
    assert not store.end_drain("bob")
    assert store.open_attempt("second", 1, by="test") is not None
    told = [(e.kind, e.actor) for e in store.events() if e.job is None]
    assert told == [(EventKind.DRAIN_BEGUN, "ada"), (EventKind.DRAIN_ENDED, "bob")]


def test_once_a_drain_has_begun_no_attempt_is_opened_by_anyone(store: Store, add_job: AddJob):
    for n in range(40):
        add_job(f"job-{n:02}")
    barrier = threading.Barrier(5)
    after: list[int] = []

    def open_all(first: int) -> None:
        barrier.wait()
        for n in range(first, 40, 4):
            store.open_attempt(f"job-{n:02}", 1, by="test")

    threads = [threading.Thread(target=open_all, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    barrier.wait()
    store.drain("ada")
    after.append(len(store.attempts()))
    for thread in threads:
        thread.join()
    after.append(len(store.attempts()))
    assert after[0] == after[1]


def test_who_waits_and_who_runs_is_told_in_order(store: Store, add_job: AddJob, clock: Clock):
    for id, priority, owner in (
        ("low", -1, "ada"),
        ("mid", 0, "bob"),
        ("high", 5, "ada"),
        ("next", 0, "ada"),
    ):
        add_job(id, priority=priority, owner=owner, cpus=2, gpus=1, time_limit=60)
    assert [(q.id, q.priority, q.owner) for q in store.queued()] == [
        ("high", 5, "ada"),
        ("mid", 0, "bob"),
        ("next", 0, "ada"),
        ("low", -1, "ada"),
    ]
    created = clock.now
    clock.forward(5)
    store.open_attempt("mid", 1, by="test")
    clock.forward(5)
    store.start_attempt("mid", 1)
    (running,) = store.running()
    assert (running.id, running.owner, running.cpus, running.gpus) == ("mid", "bob", 2, 1)
    assert (running.state, running.time_limit) == (AttemptState.RUNNING, 60)
    assert running.started is not None
    assert (running.created, (running.started - running.opened).total_seconds()) == (created, 5)
    assert store.committed() == (2, 1)
    clock.forward(5)
    store.finish_attempt("mid", 1, AttemptState.LOST, by="test", cause=Cause.DIED)
    waiting = store.waiting("mid")
    assert waiting is not None
    assert (waiting.since, waiting.created, waiting.attempt) == (clock.now, created, 1)
    assert store.waiting("nobody") is None


def test_usage_is_what_attempts_held_while_they_trained(store: Store, add_job: AddJob, clock: Clock):
    add_job("first", owner="ada", cpus=2, gpus=1)
    add_job("second", owner="bob", cpus=4)
    add_job("never", owner="eve", cpus=4)
    begin = clock.now
    store.open_attempt("never", 1, by="test")
    clock.forward(7)
    store.finish_attempt("never", 1, AttemptState.LOST, by="test", cause=Cause.NEVER_STARTED)
    for id in ("first", "second"):
        store.open_attempt(id, 1, by="test")
    clock.forward(3)  # until the ranks are there, nothing is trained
    for id in ("first", "second"):
        store.start_attempt(id, 1)
    clock.forward(100)
    store.finish_attempt("first", 1, AttemptState.LOST, by="test", cause=Cause.DIED)
    (attempt,) = store.attempts("first")
    assert (attempt.cpus, attempt.gpus, attempt.seconds) == (2, 1, 100)
    middle = clock.now
    clock.forward(10)
    store.open_attempt("first", 2, by="test")
    store.start_attempt("first", 2)
    clock.forward(50)
    usage = store.usage()
    assert {owner: (u.cpu_seconds, u.gpu_seconds, u.seconds, u.attempts) for owner, u in usage.items()} == {
        "ada": (300, 150, 150, 2),
        "bob": (640, 0, 160, 1),  # it is still at it
    }
    assert store.usage(begin) == usage
    since = store.usage(middle - timedelta(seconds=20))  # parts of what began before count in part
    assert (since["ada"].cpu_seconds, since["ada"].attempts) == (2 * 20 + 2 * 50, 2)
    assert since["bob"].cpu_seconds == 4 * 80
    assert set(store.usage(clock.now + timedelta(seconds=1))) == {"ada", "bob"}  # those under way
    by_job = store.usage_by_job(owner="ada")
    assert {job: u.gpu_seconds for job, u in by_job.items()} == {"first": 150}
    assert [(e.job, e.number, e.cause) for e in store.ended()] == [
        ("never", 1, Cause.NEVER_STARTED),
        ("first", 1, Cause.DIED),
    ]
    assert [e.job for e in store.ended(middle)] == ["first"]
