"""What the store hands out: frozen values, and what can go wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from jobs.store.states import AttemptState, Cause, EventKind, JobState


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


class Taken(Conflict):
    """The id given to a new job is that of another one."""

    def __init__(self, job: str, *, config: bool):
        self.config = config  # it is their configs that differ, not what they come after
        differs = "exists with another config" if config else "exists and comes after other jobs"
        same = "the config that it was given" if config else "those that it was given"
        super().__init__(f"job {job} {differs}; take another id, or {same}")


class StaleAttempt(StoreError):
    """The attempt is not its job's active one any more: nothing that it writes counts."""

    def __init__(self, job: str, number: int):
        self.job = job
        self.number = number
        super().__init__(f"attempt {number} of job {job} is not its active attempt; its write was refused")


RetryOn = Literal["infrastructure", "error", "timeout"]
RETRY_ON: tuple[RetryOn, ...] = get_args(RetryOn)


@dataclass(frozen=True)
class Retry:
    """When a job is tried again after an attempt that ended badly."""

    max_attempts: int = 3  # that may end by an error, or at the time limit, before the job counts as failed
    on: tuple[RetryOn, ...] = ("infrastructure", "error")  # the kinds of cause after which it is tried again
    backoff: float = 10.0  # seconds before the second retry in a row; the first is at once, each further x 2
    max_infrastructure: int = 10  # infrastructure failures in a row, without progress, before it has failed


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
    ranks: int  # without so many it does not start
    cpus: float  # of all of them
    gpus: float
    created: datetime
    started: datetime | None  # of the first attempt
    finished: datetime | None
    cancel_requested: datetime | None
    error: str | None  # of the newest attempt that ended badly; why it ended otherwise than by an attempt
    not_before: datetime | None  # it does not start earlier: someone said so, or a retry waits
    held: datetime | None  # since when it is held back
    yield_requested: datetime | None  # since when its attempt is asked to make way
    time_limit: float | None  # seconds that an attempt may train, from when its ranks start
    retry: Retry
    errors_used: int  # attempts that count against retry.max_attempts, since it was submitted or retried
    infrastructure_used: int  # failures of infrastructure in a row, without a new checkpoint between them
    max_ranks: int | None  # so many it may have at most; none if `ranks` are all it ever has
    yield_cause: Cause | None  # why its attempt is asked to make way
    trials: int | None = None  # of a sweep: how many children it has in the end
    parent: str | None = None  # of a child: its sweep
    stopped: str | None = None  # of a child: why it is stopped early

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> Job:
        """The job of a row."""
        policy = columns["retry"]
        retry = Retry(**{**policy, "on": tuple(policy["on"])} if "on" in policy else policy)
        yields = columns["yield_cause"]
        return cls(
            **{
                **columns,
                "state": JobState(columns["state"]),
                "retry": retry,
                "yield_cause": Cause(yields) if yields else None,
            }
        )


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
    cpus: float  # of all its ranks
    gpus: float
    seconds: float | None  # from its ranks' start to its end; none while it is active
    ranks: int

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
    actor: str  # a user of the operating system, a dispatcher, or `attempt`
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class Queued:
    """A job that waits, as a scheduler sees it."""

    id: str
    name: str
    owner: str
    priority: int  # higher goes first
    sequence: int  # order of submission
    attempt: int  # number of the newest attempt; the next one is one more
    ranks: int  # without so many it does not start
    cpus: float  # of all of them
    gpus: float
    created: datetime
    not_before: datetime | None
    held: datetime | None
    time_limit: float | None
    max_ranks: int | None  # so many it may have at most; none if `ranks` are all it ever has
    since: datetime  # when it began to wait: its submission, or the end of its newest attempt
    preempted: int  # times that it made way for others so far
    blocked_by: tuple[str, ...]  # the jobs that must end first
    eligible: bool  # whether only resources, shares and the order of the queue keep it from starting


@dataclass(frozen=True)
class Running:
    """A job with an active attempt, as a scheduler sees it."""

    id: str
    name: str
    owner: str
    priority: int
    sequence: int
    attempt: int
    state: AttemptState  # starting or running
    ranks: int  # of its attempt
    cpus: float  # of all of them
    gpus: float
    created: datetime
    opened: datetime
    host: str | None  # where its process is; none until that has come up
    started: datetime | None  # its ranks' first word
    time_limit: float | None
    cancel_requested: datetime | None
    yield_requested: datetime | None
    yield_cause: Cause | None
    max_ranks: int | None
    preempted: int  # times that it made way for others so far

    @property
    def actor(self) -> str:
        """The name under which the cluster knows its attempt."""
        return f"{self.id}-{self.attempt}"

    @property
    def leaving(self) -> bool:
        """Whether it was asked to stop or to make way."""
        return self.cancel_requested is not None or self.yield_requested is not None


@dataclass(frozen=True)
class Ended:
    """An attempt that has ended, as a scheduler's accounts see it."""

    job: str
    number: int
    state: AttemptState
    cause: Cause | None
    owner: str
    priority: int
    sequence: int  # of its job
    cpus: float  # of all ranks
    gpus: float
    opened: datetime
    started: datetime | None
    finished: datetime


@dataclass(frozen=True)
class Usage:
    """What somebody, or some job, has used of the cluster."""

    cpu_seconds: float
    gpu_seconds: float
    seconds: float  # that attempts trained, whatever they held
    attempts: int


@dataclass(frozen=True)
class Dependency:
    """One job that another waits for."""

    job: str  # the one that waits
    on_job: str
    any: bool  # its end will do; False: its success is needed
    state: JobState  # of `on_job`

    @property
    def met(self) -> bool:
        """Whether it keeps the job from starting no more."""
        return self.state.final if self.any else self.state is JobState.SUCCEEDED

    @property
    def hopeless(self) -> bool:
        """Whether it will never be met unless somebody retries `on_job`."""
        return not self.met and self.state.final


@dataclass(frozen=True)
class NewTrial:
    """A child that a sweep is about to make."""

    number: int  # 1 for the first
    parameters: Mapping[str, Any]  # what its config has otherwise than the sweep's, by dotted key
    config: Mapping[str, Any]
    ranks: int
    cpus: float  # of all ranks
    gpus: float
    retry: Retry
    time_limit: float | None
    max_ranks: int | None = None  # as a job's


@dataclass(frozen=True)
class Trial:
    """A child of a sweep, and what it has come to."""

    sweep: str
    number: int
    job: str
    parameters: Mapping[str, Any]
    spared: bool  # from being stopped early: somebody retried it
    state: JobState
    attempt: int
    cancel_requested: datetime | None
    held: datetime | None
    stopped: str | None  # why it is stopped early
    error: str | None
    started: datetime | None
    finished: datetime | None
    epochs: int  # reported
    value: float | None  # of its best checkpoint, by the metric that the sweep selects by


@dataclass(frozen=True)
class Tally:
    """How many children a sweep has made, and in which states they are."""

    made: int
    states: Mapping[JobState, int]

    @property
    def ended(self) -> int:
        """Children that have ended."""
        return sum(n for state, n in self.states.items() if state.final)


@dataclass(frozen=True)
class Drain:
    """The service is being drained: what is under way is finished, nothing new starts."""

    since: datetime
    by: str
