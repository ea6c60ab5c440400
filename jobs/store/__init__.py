"""The SQL database, the truth about every job: values, tables and verbs. The only SQL of the project.

The verbs come with SQLAlchemy, whose import takes longer than all else that `textvae-jobs list` does. So what
needs it is imported when it is asked for first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from jobs.store.states import ACTIVE, AttemptState, Cause, CauseKind, EventKind, JobState
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

if TYPE_CHECKING:
    from jobs.store.models import beats
    from jobs.store.records import NewCheckpoint, NewReport, best_of
    from jobs.store.sweeps import best_trial
    from jobs.store.verbs import Store
else:
    _LATER = {
        "NewCheckpoint": "records",
        "NewReport": "records",
        "Store": "verbs",
        "beats": "models",
        "best_of": "records",
        "best_trial": "sweeps",
    }

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
