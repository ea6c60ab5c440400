"""Training while Redis or the database is away."""

from __future__ import annotations

import time
from typing import Any

import pytest

from jobs.queue import Queue
from jobs.settings import Settings
from jobs.store import JobState, Store, StoreUnavailable

from ..conftest import RedisServer
from .conftest import Train, Training, log_of, names, reach


def test_a_lease_comes_back_after_redis_was_emptied(train: Train, queue: Queue, redis_server: RedisServer):
    def script(training: Training) -> str:
        deadline = time.monotonic() + 10
        for _ in range(2):
            while queue.leases(["first"]) != {"first": 1}:
                assert time.monotonic() < deadline
            redis_server.flush()
        return "finished"

    train("first", script)


def test_training_goes_on_without_redis(
    train: Train, store: Store, settings: Settings, redis_server: RedisServer
):
    def script(training: Training) -> str:
        training.progress(1)
        redis_server.stop()
        training.progress(2)
        training.checkpoint(1, 0.5)
        return "finished"

    train("first", script)
    assert store.job("first").state is JobState.SUCCEEDED
    assert store.version("reviews").version == 1
    assert log_of(settings, "first").count("going on without Redis") == 1


def test_a_database_that_is_away_for_a_while_is_waited_for(
    train: Train, store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    record, away = store.record_checkpoint, [1, 2]

    def flaky(*arguments: Any) -> Any:
        if away:
            away.pop()
            raise StoreUnavailable("the database does not answer")
        return record(*arguments)

    monkeypatch.setattr(store, "record_checkpoint", flaky)
    train("first", reach(1, 0.5))
    assert names(store, "first") == ["epoch-01"]
    assert log_of(settings, "first").count("trying again") == 2
