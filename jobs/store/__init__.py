"""The SQL database, the truth about every job: values, tables and verbs. The only SQL of the project."""

from __future__ import annotations

from jobs.store.logs import LogVerbs
from jobs.store.models import beats
from jobs.store.records import NewCheckpoint, NewReport, best_of
from jobs.store.states import ACTIVE, AttemptState, Cause, CauseKind, EventKind, JobState
from jobs.store.sweeps import SweepVerbs, best_trial
from jobs.store.values import (
    RETRY_ON,
    Ambiguous,
    Attempt,
    Checkpoint,
    Conflict,
    Dependency,
    Drain,
    Ended,
    Event,
    Job,
    Model,
    NewTrial,
    NotFound,
    Promotion,
    Queued,
    Report,
    Retry,
    RetryOn,
    Running,
    StaleAttempt,
    StoreError,
    StoreUnavailable,
    Taken,
    Tally,
    Trial,
    Usage,
    Version,
)

__all__ = [
    "ACTIVE",
    "RETRY_ON",
    "Ambiguous",
    "Attempt",
    "AttemptState",
    "Cause",
    "CauseKind",
    "Checkpoint",
    "Conflict",
    "Dependency",
    "Drain",
    "Ended",
    "Event",
    "EventKind",
    "Job",
    "JobState",
    "Model",
    "NewCheckpoint",
    "NewReport",
    "NewTrial",
    "NotFound",
    "Promotion",
    "Queued",
    "Report",
    "Retry",
    "RetryOn",
    "Running",
    "StaleAttempt",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "Taken",
    "Tally",
    "Trial",
    "Usage",
    "Version",
    "beats",
    "best_of",
    "best_trial",
]


class Store(SweepVerbs, LogVerbs):
    """The database behind its verbs; every verb is one transaction. See `Database` for how it opens."""
