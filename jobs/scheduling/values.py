"""What the policy is told and what it answers. Moments are seconds since the epoch; no clock is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

SLACK = 1e-6  # halves and thirds of a CPU do not add up exactly

Group = tuple[str, int]  # jobs of one owner with one priority: they go in order of submission


class Shape(NamedTuple):
    """What decides whether a job fits: jobs of one shape fit, or do not, alike."""

    ranks: int
    cpus: float  # of all ranks
    gpus: float
    limit: float | None  # seconds after which an attempt is ended


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job in the queue."""

    id: str
    owner: str
    priority: int
    ranks: int  # without so many it does not start
    cpus: float  # of all of them
    gpus: float
    sequence: int  # order of submission
    since: float  # when it was submitted, or last put back into the queue
    number: int = 1  # of its next attempt
    limit: float | None = None
    not_before: float | None = None
    held: bool = False
    blocked_by: tuple[str, ...] = ()  # jobs that have to end first
    expected: float | None = None  # seconds that it may take, a guess for estimates alone
    max_ranks: int | None = None  # it may have so many if there is room; none if `ranks` are all

    @property
    def group(self) -> Group:
        """The jobs among which it goes in order of submission."""
        return self.owner, self.priority

    @property
    def shape(self) -> Shape:
        """What decides whether it fits."""
        return Shape(self.ranks, self.cpus, self.gpus, self.limit)

    @property
    def one_more(self) -> Shape:
        """What a further rank takes."""
        return Shape(1, self.cpus / self.ranks, self.gpus / self.ranks, self.limit)

    def with_ranks(self, ranks: int) -> Waiting:
        """The same job, to be started with so many ranks."""
        if ranks == self.ranks:
            return self
        each = self.one_more
        return replace(self, ranks=ranks, cpus=ranks * each.cpus, gpus=ranks * each.gpus)

    def ready(self, now: float) -> bool:
        """Whether nothing but its place in the queue, quotas and room keeps it from starting."""
        return not self.held and not self.blocked_by and (self.not_before is None or self.not_before <= now)


@dataclass(frozen=True, slots=True)
class Running:
    """A job with an active attempt."""

    id: str
    owner: str
    priority: int
    ranks: int
    cpus: float
    gpus: float
    opened: float  # when its attempt was opened: from here on it is charged
    started: float | None = None  # when its ranks were all there
    limit: float | None = None  # seconds from `started` after which the attempt is ended
    displaced: int = 0  # attempts that it lost to preemption
    yielding: float | None = None  # when it was asked to make room
    ending: bool = False  # it was asked to stop for another reason, such as a cancel
    expected: float | None = None  # when it may end, a guess for estimates alone
    max_ranks: int | None = None  # it may have so many; none if `ranks` are all
    on: tuple[tuple[str, int], ...] | None = None  # its machines, and ranks on each; none if nobody knows yet

    @property
    def shape(self) -> Shape:
        """What it takes."""
        return Shape(self.ranks, self.cpus, self.gpus, self.limit)

    @property
    def one_more(self) -> Shape:
        """What a further rank takes."""
        return Shape(1, self.cpus / self.ranks, self.gpus / self.ranks, self.limit)


@dataclass(frozen=True, slots=True)
class Node:
    """One machine: what is free on it, and what it has in all."""

    cpus: float
    gpus: float
    total_cpus: float | None = None  # none if nobody knows: it may be any number
    total_gpus: float | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is, and what of it a job may be given now."""

    total_cpus: float
    total_gpus: float
    free_cpus: float
    free_gpus: float
    nodes: tuple[Node, ...] = ()  # the machines; without them, ranks fit wherever the sums allow it
    # Attempts that the machines do not count yet: their ranks are being placed. The sums are less these.
    uncounted: tuple[Running, ...] = ()


@dataclass(frozen=True, slots=True)
class Used:
    """What an owner has used, decayed."""

    cpu_seconds: float = 0.0  # of attempts without GPUs
    gpu_seconds: float = 0.0


@dataclass(frozen=True)
class History:
    """What went before, as far as the order of the queue depends on it."""

    used: Mapping[str, Used] = field(default_factory=dict)  # by owner, running attempts included
    turns: Mapping[Group, float] = field(default_factory=dict)  # last start of a job before the group's first


class Blocked(StrEnum):
    """Why a job does not start now."""

    HELD = "held"
    """Someone holds it."""
    NOT_BEFORE = "not-before"
    """Its time has not come."""
    DEPENDENCY = "dependency"
    """It waits for another job to end."""
    QUOTA = "quota"
    """Its owner has as much as the owner may have at once."""
    RESOURCES = "resources"
    """It is first, or nearly, and waits for others to end; or the cluster is too small for it."""
    PRIORITY = "priority"
    """Jobs that go before it wait too."""


@dataclass(frozen=True)
class Reason:
    """Why a job does not start now, and when it may."""

    blocked: Blocked
    text: str  # for a person
    position: int | None = None  # 1 for the first of those that could start; none if it could not
    waits_for: tuple[str, ...] = ()  # jobs that have to end first
    starts: float | None = None  # at the latest if `guaranteed`, else an estimate; none if nobody can tell
    guaranteed: bool = False


@dataclass(frozen=True)
class Reservation:
    """The first job that does not fit: nothing that starts before it makes it wait longer."""

    job: str
    at: float | None  # when it fits at the latest, by the time limits of what runs; none if they do not say


@dataclass(frozen=True)
class Preemption:
    """A running job that has to make room."""

    victim: str
    by: str  # the waiting job of a higher class


@dataclass(frozen=True)
class Growth:
    """A running job that could have more ranks, of room that nobody waits for."""

    job: str
    ranks: int  # in all


@dataclass(frozen=True)
class Decisions:
    """What to do now."""

    start: tuple[Waiting, ...] = ()  # in order, each with the ranks that it gets; all of them fit at once
    preempt: tuple[Preemption, ...] = ()
    reserved: Reservation | None = None
    grow: Growth | None = None  # who may make way for itself, once that has been so for a while (`Patience`)
