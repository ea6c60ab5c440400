from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.attempt import AttemptLog, Timings, Tools, Work
from jobs.attempt.parts import short
from jobs.config import JobConfig, from_mapping
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import (
    AttemptState,
    Cause,
    JobState,
    StaleAttempt,
    Store,
    StoreUnavailable,
)
from textvae import checkpoint, vocabulary
from textvae.artifacts import Artifacts
from textvae.checkpoint import Position
from textvae.config import ConfigError
from textvae.model import TextVAE

from .conftest import RedisServer

QUICK = Timings(poll=0.02, renew=0.05, lease=5, patience=5)


@dataclass(frozen=True)
class Result:
    status: str


@dataclass
class Training:
    """Stands for `cluster.training.fit`: its `script` says what its rank does, with real checkpoints."""

    storage: str
    scratch: Path
    script: Callable[[Training], str] = lambda training: "finished"
    given: dict[str, Any] = field(default_factory=dict)
    surprise: AssertionError | None = None

    def __call__(self, config: dict[str, Any], **given: Any) -> Result:
        self.given = {"config": config, **given}
        try:
            return Result(self.script(self))
        except AssertionError as error:
            self.surprise = error  # an attempt takes every error for its own; the test must see this one
            raise

    def say(self, **message: Any) -> bool:
        """Send a message; whether training should stop."""
        return bool(self.given["on_message"](message)["stop"])

    def progress(self, step: int) -> bool:
        return self.say(kind="progress", epoch=1, epochs=3, step=step, steps=30, loss=1.0)

    def checkpoint(self, epoch: int, value: float | None = None, *, name: str | None = None) -> bool:
        """Put a checkpoint in place, then tell of it."""
        name = f"{self.given['prefix']}/{name or f'epoch-{epoch:02}'}"
        folder = self.scratch / name
        position = Position(epoch, epoch * 10, 0)
        metrics = {} if value is None else {"sentiment_accuracy": value, "loss": 1.0}
        digest = write(folder, position, metrics)
        Artifacts(self.storage).put(folder, name)
        report = {
            "epoch": epoch,
            "step": epoch * 10,
            "seconds": 1.0,
            "tokens_per_second": 100.0,
            "train": metrics,
            "validation": metrics,
        }
        return self.say(
            kind="checkpoint",
            name=name,
            digest=digest,
            position={"epoch": position.epoch, "step": position.step, "batch": position.batch},
            report=report if value is not None else None,
        )


SMALL = from_mapping(
    {
        "name": "reviews",
        "max_attempts": 2,
        "vocabulary": {"kind": "words", "size": 10, "max_length": 4},
        "model": {"embedding": 2, "encoder_hidden": 2, "latent": 2, "decoder_hidden": 2},
        "training": {"keep_last": 2},
    }
)


def write(folder: Path, position: Position, metrics: dict[str, float]) -> str:
    """A real checkpoint of a very small model."""
    config = SMALL.training_config()
    words = vocabulary.build(config.vocabulary, ["good film", "bad film"])
    torch.manual_seed(0)
    model = TextVAE(config, words.size)
    return checkpoint.save(
        folder,
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        config=config,
        vocabulary=words,
        position=position,
        metrics=metrics,
    )


@pytest.fixture
def training(settings: Settings, tmp_path: Path) -> Iterator[Training]:
    training = Training(settings.storage, tmp_path / "scratch")
    yield training
    assert training.surprise is None


@pytest.fixture
def left() -> threading.Event:
    """Set once an attempt has ended its process."""
    return threading.Event()


@pytest.fixture
def tools(settings: Settings, training: Training, left: threading.Event) -> Tools:
    return Tools(
        fit=training,
        artifacts=Artifacts(settings.storage),
        verify=checkpoint.verify,
        broken=checkpoint.CheckpointError,
        hopeless=lambda error: isinstance(error, ConfigError),
        leave=left.set,
    )


@pytest.fixture
def submit(service: Service) -> Callable[..., str]:
    def submit(id: str, config: JobConfig = SMALL) -> str:
        return service.submit(config, id=id).job.id

    return submit


@pytest.fixture
def attempt(store: Store, queue: Queue, settings: Settings, tools: Tools) -> Iterator[Callable[..., Work]]:
    """Opens an attempt, as the dispatcher does, and makes its Work."""
    logs: list[AttemptLog] = []

    def make(job: str, number: int = 1, tools: Tools = tools, queue: Queue = queue) -> Work:
        assert store.open_attempt(job, number, by="test") is not None
        logs.append(AttemptLog(settings.attempt_log(job, number)))
        return Work(store, queue, settings, job, number, logs[-1], tools, timings=QUICK)

    yield make
    for log in logs:
        with log:
            pass


def log_of(settings: Settings, job: str, number: int = 1) -> str:
    return settings.attempt_log(job, number).read_text()


def names(store: Store, job: str) -> list[str]:
    return [c.name for c in store.checkpoints(job)]


def test_an_attempt_trains_records_and_promotes(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    queue: Queue,
    settings: Settings,
):
    job = submit("first")
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

    training.script = script
    attempt(job).run()

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


def test_only_a_better_job_is_promoted(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    settings: Settings,
):
    values = {"first": 0.6, "worse": 0.5, "better": 0.9, "blind": None}
    for job, value in values.items():
        training.script = lambda training, value=value: str(training.checkpoint(1, value)) and "finished"  # type: ignore[misc]
        attempt(submit(job)).run()
        assert store.job(job).state is JobState.SUCCEEDED
    assert [v.job for v in store.versions("reviews")] == ["better", "first"]
    assert "does not beat 0.6000 of version 1" in log_of(settings, "worse")
    assert "no good checkpoint has a sentiment_accuracy" in log_of(settings, "blind")
    assert Artifacts(settings.storage).list("models") == ["models/reviews/v1", "models/reviews/v2"]


def test_a_failure_is_recorded_and_the_next_attempt_resumes(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    queue: Queue,
    settings: Settings,
):
    job = submit("first")
    queue.remove([job])

    def fails(training: Training) -> str:
        training.checkpoint(1, 0.6)
        training.checkpoint(2, 0.7)
        raise RuntimeError("rank 1 died " + "x" * 1000)

    training.script = fails
    attempt(job).run()
    failed = store.job(job)
    assert failed.state is JobState.QUEUED
    assert failed.error is not None
    assert failed.error.startswith("RuntimeError: rank 1 died")
    assert len(failed.error) <= 500
    assert queue.entries() == {job: 2}
    assert "Traceback" in log_of(settings, job)

    training.script = lambda training: str(training.checkpoint(3, 0.8)) and "finished"
    attempt(job, 2).run()
    newest = store.checkpoints(job, deleted=True)[1]
    assert newest.name == "epoch-02"
    assert training.given["resume"] == ("jobs/first/attempt-1/epoch-02", newest.digest)
    assert store.attempts(job)[1].resumed_from == newest.id
    assert store.job(job).state is JobState.SUCCEEDED
    assert store.version("reviews").value == 0.8


def test_a_checkpoint_that_was_put_and_never_recorded_is_deleted_by_the_next_attempt(
    submit: Callable[..., str], attempt: Callable[..., Work], training: Training, settings: Settings
):
    job = submit("first")
    artifacts = Artifacts(settings.storage)

    def dies_before_recording(training: Training) -> str:
        training.checkpoint(1, 0.6)
        name = f"{training.given['prefix']}/epoch-02"
        write(training.scratch / name, Position(2, 20, 0), {})
        artifacts.put(training.scratch / name, name)
        raise RuntimeError("killed")

    training.script = dies_before_recording
    attempt(job).run()
    assert artifacts.list("jobs/first") == ["jobs/first/attempt-1/epoch-01", "jobs/first/attempt-1/epoch-02"]

    training.script = lambda training: str(training.checkpoint(2, 0.8)) and "finished"
    attempt(job, 2).run()
    assert training.given["resume"][0] == "jobs/first/attempt-1/epoch-01"
    assert artifacts.list("jobs/first") == ["jobs/first/attempt-1/epoch-01", "jobs/first/attempt-2/epoch-02"]
    assert "attempt-1/epoch-02, which was never recorded" in log_of(settings, job, 2)


def test_a_checkpoint_that_is_not_good_is_passed_over(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    settings: Settings,
):
    job = submit(
        "first", SMALL.model_copy(update={"training": SMALL.training.model_copy(update={"keep_last": 4})})
    )

    def fails(training: Training) -> str:
        for epoch in (1, 2, 3, 4):
            training.checkpoint(epoch, 0.5)
        raise RuntimeError("gone")

    training.script = fails
    attempt(job).run()
    prefix = Path(settings.storage) / "jobs/first/attempt-1"
    shutil.rmtree(prefix / "epoch-04")
    torn = prefix / "epoch-03" / checkpoint.MODEL
    torn.write_bytes(torn.read_bytes()[:-1])
    # A whole checkpoint in the wrong place is none either: its digest is not the recorded one.
    shutil.rmtree(prefix / "epoch-02")
    shutil.copytree(prefix / "epoch-01", prefix / "epoch-02")

    training.script = lambda training: "finished"
    attempt(job, 2).run()
    assert training.given["resume"][0] == "jobs/first/attempt-1/epoch-01"
    log = log_of(settings, job, 2)
    assert "epoch-04 is gone" in log
    assert "epoch-03 is not good" in log
    assert "epoch-02 is not good" in log


def test_a_bad_config_fails_at_once(
    submit: Callable[..., str], attempt: Callable[..., Work], training: Training, store: Store
):
    def fails(training: Training) -> str:
        raise ConfigError(["data.train: no such file"])

    training.script = fails
    attempt(submit("first")).run()
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
        attempt_limit=3,
    )
    attempt("first").run()
    assert store.job("first").state is JobState.FAILED
    assert "unknown key" in (store.job("first").error or "")


def test_a_cancelled_attempt_stops_with_a_checkpoint(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    service: Service,
):
    job = submit("first")

    def script(training: Training) -> str:
        training.progress(1)
        service.cancel(job)
        deadline = time.monotonic() + 10
        while not training.progress(2):
            assert time.monotonic() < deadline
        training.checkpoint(0, name="step-000123")
        return "stopped"

    training.script = script
    attempt(job).run()
    assert store.job(job).state is JobState.CANCELLED
    (ended,) = store.attempts(job)
    assert (ended.state, ended.cause) == (AttemptState.CANCELLED, Cause.CANCELLED)
    assert names(store, job) == ["step-000123"]
    assert store.reports(job) == []


def test_training_that_finishes_in_spite_of_a_cancel_has_succeeded(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    service: Service,
):
    def script(training: Training) -> str:
        training.checkpoint(1, 0.5)
        service.cancel("first")
        return "finished"

    training.script = script
    attempt(submit("first")).run()
    assert store.job("first").state is JobState.SUCCEEDED


def test_a_cancel_before_any_rank_has_started_ends_the_process(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    service: Service,
    left: threading.Event,
):
    def hangs(training: Training) -> str:
        service.cancel("first")
        assert left.wait(10)  # the ranks would be gone by now
        raise RuntimeError("killed")

    training.script = hangs
    attempt(submit("first")).run()
    assert store.job("first").state is JobState.CANCELLED
    assert store.attempts("first")[0].cause is Cause.CANCELLED


def test_a_stale_attempt_ends_its_process_and_changes_nothing(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    service: Service,
    settings: Settings,
    left: threading.Event,
):
    job = submit("first")

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

    training.script = goes_stale
    attempt(job).run()
    assert names(store, job) == ["epoch-01"]
    assert store.models() == []
    assert store.job(job).state is JobState.RUNNING
    assert [a.state for a in store.attempts(job)] == [AttemptState.LOST, AttemptState.STARTING]
    assert "not its active attempt" in log_of(settings, job)


def test_a_checkpoint_of_a_stale_attempt_stops_training_even_if_nobody_has_looked(
    submit: Callable[..., str],
    training: Training,
    store: Store,
    queue: Queue,
    settings: Settings,
    tools: Tools,
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
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    queue: Queue,
    left: threading.Event,
):
    def loses(training: Training) -> str:
        queue.renew("first", 2, 60)
        assert left.wait(10)
        return "finished"

    training.script = loses
    attempt(submit("first")).run()
    assert queue.leases(["first"]) == {"first": 2}


def test_a_lease_comes_back_after_redis_was_emptied(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    queue: Queue,
    redis_server: RedisServer,
):
    def script(training: Training) -> str:
        deadline = time.monotonic() + 10
        for _ in range(2):
            while queue.leases(["first"]) != {"first": 1}:
                assert time.monotonic() < deadline
            redis_server.flush()
        return "finished"

    training.script = script
    attempt(submit("first")).run()


def test_training_goes_on_without_redis(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    settings: Settings,
    redis_server: RedisServer,
):
    def script(training: Training) -> str:
        training.progress(1)
        redis_server.stop()
        training.progress(2)
        training.checkpoint(1, 0.5)
        return "finished"

    training.script = script
    attempt(submit("first")).run()
    assert store.job("first").state is JobState.SUCCEEDED
    assert store.version("reviews").version == 1
    assert log_of(settings, "first").count("going on without Redis") == 1


def test_a_cancel_is_seen_without_redis(
    submit: Callable[..., str], attempt: Callable[..., Work], training: Training, store: Store
):
    def script(training: Training) -> str:
        training.progress(1)
        store.request_cancel("first", "ada")
        deadline = time.monotonic() + 10
        while not training.progress(2):
            assert time.monotonic() < deadline
        return "stopped"

    training.script = script
    attempt(submit("first"), queue=Queue(None)).run()
    assert store.job("first").state is JobState.CANCELLED


def test_a_database_that_is_away_for_a_while_is_waited_for(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
):
    record, away = store.record_checkpoint, [1, 2]

    def flaky(*arguments: Any) -> Any:
        if away:
            away.pop()
            raise StoreUnavailable("the database does not answer")
        return record(*arguments)

    monkeypatch.setattr(store, "record_checkpoint", flaky)
    training.script = lambda training: str(training.checkpoint(1, 0.5)) and "finished"
    attempt(submit("first")).run()
    assert names(store, "first") == ["epoch-01"]
    assert log_of(settings, "first").count("trying again") == 2


def test_files_that_cannot_be_deleted_do_not_stop_training(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    tools: Tools,
    settings: Settings,
):
    class Stubborn(Artifacts):
        refuses = True

        def delete(self, name: str) -> None:
            if self.refuses:
                raise OSError("device busy")
            super().delete(name)

    artifacts = Stubborn(settings.storage)

    def script(training: Training) -> str:
        for epoch in (1, 2, 3):
            training.checkpoint(epoch, epoch / 10)
        assert artifacts.list("jobs")[0].endswith("epoch-01")
        artifacts.refuses = False
        training.checkpoint(4, 0.4)
        return "finished"

    training.script = script
    attempt(submit("first"), tools=replace(tools, artifacts=artifacts)).run()
    assert store.job("first").state is JobState.SUCCEEDED
    assert [name.rpartition("/")[2] for name in artifacts.list("jobs")] == ["epoch-03", "epoch-04"]
    assert "could not be deleted: device busy" in log_of(settings, "first")


def test_the_version_of_the_faster_of_two_jobs_counts(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    tools: Tools,
    settings: Settings,
):
    """While one copies its files into place, the other promotes a better checkpoint."""
    other = attempt(submit("faster"))
    faster = Training(settings.storage, training.scratch)
    faster.script = lambda training: str(training.checkpoint(1, 0.9)) and "finished"
    other._tools = replace(tools, fit=faster)

    class Slow(Artifacts):
        def put(self, folder: Path, name: str) -> None:
            super().put(folder, name)
            if name.startswith("models/"):
                other.run()

    training.script = lambda training: str(training.checkpoint(1, 0.8)) and "finished"
    attempt(submit("slower"), tools=replace(tools, artifacts=Slow(settings.storage))).run()
    assert store.job("slower").state is JobState.SUCCEEDED
    assert [(v.version, v.job) for v in store.versions("reviews")] == [(2, "faster")]
    assert Artifacts(settings.storage).list("models") == ["models/reviews/v2"]
    assert "another job made a better version" in log_of(settings, "slower")


def test_the_next_best_is_promoted_if_the_best_is_torn(
    submit: Callable[..., str],
    attempt: Callable[..., Work],
    training: Training,
    store: Store,
    settings: Settings,
):
    def script(training: Training) -> str:
        training.checkpoint(1, 0.9)
        training.checkpoint(2, 0.7)
        (Path(settings.storage) / "jobs/first/attempt-1/epoch-01" / checkpoint.STATE).write_text("{}")
        return "finished"

    training.script = script
    attempt(submit("first")).run()
    assert store.version("reviews").value == 0.7


def test_a_rank_that_says_something_strange_is_an_error(
    submit: Callable[..., str], attempt: Callable[..., Work], training: Training, store: Store
):
    training.script = lambda training: str(training.say(kind="gossip")) and "finished"
    attempt(submit("first")).run()
    assert "kind 'gossip'" in (store.job("first").error or "")


def test_stopping_without_being_asked_is_an_error(
    submit: Callable[..., str], attempt: Callable[..., Work], training: Training, store: Store
):
    training.script = lambda training: "stopped"
    attempt(submit("first")).run()
    assert "without being asked" in (store.job("first").error or "")


def test_errors_are_kept_short():
    assert short(ValueError("no")) == "ValueError: no"
    assert len(short(ValueError("x" * 9999))) == 500
