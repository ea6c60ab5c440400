"""Opening, starting and ending attempts; what a stale one may not write."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from jobs.store import AttemptState, Cause, Checkpoint, EventKind, JobState, StaleAttempt, Store
from jobs.store.tables import AttemptRow, Base

from ..conftest import DATABASES as DATABASES
from .conftest import AddJob, checkpoint, kinds, record_version, report


def test_an_attempt_is_opened_once(store: Store, add_job: AddJob):
    add_job("first")
    assert store.open_attempt("first", 2, by="test") is None  # not the next number
    attempt = store.open_attempt("first", 1, by="test")
    assert attempt is not None
    assert (attempt.state, attempt.number, attempt.actor) == (AttemptState.STARTING, 1, "first-1")
    assert store.open_attempt("first", 1, by="test") is None
    assert store.open_attempt("first", 2, by="test") is None
    job = store.job("first")
    assert (job.state, job.attempt) == (JobState.RUNNING, 1)
    assert job.started == attempt.opened
    assert store.attempts(active=True) == [attempt]


def test_of_twenty_that_open_an_attempt_one_does(store: Store, add_job: AddJob):
    add_job("first")
    barrier = threading.Barrier(20)
    opened: list[bool] = []

    def open_it() -> None:
        barrier.wait()
        opened.append(store.open_attempt("first", 1, by="test") is not None)

    threads = [threading.Thread(target=open_it) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(opened) == [False] * 19 + [True]
    assert len(store.attempts("first")) == 1


def test_the_database_refuses_a_second_active_attempt(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    now = store.clock()
    second = insert(AttemptRow).values(job="first", number=2, state="starting", opened=now, seen=now)
    with pytest.raises(IntegrityError), store.writing() as connection:
        connection.execute(second)


def test_an_attempt_from_start_to_success(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    store.join_attempt("first", 1, host="here")
    store.start_attempt("first", 1)
    store.start_attempt("first", 1)  # its ranks may say so twice
    job = store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    assert job.state is JobState.SUCCEEDED
    (attempt,) = store.attempts("first")
    assert (attempt.state, attempt.host, attempt.cause) == (AttemptState.SUCCEEDED, "here", None)
    assert attempt.opened <= (attempt.started or attempt.opened) <= (attempt.finished or attempt.opened)
    assert kinds(store, "first") == [
        EventKind.SUBMITTED,
        EventKind.CLAIMED,
        EventKind.STARTED,
        EventKind.FINISHED,
        EventKind.SUCCEEDED,
    ]


@pytest.mark.parametrize("state", [AttemptState.FAILED, AttemptState.LOST])
def test_a_failure_puts_the_job_back_while_it_has_attempts(
    store: Store, add_job: AddJob, state: AttemptState
):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    job = store.finish_attempt("first", 1, state, by="test", cause=Cause.ERROR, error="went wrong")
    assert (job.state, job.error, job.finished) == (JobState.QUEUED, "went wrong", None)
    store.open_attempt("first", 2, by="test")
    job = store.finish_attempt("first", 2, state, by="test", cause=Cause.ERROR, error="again")
    assert (job.state, job.error) == (JobState.FAILED, "again")
    assert job.finished is not None
    assert kinds(store, "first")[-1] is EventKind.FAILED
    assert EventKind.REQUEUED in kinds(store, "first")


def test_an_error_may_hold_any_character(store: Store, add_job: AddJob):
    """PostgreSQL takes no NUL, and no database half of a surrogate pair, which stands for a byte of a file's
    name: an error that names such a file must not hide the end of its attempt."""
    add_job("first")
    store.open_attempt("first", 1, by="test")
    error = "caf\udce9.csv: '\x00' is no label"
    job = store.finish_attempt("first", 1, AttemptState.FAILED, by="test", cause=Cause.ERROR, error=error)
    assert job.error == store.attempts("first")[0].error == r"caf\udce9.csv: '\x00' is no label"


def test_a_bad_config_is_not_tried_again(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    job = store.finish_attempt("first", 1, AttemptState.FAILED, by="test", cause=Cause.BAD_CONFIG, error="x")
    assert job.state is JobState.FAILED


@pytest.mark.parametrize(
    "write",
    [
        lambda store, made: store.record_report("first", 1, report(2)),
        lambda store, made: store.record_checkpoint("first", 1, checkpoint(2), report(2)),
        lambda store, made: store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt"),
        lambda store, made: record_version(store, "first", 1, made, version=7),
        lambda store, made: store.reserve_version("first", 1, "reviews"),
        lambda store, made: store.start_attempt("first", 1),
        lambda store, made: store.join_attempt("first", 1, host="there"),
        lambda store, made: store.prune("first", 1, keep_last=1, mode="max"),
        lambda store, made: store.check_attempt("first", 1),
    ],
    ids=["report", "checkpoint", "completion", "promotion", "reserve", "start", "join", "prune", "check"],
)
@pytest.mark.parametrize("end", ["a newer attempt", "the end of the job", "waiting for the next attempt"])
def test_a_stale_attempt_changes_nothing(
    store: Store, add_job: AddJob, write: Callable[[Store, Checkpoint], object], end: str
):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    made = store.record_checkpoint("first", 1, checkpoint(1, 0.5))
    lost = AttemptState.SUCCEEDED if end == "the end of the job" else AttemptState.LOST
    store.finish_attempt("first", 1, lost, by="test", cause=Cause.DIED)
    if end == "a newer attempt":
        store.open_attempt("first", 2, by="test")
    before = dump(store)
    with pytest.raises(StaleAttempt, match="attempt 1 of job first is not its active attempt"):
        write(store, made)
    assert dump(store) == before


def dump(store: Store) -> list[str]:
    """Everything that the database holds."""
    with store.reading() as connection:
        return [
            str(row) for table in Base.metadata.sorted_tables for row in connection.execute(select(table))
        ]


def test_of_many_that_end_an_attempt_one_does(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    barrier = threading.Barrier(8)
    outcomes: list[str] = []

    def end(state: AttemptState) -> None:
        barrier.wait()
        try:
            store.finish_attempt("first", 1, state, by="test")
            outcomes.append(state)
        except StaleAttempt:
            outcomes.append("stale")

    states = [AttemptState.SUCCEEDED, AttemptState.LOST] * 4
    threads = [threading.Thread(target=end, args=(state,)) for state in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("stale") == 7
    (won,) = set(outcomes) - {"stale"}
    assert store.attempts("first")[0].state == won
    assert kinds(store, "first").count(EventKind.FINISHED) == 1


def test_committed_counts_active_attempts(store: Store, add_job: AddJob):
    add_job("first", cpus=2, gpus=1)
    add_job("second", cpus=3)
    add_job("third", cpus=5)
    assert store.committed() == (0, 0)
    store.open_attempt("first", 1, by="test")
    store.open_attempt("second", 1, by="test")
    assert store.committed() == (5, 1)
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="test")
    assert store.committed() == (3, 0)
