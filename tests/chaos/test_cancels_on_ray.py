"""Cancels of real attempts on a real Ray, at any moment of theirs: nothing is left, and none takes long."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import launching
from jobs.dispatcher import Dispatcher, Timings
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import Store
from jobs.wiring import RayLauncher

from ..local_ray import LocalRay
from .cancelling import Cancelling, Moments
from .ground import Redis
from .oracle import problems

SEED = int(os.environ.get("TEXTVAE_CHAOS_SEED", "1"))
ALL = os.environ.get("TEXTVAE_CHAOS") == "all"
ROUNDS = 120 if ALL else 3
WAYS = ("end", "retry", "recovery")
# What Ray Train starts once in a cluster, for all; and what each raylet has.
SHARED = ("_AutoscalingCoordinatorActor", "TrainStateActor")
RAYS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", *(f"ray::{name}" for name in SHARED))
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
    service, launcher, stop = Service(store, queue), RayLauncher(settings), threading.Event()
    dispatcher = Dispatcher(service, launcher, launcher.capacity, settings, timings=Timings(reconcile=1))
    thread = threading.Thread(target=dispatcher.loop, args=(stop,))
    training = {**small_config["training"], "epochs": 10_000, "keep_last": 2}
    resources = {"cpus_per_rank": launching.resources()[0]["CPU"] / TOGETHER}
    retry = {"max_attempts": 100, "max_infrastructure": 100, "backoff": 0}
    config = {**small_config, "name": "real", "training": training, "resources": resources, "retry": retry}
    # A killed attempt's successor begins once the lease has ended, 20 s later.
    moments = Moments(end=5, again=10, killed=30)
    thread.start()
    yield Cancelling(service, SEED, config, moments, kill_one, real=True, pause=0.1)
    stop.set()
    thread.join(30)
    for attempt in store.attempts(active=True):
        launcher.stop(attempt.actor)
    queue.close()
    store.close()


def kill_one(attempt: str, draw: random.Random) -> None:
    """Kill the attempt's process, Ray Train's controller or a rank, whichever of them there are by then."""
    time.sleep(draw.uniform(0, 10))
    family = next((launching._family(each["ActorID"]) for each in alive() if each["Name"] == attempt), set())
    there = sorted(each["Pid"] for each in alive() if each["ActorID"] in family and each["Pid"])
    if there:
        with suppress(ProcessLookupError):
            os.kill(draw.choice(there), signal.SIGKILL)


def alive() -> list[dict[str, Any]]:
    """Ray's actors, and those that are to be, but for Ray's own."""
    return [actor for actor in launching._actors() if actor["ActorClassName"] not in SHARED]


def processes(ray: Path) -> list[str]:
    """Titles of that Ray's workers that are or were actors."""
    found = [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "raylet" and str(ray) in " ".join(process.info["cmdline"] or ())
    ]
    assert found, f"no raylet of {ray}"
    titles = []
    for worker in found[0].children():
        with suppress(psutil.NoSuchProcess):
            titles.append(" ".join(worker.cmdline()).strip())
    return [title for title in titles if title.startswith("ray::") and not title.startswith(RAYS)]


def left(cancelling: Cancelling, ray_folder: Path) -> dict[str, Any]:
    """Whatever of the jobs is still there."""
    import ray
    from ray.util import placement_group_table

    groups = [each for each in placement_group_table().values() if each["state"] != "REMOVED"]
    leases = cancelling.service.queue.leases(job.id for job in cancelling.expected)
    missing = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
    there = {
        "names": launching.names(),
        "actors": alive(),
        "processes": processes(ray_folder),
        "placement groups": groups,
        "CPUs": round(missing, 3),
        "leases": leases,
    }
    return {what: value for what, value in there.items() if value}


def nothing_left(cancelling: Cancelling, local_ray: LocalRay, when: str) -> None:
    """Wait until that is so, for half a minute at most."""
    remains: object = None
    deadline = time.monotonic() + 30
    while remains != {}:
        assert time.monotonic() < deadline, f"{when} there are still {remains}"
        try:
            remains = left(cancelling, local_ray.temp_dir)
        except launching.ClusterError as error:  # the machine is busy
            remains = error
        time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.timeout(7200 if ALL else 600)
def test_a_cancel_leaves_nothing_on_ray_whatever_it_meets(
    cancelling: Cancelling, settings: Settings, local_ray: LocalRay
):
    nothing_left(cancelling, local_ray, "before it begins")
    with ThreadPoolExecutor(TOGETHER) as pool:
        for first in range(0, ROUNDS, BATCH):
            batch = range(first, min(first + BATCH, ROUNDS))
            list(pool.map(lambda number: cancelling.meet(WAYS[number % len(WAYS)], number), batch))
            nothing_left(cancelling, local_ray, f"after {batch}")
            print(f"{batch.stop} cancels", flush=True)
    store = cancelling.store
    served = {version.model: version.version for version in store.served()}
    assert problems(store, settings, cancelling.expected, served=served) == []
    cancelling.judge("at the end, with a retry or a recovery")
