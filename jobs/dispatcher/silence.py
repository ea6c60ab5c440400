"""Attempts that are there and give no sign of life: frozen, not dead, and nobody else would ever end them."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.dispatcher.parts import Timings
from jobs.queue import Queue, QueueUnavailable
from jobs.store import Running, Store


class Silence:
    """For how long active attempts have been silent, as far as this dispatcher has seen.

    A sign of life is a lease or, where the attempt cannot reach Redis, a write to the database. That the
    cluster knows its name is none: a process that is stopped, or whose disk hangs, keeps that. Without Redis
    nothing can be said; the count begins anew.
    """

    def __init__(self, store: Store, queue: Queue, timings: Timings):
        self._store = store
        self._queue = queue
        self._patience = timings.silence
        self._since: dict[str, float] = {}

    def broken(self, active: Sequence[Running], now: float) -> list[Running]:
        """Those that have been silent for too long, `now` in monotonic seconds."""
        try:
            leases = self._queue.leases([job.id for job in active])
        except QueueUnavailable:
            self._since.clear()
            raise
        silent = [job for job in active if leases.get(job.id) != job.attempt]
        self._since = {job.actor: self._since.get(job.actor, now) for job in silent}
        suspects = [job for job in silent if now - self._since[job.actor] >= self._patience]
        if not suspects:
            return []
        seen = {attempt.actor: attempt.seen for attempt in self._store.attempts(active=True)}
        moment = self._store.clock()
        return [
            job
            for job in suspects
            if job.actor in seen and (moment - seen[job.actor]).total_seconds() >= self._patience
        ]
