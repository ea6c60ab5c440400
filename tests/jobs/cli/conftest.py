from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from jobs.cli import main
from jobs.cli import service as opened
from jobs.config import JobConfig
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, Checkpoint, Job, NewCheckpoint, NewReport, Store

Run = Callable[..., Result]


@pytest.fixture
def offline(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Calls the command line on the home of `settings`, with no Redis: `offline("list", "--json")`."""
    for name in ("TEXTVAE_REDIS_URL", "TEXTVAE_DATABASE_URL", "TEXTVAE_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEXTVAE_HOME", str(settings.home))

    def run(*words: str, **more: str) -> Result:
        opened.forget()
        return CliRunner().invoke(main, list(words), catch_exceptions=False, **more)  # type: ignore[arg-type]

    yield run
    opened.forget()


@pytest.fixture
def run(offline: Run, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls the command line on the home of `settings`, with a real Redis."""
    monkeypatch.setenv("TEXTVAE_REDIS_URL", str(settings.redis_url))
    return offline


@pytest.fixture
def trained(store: Store, service: Service, config: JobConfig) -> Job:
    """A job that lost an attempt, then succeeded: three epochs, the second of which made model version 1."""
    job = service.submit(config, owner="ada", id="abc12345").job
    store.open_attempt(job.id, 1, "dispatcher")
    store.join_attempt(job.id, 1, host="somewhere", resumed_from=None)
    store.start_attempt(job.id, 1)
    first = epoch(store, job, 1, 1, 0.6)
    service.finish(
        job.id, 1, AttemptState.LOST, by="dispatcher", cause=Cause.DIED, error="the node went away"
    )
    store.open_attempt(job.id, 2, "dispatcher")
    store.join_attempt(job.id, 2, host="elsewhere", resumed_from=first.id)
    store.start_attempt(job.id, 2)
    best = epoch(store, job, 2, 2, 0.9)
    number = store.reserve_version(job.id, 2, "reviews")
    store.record_version(
        job.id,
        2,
        model="reviews",
        version=number,
        checkpoint=best.id,
        location=f"models/reviews/{number}",
        metric="sentiment_accuracy",
        mode="max",
        reason="the first one",
    )
    epoch(store, job, 2, 3, 0.8)
    return service.finish(job.id, 2, AttemptState.SUCCEEDED, by="attempt")


def epoch(store: Store, job: Job, attempt: int, number: int, accuracy: float) -> Checkpoint:
    """Record what an attempt has after an epoch."""
    metrics = {"loss": 10.0 / number, "sentiment_accuracy": accuracy, "token_accuracy": 0.25, "kl": 3.5}
    report = NewReport(number, 10 * number, 1.5, 2000.0, {"loss": 11.0 / number}, metrics)
    checkpoint = NewCheckpoint(
        name=f"epoch-{number:02}",
        location=f"jobs/{job.id}/attempt-{attempt}/epoch-{number:02}",
        digest=f"{number:064x}",
        epoch=number,
        step=10 * number,
        batch=0,
        value=accuracy,
        metrics=metrics,
    )
    return store.record_checkpoint(job.id, attempt, checkpoint, report)
