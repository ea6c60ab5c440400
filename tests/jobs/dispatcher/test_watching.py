from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.config import JobConfig
from jobs.dispatcher import Capacity, Dispatcher, Timings
from jobs.service import Service
from jobs.store import AttemptState, Cause, JobState, Retry, Store

from ..conftest import DATABASES as DATABASES
from ..conftest import Clock, RedisServer
from .conftest import AddJob, At, Cluster, end, running


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
    service.store.join_attempt("one", 1, host="here")  # it hears of a cancel by itself
    service.cancel("one")
    dispatcher.step()
    dispatcher.later(29)
    assert cluster.stopped == []
    dispatcher.later(1)
    assert cluster.stopped == ["one-1"]
    (attempt,) = service.store.attempts("one")
    assert (attempt.state, attempt.cause) == (AttemptState.CANCELLED, Cause.KILLED)
    assert "did not stop within 30 s" in (attempt.error or "")
    assert service.store.job("one").state is JobState.CANCELLED
    dispatcher.step()
    assert cluster.stopped == ["one-1"]


def test_an_attempt_that_is_cancelled_while_it_comes_up_is_killed_at_once(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("one")
    dispatcher.step()
    service.cancel("one")
    dispatcher.step()
    assert cluster.stopped == ["one-1"]
    (attempt,) = service.store.attempts("one")
    assert (attempt.state, attempt.cause) == (AttemptState.CANCELLED, Cause.KILLED)
    assert attempt.error == "attempt 1 was cancelled, and killed, as it came up"
    assert service.store.job("one").state is JobState.CANCELLED


def test_a_kill_that_is_not_confirmed_is_tried_again(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("one")
    dispatcher.step()
    service.store.join_attempt("one", 1, host="here")
    service.cancel("one")
    dispatcher.step()
    cluster.dies = False
    dispatcher.later(30)
    dispatcher.step()
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
    lines: Callable[[], list[dict[str, Any]]],
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
    dispatcher.step()
    dispatcher.later(30)
    dispatcher.step(2)
    assert service.store.job("one").state is JobState.RUNNING
    assert service.store.job("two").state is JobState.CANCELLED
    assert service.store.attempts("three")[0].state is AttemptState.LOST
    (told,) = [line for line in lines() if "told to die" in line["message"]]
    assert (told["job"], told["attempt"]) == ("one", 1)
    cluster.immortal.clear()
    dispatcher.step()
    (told,) = [line for line in lines() if line["message"] == "stopping one-1: works again"]
    assert (told["job"], told["attempt"]) == ("one", 1)


def test_ranks_that_do_not_start_in_time_are_stopped_and_tried_again(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock
):
    add_job("one", retry=Retry(max_infrastructure=1))
    dispatcher.step()
    service.store.join_attempt("one", 1, host="here")  # its process is there, its ranks are not
    service.queue.renew("one", 1, 600)
    dispatcher.step()
    dispatcher.later(119)
    assert cluster.stopped == []
    dispatcher.later(1)
    assert cluster.stopped == ["one-1"]
    assert running(service.store) == ["one-2"]
    assert service.store.attempts("one")[0].cause is Cause.START_TIMEOUT
    service.queue.renew("one", 2, 600)
    dispatcher.step()
    dispatcher.later(120)
    job = service.store.job("one")
    assert job.state is JobState.FAILED  # it had one retry
    assert "did not start within 120 s" in (job.error or "")


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_clock_that_jumps_ends_nobody_s_time(
    dispatcher: At, service: Service, cluster: Cluster, add_job: AddJob, clock: Clock, jump: float
):
    """One trains under a time limit, one is told to stop, one to make way, and one starts."""
    ids = ("trains", "stops", "yields", "starts")
    for id in ids:
        add_job(id, time_limit=600)
    dispatcher.step()
    for id in ids[:3]:
        service.store.join_attempt(id, 1, host="here")
        service.store.start_attempt(id, 1)
        service.queue.renew(id, 1, 600)
    service.cancel("stops")
    service.requeue("yields", by="ada")
    dispatcher.step()
    clock.forward(jump)
    dispatcher.later(20)
    assert cluster.stopped == []
    dispatcher.later(10)
    assert cluster.stopped == ["stops-1", "yields-1"]
    dispatcher.later(90)
    assert cluster.stopped[2:] == ["starts-1"]
    dispatcher.later(509)
    assert service.store.job("trains").state is JobState.RUNNING
    dispatcher.later(1)
    assert service.store.attempts("trains")[0].cause is Cause.TIMEOUT


def test_a_clock_that_was_put_back_stops_no_dispatcher(
    dispatcher: At,
    service: Service,
    cluster: Cluster,
    add_job: AddJob,
    clock: Clock,
    redis_server: RedisServer,
):
    """It shows on what it sees of the cluster, and looks again at a job that another was about to open."""
    add_job("one")
    assert service.queue.take({"one": 1}, 60)  # by a dispatcher that dies then
    dispatcher.step()
    assert running(service.store) == []
    redis_server.flush()
    clock.forward(-3600)
    dispatcher.step()
    assert service.queue.cluster() is not None
    assert service.queue.outlook() is not None
    assert running(service.store) == ["one-1"]


@pytest.mark.parametrize("counts", [False, True])
def test_a_cluster_that_does_not_answer_ends_nothing(
    dispatcher: At,
    service: Service,
    cluster: Cluster,
    add_job: AddJob,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    counts: bool,
):
    """For longer than every patience, and than leases last: what holds none may live, and is not replaced.
    Even if the cluster still tells how much room there is."""
    caplog.set_level(logging.INFO, "textvae")
    add_job("one")
    add_job("two")
    dispatcher.step()
    service.store.start_attempt("one", 1)
    service.store.start_attempt("two", 1)
    service.cancel("two")
    add_job("three")
    for id in ("one", "two"):
        service.queue.release(id, 1)  # they cannot reach Redis either
    cluster.answers, cluster.counts = False, counts
    cluster.capacity = Capacity(4, 2, 0, 2)
    for _ in range(30):
        clock.forward(10)
        dispatcher.later(10)
    assert running(service.store) == ["one-1", "two-1"]
    assert cluster.started == ["one-1", "two-1"]
    failures = [record for record in caplog.records if "does not answer" in record.getMessage()]
    assert 1 <= len(failures) <= 4  # once for each part of a pass, not once a pass
    assert service.queue.renew("one", 1, 60)
    cluster.answers, cluster.capacity = True, Capacity(4, 2, 4, 2)
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
    add_job("three")
    dispatcher.step()
    dispatcher.later(30)
    assert service.store.job("one").state is JobState.CANCELLED
    assert running(service.store) == ["two-1"]
    redis_server.start()  # and it is empty
    dispatcher.step(2)
    assert running(service.store) == ["three-1", "two-1"]


def test_the_loop_launches_at_the_bell_and_ends_when_told(
    make: Callable[..., Dispatcher], service: Service, cluster: Cluster, config: JobConfig
):
    dispatcher = make(Timings(rest=300.0, reconcile=1000))
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
        service.submit(config)
        assert cluster.launched.wait(30)  # long before the rest was over
    finally:
        stop.set()
        service.queue.ring()
        thread.join(30)
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
    monkeypatch.setattr(dispatcher.dispatcher, "watch", lambda now: 1 / 0)
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
