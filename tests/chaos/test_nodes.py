"""A node of a real Ray that is out of reach, killed, and replaced, under a job across two."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.config import from_mapping
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import Attempt, AttemptState, Cause, CauseKind, EventKind, JobState, Store

from ..local_ray import (
    LocalRay,
    await_head,
    end_ray,
    short_folder,
    start_head,
    start_node,
    write_reviews,
)
from ..marks import takes_minutes
from .ground import Redis, until
from .oracle import Expected, problems

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    takes_minutes,
]

EPOCHS = 40
# Ray takes a node for dead that has not answered for 5 s, instead of for half a minute.
_HASTE = {"period_ms": "1000", "timeout_ms": "1000", "failure_threshold": "5"}


class Cluster:
    """A head with one CPU, and nodes of one more that come and go."""

    def __init__(self, folder: Path):
        self.head: LocalRay
        self.head, process = start_head(folder, cpus=1)
        self._started = [process]

    def add_node(self) -> None:
        await_head(self.head, self._started[0])
        self._started.append(start_node(self.head))

    def node(self) -> list[psutil.Process]:
        """Every process of the newest node."""
        leader = psutil.Process(self._started[-1].pid)
        return [leader, *leader.children(recursive=True)]

    def signal_node(self, number: signal.Signals) -> list[psutil.Process]:
        """Send a signal to every process of the newest node, and return them."""
        everyone = self.node()
        for process in everyone:
            process.send_signal(number)
        return everyone

    def end(self) -> None:
        for process in reversed(self._started):
            end_ray(process)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in _HASTE.items():
        monkeypatch.setenv(f"RAY_health_check_{name}", value)
    with short_folder() as folder:
        cluster = Cluster(folder)
        try:
            cluster.add_node()
            yield cluster
        finally:
            cluster.end()


@pytest.fixture
def settings(cluster: Cluster, redis: Redis, tmp_path: Path) -> Iterator[Settings]:
    """Those of a service on that cluster, with its dispatcher; pytest shows the logs of a test that fails."""
    settings = cluster.head.settings(tmp_path / "home", redis.url)
    environment = cluster.head.environment | {
        "TEXTVAE_HOME": str(settings.home),
        "TEXTVAE_REDIS_URL": redis.url,
        "RAY_ADDRESS": cluster.head.address,
    }
    with (tmp_path / "dispatcher.log").open("w") as file:
        dispatcher = subprocess.Popen(
            [sys.executable, "-m", "jobs.dispatcher"], env=environment, stdout=file, stderr=file
        )
    yield settings
    dispatcher.send_signal(signal.SIGTERM)
    dispatcher.wait(30)
    print("\n".join(f"{log}:\n{log.read_text()}" for log in (Path(file.name), *settings.logs.rglob("*.log"))))


@pytest.fixture
def seen(settings: Settings) -> Iterator[tuple[Store, Queue]]:
    """What a test sees of that service."""
    store, queue = Store(settings.database_url), Queue(settings.redis_url)
    yield store, queue
    queue.close()
    store.close()


def test_a_node_that_is_lost_again_and_again_and_replaced(
    cluster: Cluster, settings: Settings, seen: tuple[Store, Queue], tmp_path: Path
):
    store, queue = seen
    config: dict[str, Any] = {
        "name": "nodes",
        "seed": 7,
        "resources": {"ranks": 2},
        "data": {"source": "files", "train": [str(write_reviews(tmp_path / "reviews.parquet"))]},
        "vocabulary": {"kind": "words", "size": 40, "max_length": 16},
        "model": {"embedding": 8, "encoder_hidden": 8, "latent": 4, "decoder_hidden": 8},
        "training": {"epochs": EPOCHS, "batch_size": 20},
        "retry": {"backoff": 0, "max_infrastructure": 100},
    }
    service = Service(store, queue)
    service.submit(from_mapping(config), id="far")

    def trains(number: int) -> None:
        """Wait until that attempt, or one that followed it, has a checkpoint."""
        until(lambda: any(c.attempt >= number for c in store.checkpoints("far")), "a checkpoint", 120, 0.02)

    def lost() -> Attempt:
        """The newest attempt, once it has ended; its job waits."""
        until(lambda: store.job("far").state is JobState.QUEUED, "the attempt to end", 60, 0.05)
        return store.attempts("far")[-1]

    trains(1)
    node = cluster.signal_node(signal.SIGSTOP)
    first = lost()
    assert first.cause is Cause.RANK_LOST, first
    assert store.checkpoints("far")[0].epoch < EPOCHS
    # Thawed it hears that it was given up, and ends; what its rank says is heard by nobody.
    for process in node:
        process.send_signal(signal.SIGCONT)
    assert psutil.wait_procs(node, timeout=60)[1] == []
    assert store.attempts("far") == [first]

    cluster.add_node()
    trains(first.number + 1)
    cluster.signal_node(signal.SIGKILL)
    second = lost()
    assert second.cause is Cause.RANK_LOST, second
    assert second.resumed_from is not None

    # Out of reach: nobody hears of the node any more, but its rank is there and trains on.
    cluster.add_node()
    trains(second.number + 1)
    node = cluster.node()
    (raylet,) = [process for process in node if "/raylet/raylet" in process.cmdline()[0]]
    raylet.suspend()
    third = lost()
    assert third.cause is Cause.RANK_LOST, third
    raylet.resume()
    assert psutil.wait_procs(node, timeout=60)[1] == []
    assert store.attempts("far")[-1] == third

    cluster.add_node()
    until(lambda: store.job("far").state.final, "the job to end", 120, 0.05)
    service.submit(from_mapping(config), id="untouched")
    until(lambda: store.job("untouched").state.final, "the other job to end", 120, 0.05)
    served = {version.model: version.version for version in store.served()}
    jobs = [Expected(id, 7, EPOCHS, real=True, like="untouched") for id in ("far", "untouched")]
    assert problems(store, settings, jobs, served=served) == []
    assert len(store.attempts("untouched")) == 1


def test_an_elastic_job_shrinks_with_the_cluster_and_grows_with_it(
    cluster: Cluster, settings: Settings, seen: tuple[Store, Queue], tmp_path: Path
):
    epochs, steps = 30, 113  # of 1,800 reviews, 16 a step; alone far longer than a node takes to come
    store, queue = seen
    settings.scheduling_file.write_text("growing: {patience: 0, uninterrupted: 0}\n")
    reviews = write_reviews(tmp_path / "reviews.parquet", count=2000)
    config: dict[str, Any] = {
        "name": "elastic",
        "seed": 7,
        "data": {"source": "files", "train": [str(reviews)]},
        "vocabulary": {"kind": "words", "size": 40, "max_length": 20},
        "model": {"embedding": 16, "encoder_hidden": 32, "latent": 4, "decoder_hidden": 32},
        "training": {"epochs": epochs, "batch_size": 16},
        "resources": {"ranks": {"min": 1, "max": 2}},
        "retry": {"backoff": 0},
    }

    def cpus() -> float:
        seen = queue.cluster()
        return float(seen["total_cpus"]) if seen else 0.0

    def attempts() -> list[Attempt]:
        return store.attempts("elastic")

    until(lambda: cpus() == 2, "the dispatcher to see both nodes", 120, 0.05)
    Service(store, queue).submit(from_mapping(config), id="elastic")
    until(lambda: store.checkpoints("elastic"), "a checkpoint", 120, 0.02)
    cluster.signal_node(signal.SIGKILL)
    until(lambda: len(attempts()) == 2, "the second attempt", 120, 0.05)
    # One that has not begun to train has nothing to lose, and makes way at once.
    log = settings.attempt_log("elastic", 2)
    until(lambda: log.exists() and "the first step is done" in log.read_text(), "its first step", 120, 0.05)
    cluster.add_node()
    until(lambda: store.job("elastic").state.final, "the job to end", 600, 0.05)
    told = "\n".join(settings.attempt_log("elastic", each.number).read_text() for each in attempts())
    assert store.job("elastic").state is JobState.SUCCEEDED, told
    assert [(each.ranks, each.cpus) for each in attempts()] == [(2, 2), (1, 1), (2, 2)], told
    first, second, third = attempts()
    assert first.cause is not None and first.cause.kind is CauseKind.INFRASTRUCTURE
    assert (second.state, second.cause) == (AttemptState.PREEMPTED, Cause.RESIZED)
    assert third.state is AttemptState.SUCCEEDED
    assert (store.job("elastic").errors_used, store.queued()) == (0, [])
    # Attempt 2 took steps, alone, and attempt 3 went on from the last of them.
    kept = {each.id: each for each in store.checkpoints("elastic", deleted=True)}
    assert second.resumed_from is not None and third.resumed_from is not None
    begin, stopped = kept[second.resumed_from], kept[third.resumed_from]
    assert (begin.attempt, stopped.attempt) == (1, 2) and stopped.step > begin.step
    # Each epoch once, each of all its steps: none was skipped, none was taken twice.
    reports = [(each.epoch, each.step) for each in store.reports("elastic")]
    assert reports == [(number, steps * number) for number in range(1, epochs + 1)]
    asked = [e.detail["reason"] for e in store.events("elastic") if e.kind is EventKind.YIELD_REQUESTED]
    assert asked == ["there is room for 2 ranks"]
