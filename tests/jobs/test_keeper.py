from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from jobs.keeper import Keeper
from jobs.logs import JsonLines
from jobs.store import Job, NewCheckpoint, Store

AddJob = Callable[..., Job]


class Server:
    """Serves what it is told, unless it is broken."""

    def __init__(self) -> None:
        self.served: dict[str, dict[str, Any]] = {}
        self.applied: list[dict[str, int]] = []
        self.broken = False
        self.told = threading.Event()

    def apply(self, desired: Mapping[str, Mapping[str, Any]]) -> None:
        self._answer()
        self.served = {name: {**version, "loaded": True} for name, version in desired.items()}
        self.applied.append({name: version["version"] for name, version in desired.items()})
        self.told.set()

    def current(self) -> Mapping[str, Mapping[str, Any]]:
        self._answer()
        return self.served

    def _answer(self) -> None:
        if self.broken:
            raise ConnectionError("nobody listens")


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def keeper(store: Store, server: Server) -> Keeper:
    return Keeper(store, server, lambda name: f"/storage/{name}", every=2, longest_wait=10)


@pytest.fixture
def promote(store: Store, add_job: AddJob) -> Callable[[float], None]:
    """Makes a job whose checkpoint of the value given becomes the served version."""

    def make(value: float) -> None:
        id = f"job-{value}"
        add_job(id)
        store.open_attempt(id, 1, by="test")
        metrics = {"sentiment_accuracy": value}
        made = store.record_checkpoint(
            id, 1, NewCheckpoint("epoch-01", "x", "d" * 64, 1, 1, 0, value, metrics)
        )
        version = store.reserve_version(id, 1, "reviews")
        recorded = store.record_version(
            id,
            1,
            model="reviews",
            version=version,
            checkpoint=made.id,
            location=f"models/reviews/v{version}",
            metric="sentiment_accuracy",
            mode="max",
            reason="",
        )
        assert recorded is not None

    return make


def test_the_promoted_version_is_served_once(
    keeper: Keeper, server: Server, promote: Callable[[float], None]
):
    assert not keeper.step(0)
    assert server.applied == []  # nothing is promoted yet
    promote(0.5)
    assert keeper.step(2)
    assert server.served["reviews"] == {
        "version": 1,
        "location": "/storage/models/reviews/v1",
        "digest": "d" * 64,
        "loaded": True,
    }
    assert not keeper.step(4)
    promote(0.6)
    assert not keeper.step(5)  # it is not time to look yet
    assert keeper.step(6)
    assert server.applied == [{"reviews": 1}, {"reviews": 2}]


def test_what_is_served_is_logged_with_the_ids_of_who_made_it(
    keeper: Keeper, server: Server, promote: Callable[[float], None], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "textvae.serve")
    promote(0.5)
    server.served = {"older": {"version": 3, "digest": "e" * 64}}
    keeper.step(0)
    told = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert [(line["message"], line.get("job"), line.get("attempt")) for line in told] == [
        ("serving reviews v1, of job job-0.5", "job-0.5", 1),
        ("serving older no more", None, None),
    ]


def test_a_rollback_is_served(keeper: Keeper, server: Server, store: Store, promote: Callable[[float], None]):
    promote(0.5)
    promote(0.6)
    keeper.step(0)
    store.roll_back("reviews", by="ada")
    keeper.step(2)
    assert server.applied == [{"reviews": 2}, {"reviews": 1}]


def test_a_server_that_forgot_is_told_again(keeper: Keeper, server: Server, promote: Callable[[float], None]):
    promote(0.5)
    keeper.step(0)
    server.served = {}
    assert keeper.step(2)
    assert server.applied == [{"reviews": 1}] * 2


def test_failures_are_tried_again_ever_more_rarely(
    keeper: Keeper, server: Server, promote: Callable[[float], None], caplog: pytest.LogCaptureFixture
):
    promote(0.5)
    server.broken = True
    waited = []
    now = tried = 0.0
    attempts = 0
    original = server._answer

    def counted() -> None:
        nonlocal attempts
        attempts += 1
        original()

    server._answer = counted  # type: ignore[method-assign]
    while len(waited) < 5:
        before = attempts
        keeper.step(now)
        if attempts > before:
            waited.append(now - tried)
            tried = now
        now += 1
    assert waited == [0, 4, 8, 10, 10]
    assert len(caplog.records) == 1  # the same failure is not news
    server.broken = False
    assert keeper.step(now + 10)
    assert server.applied == [{"reviews": 1}]
    assert keeper.step(now + 11) is False
    server.served = {}
    assert keeper.step(now + 12)  # and the wait is short again


def test_the_loop_ends_when_told(keeper: Keeper, server: Server, promote: Callable[[float], None]):
    promote(0.5)
    stop = threading.Event()
    thread = threading.Thread(target=keeper.loop, args=(stop,))
    thread.start()
    assert server.told.wait(10)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
