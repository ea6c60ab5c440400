"""Many at once: one id submitted by fifty, cancels that meet an end, a retry or a recovery."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from jobs.config import from_mapping
from jobs.queue import Queue
from jobs.service import Service, Submission
from jobs.store import (
    AttemptState,
    Cause,
    Conflict,
    EventKind,
    Job,
    JobState,
    Store,
    StoreUnavailable,
)

from .ground import Redis, at_once

SEED = int(os.environ.get("TEXTVAE_CHAOS_SEED", "1"))
ALL = os.environ.get("TEXTVAE_CHAOS") == "all"
ROUNDS = 500 if ALL else 12
CLIENTS = 50

CONFIG = from_mapping({"name": "reviews", "retry": {"backoff": 0}})


class Cutter:
    """A way to a server that cuts each connection after a number of bytes, one of `budgets` at random."""

    def __init__(self, connect: Callable[[], socket.socket], draw: random.Random, budgets: Sequence[int]):
        self._connect = connect
        self._draw = draw
        self._budgets = budgets
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.cut = 0
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return  # closed
            server = self._connect()
            budget = [self._draw.choice(self._budgets)]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(source, target, budget), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, budget: list[int]) -> None:
        try:
            while data := source.recv(4096):
                budget[0] -= len(data)
                if budget[0] < 0:
                    self.cut += 1
                    break
                target.sendall(data)
        except OSError:
            self.cut += 1  # the other direction was cut
        for end_ in (source, target):
            # Closing it is not enough: the other direction's thread reads from it, and keeps it open.
            with suppress(OSError):
                end_.shutdown(socket.SHUT_RDWR)
            end_.close()


@contextmanager
def opened(url: str, redis_url: str) -> Iterator[Service]:
    store, queue = Store(url), Queue(redis_url)
    yield Service(store, queue)
    queue.close()
    store.close()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'textvae.db'}"


@pytest.fixture
def service(url: str, redis: Redis) -> Iterator[Service]:
    with opened(url, redis.url) as service:
        yield service


def to_redis(url: str) -> Cutter:
    port = urlsplit(url).port
    budgets = [0, 40, 120, 400, 4000]  # enough for some submits, and none for ever
    return Cutter(lambda: socket.create_connection(("127.0.0.1", port)), random.Random(SEED), budgets)


def to_postgresql(folder: str) -> Cutter:
    def connect() -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{folder}/.s.PGSQL.5432")
        return server

    # Saying hello takes more than a thousand bytes, a submit some thousands.
    return Cutter(connect, random.Random(SEED), [0, 1000, 3000, 6000, 20_000, 80_000])


@pytest.mark.timeout(3600)
def test_of_fifty_clients_with_one_id_one_makes_the_job(service: Service, url: str, redis: Redis):
    """Their connections to Redis are cut at random: the job is there once, and queued in the end."""
    cutter = to_redis(redis.url)
    way = redis.url.replace(f":{urlsplit(redis.url).port}/", f":{cutter.port}/")
    rounds = ROUNDS if ALL else 3
    stores = [Store(url) for _ in range(CLIENTS)]
    services = [Service(store, Queue(way)) for store in stores]
    for number in range(rounds):
        id = f"job-{number}"
        results = at_once(*(partial(one.submit, CONFIG, id=id, owner="ada") for one in services))
        assert sum(result.created for result in results) == 1  # type: ignore[attr-defined]
        assert {result.job.id for result in results} == {id}  # type: ignore[attr-defined]
        assert [event.kind for event in service.store.events(id)] == [EventKind.SUBMITTED]
    for one in services:
        one.queue.close()
        one.store.close()
    cutter.close()
    assert cutter.cut > rounds
    service.reconcile_queue()
    assert list(service.queue.entries()) == [f"job-{number}" for number in range(rounds)]


@pytest.mark.timeout(3600)
def test_a_submit_whose_connection_to_postgresql_is_cut_is_tried_again(postgresql: str, redis: Redis):
    """By its user, with the same id: before, during and after the commit of fifty clients at once."""
    cutter = to_postgresql(postgresql.partition("?host=")[2])
    way = postgresql.partition("?")[0].replace("@/", f"@127.0.0.1:{cutter.port}/")
    queue = Queue(redis.url)
    rounds, failed = ROUNDS if ALL else 3, 0
    lock = threading.Lock()

    def submit(number: int, id: str) -> Submission:
        nonlocal failed
        while True:
            try:
                if stores[number] is None:
                    stores[number] = Store(way)
                return Service(stores[number], queue).submit(CONFIG, id=id, owner="ada")
            except StoreUnavailable:
                with lock:
                    failed += 1

    stores: list[Any] = [None] * CLIENTS
    store = Store(postgresql)
    for number in range(rounds):
        id = f"job-{number}"
        results = at_once(*(partial(submit, client, id) for client in range(CLIENTS)))
        assert {result.job.id for result in results} == {id}  # type: ignore[attr-defined]
        assert sum(result.created for result in results) <= 1  # type: ignore[attr-defined]
        assert [event.kind for event in store.events(id)] == [EventKind.SUBMITTED]
    assert [job.id for job in store.jobs()] == [f"job-{number}" for number in range(rounds)][::-1]
    print(f"{rounds} rounds of {CLIENTS} clients: {failed} submits were cut and tried again")
    assert failed > rounds
    for each in (*stores, store):
        each.close()
    cutter.close()
    queue.close()


def test_an_error_that_nobody_expects_is_not_lost_with_its_thread():
    refusal = Conflict("it has ended")

    def refused() -> None:
        raise refusal

    assert at_once(lambda: 1, refused) == [1, refusal]
    with pytest.raises(ZeroDivisionError):
        at_once(refused, lambda: 1 / 0, lambda: 1)


def begin(service: Service, id: str) -> Job:
    """A job with a running attempt that holds its lease."""
    service.submit(CONFIG, id=id, owner="ada")
    service.store.open_attempt(id, 1, "test")
    service.queue.remove([id])
    service.store.start_attempt(id, 1)
    service.queue.renew(id, 1, 60)
    return service.store.job(id)


def is_consistent(service: Service, id: str) -> Job:
    """The job, once nothing of it contradicts anything else."""
    job = service.store.job(id)
    active = [attempt for attempt in service.store.attempts(id) if attempt.state.active]
    assert len(active) == (1 if job.state is JobState.RUNNING else 0)
    service.reconcile_queue()
    assert (id in service.queue.entries()) == (job.state is JobState.QUEUED)
    if job.state.final:
        assert service.queue.leases([id]) == {}
        kinds = [event.kind for event in service.store.events(id)]
        assert kinds.count(EventKind(str(job.state))) == 1
    return job


@pytest.mark.timeout(3600)
def test_a_cancel_races_with_the_end(service: Service, url: str, redis: Redis):
    ends = [
        (AttemptState.SUCCEEDED, None, JobState.SUCCEEDED),
        (AttemptState.FAILED, Cause.ERROR, None),
        (AttemptState.LOST, Cause.DIED, None),
    ]
    with opened(url, redis.url) as other:
        for number in range(ROUNDS):
            id = f"job-{number}"
            begin(service, id)
            state, cause, result = ends[number % 3]
            at_once(
                partial(other.cancel, id, by="ada"),
                partial(service.finish, id, 1, state, by="test", cause=cause),
            )
            job = is_consistent(service, id)
            # A job that was to be tried again is cancelled, whichever came first.
            assert job.state is (result or JobState.CANCELLED)


@pytest.mark.timeout(3600)
def test_a_cancel_races_with_a_retry(service: Service, url: str, redis: Redis):
    with opened(url, redis.url) as other:
        for number in range(ROUNDS):
            id = f"job-{number}"
            begin(service, id)
            service.finish(id, 1, AttemptState.FAILED, by="test", cause=Cause.BAD_CONFIG)
            at_once(
                partial(other.cancel, id, by="ada"),
                partial(service.retry, id, by="ada"),
            )
            job = service.store.job(id)
            assert job.state in (JobState.QUEUED, JobState.CANCELLED)
            service.reconcile_queue()
            assert (id in service.queue.entries()) == (job.state is JobState.QUEUED)
            assert service.queue.leases([id]) == {}


@pytest.mark.timeout(3600)
def test_a_cancel_races_with_recovery(service: Service, url: str, redis: Redis):
    """Two dispatchers find the attempt dead while its user cancels the job."""

    class Gone:
        def state(self, name: str) -> str:
            return "dead"

    with opened(url, redis.url) as other:
        for number in range(ROUNDS):
            id = f"job-{number}"
            begin(service, id)
            service.queue.release(id, 1)
            at_once(
                partial(other.cancel, id, by="ada"),
                partial(service.reconcile_attempts, Gone()),  # type: ignore[arg-type]
                partial(other.reconcile_attempts, Gone()),  # type: ignore[arg-type]
            )
            service.reconcile_queue()
            job = is_consistent(service, id)
            assert job.state is JobState.CANCELLED
            lost = [event for event in service.store.events(id) if event.kind is EventKind.FINISHED]
            assert len(lost) == 1
