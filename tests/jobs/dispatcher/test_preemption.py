"""One job makes way for another: dispatcher, attempts, store and queue are real, the ranks are stubs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.attempt import AttemptLog, Tools, Work
from jobs.config import from_mapping
from jobs.dispatcher import Capacity, Dispatcher, Timings
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, EventKind, JobState, Store
from textvae import checkpoint
from textvae.artifacts import Artifacts
from textvae.checkpoint import Position
from textvae.parsing import ConfigError

from ..attempt.conftest import QUICK, SMALL, write
from ..conftest import DATABASES as DATABASES

STEPS = 600  # half a minute at the slow pace: making way may take long on a busy machine


class Ranks:
    """Stands for `cluster.training.fit`: counts steps, and stops with a checkpoint when it is asked to."""

    def __init__(self, storage: str, scratch: Path):
        self.storage = storage
        self.scratch = scratch
        self.steps: dict[str, list[int]] = {}  # attempt -> the steps it made
        self.pace = threading.Event()  # while it is not set, a step takes a while

    def __call__(self, config: dict[str, Any], **given: Any) -> Any:
        first, made = 1, self.steps.setdefault(given["name"], [])
        if given["resume"] is not None:
            folder = Artifacts(self.storage).fetch(given["resume"][0], self.scratch / "cache")
            first = checkpoint.load(folder, digest=given["resume"][1]).position.step + 1
        for step in range(first, STEPS + 1):
            self.pace.wait(0.05)
            made.append(step)
            progress = {
                "kind": "progress",
                "epoch": 1,
                "epochs": 1,
                "step": step,
                "steps": STEPS,
                "loss": 1.0,
            }
            if given["on_message"](progress)["stop"]:
                self._checkpoint(given, f"step-{step:06}", Position(0, step, step), None)
                return _Result("stopped")
        report = {
            "epoch": 1,
            "step": STEPS,
            "seconds": 1.0,
            "tokens_per_second": 1.0,
            "train": {},
            "validation": {"sentiment_accuracy": 0.5},
        }
        self._checkpoint(given, "epoch-01", Position(1, STEPS, 0), report)
        return _Result("finished")

    def _checkpoint(self, given: Mapping[str, Any], name: str, position: Position, report: Any) -> None:
        name = f"{given['prefix']}/{name}"
        digest = write(self.scratch / name, position, {})
        Artifacts(self.storage).put(self.scratch / name, name)
        given["on_message"](
            {
                "kind": "checkpoint",
                "name": name,
                "digest": digest,
                "position": {"epoch": position.epoch, "step": position.step, "batch": position.batch},
                "report": report,
            }
        )


class _Result:
    def __init__(self, status: str):
        self.status = status


class Threads:
    """A launcher on a machine of two CPUs: each attempt is a thread of this process."""

    def __init__(self, store: Store, queue: Queue, settings: Settings, tools: Tools):
        self._parts = store, queue, settings
        self._tools = tools
        self._threads: dict[str, threading.Thread] = {}

    def start(self, name: str, function: object, arguments: Mapping[str, Any]) -> None:
        store, queue, settings = self._parts
        job, number = str(arguments["job"]), int(arguments["number"])

        def work() -> None:
            with AttemptLog(settings.attempt_log(job, number)) as log:
                Work(store, queue, settings, job, number, log, self._tools, timings=QUICK).run()

        self._threads[name] = threading.Thread(target=work, name=name, daemon=True)
        self._threads[name].start()

    def stop(self, name: str) -> None:
        raise AssertionError(f"{name} had to be killed")

    def names(self) -> set[str]:
        return {name for name, thread in self._threads.items() if thread.is_alive()}

    def capacity(self) -> Capacity:
        return Capacity(2, 0, 2 - len(self.names()), 0)

    def join(self) -> None:
        for thread in self._threads.values():
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def ranks(settings: Settings, tmp_path: Path) -> Ranks:
    return Ranks(settings.storage, tmp_path / "scratch")


def test_a_displaced_job_resumes_at_its_last_step(
    service: Service, store: Store, queue: Queue, settings: Settings, ranks: Ranks
):
    settings.create_home()
    settings.scheduling_file.write_text("preemption: {patience: 0, uninterrupted: 0.2}\n")
    tools = Tools(
        fit=ranks,
        artifacts=Artifacts(settings.storage),
        verify=checkpoint.verify,
        broken=checkpoint.CheckpointError,
        hopeless=lambda error: isinstance(error, ConfigError),
        leave=lambda: None,
    )
    launcher = Threads(store, queue, settings, tools)
    dispatcher = Dispatcher(
        service,
        launcher,
        launcher.capacity,
        settings,
        timings=replace(Timings(), rest=0.05, reconcile=1, think=0.1),
    )
    config = from_mapping({**SMALL.model_dump(mode="json"), "resources": {"ranks": 2}})
    low = service.submit(config, id="low-job", owner="ada").job.id
    stop = threading.Event()
    loop = threading.Thread(target=dispatcher.loop, args=(stop,))
    loop.start()
    try:
        _until(lambda: len(ranks.steps.get("low-job-1", [])) >= 3)
        high = service.submit(config, id="high-job", owner="bob", priority=100).job.id
        _until(lambda: "high-job-1" in ranks.steps)
        ranks.pace.set()  # and now quickly
        _until(lambda: store.job(low).state.final and store.job(high).state.final)
    finally:
        stop.set()
        loop.join(30)
        launcher.join()
    assert store.job(low).state is store.job(high).state is JobState.SUCCEEDED
    first, second = store.attempts(low)
    assert (first.state, second.state) == (AttemptState.PREEMPTED, AttemptState.SUCCEEDED)
    assert [attempt.state for attempt in store.attempts(high)] == [AttemptState.SUCCEEDED]
    # Each step was made once: nothing is lost but the time that making way took.
    assert ranks.steps["low-job-1"] + ranks.steps["low-job-2"] == list(range(1, STEPS + 1))
    assert first.finished is not None and first.finished <= store.attempts(high)[0].opened
    assert second.opened >= (store.attempts(high)[0].finished or second.opened)
    kinds = [event.kind for event in store.events(low)]
    assert kinds.count(EventKind.YIELD_REQUESTED) == kinds.count(EventKind.PREEMPTED) == 1
    assert store.job(low).errors_used == store.job(low).infrastructure_used == 0


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
