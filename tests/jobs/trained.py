"""Jobs with the files of their checkpoints, and versions of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.settings import Settings
from jobs.store import Job, NewCheckpoint, Store
from textvae.artifacts import Artifacts
from textvae.checkpoint import Position

from .attempt.conftest import write

AddJob = Callable[..., Job]


@pytest.fixture
def train(store: Store, settings: Settings, add_job: AddJob, tmp_path: Path) -> Callable[..., list[str]]:
    """Records a job with an attempt of so many checkpoints, with their files; the attempt is active still."""

    def train(id: str, epochs: int = 2) -> list[str]:
        add_job(id)
        store.open_attempt(id, 1, "dispatcher")
        store.start_attempt(id, 1)
        for epoch in range(1, epochs + 1):
            location = f"jobs/{id}/attempt-1/epoch-{epoch:02}"
            digest = write(tmp_path / location, Position(epoch, epoch, 0), {})
            Artifacts(settings.storage).put(tmp_path / location, location)
            new = NewCheckpoint(
                f"epoch-{epoch:02}", location, digest, epoch, epoch, 0, epoch / 10, {"m": epoch}
            )
            store.record_checkpoint(id, 1, new)
        return [c.location for c in store.checkpoints(id)]

    return train


def promote(store: Store, settings: Settings, id: str) -> str:
    """Makes a version of the newest checkpoint of a job; its location."""
    best = store.checkpoints(id)[0]
    number = store.reserve_version(id, 1, "reviews")
    location = f"models/reviews/v{number}"
    Artifacts(settings.storage).put(Path(settings.storage) / best.location, location)
    assert store.record_version(
        id,
        1,
        model="reviews",
        version=number,
        checkpoint=best.id,
        location=location,
        metric="m",
        mode="max",
        reason="",
    )
    return location
