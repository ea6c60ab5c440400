"""A dispatcher whose cluster stands for itself."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from jobs import attempt, logs
from jobs.dispatcher import Capacity, Dispatcher, Timings
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, Job, Store

from ..conftest import RedisServer

AddJob = Callable[..., Job]


class Cluster:
    """A cluster of 4 CPUs and 2 GPUs on which attempts stand for themselves."""

    def __init__(self) -> None:
        self.alive: set[str] = set()
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.arguments: dict[str, Mapping[str, Any]] = {}
        self.capacity = Capacity(4, 2, 4, 2)
        self.answers = True
        self.counts = False  # whether it tells of its room all the same
        self.starts = True  # whether start really starts something
        self.dies = True  # whether stop really stops something
        self.immortal: set[str] = set()  # what stop cannot end
        self.launched = threading.Event()
        self._lock = threading.Lock()

    def start(
        self, name: str, function: Callable[[dict[str, Any]], object], arguments: Mapping[str, Any]
    ) -> None:
        self._answer()
        assert function is attempt.main
        if not self.starts:
            raise RuntimeError("the dispatcher died here")
        with self._lock:
            self.alive.add(name)
            self.started.append(name)
            self.arguments[name] = arguments
        self.launched.set()

    def stop(self, name: str) -> None:
        self._answer()
        self.stopped.append(name)
        if name in self.immortal:
            raise RuntimeError(f"{name} was told to die 30 s ago and is not gone")
        if self.dies:
            self.alive.discard(name)

    def names(self) -> set[str]:
        self._answer()
        return set(self.alive)

    def resources(self) -> Capacity:
        if not self.counts:
            self._answer()
        return self.capacity

    def _answer(self) -> None:
        if not self.answers:
            raise RuntimeError("the cluster does not answer")


@pytest.fixture(autouse=True)
def lines(store: Store, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What the daemon has logged so far, as JSON. Each line that names a job or an attempt has both ids."""
    caplog.set_level(logging.INFO, "textvae")

    def lines() -> list[dict[str, Any]]:
        ours = [record for record in caplog.get_records("call") if record.name.startswith("textvae.")]
        return [json.loads(logs.JsonLines().format(record)) for record in ours]

    yield lines
    jobs = store.jobs()
    sweeps = {job.id for job in jobs if job.trials is not None}  # they have no attempts
    for line in lines():
        for job in jobs:
            named = re.search(rf"(?<![\w.-]){re.escape(job.id)}(?:-(\d+))?(?![\w-]|\.\d)", line["message"])
            if named is None:
                continue
            assert line.get("job") in sweeps or line.get("attempt") is not None, line
            if named[1] is not None:
                assert (line["job"], line["attempt"]) == (job.id, int(named[1])), line


class At:
    """A dispatcher whose passes are made by hand, one second apart."""

    def __init__(self, dispatcher: Dispatcher):
        self.dispatcher = dispatcher
        self.now = 0.0

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 1
            self.dispatcher.step(self.now)

    def later(self, seconds: float) -> None:
        """The next pass comes after so many seconds."""
        self.now += seconds
        self.dispatcher.step(self.now)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def make(
    redis_server: RedisServer, settings: Settings, cluster: Cluster, store: Store
) -> Iterator[Callable[..., Dispatcher]]:
    """Makes dispatchers over the test's store, Redis and cluster."""
    queues: list[Queue] = []

    def make(timings: Timings | None = None) -> Dispatcher:
        queues.append(Queue(redis_server.url))
        timings = timings or Timings(reconcile=1, claim_lease=0.2)
        return Dispatcher(Service(store, queues[-1]), cluster, cluster.resources, settings, timings=timings)

    yield make
    for queue in queues:
        queue.close()


@pytest.fixture
def dispatcher(make: Callable[..., Dispatcher]) -> At:
    return At(make())


def running(store: Store) -> list[str]:
    return sorted(a.actor for a in store.attempts(active=True))


def end(service: Service, cluster: Cluster, job: str, number: int = 1) -> None:
    """The attempt is done, and its process ends."""
    service.finish(job, number, AttemptState.SUCCEEDED, by="attempt")
    cluster.alive.discard(f"{job}-{number}")
