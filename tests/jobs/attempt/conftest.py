from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.attempt import AttemptLog, Timings, Tools, Work
from jobs.config import JobConfig, from_mapping
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import Store
from textvae import checkpoint, vocabulary
from textvae.artifacts import Artifacts
from textvae.checkpoint import Position
from textvae.model import TextVAE
from textvae.parsing import ConfigError

Script = Callable[["Training"], str]

Train = Callable[..., None]

QUICK = Timings(poll=0.02, renew=0.05, lease=5, patience=5)


@dataclass(frozen=True)
class Result:
    status: str


@dataclass
class Training:
    """Stands for `cluster.training.fit`: its `script` says what its rank does, with real checkpoints."""

    storage: str
    scratch: Path
    script: Script = lambda training: "finished"
    given: dict[str, Any] = field(default_factory=dict)
    surprise: AssertionError | None = None

    def __call__(self, config: dict[str, Any], **given: Any) -> Result:
        self.given = {"config": config, **given}
        try:
            return Result(self.script(self))
        except AssertionError as error:
            self.surprise = error  # an attempt takes every error for its own; the test must see this one
            raise

    def say(self, **message: Any) -> bool:
        """Send a message; whether training should stop."""
        return bool(self.given["on_message"](message)["stop"])

    def progress(self, step: int) -> bool:
        return self.say(kind="progress", epoch=1, epochs=3, step=step, steps=30, loss=1.0)

    def checkpoint(self, epoch: int, value: float | None = None, *, name: str | None = None) -> bool:
        """Put a checkpoint in place, then tell of it."""
        name = f"{self.given['prefix']}/{name or f'epoch-{epoch:02}'}"
        folder = self.scratch / name
        position = Position(epoch, epoch * 10, 0)
        metrics = {} if value is None else {"sentiment_accuracy": value, "loss": 1.0}
        digest = write(folder, position, metrics)
        Artifacts(self.storage).put(folder, name)
        report = {
            "epoch": epoch,
            "step": epoch * 10,
            "seconds": 1.0,
            "tokens_per_second": 100.0,
            "train": metrics,
            "validation": metrics,
        }
        return self.say(
            kind="checkpoint",
            name=name,
            digest=digest,
            position={"epoch": position.epoch, "step": position.step, "batch": position.batch},
            report=report if value is not None else None,
        )


SMALL = from_mapping(
    {
        "name": "reviews",
        "max_attempts": 2,
        "vocabulary": {"kind": "words", "size": 10, "max_length": 4},
        "model": {"embedding": 2, "encoder_hidden": 2, "latent": 2, "decoder_hidden": 2},
        "training": {"keep_last": 2},
    }
)


def write(folder: Path, position: Position, metrics: dict[str, float]) -> str:
    """A real checkpoint of a very small model."""
    config = SMALL.training_config()
    words = vocabulary.build(config.vocabulary, ["good film", "bad film"])
    torch.manual_seed(0)
    model = TextVAE(config, words.size)
    return checkpoint.save(
        folder,
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        config=config,
        vocabulary=words,
        position=position,
        metrics=metrics,
    )


def reach(epoch: int, value: float | None) -> Script:
    """A rank that makes one checkpoint and is done."""

    def script(training: Training) -> str:
        training.checkpoint(epoch, value)
        return "finished"

    return script


@pytest.fixture
def training(settings: Settings, tmp_path: Path) -> Iterator[Training]:
    training = Training(settings.storage, tmp_path / "scratch")
    yield training
    assert training.surprise is None


@pytest.fixture
def left() -> threading.Event:
    """Set once an attempt has ended its process."""
    return threading.Event()


@pytest.fixture
def tools(settings: Settings, training: Training, left: threading.Event) -> Tools:
    return Tools(
        fit=training,
        artifacts=Artifacts(settings.storage),
        verify=checkpoint.verify,
        broken=checkpoint.CheckpointError,
        hopeless=lambda error: isinstance(error, ConfigError),
        leave=left.set,
    )


@pytest.fixture
def submit(service: Service) -> Callable[..., str]:
    def submit(id: str, config: JobConfig = SMALL) -> str:
        return service.submit(config, id=id).job.id

    return submit


@pytest.fixture
def attempt(store: Store, queue: Queue, settings: Settings, tools: Tools) -> Iterator[Callable[..., Work]]:
    """Opens an attempt, as the dispatcher does, and makes its Work."""
    logs: list[AttemptLog] = []

    def make(
        job: str, number: int = 1, tools: Tools = tools, queue: Queue = queue, timings: Timings = QUICK
    ) -> Work:
        assert store.open_attempt(job, number, by="test") is not None
        logs.append(AttemptLog(settings.attempt_log(job, number)))
        return Work(store, queue, settings, job, number, logs[-1], tools, timings=timings)

    yield make
    for log in logs:
        with log:
            pass


@pytest.fixture
def train(submit: Callable[..., str], attempt: Callable[..., Work], training: Training) -> Train:
    """Submits a job, if it is its first attempt, and works on it with a rank that follows `script`."""

    def train(job: str, script: Script, number: int = 1, *, config: JobConfig = SMALL, **parts: Any) -> None:
        if number == 1:
            submit(job, config)
        training.script = script
        attempt(job, number, **parts).run()

    return train


def log_of(settings: Settings, job: str, number: int = 1) -> str:
    return settings.attempt_log(job, number).read_text()


def names(store: Store, job: str) -> list[str]:
    return [c.name for c in store.checkpoints(job)]
