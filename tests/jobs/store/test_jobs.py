"""Submitting, looking up, listing, cancelling, retrying; and the events."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
from sqlalchemy import event

from jobs.config import JobConfig
from jobs.store import (
    Ambiguous,
    AttemptState,
    Cause,
    Checkpoint,
    Conflict,
    EventKind,
    JobState,
    NotFound,
    Store,
)
from jobs.store import events as store_events

from ..conftest import DATABASES as DATABASES
from .conftest import VALUES, AddJob, checkpoint, kinds


def test_a_job_keeps_its_whole_config(store: Store, config: JobConfig, add_job: AddJob):
    before = datetime.now(UTC)
    job = add_job("first", priority=3, cpus=2, gpus=1)
    assert (job.state, job.attempt, job.priority, job.cpus, job.gpus) == (JobState.QUEUED, 0, 3, 2, 1)
    assert before <= job.created <= datetime.now(UTC)
    assert store.config("first") == config.model_dump(mode="json")
    assert kinds(store, "first") == [EventKind.SUBMITTED]


def test_the_same_id_again_is_the_same_job(store: Store, config: JobConfig, add_job: AddJob):
    first = add_job("first")
    assert add_job("first") == first
    assert kinds(store, "first") == [EventKind.SUBMITTED]
    with pytest.raises(Conflict, match="exists with another config"):
        store.add_job("first", config={**config.model_dump(mode="json"), "seed": 9}, **VALUES)
    assert store.config("first")["seed"] == 0


def test_ids_can_be_abbreviated(store: Store, add_job: AddJob):
    add_job("abc1")
    add_job("abc1x")
    add_job("abd_")
    assert store.job("abd").id == "abd_"
    assert store.job("abc1").id == "abc1"  # a whole id is itself, though another one begins with it
    with pytest.raises(Ambiguous) as ambiguous:
        store.job("ab")
    assert ambiguous.value.candidates == ["abc1", "abc1x", "abd_"]
    assert "abc1, abc1x, abd_" in str(ambiguous.value)
    for wrong in ("x", "", "a%", "abd%", "ab__"):
        with pytest.raises(NotFound):
            store.job(wrong)
    with pytest.raises(NotFound):
        store.job("abd", exact=True)


def test_lists_are_newest_first_and_filtered(store: Store, add_job: AddJob):
    for id, owner in (("aa1", "ada"), ("bb2", "bob"), ("cc3", "ada")):
        add_job(id, owner=owner)
    store.open_attempt("bb2", 1, by="test")
    assert [job.id for job in store.jobs()] == ["cc3", "bb2", "aa1"]
    assert [job.id for job in store.jobs(limit=1)] == ["cc3"]
    assert [job.id for job in store.jobs(owner="ada")] == ["cc3", "aa1"]
    assert [job.id for job in store.jobs([JobState.RUNNING])] == ["bb2"]
    assert [job.id for job in store.jobs(name="other")] == []
    assert [job.id for job in store.queued()] == ["aa1", "cc3"]
    assert (store.count(), store.count([JobState.QUEUED]), store.count([JobState.FAILED])) == (3, 2, 0)


def test_a_list_is_one_statement_that_leaves_the_configs_where_they_are(store: Store, add_job: AddJob):
    for n in range(3):
        add_job(f"job-{n}")
    said: list[str] = []
    event.listen(store._engine, "before_cursor_execute", lambda *given: said.append(given[2]))
    assert len(store.jobs()) == 3
    (query,) = [statement for statement in said if statement.startswith("SELECT")]
    assert "jobs.owner" in query and "config" not in query


def test_cancelling_a_queued_job_ends_it_at_once(store: Store, add_job: AddJob):
    add_job("first")
    job = store.request_cancel("first", "ada")
    assert job.state is JobState.CANCELLED
    assert job.finished is not None
    assert store.open_attempt("first", 1, by="test") is None
    assert kinds(store, "first") == [EventKind.SUBMITTED, EventKind.CANCELLED]


def test_cancelling_a_running_job_asks_its_attempt(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    job = store.request_cancel("first", "ada")
    assert job.state is JobState.RUNNING
    assert store.request_cancel("first", "bob").cancel_requested == job.cancel_requested
    assert store.check_attempt("first", 1).cancel_requested is not None
    assert kinds(store, "first").count(EventKind.CANCEL_REQUESTED) == 1
    # Whatever the attempt ends as, the job is not tried again.
    ended = store.finish_attempt("first", 1, AttemptState.FAILED, by="test", cause=Cause.ERROR, error="x")
    assert ended.state is JobState.CANCELLED


def test_cancelling_an_ended_job_changes_nothing(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    done = store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="test")
    assert store.request_cancel("first", "ada") == done
    with pytest.raises(NotFound):
        store.request_cancel("nobody", "ada")


def test_a_cancel_is_not_lost_between_two_states(store: Store, database_url: str, add_job: AddJob):
    """Its attempt fails, and the job waits again, just while the cancel looks at it."""
    add_job("first")
    store.open_attempt("first", 1, by="test")
    other = Store(database_url)
    failing = threading.Thread(
        target=other.finish_attempt, args=("first", 1, AttemptState.FAILED), kwargs={"by": "test"}
    )

    def between(*arguments: object) -> None:
        if str(arguments[2]).startswith("UPDATE jobs SET cancel_requested"):
            failing.start()
            failing.join(0.5)  # it may have to wait for the cancel

    event.listen(store._engine, "before_cursor_execute", between)
    store.request_cancel("first", "ada")
    failing.join(20)
    other.close()
    assert store.job("first").state is JobState.CANCELLED


@pytest.mark.parametrize("stop", ["cancel", "stop early"])
def test_who_stops_a_job_and_its_attempt_do_not_wait_for_one_another(
    store: Store, database_url: str, add_job: AddJob, stop: str
):
    """Both add to the history: the attempt names the job's row there while the other holds it."""
    add_job("first")
    store.open_attempt("first", 1, by="test")
    other = Store(database_url)
    recorded: list[Checkpoint] = []
    recording = threading.Thread(
        target=lambda: recorded.append(other.record_checkpoint("first", 1, checkpoint(1)))
    )

    def between(*arguments: object) -> None:
        if str(arguments[2]).startswith("UPDATE jobs SET cancel_requested"):
            recording.start()
            recording.join(0.5)  # SQLite has one writer at a time

    event.listen(store._engine, "before_cursor_execute", between)
    if stop == "cancel":
        store.request_cancel("first", "ada")
    else:
        store.stop_early("first", "behind", "dispatcher")
    recording.join(20)
    other.close()
    assert store.job("first").cancel_requested is not None
    assert store.checkpoints("first") == recorded != []


def test_retry_gives_new_attempts(store: Store, add_job: AddJob):
    add_job("first")
    with pytest.raises(Conflict, match="only a failed or cancelled job"):
        store.retry("first", "ada")
    store.open_attempt("first", 1, by="test")
    store.finish_attempt("first", 1, AttemptState.FAILED, by="test", cause=Cause.BAD_CONFIG, error="no data")
    assert store.job("first").error == "no data"
    assert store.job("first").errors_used == 1
    job = store.retry("first", "ada")
    assert (job.state, job.attempt, job.errors_used, job.error, job.finished) == (
        JobState.QUEUED,
        1,
        0,
        None,
        None,
    )
    for number in (2, 3):
        store.open_attempt("first", number, by="test")
        job = store.finish_attempt(
            "first", number, AttemptState.FAILED, by="test", cause=Cause.ERROR, error="gone"
        )
    assert job.state is JobState.FAILED


def test_events_are_told_from_where_one_left_off(store: Store, add_job: AddJob):
    add_job("first")
    add_job("second")
    store.request_cancel("first", "bob")
    all_events = store.events()
    assert [event.kind for event in all_events] == [
        EventKind.SUBMITTED,
        EventKind.SUBMITTED,
        EventKind.CANCELLED,
    ]
    assert [event.actor for event in store.events("first")] == ["ada", "bob"]
    assert store.events(after=all_events[1].id) == all_events[2:]
    large = {"second": "needs 8 GPUs, the cluster has 0"}
    assert store.note_unfit(large, "dispatcher") == ["second"]
    assert store.note_unfit(large, "dispatcher") == []
    assert store.events("second")[-1].detail == {"reason": "needs 8 GPUs, the cluster has 0"}


def test_of_many_jobs_that_are_too_large_each_is_told_once_in_few_transactions(
    store: Store, add_job: AddJob, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store_events, "_TOGETHER", 4)
    reasons = {f"job-{number:02}": f"needs {number} CPUs" for number in range(10)}
    for id in reasons:
        add_job(id)
    assert store.note_unfit({"job-03": reasons["job-03"]}, "dispatcher") == ["job-03"]
    writing, transactions = store.writing, []
    monkeypatch.setattr(store, "writing", lambda: transactions.append(1) or writing())
    others = [id for id in reasons if id != "job-03"]
    assert store.note_unfit(reasons, "dispatcher") == others
    assert len(transactions) == 3
    for id, reason in reasons.items():
        assert [each.detail for each in store.events(id) if each.kind is EventKind.UNFIT] == [
            {"reason": reason}
        ]
