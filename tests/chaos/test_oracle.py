"""The oracle would find what it is there to find: a judge that never condemns proves nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from jobs.config import from_mapping
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, EventKind, JobState, NewCheckpoint, NewReport, Store
from jobs.store.tables import AttemptRow, JobRow, ModelRow, ReportRow
from textvae import checkpoint
from textvae.artifacts import Artifacts

from .ground import Redis
from .oracle import Expected, problems
from .training import METRIC, STEPS, chain, write

SEED = 5


@pytest.fixture
def settings(tmp_path: Path, redis: Redis) -> Settings:
    home = tmp_path / "home"
    home.mkdir()
    return Settings(home, f"sqlite:///{home / 'textvae.db'}", str(home / "storage"), redis_url=redis.url)


def trained(settings: Settings) -> Store:
    """A store with a job of one epoch that succeeded and is served."""
    store, queue = Store(settings.database_url), Queue(settings.redis_url)
    service, artifacts = Service(store, queue), Artifacts(settings.storage)
    service.submit(from_mapping({"name": "stub"}), id="job", owner="ada")
    store.open_attempt("job", 1, "test")
    store.start_attempt("job", 1)
    folder = settings.home / "scratch" / "epoch-01"
    digest = write(folder, {"step": STEPS, "state": chain(SEED, STEPS)})
    location = "jobs/job/attempt-1/epoch-01"
    for name in (location, "models/stub/v1"):
        artifacts.put(folder, name)
    report = NewReport(1, STEPS, 1.0, 1.0, {}, {METRIC: 0.5})
    new = NewCheckpoint("epoch-01", location, digest, 1, STEPS, 0, 0.5, {METRIC: 0.5})
    recorded = store.record_checkpoint("job", 1, new, report)
    store.reserve_version("job", 1, "stub")
    store.record_version(
        "job",
        1,
        model="stub",
        version=1,
        checkpoint=recorded.id,
        location="models/stub/v1",
        metric=METRIC,
        mode="max",
        reason="",
    )
    service.finish("job", 1, AttemptState.SUCCEEDED, by="attempt")
    service.reconcile_queue()
    queue.close()
    (settings.home / "served.json").write_text(json.dumps({"stub": {"version": 1}}))
    return store


def torn(settings: Settings, location: str) -> None:
    (Path(settings.storage) / location / checkpoint.MODEL).write_text("torn")


def sql(change: Callable[[Connection], object]) -> Callable[[Store, Settings], None]:
    def harm(store: Store, settings: Settings) -> None:
        with store.writing() as connection:
            change(connection)

    return harm


def told_again(kind: EventKind, attempt: int | None) -> Callable[[Store, Settings], None]:
    return lambda store, settings: store.record_event(kind, by="test", job="job", attempt=attempt)


HARMS: dict[str, tuple[Callable[[Store, Settings], None], str]] = {
    "stuck": (sql(lambda c: c.execute(update(JobRow).values(state=JobState.QUEUED))), "stuck: queued"),
    "failed": (sql(lambda c: c.execute(update(JobRow).values(state=JobState.FAILED))), "ended as failed"),
    "counted wrongly": (sql(lambda c: c.execute(update(JobRow).values(attempt=2))), "counts 2"),
    "attempt active": (
        sql(lambda c: c.execute(update(AttemptRow).values(state=AttemptState.RUNNING))),
        "is running still",
    ),
    "completed twice": (told_again(EventKind.SUCCEEDED, 1), "has 2 events succeeded"),
    "claimed twice": (told_again(EventKind.CLAIMED, 1), "has 2 events claimed"),
    "checkpoint torn": (
        lambda store, settings: torn(settings, "jobs/job/attempt-1/epoch-01"),
        "is recorded and does not load",
    ),
    "checkpoint gone": (
        lambda store, settings: shutil.rmtree(Path(settings.storage) / "jobs"),
        "is recorded and does not load",
    ),
    "report lost": (sql(lambda c: c.execute(ReportRow.__table__.delete())), "succeeded after the epochs []"),
    "version torn": (lambda store, settings: torn(settings, "models/stub/v1"), "version 1 of stub does not"),
    "serves another": (sql(lambda c: c.execute(update(ModelRow).values(current=None))), "which was not prom"),
    "not served": (lambda store, settings: (settings.home / "served.json").unlink(), "served are {}"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_the_oracle_finds_what_is_wrong(settings: Settings, harm: str):
    store = trained(settings)
    jobs = [Expected("job", SEED, 1)]
    assert problems(store, settings, jobs) == []
    do, words = HARMS[harm]
    do(store, settings)
    assert words in "\n".join(problems(store, settings, jobs))
    store.close()


def test_the_oracle_loads_what_was_really_trained(settings: Settings, redis: Redis):
    """The hashes of a checkpoint are right, and nothing could go on from it."""
    store = trained(settings)
    found = "\n".join(problems(store, settings, [Expected("job", SEED, 1, real=True, like="job")]))
    assert "checkpoint jobs/job/attempt-1/epoch-01 is recorded and does not load" in found
    assert "version 1 of stub does not load" in found
    store.close()


def test_the_oracle_misses_a_job_and_a_step(settings: Settings, redis: Redis):
    store = trained(settings)
    assert problems(store, settings, []) == ["job job was never submitted"]
    jobs = [Expected("job", SEED, 1), Expected("another", SEED, 1)]
    assert problems(store, settings, jobs) == ["job another is lost"]
    (found,) = problems(store, settings, [Expected("job", SEED + 1, 1)])
    assert "has not the weights of step" in found
    store.close()
