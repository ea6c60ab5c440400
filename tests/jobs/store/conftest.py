from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobs.store import Checkpoint, EventKind, Job, NewCheckpoint, NewReport, NewTrial, Retry, Store, Version

AddJob = Callable[..., Job]

Trained = Callable[[str, float], Checkpoint]

VALUES: dict[str, Any] = {
    "name": "reviews",
    "owner": "ada",
    "priority": 0,
    "ranks": 1,
    "cpus": 1,
    "gpus": 0,
}


def child(number: int, **parameters: Any) -> NewTrial:
    return NewTrial(
        number, parameters or {"seed": number}, {"seed": number}, 1, 1.0, 0.0, Retry(max_attempts=1), 60.0
    )


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


def record_version(
    store: Store,
    job: str,
    number: int,
    made: Checkpoint,
    *,
    version: int | None = None,
    metric: str = "sentiment_accuracy",
    mode: str = "max",
) -> Version | None:
    """A version of `reviews` out of a checkpoint, promoted if it is better than the served one."""
    version = version or store.reserve_version(job, number, "reviews")
    return store.record_version(
        job,
        number,
        model="reviews",
        version=version,
        checkpoint=made.id,
        location=f"models/reviews/v{version}",
        metric=metric,
        mode=mode,
        reason="best",
    )


def make_version(store: Store, job: str, number: int, made: Checkpoint) -> int:
    """The number of a version of `reviews` that must be better than the served one."""
    recorded = record_version(store, job, number, made)
    assert recorded is not None
    return recorded.version


def kinds(store: Store, job: str) -> list[EventKind]:
    return [event.kind for event in store.events(job)]


@pytest.fixture
def trained(store: Store, add_job: AddJob) -> Trained:
    """Makes a job with an active attempt and one checkpoint of the value given."""

    def train(id: str, value: float) -> Checkpoint:
        add_job(id)
        store.open_attempt(id, 1, by="test")
        return store.record_checkpoint(id, 1, checkpoint(1, value))

    return train
