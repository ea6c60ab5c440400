"""Where the log of an attempt can be read while it works, and after."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from jobs.attempt import AttemptLog, Tools, Work
from jobs.logs import Logs
from jobs.queue import Queue
from jobs.settings import Settings
from jobs.store import JobState, Store, StoreUnavailable

from ..conftest import DATABASES as DATABASES
from .conftest import QUICK, Training, log_of


def test_a_log_outlives_its_attempt_and_its_node(
    database: str,
    submit: Callable[..., str],
    training: Training,
    store: Store,
    queue: Queue,
    settings: Settings,
    tools: Tools,
):
    seen: list[bytes] = []

    def script(training: Training) -> str:
        training.say(kind="log", text="rank 0: reading reviews")
        deadline = 500
        while database == "postgresql" and b"reading reviews" not in store.log("first", 1) and deadline:
            deadline -= 1
            training.progress(1)
        seen.append(Logs(store, settings).read("first", 1))  # while the attempt works
        return "finished"

    training.script = script
    store.open_attempt(submit("first"), 1, by="test")
    path = settings.attempt_log("first", 1)
    with AttemptLog(path, label="first-1") as log:
        Work(store, queue, settings, "first", 1, log, tools, timings=QUICK).run()
    assert b" first-1 rank 0: reading reviews\n" in seen[0]
    whole = path.read_bytes()
    assert whole.decode().splitlines()[-1].endswith("job first is succeeded")
    assert Logs(store, settings).read("first", 1) == whole
    shutil.rmtree(settings.logs)  # the node is gone
    # With SQLite every attempt runs beside the database: what loses one loses the other.
    kept = Logs(store, settings).read("first", 1)
    assert kept == (whole if database == "postgresql" else b"")
    if kept:
        assert Logs(store, settings).read("first", 1, 100) == whole[100:]
        lines = list(Logs(store, settings).lines("first", 1))
        assert {(line.job, line.attempt) for line in lines} == {("first", 1)}
        assert all(line.at and "first-1" not in line.text.split(" ")[0] for line in lines)


def test_a_database_that_takes_no_log_stops_no_training(
    submit: Callable[..., str],
    training: Training,
    store: Store,
    queue: Queue,
    settings: Settings,
    tools: Tools,
    monkeypatch: pytest.MonkeyPatch,
):
    def away(*_: object) -> None:
        raise StoreUnavailable("the database does not answer")

    monkeypatch.setattr(store, "keep_log", away)
    monkeypatch.setattr(type(store), "remote", True)
    training.script = lambda training: str(training.say(kind="log", text="hello")) and "finished"
    store.open_attempt(submit("first"), 1, by="test")
    with AttemptLog(settings.attempt_log("first", 1), label="first-1") as log:
        Work(store, queue, settings, "first", 1, log, tools, timings=QUICK).run()
    assert store.job("first").state is JobState.SUCCEEDED
    assert "the log is copied later" in log_of(settings, "first")
