from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from jobs.config import JobConfig
from jobs.store import (
    Ambiguous,
    AttemptState,
    Cause,
    Checkpoint,
    Conflict,
    EventKind,
    Job,
    JobState,
    NewCheckpoint,
    NewReport,
    NotFound,
    StaleAttempt,
    Store,
    StoreUnavailable,
)
from jobs.store.tables import JobRow

AddJob = Callable[..., Job]
Trained = Callable[[str, float], Checkpoint]

VALUES: dict[str, Any] = {
    "name": "reviews",
    "owner": "ada",
    "priority": 0,
    "ranks": 1,
    "cpus": 1,
    "gpus": 0,
    "attempt_limit": 2,
}


def checkpoint(
    epoch: int, value: float | None = None, *, attempt: int = 1, name: str | None = None
) -> NewCheckpoint:
    name = name or f"epoch-{epoch:02}"
    return NewCheckpoint(
        name=name,
        location=f"jobs/first/attempt-{attempt}/{name}",
        digest=f"{epoch:064x}",
        epoch=epoch,
        step=epoch * 10,
        batch=0,
        value=value,
        metrics={} if value is None else {"sentiment_accuracy": value, "loss": 1 - value},
    )


def report(epoch: int) -> NewReport:
    return NewReport(epoch, epoch * 10, 1.5, 900.0, {"loss": 2.0}, {"loss": 2.5, "kl": float("nan")})


def make_version(store: Store, job: str, number: int, made: Checkpoint) -> int:
    """A version of `reviews` out of a checkpoint, promoted."""
    version = store.reserve_version(job, number, "reviews")
    recorded = store.record_version(
        job,
        number,
        model="reviews",
        version=version,
        checkpoint=made.id,
        location=f"models/reviews/v{version}",
        metric="sentiment_accuracy",
        mode="max",
        reason="best",
    )
    assert recorded is not None
    return version


def kinds(store: Store, job: str) -> list[EventKind]:
    return [event.kind for event in store.events(job)]


# --- jobs


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


def test_a_thousand_jobs_are_listed_in_a_blink(store: Store, config: JobConfig):
    whole = config.model_dump(mode="json")
    with store.writing() as connection:
        rows = [
            {
                "id": f"job-{n:04}",
                "config": whole,
                "state": "queued",
                "attempt": 0,
                "created": store.clock(),
                **VALUES,
            }
            for n in range(1000)
        ]
        connection.execute(insert(JobRow), rows)
    store.jobs()
    took = []
    for _ in range(5):
        began = time.perf_counter()
        assert len(store.jobs()) == 1000
        took.append(time.perf_counter() - began)
    assert min(took) < 0.1


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


def test_retry_gives_new_attempts(store: Store, add_job: AddJob):
    add_job("first")
    with pytest.raises(Conflict, match="only a failed or cancelled job"):
        store.retry("first", "ada", 2)
    store.open_attempt("first", 1, by="test")
    store.finish_attempt("first", 1, AttemptState.FAILED, by="test", cause=Cause.BAD_CONFIG, error="no data")
    assert store.job("first").error == "no data"
    job = store.retry("first", "ada", 2)
    assert (job.state, job.attempt, job.attempt_limit, job.error, job.finished) == (
        JobState.QUEUED,
        1,
        3,
        None,
        None,
    )
    for number in (2, 3):
        store.open_attempt("first", number, by="test")
        job = store.finish_attempt(
            "first", number, AttemptState.LOST, by="test", cause=Cause.DIED, error="gone"
        )
    assert job.state is JobState.FAILED


# --- attempts


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


def test_the_database_refuses_a_second_active_attempt(store: Store, add_job: AddJob, tmp_path: Path):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    with sqlite3.connect(tmp_path / "home" / "textvae.db") as raw, pytest.raises(sqlite3.IntegrityError):
        raw.execute(
            "INSERT INTO attempts (job, number, state, opened, seen) VALUES ('first', 2, 'starting', '', '')"
        )


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
        EventKind.OPENED,
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
        lambda store, made: store.record_version(
            "first",
            1,
            model="reviews",
            version=7,
            checkpoint=made.id,
            location="models/reviews/v7",
            metric="sentiment_accuracy",
            mode="max",
            reason="",
        ),
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
    store: Store, add_job: AddJob, tmp_path: Path, write: Callable[[Store, Checkpoint], object], end: str
):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    made = store.record_checkpoint("first", 1, checkpoint(1, 0.5))
    lost = AttemptState.SUCCEEDED if end == "the end of the job" else AttemptState.LOST
    store.finish_attempt("first", 1, lost, by="test", cause=Cause.DIED)
    if end == "a newer attempt":
        store.open_attempt("first", 2, by="test")
    before = dump(tmp_path)
    with pytest.raises(StaleAttempt, match="attempt 1 of job first is not its active attempt"):
        write(store, made)
    assert dump(tmp_path) == before


def dump(tmp_path: Path) -> list[str]:
    """Everything that the database holds."""
    with sqlite3.connect(tmp_path / "home" / "textvae.db") as raw:
        return list(raw.iterdump())


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


# --- reports and checkpoints


def test_a_checkpoint_and_its_report_are_one_write(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    made = store.record_checkpoint("first", 1, checkpoint(1, 0.75), report(1))
    assert (made.name, made.step, made.value, made.metrics["loss"]) == ("epoch-01", 10, 0.75, 0.25)
    assert store.checkpoint(made.id) == made
    (only,) = store.reports("first")
    assert (only.epoch, only.attempt, only.train) == (1, 1, {"loss": 2.0})
    assert only.validation == {"loss": 2.5}  # JSON knows no NaN
    # Ray may restart the ranks inside an attempt: the same epoch comes again.
    again = store.record_checkpoint("first", 1, checkpoint(1, 0.8), report(1))
    assert (again.id, again.value) == (made.id, 0.8)
    assert len(store.reports("first")) == 1


def test_reports_of_the_newer_attempt_count(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    store.record_report("first", 1, report(1))
    store.record_report("first", 1, report(2))
    store.finish_attempt("first", 1, AttemptState.LOST, by="test")
    store.open_attempt("first", 2, by="test")
    store.record_report("first", 2, report(2))
    assert [(r.epoch, r.attempt) for r in store.reports("first")] == [(1, 1), (2, 2)]


def test_pruning_keeps_the_best_and_the_newest(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    for epoch, value in enumerate([0.5, 0.9, 0.6, 0.7, 0.9], start=1):
        store.record_checkpoint("first", 1, checkpoint(epoch, value))
    doomed = store.prune("first", 1, keep_last=2, mode="max")
    assert sorted(c.name for c in doomed) == ["epoch-01", "epoch-03"]
    assert all(c.deleted is not None for c in doomed)
    assert [c.name for c in store.checkpoints("first")] == ["epoch-05", "epoch-04", "epoch-02"]
    assert len(store.checkpoints("first", deleted=True)) == 5
    # Until their files are gone they are named again: a crash in between leaves nothing behind for ever.
    assert len(store.prune("first", 1, keep_last=2, mode="max")) == 2
    for gone in doomed:
        store.purged(gone.id)
    assert store.prune("first", 1, keep_last=2, mode="max") == []


def test_pruning_by_least(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    for epoch, value in enumerate([0.1, 0.9, 0.6], start=1):
        store.record_checkpoint("first", 1, checkpoint(epoch, value))
    assert [c.name for c in store.prune("first", 1, keep_last=1, mode="min")] == ["epoch-02"]


def test_pruning_spares_what_a_record_names(store: Store, add_job: AddJob):
    add_job("first")
    store.open_attempt("first", 1, by="test")
    version = store.record_checkpoint("first", 1, checkpoint(1, 0.5))
    make_version(store, "first", 1, version)
    resumed = store.record_checkpoint("first", 1, checkpoint(2, None))
    store.finish_attempt("first", 1, AttemptState.LOST, by="test")
    store.open_attempt("first", 2, by="test")
    store.join_attempt("first", 2, host="here", resumed_from=resumed.id)
    for epoch, value in ((3, 0.9), (4, 0.6), (5, 0.7)):
        store.record_checkpoint("first", 2, checkpoint(epoch, value, attempt=2))
    assert [c.name for c in store.prune("first", 2, keep_last=1, mode="max")] == ["epoch-04"]
    kept = [c.name for c in store.checkpoints("first")]
    assert kept == ["epoch-05", "epoch-03", "epoch-02", "epoch-01"]


# --- model versions


@pytest.fixture
def trained(store: Store, add_job: AddJob) -> Trained:
    """Makes a job with an active attempt and one checkpoint of the value given."""

    def train(id: str, value: float) -> Checkpoint:
        add_job(id)
        store.open_attempt(id, 1, by="test")
        return store.record_checkpoint(id, 1, checkpoint(1, value))

    return train


def test_a_version_is_recorded_and_promoted_in_one(store: Store, trained: Trained):
    made = trained("first", 0.8)
    assert store.models() == []
    assert store.served() == []
    assert make_version(store, "first", 1, made) == 1
    (served,) = store.served()
    assert (served.model, served.version, served.checkpoint, served.digest) == (
        "reviews",
        1,
        made.id,
        made.digest,
    )
    assert (served.value, served.metrics) == (0.8, dict(made.metrics))
    assert store.version("reviews") == store.version("reviews", 1) == served
    assert [model.name for model in store.models()] == ["reviews"]
    assert kinds(store, "first")[-2:] == [EventKind.VERSION, EventKind.PROMOTED]
    (promotion,) = store.promotions("reviews")
    assert (promotion.version, promotion.rollback, promotion.by) == (1, False, "attempt")


def test_only_a_better_checkpoint_becomes_a_version(store: Store, trained: Trained):
    make_version(store, "first", 1, trained("first", 0.8))
    for id, value in (("worse", 0.7), ("equal", 0.8)):
        made = trained(id, value)
        version = store.reserve_version(id, 1, "reviews")
        recorded = store.record_version(
            id,
            1,
            model="reviews",
            version=version,
            checkpoint=made.id,
            location="x",
            metric="sentiment_accuracy",
            mode="max",
            reason="",
        )
        assert recorded is None
    assert make_version(store, "better", 1, trained("better", 0.9)) == 4  # two numbers were given out in vain
    assert store.models()[0].versions == (1, 4)


def test_versions_of_different_metrics_are_compared_on_the_new_one(store: Store, trained: Trained):
    make_version(store, "first", 1, trained("first", 0.8))  # its loss is 0.2

    def record(id: str, value: float, metric: str, mode: str) -> bool:
        add = trained(id, value)
        made = store.record_checkpoint(
            id, 1, NewCheckpoint("by-metric", "x", "0" * 64, 1, 11, 0, value, {metric: value})
        )
        assert add.id != made.id
        version = store.reserve_version(id, 1, "reviews")
        recorded = store.record_version(
            id,
            1,
            model="reviews",
            version=version,
            checkpoint=made.id,
            location="x",
            metric=metric,
            mode=mode,
            reason="",
        )
        return recorded is not None

    assert not record("higher-loss", 0.3, "loss", "min")
    assert record("lower-loss", 0.1, "loss", "min")
    # The served version has no such metric at all: the new one says something that the old one cannot.
    assert record("other", 0.5, "token_accuracy", "max")


def test_promote_and_roll_back(store: Store, trained: Trained):
    for value in (0.6, 0.7, 0.8):
        id = f"job-{value}".replace(".", "")
        make_version(store, id, 1, trained(id, value))
    assert store.version("reviews").version == 3
    assert store.roll_back("reviews", by="ada", reason="odd answers").version == 2
    assert store.roll_back("reviews", by="ada").version == 1
    with pytest.raises(Conflict, match="no version that was served before version 1"):
        store.roll_back("reviews", by="ada")
    assert store.promote("reviews", 3, by="bob").version == 3
    assert store.promote("reviews", 3, by="bob").version == 3  # already: nothing to record
    assert store.roll_back("reviews", by="ada").version == 1
    history = [(p.version, p.rollback, p.by) for p in store.promotions("reviews")]
    assert history[3:] == [(2, True, "ada"), (1, True, "ada"), (3, False, "bob"), (1, True, "ada")]
    with pytest.raises(NotFound, match="has no version 9"):
        store.promote("reviews", 9, by="ada")
    for wrong in (lambda: store.roll_back("nobody", by="ada"), lambda: store.versions("nobody")):
        with pytest.raises(NotFound):
            wrong()


def test_after_a_roll_back_the_served_version_is_what_must_be_beaten(store: Store, trained: Trained):
    """Someone rolled back because the better number did not mean a better model."""
    for id, value in (("first", 0.6), ("second", 0.9)):
        make_version(store, id, 1, trained(id, value))
    store.roll_back("reviews", by="ada")
    make_version(store, "third", 1, trained("third", 0.7))
    assert store.version("reviews").value == 0.7


# --- the database itself


def test_moments_are_utc_whatever_the_clock_says(tmp_path: Path, config: JobConfig):
    moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5)))
    store = Store(f"sqlite:///{tmp_path / 'x.db'}", clock=lambda: moment)
    job, _ = store.add_job("first", config={}, **VALUES)
    assert job.created == moment
    assert job.created.tzinfo is UTC
    store.close()


def test_the_promised_pragmas_hold(store: Store):
    with store.reading() as connection:

        def pragma(name: str) -> object:
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()

        assert pragma("journal_mode") == "wal"
        assert pragma("foreign_keys") == 1
        assert pragma("busy_timeout") == 10_000
        assert pragma("synchronous") == 2


def test_readers_do_not_wait_for_a_writer(store: Store, add_job: AddJob):
    add_job("first")
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE jobs SET priority = 5")
        began = time.monotonic()
        assert store.job("first").priority == 0
        assert time.monotonic() - began < 1
    assert store.job("first").priority == 5


def test_writers_wait_for_one_another(store: Store, tmp_path: Path, add_job: AddJob):
    other = Store(f"sqlite:///{tmp_path / 'home' / 'textvae.db'}")
    add_job("first")
    began, finished = threading.Event(), threading.Event()

    def cancel() -> None:
        began.set()
        other.request_cancel("first", "ada")
        finished.set()

    thread = threading.Thread(target=cancel)
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE jobs SET priority = 5")
        thread.start()
        assert began.wait(5)
        assert not finished.wait(0.2)
    thread.join()
    assert store.job("first").state is JobState.CANCELLED
    other.close()


def test_a_block_that_raises_writes_nothing(store: Store, add_job: AddJob):
    add_job("first")
    with pytest.raises(KeyError), store.writing() as connection:
        connection.exec_driver_sql("UPDATE jobs SET priority = 5")
        raise KeyError("oh")
    assert store.job("first").priority == 0


def test_a_driver_error_is_translated(store: Store):
    with pytest.raises(StoreUnavailable, match="does not answer"), store.reading() as connection:
        connection.exec_driver_sql("SELECT * FROM nothing")


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
    assert [event.by for event in store.events("first")] == ["ada", "bob"]
    assert store.events(after=all_events[1].id) == all_events[2:]
    assert store.note_unfit("second", "dispatcher", "needs 8 GPUs, the cluster has 0")
    assert not store.note_unfit("second", "dispatcher", "needs 8 GPUs, the cluster has 0")
    assert store.events("second")[-1].detail == {"reason": "needs 8 GPUs, the cluster has 0"}


@pytest.mark.parametrize(
    "modules", ["settings, jobs.store, jobs.queue, jobs.service", "dispatcher, jobs.attempt"]
)
def test_neither_torch_nor_ray_is_imported(modules: str):
    code = f"import sys, jobs.{modules}; print(sorted({{'torch', 'ray', 'alembic'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
