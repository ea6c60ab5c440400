"""Attempts that are there and give no sign of life: frozen, not dead, and nobody else would ever end them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from jobs.dispatcher.parts import Timings
from jobs.queue import Queue, QueueUnavailable
from jobs.store import Running, Store


class Silence:
    """For how long active attempts have been silent, as far as this dispatcher has seen.

    A sign of life is a lease or, where the attempt cannot reach Redis, a write to the database. That the
    cluster knows its name is none: a process that is stopped, or whose disk hangs, keeps that. Without Redis
    nothing can be said; the count begins anew. That a write has happened counts, not the moment that it
    carries: the clock of another node may be wrong, or jump.
    """

    def __init__(self, store: Store, queue: Queue, timings: Timings):
        self._store = store
        self._queue = queue
        self._patience = timings.silence
        self._since: dict[str, tuple[float, datetime | None]] = {}  # and when each had written last by then

    def broken(self, active: Sequence[Running], now: float) -> list[Running]:
        """Those that have been silent for too long, `now` in monotonic seconds."""
        try:
            leases = self._queue.leases([job.id for job in active])
        except QueueUnavailable:
            self._since.clear()
            raise
        silent = [job for job in active if leases.get(job.id) != job.attempt]
        known = {job.actor: self._since[job.actor] for job in silent if job.actor in self._since}
        suspects = {actor for actor, (since, _) in known.items() if now - since >= self._patience}
        if suspects or len(known) < len(silent):
            seen = {attempt.actor: attempt.seen for attempt in self._store.attempts(active=True)}
            for job in silent:
                if job.actor not in known or known[job.actor][1] != seen.get(job.actor):
                    known[job.actor] = now, seen.get(job.actor)
        self._since = known
        return [job for job in silent if now - known[job.actor][0] >= self._patience]
