"""Jobs that come after others."""

from __future__ import annotations

import threading

import pytest

from jobs.store import AttemptState, Cause, Conflict, EventKind, JobState, NotFound, Retry, Store

from ..conftest import DATABASES as DATABASES
from .conftest import AddJob

ONCE = Retry(max_attempts=1)


def end(store: Store, job: str, state: AttemptState = AttemptState.SUCCEEDED) -> None:
    number = store.job(job).attempt + 1
    assert store.open_attempt(job, number, by="test") is not None
    cause = Cause.ERROR if state is AttemptState.FAILED else None
    store.finish_attempt(job, number, state, by="test", cause=cause)


def states(store: Store, *jobs: str) -> list[JobState]:
    return [store.job(job).state for job in jobs]


def test_a_job_starts_only_after_the_success_of_another(store: Store, add_job: AddJob):
    add_job("one")
    add_job("two")
    add_job("both", after=["one", "two"])
    waiting = store.waiting("both")
    assert waiting is not None
    assert (waiting.blocked_by, waiting.eligible) == (("one", "two"), False)
    assert store.open_attempt("both", 1, by="test") is None
    end(store, "two")
    assert store.open_attempt("both", 1, by="test") is None
    assert store.freed_by("two") == []
    end(store, "one")
    assert [queued.id for queued in store.freed_by("one")] == ["both"]
    assert store.open_attempt("both", 1, by="test") is not None
    assert [(d.on_job, d.any, d.met) for d in store.dependencies("both")] == [
        ("one", False, True),
        ("two", False, True),
    ]
    add_job("also", after=["two"], retry=ONCE)
    assert store.dependents("one") == ["both"]
    assert store.dependents("two", "one") == ["both", "also"]  # each once, as they were submitted
    assert store.dependents("both") == []


@pytest.mark.parametrize("state", [AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.CANCELLED])
def test_after_any_takes_whatever_end_there_is(store: Store, add_job: AddJob, state: AttemptState):
    add_job("one", retry=ONCE)
    add_job("later", after_any=["one"])
    assert store.open_attempt("later", 1, by="test") is None
    end(store, "one", state)
    assert [queued.id for queued in store.freed_by("one")] == ["later"]
    assert store.open_attempt("later", 1, by="test") is not None


def test_those_that_need_a_job_that_fails_end_with_it(store: Store, add_job: AddJob):
    add_job("one", retry=ONCE)
    add_job("two", after=["one"])
    add_job("three", after=["two"])
    add_job("other", after_any=["two"])
    add_job("free")
    end(store, "one", AttemptState.FAILED)
    assert states(store, "one", "two", "three", "other", "free") == [
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.CANCELLED,
        JobState.QUEUED,
        JobState.QUEUED,
    ]
    assert store.job("two").error == "job one, which it comes after, is failed"
    assert store.job("three").error == "job two, which it comes after, is cancelled"
    told = store.events("three")[-1]
    assert (told.kind, told.actor, told.detail) == (EventKind.CANCELLED, "test", {"because": "two"})
    assert store.open_attempt("other", 1, by="test") is not None


def test_a_failure_that_is_tried_again_ends_nobody(store: Store, add_job: AddJob):
    add_job("one")
    add_job("two", after=["one"])
    end(store, "one", AttemptState.FAILED)
    assert states(store, "one", "two") == [JobState.QUEUED, JobState.QUEUED]
    store.request_cancel("one", "ada")
    assert states(store, "one", "two") == [JobState.CANCELLED, JobState.CANCELLED]


def test_what_can_never_start_is_refused(store: Store, add_job: AddJob):
    add_job("one")
    store.request_cancel("one", "ada")
    with pytest.raises(Conflict, match="after job one, which is cancelled: retry that one first"):
        add_job("two", after=["one"])
    with pytest.raises(NotFound, match="no job 'nobody' for job two to come after"):
        add_job("two", after=["nobody"])
    with pytest.raises(NotFound):
        add_job("two", after=["two"])
    assert [job.id for job in store.jobs()] == ["one"]
    assert [event.kind for event in store.events("two")] == []
    add_job("two", after_any=["one"])


def test_a_retry_needs_what_it_comes_after_to_be_possible(store: Store, add_job: AddJob):
    add_job("one", retry=ONCE)
    add_job("two", after=["one"])
    end(store, "one", AttemptState.FAILED)
    with pytest.raises(Conflict, match="retry that one first"):
        store.retry("two", "ada")
    assert store.job("two").state is JobState.CANCELLED
    store.retry("one", "ada")
    store.retry("two", "ada")
    assert store.open_attempt("two", 1, by="test") is None
    end(store, "one")
    assert store.open_attempt("two", 1, by="test") is not None


def test_the_same_id_after_other_jobs_is_another_job(store: Store, add_job: AddJob):
    add_job("one")
    first = add_job("two", after=["one"])
    assert add_job("two", after=["one"]) == first
    for other in ({}, {"after_any": ["one"]}):
        with pytest.raises(Conflict, match="comes after other jobs"):
            add_job("two", **other)


def test_a_job_that_fails_while_others_are_told_to_come_after_it_leaves_none_waiting(
    store: Store, add_job: AddJob
):
    """Submitting and failing race: whoever is later sees the other."""
    add_job("one", retry=ONCE)
    store.open_attempt("one", 1, by="test")
    barrier = threading.Barrier(9)
    refused: list[str] = []

    def submit(id: str) -> None:
        barrier.wait()
        try:
            add_job(id, after=["one"])
        except Conflict:
            refused.append(id)

    threads = [threading.Thread(target=submit, args=(f"after-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    barrier.wait()
    store.finish_attempt("one", 1, AttemptState.FAILED, by="test", cause=Cause.ERROR)
    for thread in threads:
        thread.join()
    there = store.dependents("one")
    assert len(there) + len(refused) == 8
    assert {store.job(id).state for id in there} <= {JobState.CANCELLED}


def test_cancels_that_meet_in_one_web_of_jobs_do_not_wait_for_one_another_for_ever(
    store: Store, add_job: AddJob
):
    roots = [f"root-{n}" for n in range(4)]
    for root in roots:
        add_job(root)
    for layer in range(3):
        before = roots if layer == 0 else [f"l{layer - 1}-{n}" for n in range(4)]
        for n in range(4):
            add_job(f"l{layer}-{n}", after=before if n % 2 else before[::-1])
    barrier = threading.Barrier(4)
    errors: list[Exception] = []

    def cancel(root: str) -> None:
        barrier.wait()
        try:
            store.request_cancel(root, "ada")
        except Exception as error:  # noqa: BLE001 - the test shows it
            errors.append(error)

    threads = [threading.Thread(target=cancel, args=(root,)) for root in roots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {job.state for job in store.jobs()} == {JobState.CANCELLED}
    cancelled = [event.job for event in store.events() if event.kind is EventKind.CANCELLED]
    assert len(cancelled) == len(set(cancelled)) == 16
