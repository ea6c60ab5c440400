"""What an attempt works with: its timings, and the tools that tests replace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jobs.store import Cause

_ERROR_LENGTH = 500  # characters of an error that the record keeps; the log has all


@dataclass(frozen=True)
class Timings:
    """Seconds."""

    poll: float = 1.0  # between two looks into the store for a cancel, or for being stale
    renew: float = 5.0  # between two renewals of the lease
    lease: float = 20.0  # that the lease lasts without renewal
    patience: float = 60.0  # that a write waits for a database that does not answer


class FitResult(Protocol):
    """What training returns."""

    @property
    def status(self) -> str:
        """finished, or stopped because it was asked to."""


class Fit(Protocol):
    """`cluster.training.fit`, or a test's."""

    def __call__(
        self,
        config: dict[str, Any],
        *,
        ranks: int,
        max_ranks: int | None,
        cpus_per_rank: float,
        gpus_per_rank: float,
        data_folder: Path,
        storage: str,
        prefix: str,
        resume: tuple[str, str] | None,
        ray_storage: str,
        name: str,
        on_message: Callable[[dict[str, Any]], dict[str, Any]],
        start_timeout: float,
    ) -> FitResult:
        """Train; `resume` is the name and digest of the checkpoint to go on from.

        With `max_ranks`, other attempts of the job may have other numbers of ranks, up to that.
        """


class ArtifactStore(Protocol):
    """What an attempt needs of `textvae.artifacts.Artifacts`."""

    def exists(self, name: str) -> bool:
        """Whether that checkpoint is there, whole."""

    def fetch(self, name: str, cache: Path) -> Path:
        """A local folder that holds it."""

    def put(self, folder: Path, name: str) -> None:
        """Copy the checkpoint at `folder` in under `name`."""

    def delete(self, name: str) -> None:
        """Remove it."""

    def list(self, prefix: str) -> list[str]:
        """The names of all that are there, whole, under `prefix`."""


@dataclass(frozen=True)
class Tools:
    """The parts outside of the service that an attempt uses."""

    fit: Fit
    artifacts: ArtifactStore
    verify: Callable[..., object]  # textvae.checkpoint.verify(folder, digest=...)
    broken: type[Exception]  # what it raises for files that are not the recorded checkpoint
    hopeless: Callable[[BaseException], bool]  # whether another attempt would run into this error too
    leave: Callable[[], object]  # ends this process, and with it every rank
    # Whether the cluster, not training, is to blame for an error, and how; by default it never is.
    infrastructure: Callable[[BaseException], Cause | None] = lambda error: None


def short(error: BaseException) -> str:
    """An error in a line or two, for the record."""
    text = f"{type(error).__name__}: {str(error).strip()}"
    return text if len(text) <= _ERROR_LENGTH else text[: _ERROR_LENGTH - 3] + "..."
