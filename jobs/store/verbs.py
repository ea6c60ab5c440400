"""The store: all verbs together."""

from __future__ import annotations

from jobs.store.logs import LogVerbs
from jobs.store.models import ModelVerbs


class Store(ModelVerbs, LogVerbs):
    """The database behind its verbs; every verb is one transaction. See `Database` for how it opens."""
