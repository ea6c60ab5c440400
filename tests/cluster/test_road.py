"""The road of a job on a real Ray: dispatched, killed, resumed, promoted; and one that is cancelled."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import launching
from jobs.config import from_mapping
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, JobState
from textvae import checkpoint
from textvae.artifacts import Artifacts

from ..on_ray import dispatching

pytestmark = pytest.mark.ray


@pytest.fixture
def dispatched(settings: Settings, service: Service) -> Iterator[None]:
    with dispatching(service, settings):
        yield


def until(what: Callable[[], Any], logs: Path, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := what()):
        if time.monotonic() > deadline:
            raise AssertionError("\n".join(path.read_text() for path in logs.rglob("*.log")))
        time.sleep(0.05)
    return value


def test_a_killed_attempt_is_resumed_and_a_cancelled_one_stops(
    dispatched: None, service: Service, settings: Settings, small_config: dict[str, Any]
):
    store, logs = service.store, settings.logs
    training = {**small_config["training"], "epochs": 30}  # type: ignore[dict-item]
    config = from_mapping({**small_config, "training": training, "name": "road"})
    killed = service.submit(config, id="killed").job.id
    # Long enough to be still at it when it is cancelled, however slow the other one's start is.
    endless = from_mapping({**small_config, "training": {**training, "epochs": 10_000}, "name": "other"})
    cancelled = service.submit(endless, id="cancelled").job.id

    until(lambda: store.checkpoints(killed), logs)
    log = settings.attempt_log(killed, 1).read_text()
    process = re.search(r"process (\d+)", log)
    assert process is not None
    os.kill(int(process[1]), signal.SIGKILL)

    until(lambda: store.checkpoints(cancelled), logs)
    # It would outlive an attempt that is cancelled as it starts: see cluster.trainer.
    assert "PlacementGroupCleaner" not in {actor["ActorClassName"] for actor in launching._actors()}
    service.cancel(cancelled)
    assert service.wait(cancelled, 60).state is JobState.CANCELLED
    (attempt,) = store.attempts(cancelled)
    assert (attempt.state, attempt.cause) == (AttemptState.CANCELLED, Cause.CANCELLED)
    assert store.checkpoints(cancelled)[0].name.startswith(("step-", "epoch-"))

    job = service.wait(killed, 120)
    assert job.state is JobState.SUCCEEDED, settings.attempt_log(killed, job.attempt).read_text()
    first, second = store.attempts(killed)
    assert (first.state, first.cause) == (AttemptState.LOST, Cause.DIED)
    assert second.resumed_from is not None
    assert len(store.reports(killed)) == 30
    version = store.version("road")
    folder = Artifacts(settings.storage).fetch(version.location, settings.cache)
    assert checkpoint.verify(folder, digest=version.digest)
    kept = {c.location for c in store.checkpoints(killed)}
    assert set(Artifacts(settings.storage).list(f"jobs/{killed}")) == kept

    # Neither the killed attempt nor the others keep anything of the cluster.
    def all_free() -> bool:
        total, free = launching.resources()
        return free.get("CPU") == total["CPU"]

    until(all_free, logs)
