"""The history: complete, in order, and never changed."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from jobs.store import AttemptState, Cause, Event, EventKind, Store, StoreError

from ..conftest import DATABASES as DATABASES
from .conftest import AddJob, checkpoint


@pytest.mark.parametrize("statement", ["UPDATE events SET actor = 'nobody'", "DELETE FROM events"])
def test_the_database_itself_keeps_what_has_happened(store: Store, add_job: AddJob, statement: str):
    add_job("first")
    with pytest.raises((StoreError, IntegrityError), match="only ever added"), store.writing() as connection:
        connection.execute(text(statement))
    (event,) = store.events()
    assert (event.kind, event.actor) == (EventKind.SUBMITTED, "ada")


def test_a_change_that_is_taken_back_is_not_told(store: Store, add_job: AddJob):
    add_job("first")
    with pytest.raises(KeyError), store.writing() as connection:
        store._event(connection, EventKind.CANCELLED, job="first", by="ada")
        raise KeyError("oh")
    store.request_cancel("first", "bob")
    assert [(event.kind, event.actor) for event in store.events()] == [
        (EventKind.SUBMITTED, "ada"),
        (EventKind.CANCELLED, "bob"),
    ]


def test_every_change_of_a_job_is_told_with_who_made_it(store: Store, add_job: AddJob):
    add_job("first", held=True)
    store.release("first", "bob")
    store.hold("first", "bob")
    store.hold("first", "eve")  # it is held already: nothing has changed
    store.release("first", "ada")
    store.open_attempt("first", 1, by="dispatcher-1")
    store.start_attempt("first", 1)
    store.record_checkpoint("first", 1, checkpoint(1, 0.5))
    store.request_yield("first", "scheduler", "job urgent needs its room")
    store.finish_attempt("first", 1, AttemptState.PREEMPTED, by="attempt", cause=Cause.PREEMPTED)
    store.open_attempt("first", 2, by="dispatcher-2")
    store.request_cancel("first", "ada")
    store.finish_attempt("first", 2, AttemptState.CANCELLED, by="attempt", cause=Cause.CANCELLED)
    store.retry("first", "ada")
    store.record_event(EventKind.REPAIRED, job="first", by="verify", detail={"what": "queue entry"})
    assert [(str(event.kind), event.actor, event.attempt) for event in store.events("first")] == [
        ("submitted", "ada", None),
        ("held", "ada", None),
        ("released", "bob", None),
        ("held", "bob", None),
        ("released", "ada", None),
        ("claimed", "dispatcher-1", 1),
        ("started", "attempt", 1),
        ("checkpointed", "attempt", 1),
        ("yield-requested", "scheduler", 1),
        ("finished", "attempt", 1),
        ("preempted", "attempt", 1),
        ("claimed", "dispatcher-2", 2),
        ("cancel-requested", "ada", None),
        ("finished", "attempt", 2),
        ("cancelled", "attempt", 2),
        ("retried", "ada", None),
        ("repaired", "verify", None),
    ]
    assert store.events("first", limit=2, newest=True) == store.events("first")[-2:]
    assert store.events("first", limit=2) == store.events("first")[:2]


def test_a_follower_misses_nothing_however_many_write(store: Store, add_job: AddJob):
    """PostgreSQL gives out numbers before it commits: a smaller one may appear after a larger one."""
    writers, each = 6, 24
    for n in range(writers):
        add_job(f"job-{n}")
    seen: list[Event] = store.events()
    done = threading.Event()

    def follow() -> None:
        while True:
            last = done.is_set()
            seen.extend(store.events(after=seen[-1].id))
            if last:
                return
            # Without a pause it would keep Python's lock, and starve the one writer that has the database's.
            done.wait(0.001)

    def write(job: str) -> None:
        for _ in range(each):
            store.hold(job, "ada")
            store.release(job, "ada")

    follower = threading.Thread(target=follow)
    follower.start()
    threads = [threading.Thread(target=write, args=(f"job-{n}",)) for n in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    follower.join()
    assert seen == store.events()
    assert len(seen) == writers * (1 + 2 * each)
