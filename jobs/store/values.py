"""What the store hands out: frozen values, the states they pass through, and what can go wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    """It waits for its first or next attempt."""
    RUNNING = "running"
    """It has an active attempt."""
    SUCCEEDED = "succeeded"
    """An attempt recorded that training finished."""
    FAILED = "failed"
    """Its attempts are used up, or its config or data cannot be trained on."""
    CANCELLED = "cancelled"
    """Someone cancelled it before it was done."""

    @property
    def final(self) -> bool:
        """Whether only `retry` leaves this state."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class AttemptState(StrEnum):
    """Where an attempt stands."""

    STARTING = "starting"
    """The dispatcher opened it; its ranks have not reported yet."""
    RUNNING = "running"
    """Its ranks have started."""
    SUCCEEDED = "succeeded"
    """It recorded that training finished."""
    FAILED = "failed"
    """It recorded an error."""
    CANCELLED = "cancelled"
    """It stopped, or was killed, because its job was cancelled."""
    LOST = "lost"
    """It was found dead, or never started, without a record of its own."""

    @property
    def active(self) -> bool:
        """Whether the attempt may still write."""
        return self in (AttemptState.STARTING, AttemptState.RUNNING)


ACTIVE: tuple[AttemptState, ...] = tuple(state for state in AttemptState if state.active)


class Cause(StrEnum):
    """Why an attempt ended without success."""

    ERROR = "error"
    """It raised; another attempt may fare better."""
    BAD_CONFIG = "bad-config"
    """The config or the data cannot be trained on: another attempt would fail the same way."""
    CANCELLED = "cancelled"
    """It stopped by itself after a cancel, with a checkpoint."""
    KILLED = "killed"
    """It did not stop in time after a cancel and was killed."""
    DIED = "died"
    """Its process, its node or its cluster went away."""
    NEVER_STARTED = "never-started"
    """It was opened, but no process ever came up."""
    START_TIMEOUT = "start-timeout"
    """Its ranks did not start in time: the cluster had no room for them, or they hung."""


class EventKind(StrEnum):
    """What an event tells."""

    SUBMITTED = "submitted"
    """A job was recorded."""
    OPENED = "opened"
    """The dispatcher opened an attempt."""
    STARTED = "started"
    """An attempt's ranks started."""
    CHECKPOINT = "checkpoint"
    """An attempt recorded a checkpoint."""
    FINISHED = "finished"
    """An attempt ended; the detail holds its state and cause."""
    REQUEUED = "requeued"
    """The job waits for another attempt."""
    CANCEL_REQUESTED = "cancel-requested"
    """Someone cancelled a running job; its attempt has to stop."""
    CANCELLED = "cancelled"
    """The job ended as cancelled."""
    SUCCEEDED = "succeeded"
    """The job ended as succeeded."""
    FAILED = "failed"
    """The job ended as failed."""
    RETRIED = "retried"
    """Someone put an ended job back into the queue."""
    UNFIT = "unfit"
    """The job needs more than the whole cluster has; it waits for a larger one."""
    VERSION = "version"
    """An attempt made a model version."""
    PROMOTED = "promoted"
    """A version became the served one."""
    ROLLED_BACK = "rolled-back"
    """The version served before became the served one again."""


class StoreError(Exception):
    """The store could not do what it was asked."""


class StoreUnavailable(StoreError):
    """The database cannot be reached, or stayed locked."""


class NotFound(StoreError):
    """No record has that id or name."""


class Ambiguous(StoreError):
    """Several ids begin with what was given."""

    def __init__(self, prefix: str, candidates: list[str]):
        self.candidates = candidates
        more = " and more" if len(candidates) > 10 else ""
        super().__init__(f"{prefix!r} is the beginning of several jobs: {', '.join(candidates[:10])}{more}")


class Conflict(StoreError):
    """What was asked contradicts what is recorded."""


class StaleAttempt(StoreError):
    """The attempt is not its job's active one any more: nothing that it writes counts."""

    def __init__(self, job: str, number: int):
        self.job = job
        self.number = number
        super().__init__(f"attempt {number} of job {job} is not its active attempt; its write was refused")


@dataclass(frozen=True)
class Job:
    """One submitted config (its text is `Store.config`), with its owner, priority and state."""

    id: str
    sequence: int  # order of submission
    name: str  # of the model
    owner: str
    priority: int  # higher goes first
    state: JobState
    attempt: int  # number of the newest attempt, 0 before the first
    attempt_limit: int  # the attempt with this number is the last
    ranks: int
    cpus: float  # of all ranks
    gpus: float
    created: datetime
    started: datetime | None  # of the first attempt
    finished: datetime | None
    cancel_requested: datetime | None
    error: str | None  # of the newest attempt that ended badly


@dataclass(frozen=True)
class Attempt:
    """One try at a job."""

    job: str
    number: int
    state: AttemptState
    opened: datetime
    started: datetime | None  # its ranks' first word
    finished: datetime | None
    seen: datetime  # its last write
    host: str | None
    resumed_from: int | None  # id of the checkpoint that it began from
    error: str | None
    cause: Cause | None

    @property
    def actor(self) -> str:
        """The name under which the cluster knows it."""
        return f"{self.job}-{self.number}"


@dataclass(frozen=True)
class Report:
    """The metrics of one epoch."""

    job: str
    attempt: int
    epoch: int  # 1 for the first
    step: int
    seconds: float
    tokens_per_second: float
    train: Mapping[str, float]
    validation: Mapping[str, float]
    created: datetime


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint's record; its files are at `location` in the artifact store until it is deleted."""

    id: int
    job: str
    attempt: int
    name: str  # such as epoch-03
    location: str  # relative to the artifact store's root
    digest: str  # SHA-256, hexadecimal
    epoch: int  # epochs completed
    step: int  # optimizer steps taken
    batch: int  # steps done of the unfinished epoch
    value: float | None  # of the metric that the job selects by
    metrics: Mapping[str, float]  # of the validation reviews
    created: datetime
    deleted: datetime | None


@dataclass(frozen=True)
class Version:
    """A model version: a promoted, immutable checkpoint under a model name."""

    model: str
    version: int
    job: str
    checkpoint: int  # its record's id
    location: str  # of its own copy of the files
    digest: str
    metric: str  # what its job selected by
    mode: str  # max or min
    value: float | None
    metrics: Mapping[str, float]
    created: datetime


@dataclass(frozen=True)
class Model:
    """A model name with its versions."""

    name: str
    current: int | None  # the served version
    versions: tuple[int, ...]


@dataclass(frozen=True)
class Promotion:
    """One change of the served version."""

    id: int
    model: str
    version: int
    at: datetime
    by: str
    reason: str
    rollback: bool


@dataclass(frozen=True)
class Event:
    """One line of the history, never changed."""

    id: int
    at: datetime
    job: str | None
    attempt: int | None
    kind: EventKind
    by: str
    detail: Mapping[str, Any]
