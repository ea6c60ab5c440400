"""What training says while it goes on, and how it ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from textvae.checkpoint import Position
from textvae.ranks import Ranks

# Seconds between two calls of Hooks.progress, at least: each waits for the device once.
PROGRESS_INTERVAL = 0.4


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why."""


@dataclass(frozen=True)
class Report:
    """What one completed epoch gave."""

    epoch: int  # 1 is the first
    step: int  # optimizer steps since the beginning
    seconds: float  # the whole epoch, validation included
    tokens_per_second: float  # real tokens of all ranks, while training
    train: dict[str, float]  # config.METRICS; NaN where there was nothing to average
    validation: dict[str, float]  # the same; its loss counts every term in full from the first epoch on


@dataclass(frozen=True)
class Progress:
    """Where training is, a few times a second."""

    epoch: int  # the current one; 1 is the first
    epochs: int
    step: int  # optimizer steps since the beginning
    steps: int  # of the whole training
    loss: float  # nats per review, mean over rank 0's reviews since the last Progress
    reviews_per_second: float  # of all ranks
    tokens_per_second: float  # of all ranks, taken from rank 0's share


@dataclass(frozen=True)
class Outcome:
    """How `run` ended: finished, or stopped where `position` says with a checkpoint written there."""

    finished: bool
    reports: list[Report]  # of the epochs completed by this call
    position: Position


class Hooks(Protocol):
    """What the caller of `run` hears and says, on rank 0 but for `epoch`. What one raises ends training."""

    def progress(self, progress: Progress) -> None:
        """The first step is done, training moved on, or a validation is under way."""

    def stop(self) -> bool:
        """Whether to stop now; asked after every step, and before every batch of a validation.

        All ranks then stop at the same one.
        """

    def checkpoint(self, folder: Path, digest: str, position: Position, report: Report | None) -> None:
        """A checkpoint was written to `folder`, the caller's from now on; after a stop there is no report."""

    def epoch(self, report: Report) -> None:
        """An epoch is over and its checkpoint written. Called on every rank, with the same metrics."""


class Pace:
    """Calls Hooks.progress now and then on rank 0, and looks at the loss when it does."""

    def __init__(
        self, hooks: Hooks, clock: Callable[[], float], ranks: Ranks, epochs: int, steps: int, now: float
    ):
        """`epochs` and `steps` are those of the whole training; an epoch begins, or goes on, `now`."""
        self._hooks, self._clock, self._ranks = hooks, clock, ranks
        self._whole = epochs, steps
        self._since = now
        self._total = torch.zeros((), device=ranks.device)
        self._steps = self._reviews = self._tokens = 0
        self._rates = 0.0, 0.0  # reviews and tokens a second, as told last

    def add(self, at: Position, loss: Tensor, reviews: int, tokens: int, *, at_once: bool) -> None:
        """Count a step of `reviews` on all ranks and `tokens` on this one; `loss` stays on its device."""
        self._total += loss
        self._steps, self._reviews = self._steps + 1, self._reviews + reviews
        self._tokens += tokens
        passed = self._clock() - self._since
        if passed < PROGRESS_INTERVAL and not at_once:
            return
        loss_now = self._total.item() / self._steps
        if not math.isfinite(loss_now):
            raise TrainingError(f"{where(at.epoch, at.step)}: the training loss is {loss_now}")
        seconds = max(passed, 1e-9)
        self._rates = self._reviews / seconds, self._tokens * self._ranks.world_size / seconds
        self._tell(at, loss_now)
        self._since += passed
        self._total.zero_()
        self._steps = self._reviews = self._tokens = 0

    def wait(self, at: Position, loss: float) -> None:
        """Say again where training is, while it moves on no further: the answer may be to stop."""
        now = self._clock()
        if now - self._since >= PROGRESS_INTERVAL:
            self._since = now
            self._tell(at, loss)

    def _tell(self, at: Position, loss: float) -> None:
        epochs, steps = self._whole
        reviews_per_second, tokens_per_second = self._rates
        self._hooks.progress(
            Progress(
                epoch=at.epoch + 1,
                epochs=epochs,
                step=at.step,
                steps=steps,
                loss=loss,
                reviews_per_second=reviews_per_second,
                tokens_per_second=tokens_per_second,
            )
        )


def where(epoch: int, step: int) -> str:
    """An epoch, from 0, and a step, as messages name them."""
    return f"epoch {epoch + 1}, step {step}"
