from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs import attempt
from jobs.config import JobConfig
from jobs.dispatcher import Capacity, Dispatcher, Timings
from jobs.queue import Entry, Queue
from jobs.service import LAUNCH_GRACE, Service
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, EventKind, Job, JobState, Store

from .conftest import DATABASES as DATABASES
from .conftest import Clock, RedisServer

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
        self._answer()
        return self.capacity

    def _answer(self) -> None:
        if not self.answers:
            raise RuntimeError("the cluster does not answer")


class At:
    """A dispatcher whose passes are made by hand, one second apart."""

    def __init__(self, dispatcher: Dispatcher):
        self.dispatcher = dispatcher
        self.now = 0.0

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 1
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


def test_a_job_is_opened_and_launched(
    dispatcher: At, service: Service, cluster: Cluster, config: JobConfig, settings: Settings
):
    job = service.submit(config).job
    dispatcher.step()
    assert cluster.started == [f"{job.id}-1"]
    assert cluster.arguments[f"{job.id}-1"]["job"] == job.id
    assert cluster.arguments[f"{job.id}-1"]["number"] == 1
    assert Settings.from_dict(cluster.arguments[f"{job.id}-1"]["settings"]) == settings
    assert service.store.job(job.id).state is JobState.RUNNING
    assert service.queue.leases([job.id]) == {job.id: 1}
    dispatcher.step(3)
    assert len(cluster.started) == 1
    assert service.queue.cluster() == vars(cluster.capacity)


def test_jobs_run_side_by_side_while_they_fit(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob
):
    for id, cpus, gpus in (("one", 2, 0), ("two", 1, 2), ("three", 1, 1), ("four", 1, 0)):
        add_job(id, cpus=cpus, gpus=gpus)
    dispatcher.step()
    # The third waits for a GPU; the fourth would fit, but must not overtake it for ever.
    assert running(service.store) == ["one-1", "two-1"]
    end(service, cluster, "two")
    dispatcher.step()
    assert running(service.store) == ["four-1", "one-1", "three-1"]


def test_what_others_use_of_the_cluster_is_not_free(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob
):
    add_job("one", cpus=2)
    cluster.capacity = Capacity(4, 2, 1, 2)
    dispatcher.step()
    assert running(service.store) == []
    cluster.capacity = Capacity(4, 2, 2, 2)
    dispatcher.step()
    assert running(service.store) == ["one-1"]


def test_what_others_use_is_not_given_to_two_jobs_that_start_at_once(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob
):
    cluster.capacity = Capacity(4, 2, 2, 2)  # others hold 2 CPUs
    add_job("one", cpus=2)
    add_job("two", cpus=2)
    dispatcher.step(3)
    # The ranks of the first may not be placed yet: what the cluster says is free is meant for them.
    assert running(service.store) == ["one-1"]
    cluster.capacity = Capacity(6, 2, 2, 2)  # they are, and 2 more CPUs have come
    service.store.start_attempt("one", 1)
    dispatcher.step()
    assert running(service.store) == ["one-1", "two-1"]


def test_a_job_larger_than_the_cluster_is_told_of_once(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob
):
    add_job("large", gpus=8)
    add_job("small")
    dispatcher.step(3)
    assert running(service.store) == ["small-1"]
    unfit = [event for event in service.store.events("large") if event.kind is EventKind.UNFIT]
    assert [event.detail["reason"] for event in unfit] == ["needs 8 GPUs, the cluster has 2"]
    cluster.capacity = Capacity(8, 8, 7, 8)
    dispatcher.step()
    assert running(service.store) == ["large-1", "small-1"]


def test_an_entry_of_a_job_that_is_not_recorded_holds_nobody_up(
    dispatcher: At, service: Service, add_job: AddJob
):
    """A Redis of an older day, or of two services, has entries that this store knows nothing of."""
    add_job("one")
    dispatcher.dispatcher._service.reconcile_queue()
    service.queue.push([Entry("stranger", 1, 99, 0, 5, 1)])
    assert [attempt.job for attempt in dispatcher.dispatcher.launch()] == ["one"]


def test_a_cluster_without_cpus_is_not_there_yet(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob
):
    add_job("one")
    cluster.capacity = Capacity(0, 0, 0, 0)
    dispatcher.step(2)
    assert running(service.store) == []
    assert [event.kind for event in service.store.events("one")] == [EventKind.SUBMITTED]


def test_two_dispatchers_never_launch_a_job_twice(
    make: Callable[..., Dispatcher], store: Store, cluster: Cluster, add_job: AddJob
):
    jobs = [f"job-{n:02}" for n in range(30)]
    for id in jobs:
        add_job(id, cpus=0.1)
    dispatchers = [At(make()) for _ in range(3)]
    barrier = threading.Barrier(3)

    def work(at: At) -> None:
        barrier.wait()
        at.step(3)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, dispatchers))
    assert sorted(cluster.started) == [f"{id}-1" for id in jobs]
    assert running(store) == sorted(cluster.started)


def test_a_crash_between_opening_and_launching_is_healed(
    dispatcher: At,
    make: Callable[..., Dispatcher],
    store: Store,
    cluster: Cluster,
    add_job: AddJob,
    clock: Clock,
):
    add_job("one")
    cluster.starts = False
    dispatcher.step()
    assert running(store) == ["one-1"]
    assert cluster.started == []
    cluster.starts = True
    after = At(make())  # the next dispatcher
    after.step()
    assert running(store) == ["one-1"]  # it could be coming up just now
    clock.forward(LAUNCH_GRACE + 1)
    time.sleep(0.25)  # the claim's lease ends, in Redis' own time
    after.step()
    assert cluster.started == ["one-2"]
    assert [a.cause for a in store.attempts("one")] == [Cause.NEVER_STARTED, None]


def test_a_crash_between_claiming_and_opening_is_healed(
    make: Callable[..., Dispatcher],
    store: Store,
    queue: Queue,
    cluster: Cluster,
    service: Service,
    add_job: AddJob,
):
    add_job("one")
    service.reconcile_queue()
    claimed = queue.claim(free_cpus=4, free_gpus=2, total_cpus=4, total_gpus=2, ttl=0.1)
    assert claimed.job == "one"
    assert queue.entries() == {}
    after = At(make())
    deadline = time.monotonic() + 10
    while not cluster.started:
        assert time.monotonic() < deadline
        after.step()
    assert cluster.started == ["one-1"]


def test_the_next_dispatcher_adopts_running_attempts(
    make: Callable[..., Dispatcher],
    service: Service,
    store: Store,
    cluster: Cluster,
    add_job: AddJob,
    clock: Clock,
):
    add_job("one", cpus=4)
    add_job("two", cpus=4)
    At(make()).step()
    store.join_attempt("one", 1, host="here")
    store.start_attempt("one", 1)
    after = At(make())
    for _ in range(5):
        clock.forward(100)
        after.step()
    assert running(store) == ["one-1"]
    assert cluster.started == ["one-1"]
    assert cluster.stopped == []
    end(service, cluster, "one")
    after.step()
    assert running(store) == ["two-1"]


def test_a_cancelled_attempt_has_its_grace_and_is_killed_after_it(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("one")
    dispatcher.step()
    service.store.start_attempt("one", 1)
    service.cancel("one")
    clock.forward(29)
    dispatcher.step()
    assert cluster.stopped == []
    clock.forward(2)
    dispatcher.step()
    assert cluster.stopped == ["one-1"]
    (attempt,) = service.store.attempts("one")
    assert (attempt.state, attempt.cause) == (AttemptState.CANCELLED, Cause.KILLED)
    assert "did not stop within 30 s" in (attempt.error or "")
    assert service.store.job("one").state is JobState.CANCELLED
    dispatcher.step()
    assert cluster.stopped == ["one-1"]


def test_a_kill_that_is_not_confirmed_is_tried_again(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("one")
    dispatcher.step()
    service.cancel("one")
    clock.forward(31)
    cluster.dies = False
    dispatcher.step(2)
    assert cluster.stopped == ["one-1"] * 2
    assert service.store.job("one").state is JobState.RUNNING
    cluster.dies = True
    dispatcher.step()
    assert service.store.job("one").state is JobState.CANCELLED


def test_an_attempt_that_cannot_be_killed_keeps_nobody_else_waiting(
    dispatcher: At,
    service: Service,
    cluster: Cluster,
    add_job: AddJob,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
):
    for id in ("one", "two", "three"):
        add_job(id)
    dispatcher.step()
    for id in ("one", "two", "three"):
        service.store.start_attempt(id, 1)
    service.cancel("one")
    service.cancel("two")
    cluster.alive.discard("three-1")
    service.queue.release("three", 1)
    cluster.immortal.add("one-1")
    clock.forward(31)
    dispatcher.step(3)
    assert service.store.job("one").state is JobState.RUNNING
    assert service.store.job("two").state is JobState.CANCELLED
    assert service.store.attempts("three")[0].state is AttemptState.LOST
    assert len([r for r in caplog.records if "told to die" in r.getMessage()]) == 1


def test_ranks_that_do_not_start_in_time_are_stopped_and_tried_again(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("one")
    dispatcher.step()
    service.store.join_attempt("one", 1, host="here")  # its process is there, its ranks are not
    clock.forward(119)
    dispatcher.step()
    assert cluster.stopped == []
    clock.forward(2)
    dispatcher.step()
    assert cluster.stopped == ["one-1"]
    assert running(service.store) == ["one-2"]
    assert service.store.attempts("one")[0].cause is Cause.START_TIMEOUT
    clock.forward(121)
    dispatcher.step()
    job = service.store.job("one")
    assert job.state is JobState.FAILED  # it had two attempts
    assert "did not start within 120 s" in (job.error or "")


def test_a_cluster_that_does_not_answer_ends_nothing(
    dispatcher: At,
    service: Service,
    cluster: Cluster,
    add_job: AddJob,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO, "textvae")
    add_job("one")
    add_job("two")
    dispatcher.step()
    service.store.start_attempt("one", 1)
    service.store.start_attempt("two", 1)
    service.cancel("two")
    add_job("three")
    cluster.answers = False
    clock.forward(1000)
    dispatcher.step(5)
    assert running(service.store) == ["one-1", "two-1"]
    failures = [record for record in caplog.records if "does not answer" in record.getMessage()]
    assert 1 <= len(failures) <= 3  # once for each part of a pass, not once a pass
    cluster.answers = True
    dispatcher.step()
    assert running(service.store) == ["one-1", "three-1"]
    assert any("works again" in record.getMessage() for record in caplog.records)


def test_without_redis_attempts_are_watched_still(
    dispatcher: At,
    service: Service,
    cluster: Cluster,
    add_job: AddJob,
    clock: Clock,
    redis_server: RedisServer,
):
    add_job("one")
    add_job("two")
    dispatcher.step()
    service.store.start_attempt("one", 1)
    service.store.request_cancel("one", "ada")
    redis_server.stop()
    clock.forward(31)
    add_job("three")
    dispatcher.step()
    assert service.store.job("one").state is JobState.CANCELLED
    assert running(service.store) == ["two-1"]
    redis_server.start()  # and it is empty
    dispatcher.step(2)
    assert running(service.store) == ["three-1", "two-1"]


def test_the_loop_launches_at_the_bell_and_ends_when_told(
    make: Callable[..., Dispatcher], service: Service, cluster: Cluster, config: JobConfig
):
    dispatcher = make(Timings(rest=2.0, reconcile=1000))
    stop, first_pass = threading.Event(), threading.Event()
    step = dispatcher.step

    def stepped(now: float) -> bool:
        worked = step(now)
        first_pass.set()
        return worked

    dispatcher.step = stepped  # type: ignore[method-assign]
    ready = threading.Event()
    thread = threading.Thread(target=dispatcher.loop, args=(stop, ready.set))
    thread.start()
    try:
        assert first_pass.wait(10)
        assert ready.wait(10)
        began = time.monotonic()
        service.submit(config)
        assert cluster.launched.wait(10)
        assert time.monotonic() - began < 1.5  # well before the rest was over
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    assert len(cluster.alive) == 1  # the attempt goes on


def test_a_dispatcher_is_ready_once_every_part_of_a_pass_has_worked(
    make: Callable[..., Dispatcher], cluster: Cluster, redis_server: RedisServer
):
    dispatcher = make()
    cluster.answers = False
    assert not dispatcher.step(0)
    cluster.answers = True
    redis_server.stop()
    assert not dispatcher.step(10)
    redis_server.start()
    assert dispatcher.step(20)


def test_an_error_that_nobody_expects_does_not_end_the_daemon(
    dispatcher: At,
    service: Service,
    cluster: Cluster,
    add_job: AddJob,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    add_job("one")
    monkeypatch.setattr(dispatcher.dispatcher, "watch", lambda: 1 / 0)
    dispatcher.step(2)
    assert running(service.store) == ["one-1"]
    (record,) = [record for record in caplog.records if "ZeroDivisionError" in record.getMessage()]
    assert record.exc_info is not None


def test_the_daemon_starts_and_ends_by_signal(tmp_path: Path, redis_server: RedisServer):
    environment = {
        **os.environ,
        "TEXTVAE_HOME": str(tmp_path / "home"),
        "TEXTVAE_REDIS_URL": redis_server.url,
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    log = tmp_path / "log"
    with log.open("wb") as output:
        daemon = subprocess.Popen([sys.executable, "-m", "jobs.dispatcher"], env=environment, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while "there is no Ray cluster" not in log.read_text():
            assert daemon.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(20) == 0
    finally:
        if daemon.poll() is None:
            daemon.kill()
    text = log.read_text()
    assert "stopped; running attempts go on" in text
    assert redis_server.url not in text  # its password is in there
    assert (tmp_path / "home" / "textvae.db").exists()
