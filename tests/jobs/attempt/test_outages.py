"""Training while Redis or the database is away."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from jobs.attempt import Timings
from jobs.queue import Queue
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, CauseKind, Job, JobState, Store, StoreError, StoreUnavailable
from textvae.artifacts import Artifacts

from ..conftest import RedisServer
from .conftest import QUICK, Train, Training, log_of, names, reach


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


def test_a_database_that_stays_away_fails_the_attempt_as_unreachable(
    train: Train, store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    assert Timings().patience == 60

    def away(*_: Any) -> Any:
        raise StoreUnavailable("the database does not answer")

    monkeypatch.setattr(store, "record_checkpoint", away)
    train("first", reach(1, 0.5), timings=replace(QUICK, patience=0.2))
    (attempt,) = store.attempts("first")
    assert (attempt.state, attempt.cause) == (AttemptState.FAILED, Cause.UNREACHABLE)
    assert Cause.UNREACHABLE.kind is CauseKind.INFRASTRUCTURE
    assert store.job("first").state is JobState.QUEUED
    assert names(store, "first") == []


@pytest.mark.parametrize("lost", [False, True])
def test_a_commit_whose_answer_is_lost_is_not_taken_back(
    train: Train, store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch, lost: bool
):
    """A network may break between the database's commit and its answer: the version is served by then."""
    record, answered = store.record_version, [False]

    def unanswered(*arguments: Any, **more: Any) -> Any:
        recorded = record(*arguments, **more)
        if not answered[0]:
            answered[0] = True
            if lost:  # before it can ask again
                store.finish_attempt("first", 1, AttemptState.LOST, by="test")
            raise StoreUnavailable("the database does not answer")
        return recorded

    monkeypatch.setattr(store, "record_version", unanswered)
    train("first", reach(1, 0.5))
    assert Artifacts(settings.storage).list("models") == [store.version("reviews").location]
    assert len(store.promotions("reviews")) == 1
    assert store.job("first").state is (JobState.QUEUED if lost else JobState.SUCCEEDED)


def test_pruning_waits_for_a_database_that_is_away(
    train: Train, store: Store, monkeypatch: pytest.MonkeyPatch
):
    purged, away = store.purged, [1]

    def flaky(checkpoint: int, **given: Any) -> None:
        if away:
            away.pop()
            raise StoreUnavailable("the database does not answer")
        purged(checkpoint, **given)

    def script(training: Training) -> str:
        for epoch in (1, 2, 3, 4):
            training.checkpoint(epoch, epoch / 10)
        return "finished"

    monkeypatch.setattr(store, "purged", flaky)
    train("first", script)
    assert store.job("first").state is JobState.SUCCEEDED
    assert not away


def test_a_database_that_refuses_a_look_does_not_end_the_watch(
    train: Train, store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    look, refusals = store.check_attempt, [1]

    def refuses(job: str, number: int) -> Job:
        if refusals:
            refusals.pop()
            raise StoreError("the database refuses: too many connections")
        return look(job, number)

    def script(training: Training) -> str:
        deadline = time.monotonic() + 10
        training.progress(1)
        while refusals:
            assert time.monotonic() < deadline
        store.request_cancel("first", "ada")
        while not training.progress(2):
            assert time.monotonic() < deadline
        return "stopped"

    monkeypatch.setattr(store, "check_attempt", refuses)
    train("first", script)
    assert store.job("first").state is JobState.CANCELLED
    assert "too many connections; training goes on" in log_of(settings, "first")


def test_without_redis_the_database_hears_that_an_attempt_is_alive(
    train: Train, store: Store, redis_server: RedisServer
):
    def script(training: Training) -> str:
        training.progress(1)
        redis_server.stop()
        (before,) = store.attempts("first")
        deadline = time.monotonic() + 20
        while store.attempts("first")[0].seen == before.seen:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return "finished"

    train("first", script)
    assert store.job("first").state is JobState.SUCCEEDED
