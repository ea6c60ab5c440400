"""The states that jobs and attempts pass through, why attempts end, and what events tell."""

from __future__ import annotations

from enum import StrEnum


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
    PREEMPTED = "preempted"
    """It made way, with a checkpoint: its job waits again and goes on from there."""

    @property
    def active(self) -> bool:
        """Whether the attempt may still write."""
        return self in (AttemptState.STARTING, AttemptState.RUNNING)


ACTIVE: tuple[AttemptState, ...] = tuple(state for state in AttemptState if state.active)


class CauseKind(StrEnum):
    """Whose matter the end of an attempt is: it decides whether, and at whose expense, the job goes on."""

    ERROR = "error"
    """Training's own: it uses up one of `retry.max_attempts`."""
    INFRASTRUCTURE = "infrastructure"
    """The cluster's: it uses up none of them; only many in a row, without progress, end the job."""
    TIMEOUT = "timeout"
    """The time limit's: counted like an error, if `retry.on` names it at all."""
    PREEMPTION = "preemption"
    """The scheduler's, or that of whoever asked for it: it uses up nothing."""
    CANCELLED = "cancelled"
    """Somebody does not want the job any more."""


class Cause(StrEnum):
    """Why an attempt ended without success."""

    ERROR = "error"
    """It raised; another attempt may fare better."""
    BAD_CONFIG = "bad-config"
    """The config or the data cannot be trained on: another attempt would fail the same way."""
    CANCELLED = "cancelled"
    """It stopped by itself after a cancel, with a checkpoint."""
    STOPPED_EARLY = "stopped-early"
    """It was behind the other children of its sweep, and stopped with a checkpoint."""
    KILLED = "killed"
    """It was killed after a cancel: it did not stop in time, or was still coming up."""
    TIMEOUT = "timeout"
    """It trained for as long as the job's `time_limit` allows."""
    PREEMPTED = "preempted"
    """It was asked to make way, and did."""
    RESIZED = "resized"
    """It was asked to make way for itself: there was room for more ranks."""
    REQUEUED = "requeued"
    """A person sent it back into the queue."""
    DIED = "died"
    """Its process, its node or its cluster went away."""
    NEVER_STARTED = "never-started"
    """It was opened, but no process ever came up."""
    START_TIMEOUT = "start-timeout"
    """Its ranks did not start in time: the cluster had no room for them, or they hung."""
    RANK_LOST = "rank-lost"
    """One of its ranks, or the node under it, went away while the attempt itself lived."""
    OUT_OF_MEMORY = "out-of-memory"
    """The host ran out of memory and ended it or one of its ranks."""
    DISK = "disk"
    """A disk that it writes to had no room left, could not be written, or failed."""
    LEASE_LOST = "lease-lost"
    """It gave up because it could not keep its lease."""
    UNREACHABLE = "unreachable"
    """Something that it needs, such as the database, did not answer for too long."""

    @property
    def kind(self) -> CauseKind:
        """What decides whether the job is tried again."""
        return _KINDS[self]


_KINDS = {
    Cause.ERROR: CauseKind.ERROR,
    Cause.BAD_CONFIG: CauseKind.ERROR,
    Cause.CANCELLED: CauseKind.CANCELLED,
    Cause.STOPPED_EARLY: CauseKind.CANCELLED,
    Cause.KILLED: CauseKind.CANCELLED,
    Cause.TIMEOUT: CauseKind.TIMEOUT,
    Cause.PREEMPTED: CauseKind.PREEMPTION,
    Cause.RESIZED: CauseKind.PREEMPTION,
    Cause.REQUEUED: CauseKind.PREEMPTION,
    Cause.DIED: CauseKind.INFRASTRUCTURE,
    Cause.NEVER_STARTED: CauseKind.INFRASTRUCTURE,
    Cause.START_TIMEOUT: CauseKind.INFRASTRUCTURE,
    Cause.RANK_LOST: CauseKind.INFRASTRUCTURE,
    Cause.OUT_OF_MEMORY: CauseKind.INFRASTRUCTURE,
    Cause.DISK: CauseKind.INFRASTRUCTURE,
    Cause.LEASE_LOST: CauseKind.INFRASTRUCTURE,
    Cause.UNREACHABLE: CauseKind.INFRASTRUCTURE,
}


class EventKind(StrEnum):
    """What an event tells."""

    SUBMITTED = "submitted"
    """A job was recorded."""
    CLAIMED = "claimed"
    """A dispatcher opened an attempt."""
    STARTED = "started"
    """An attempt's ranks started."""
    CHECKPOINTED = "checkpointed"
    """An attempt recorded a checkpoint."""
    FINISHED = "finished"
    """An attempt ended; the detail holds its state and cause."""
    YIELD_REQUESTED = "yield-requested"
    """A running attempt was asked to make way."""
    PREEMPTED = "preempted"
    """The job made way and waits again; that uses up none of its attempts."""
    REQUEUED = "requeued"
    """The job waits for another attempt, after a failure or because somebody asked for it."""
    HELD = "held"
    """Somebody holds the job back: it does not start until it is released."""
    RELEASED = "released"
    """Somebody released a held job."""
    CANCEL_REQUESTED = "cancel-requested"
    """Someone cancelled a running job; its attempt has to stop."""
    CANCELLED = "cancelled"
    """The job ended as cancelled."""
    STOP_REQUESTED = "stop-requested"
    """A child of a sweep is behind its siblings; its attempt has to stop."""
    CHILD = "child"
    """A sweep made a child."""
    ENOUGH = "enough"
    """A sweep makes no more children; the detail says why."""
    SUCCEEDED = "succeeded"
    """The job ended as succeeded."""
    FAILED = "failed"
    """The job ended as failed."""
    RETRIED = "retried"
    """Someone put an ended job back into the queue."""
    UNFIT = "unfit"
    """The job needs more than the whole cluster has; it waits for a larger one."""
    LEASE_LOST = "lease-lost"
    """An attempt could not keep its lease, and ended itself."""
    REPAIRED = "repaired"
    """Two parts disagreed about something; the detail says what was made of it."""
    VERSION = "version"
    """An attempt made a model version."""
    PROMOTED = "promoted"
    """A version became the served one."""
    ROLLED_BACK = "rolled-back"
    """The version served before became the served one again."""
    DRAIN_BEGUN = "drain-begun"
    """Somebody drains the service: what is under way is finished, nothing new starts."""
    DRAIN_ENDED = "drain-ended"
    """The service starts jobs again."""
