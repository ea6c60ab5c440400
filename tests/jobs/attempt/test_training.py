"""What an attempt records of training that goes well, or fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.attempt import AttemptLog, Work
from jobs.attempt.parts import short
from jobs.queue import Queue
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, JobState, Store
from textvae import checkpoint
from textvae.artifacts import Artifacts
from textvae.parsing import ConfigError

from .conftest import SMALL, Train, Training, log_of, names, reach


def test_an_attempt_trains_records_and_promotes(
    train: Train, training: Training, store: Store, queue: Queue, settings: Settings
):
    job = "first"
    during: dict[str, Any] = {}

    def script(training: Training) -> str:
        training.say(kind="log", text="rank 0: hello\nsecond line")
        during["state"] = store.attempts(job)[0].state
        during["stop"] = training.progress(3)
        during["progress"] = queue.progress([job])[job]
        training.checkpoint(1, 0.6)
        training.checkpoint(2, 0.8)
        training.checkpoint(3, 0.7)
        during["lease"] = queue.leases([job])
        return "finished"

    train(job, script)

    assert during["state"] is AttemptState.RUNNING
    assert during["stop"] is False
    assert during["progress"].items() >= {"step": 3, "steps": 30, "attempt": 1}.items()
    assert during["lease"] == {job: 1}
    assert training.given["ranks"] == 1
    assert training.given["prefix"] == "jobs/first/attempt-1"
    assert training.given["name"] == "first-1"
    assert training.given["resume"] is None
    assert training.given["config"] == SMALL.training_config().model_dump(mode="json")

    assert store.job(job).state is JobState.SUCCEEDED
    assert [r.validation["sentiment_accuracy"] for r in store.reports(job)] == [0.6, 0.8, 0.7]
    assert names(store, job) == ["epoch-03", "epoch-02"]  # epoch-01 is neither the best nor of the last two
    artifacts = Artifacts(settings.storage)
    assert artifacts.list("jobs") == ["jobs/first/attempt-1/epoch-02", "jobs/first/attempt-1/epoch-03"]
    version = store.version("reviews")
    assert (version.version, version.value, version.location) == (1, 0.8, "models/reviews/v1")
    folder = artifacts.fetch(version.location, settings.cache)
    assert checkpoint.verify(folder, digest=version.digest) == store.checkpoint(version.checkpoint).digest
    assert queue.leases([job]) == {}
    log = log_of(settings, job)
    for line in (
        "rank 0: hello",
        "second line",
        "checkpoint epoch-02: step 20",
        "promoted epoch-02",
        "is succeeded",
    ):
        assert line in log
    assert all(line[:4].isdigit() and line[23] == "Z" for line in log.splitlines())


def test_a_failure_is_recorded_and_the_next_attempt_resumes(
    train: Train, training: Training, store: Store, queue: Queue, settings: Settings
):
    job = "first"

    def fails(training: Training) -> str:
        training.checkpoint(1, 0.6)
        training.checkpoint(2, 0.7)
        raise RuntimeError("rank 1 died " + "x" * 1000)

    train(job, fails)
    failed = store.job(job)
    assert failed.state is JobState.QUEUED
    assert failed.error is not None
    assert failed.error.startswith("RuntimeError: rank 1 died")
    assert len(failed.error) <= 500
    assert queue.entries() == {job: 2}
    assert "Traceback" in log_of(settings, job)

    train(job, reach(3, 0.8), 2)
    newest = store.checkpoints(job, deleted=True)[1]
    assert newest.name == "epoch-02"
    assert training.given["resume"] == ("jobs/first/attempt-1/epoch-02", newest.digest)
    assert store.attempts(job)[1].resumed_from == newest.id
    assert store.job(job).state is JobState.SUCCEEDED
    assert store.version("reviews").value == 0.8


def test_a_bad_config_fails_at_once(train: Train, store: Store):
    def fails(training: Training) -> str:
        raise ConfigError(["data.train: no such file"])

    train("first", fails)
    job = store.job("first")
    assert (job.state, job.attempt) == (JobState.FAILED, 1)
    assert "no such file" in (job.error or "")
    assert store.attempts("first")[0].cause is Cause.BAD_CONFIG


def test_a_config_that_this_version_does_not_know_fails_at_once(attempt: Callable[..., Work], store: Store):
    store.add_job(
        "first",
        config={"no": "such"},
        name="x",
        owner="a",
        priority=0,
        ranks=1,
        cpus=1,
        gpus=0,
    )
    attempt("first").run()
    assert store.job("first").state is JobState.FAILED
    assert "unknown key" in (store.job("first").error or "")


def test_a_rank_that_says_something_strange_is_an_error(train: Train, store: Store):
    train("first", lambda training: str(training.say(kind="gossip")) and "finished")
    assert "kind 'gossip'" in (store.job("first").error or "")


def test_stopping_without_being_asked_is_an_error(train: Train, store: Store):
    train("first", lambda training: "stopped")
    assert "without being asked" in (store.job("first").error or "")


def test_a_log_takes_any_character(tmp_path: Path):
    with AttemptLog(tmp_path / "log") as log:
        log.write("caf\udce9.csv: no such file")
    assert (tmp_path / "log").read_text().endswith(r"caf\udce9.csv: no such file" + "\n")


def test_errors_are_kept_short():
    assert short(ValueError("no")) == "ValueError: no"
    assert len(short(ValueError("x" * 9999))) == 500
