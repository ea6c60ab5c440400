"""What there is to compare, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from jobs.keeper import Server
from jobs.service import Service


class Kind(StrEnum):
    """What two parts disagree about."""

    DAMAGE = "damage"
    """The database file is damaged."""
    CONTRADICTION = "contradiction"
    """Two records cannot both be true."""
    NOT_QUEUED = "not-queued"
    """A job that may start is not in the queue, or for another attempt."""
    FOREIGN = "foreign"
    """The queue holds a job that may not start."""
    LEASE = "lease"
    """A lease is held, and not by an active attempt: it has ended, or nobody has recorded it."""
    DEAD = "dead"
    """An active attempt has no process."""
    SILENT = "silent"
    """An active attempt has a process, but no lease, and has written nothing for a minute."""
    ZOMBIE = "zombie"
    """The process of an attempt that has ended runs still."""
    ABANDONED = "abandoned"
    """What an attempt that is gone has left on the cluster: room that it had reserved, or a rank."""
    CHECKPOINT = "checkpoint"
    """The files of a recorded checkpoint are missing, or not what was recorded."""
    VERSION = "version"
    """The files of a model version are missing, or not what was recorded."""
    LEFT_OVER = "left-over"
    """Files that should have been deleted are there."""
    UNRECORDED = "unrecorded"
    """A whole checkpoint or version in the artifact store that no record names."""
    HALF_WRITTEN = "half-written"
    """What a process that was killed left of a checkpoint that it wrote, copied or deleted."""
    NOT_SERVED = "not-served"
    """What is served is not what was promoted, or its files are others."""
    NO_DISPATCHER = "no-dispatcher"
    """No dispatcher has looked at the cluster within the last minute."""
    UNREACHABLE = "unreachable"
    """A part does not answer, so that it could not be compared."""


@dataclass(frozen=True)
class Disagreement:
    """One thing about which two parts disagree."""

    kind: Kind
    what: str
    detail: str
    repair: str | None  # what a repair does; none: a person must decide
    repaired: bool = False


class Artifacts(Protocol):
    """What is asked of the artifact store (`textvae.artifacts.Artifacts`)."""

    root: str
    local: Path | None

    def exists(self, name: str) -> bool: ...
    def fetch(self, name: str, cache: Path) -> Path: ...
    def put(self, folder: Path, name: str) -> None: ...
    def delete(self, name: str) -> None: ...
    def list(self, prefix: str = "") -> list[str]: ...
    def torn(self, prefix: str) -> dict[str, float]: ...
    def location(self, name: str) -> str: ...


class Cluster(Protocol):
    """What is asked of the launcher. Its verbs raise RuntimeError if the cluster does not answer.

    Left over is what attempts that are gone have made; some of it `give_back` removes.
    """

    def names(self) -> set[str]: ...
    def stop(self, name: str) -> object: ...
    def leftovers(self) -> Mapping[str, bool]: ...
    def give_back(self) -> object: ...


@dataclass(frozen=True)
class Parts:
    """What there is to compare. Without a cluster or a server, nothing is said of them."""

    service: Service
    artifacts: Artifacts
    check: Callable[..., object]  # textvae.checkpoint.verify(folder, digest=...)
    # What these raise for what is not there or not good; it is an OSError, too, if they cannot know.
    broken: tuple[type[Exception], ...]
    cache: Path
    cluster: Cluster | None = None
    server: Server | None = None
    redis: bool = True  # whether there is one


Finding = tuple[Disagreement, Callable[[], object] | None]
"""A disagreement, and what repairs it if anything does."""
