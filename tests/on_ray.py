"""A service at work on a real Ray: its dispatcher, the actors of its attempts, and what is left of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from cluster import launching
from jobs.dispatcher import Dispatcher, Timings
from jobs.service import Service
from jobs.settings import Settings
from jobs.wiring import RayLauncher

# What Ray Train starts once in a cluster, for all; and what each raylet has.
SHARED = ("_AutoscalingCoordinatorActor", "TrainStateActor")
RAYS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", *(f"ray::{name}" for name in SHARED))


def make_dispatcher(service: Service, settings: Settings, timings: Timings | None = None) -> Dispatcher:
    """A dispatcher of the settings' Ray that compares the queue with the store once a second."""
    launcher = RayLauncher(settings)
    timings = timings or Timings(reconcile=1)
    return Dispatcher(service, launcher, launcher.capacity, settings, timings=timings)


@contextmanager
def dispatching(service: Service, settings: Settings) -> Iterator[Callable[[], None]]:
    """A dispatcher at work on a thread; calling what this gives ends it early. At the end no attempt runs."""
    stop = threading.Event()
    thread = threading.Thread(target=make_dispatcher(service, settings).loop, args=(stop,))

    def end() -> None:
        stop.set()
        thread.join(30)

    thread.start()
    try:
        yield end
    finally:
        end()
        for name in launching.names():
            launching.stop(name)


def alive() -> list[dict[str, Any]]:
    """Ray's actors, and those that are to be, but for Ray's own."""
    return [actor for actor in launching._actors() if actor["ActorClassName"] not in SHARED]


def family(attempt: str) -> list[dict[str, Any]]:
    """The attempt's actor, Ray Train's controller and the ranks, whichever of them there are by now."""
    ids = next((launching._family(each["ActorID"]) for each in alive() if each["Name"] == attempt), set())
    return [each for each in alive() if each["ActorID"] in ids]


def processes_of(attempt: str) -> tuple[psutil.Process, list[psutil.Process]]:
    """The process of an attempt that trains, and those of its controller and its ranks."""
    everyone = family(attempt)
    assert any(each["ActorClassName"].startswith("RayTrainWorker") for each in everyone), everyone
    (own,) = (psutil.Process(each["Pid"]) for each in everyone if each["Name"] == attempt)
    return own, [psutil.Process(each["Pid"]) for each in everyone if each["Name"] != attempt]


def titles(ray: Path) -> list[str]:
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


def left(service: Service, jobs: Iterable[str], ray_folder: Path) -> dict[str, Any]:
    """Whatever of these jobs is still there."""
    import ray
    from ray.util import placement_group_table

    groups = [each for each in placement_group_table().values() if each["state"] != "REMOVED"]
    missing = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
    there = {
        "names": launching.names(),
        "actors": alive(),
        "processes": titles(ray_folder),
        "placement groups": groups,
        "CPUs": round(missing, 3),
        "leases": service.queue.leases(jobs),
    }
    return {what: value for what, value in there.items() if value}


def nothing_left(service: Service, jobs: Iterable[str], ray_folder: Path, when: str) -> None:
    """Wait until that is so, for half a minute at most."""
    jobs = list(jobs)
    remains: object = None
    deadline = time.monotonic() + 30
    while remains != {}:
        assert time.monotonic() < deadline, f"{when} there are still {remains}"
        try:
            remains = left(service, jobs, ray_folder)
        except launching.ClusterError as error:  # the machine is busy
            remains = error
        time.sleep(0.1)
