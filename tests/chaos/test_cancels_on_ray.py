"""Cancels of real attempts on a real Ray, at any moment of theirs: nothing is left, and none takes long."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster import launching
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import Store

from ..local_ray import LocalRay
from ..marks import takes_minutes
from ..on_ray import dispatching, family, nothing_left
from .cancelling import Cancelling, Moments
from .ground import Redis
from .oracle import problems

SEED = int(os.environ.get("TEXTVAE_CHAOS_SEED", "1"))
ROUNDS = 120  # jobs
WAYS = ("end", "retry", "recovery")
TOGETHER = 3  # jobs at once
BATCH = 20  # jobs, after which nothing may be left


@pytest.fixture
def settings(local_ray: LocalRay, redis: Redis, tmp_path: Path) -> Iterator[Settings]:
    """Those of a service on that Ray; pytest shows the logs of a test that fails."""
    settings = local_ray.settings(tmp_path / "home", redis.url)
    yield settings
    print("\n".join(f"{log}:\n{log.read_text()}" for log in settings.logs.rglob("*.log")))


@pytest.fixture
def cancelling(settings: Settings, small_config: dict[str, Any]) -> Iterator[Cancelling]:
    store, queue = Store(settings.database_url), Queue(settings.redis_url)
    service = Service(store, queue)
    training = {**small_config["training"], "epochs": 10_000, "keep_last": 2}
    resources = {"cpus_per_rank": launching.resources()[0]["CPU"] / TOGETHER}
    retry = {"max_attempts": 100, "max_infrastructure": 100, "backoff": 0}
    config = {**small_config, "name": "real", "training": training, "resources": resources, "retry": retry}
    # A killed attempt's successor begins once the lease has ended, 20 s later.
    moments = Moments(end=5, again=10, killed=30)
    with dispatching(service, settings):
        yield Cancelling(service, SEED, config, moments, kill_one, real=True, pause=0.1)
    queue.close()
    store.close()


def kill_one(attempt: str, draw: random.Random) -> None:
    """Kill the attempt's process, Ray Train's controller or a rank, whichever of them there are by then."""
    time.sleep(draw.uniform(0, 10))
    there = sorted(each["Pid"] for each in family(attempt) if each["Pid"])
    if there:
        with suppress(ProcessLookupError):
            os.kill(draw.choice(there), signal.SIGKILL)


@takes_minutes
@pytest.mark.ray
@pytest.mark.timeout(7200)
def test_a_cancel_leaves_nothing_on_ray_whatever_it_meets(
    cancelling: Cancelling, settings: Settings, local_ray: LocalRay
):
    def nothing_is_left(when: str) -> None:
        jobs = [job.id for job in cancelling.expected]
        nothing_left(cancelling.service, jobs, local_ray.temp_dir, when)

    nothing_is_left("before it begins")
    with ThreadPoolExecutor(TOGETHER) as pool:
        for first in range(0, ROUNDS, BATCH):
            batch = range(first, min(first + BATCH, ROUNDS))
            list(pool.map(lambda number: cancelling.meet(WAYS[number % len(WAYS)], number), batch))
            nothing_is_left(f"after {batch}")
            print(f"{batch.stop} cancels", flush=True)
    store = cancelling.store
    served = {version.model: version.version for version in store.served()}
    assert problems(store, settings, cancelling.expected, served=served) == []
    cancelling.judge("at the end, with a retry or a recovery")
