"""The SQL database, the truth about every job: values, tables and verbs. The only SQL of the project."""

from __future__ import annotations

from jobs.store.attempts import NewCheckpoint, NewReport, best_of
from jobs.store.models import ModelVerbs, beats
from jobs.store.values import (
    ACTIVE,
    Ambiguous,
    Attempt,
    AttemptState,
    Cause,
    Checkpoint,
    Conflict,
    Event,
    EventKind,
    Job,
    JobState,
    Model,
    NotFound,
    Promotion,
    Report,
    StaleAttempt,
    StoreError,
    StoreUnavailable,
    Version,
)

__all__ = [
    "ACTIVE",
    "Ambiguous",
    "Attempt",
    "AttemptState",
    "Cause",
    "Checkpoint",
    "Conflict",
    "Event",
    "EventKind",
    "Job",
    "JobState",
    "Model",
    "NewCheckpoint",
    "NewReport",
    "NotFound",
    "Promotion",
    "Report",
    "StaleAttempt",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "Version",
    "beats",
    "best_of",
]


class Store(ModelVerbs):
    """The database behind its verbs; every verb is one transaction. See `Database` for how it opens."""
