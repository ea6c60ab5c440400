"""The store: all verbs together."""

from __future__ import annotations

from jobs.store.logs import LogVerbs
from jobs.store.sweeps import SweepVerbs


class Store(SweepVerbs, LogVerbs):
    """The database behind its verbs; every verb is one transaction. See `Database` for how it opens."""
