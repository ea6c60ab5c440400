"""The room that is kept for the first job that does not fit, and what others may have of it meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from jobs.scheduling.policy import Policy
from jobs.scheduling.room import Pool, all_of, hosts
from jobs.scheduling.values import SLACK, Cluster, Decisions, Reservation, Running, Shape


def ends_by(job: Running, now: float, policy: Policy) -> float | None:
    """When a running job has ended at the latest; none if nothing says so."""
    known = []
    if job.limit is not None:
        known.append(job.opened + job.limit + policy.margin)
    if job.yielding is not None:
        known.append(job.yielding + policy.margin)
    return max(now, min(known)) if known else None


class Reserved:
    """The room that is kept for the first job that does not fit, on the machines that will have it.

    If the time limits of running jobs say by when it fits, others may start that have ended by then, or
    beside which it still fits then. If they do not say, its time may come at any moment, and others may start
    where they leave free as much as the machine could ever give it.

    Where the ranks of a job that starts go is Ray's decision. So they count on every machine that has room
    for them now, as many as it has room for; and so do those that have started, and nobody knows yet where.
    """

    def __init__(
        self,
        shape: Shape,
        running: Sequence[Running],
        starting: Sequence[Running],
        cluster: Cluster,
        pool: Pool,
        now: float,
        policy: Policy,
        promised: float | None = None,
    ):
        """`pool` is what is left of `cluster` once the jobs of `starting` have what they need.

        If it was `promised` its room by a moment that cannot be confirmed now, only what ends by then starts.
        """
        self._shape = shape
        self._margin = policy.margin
        self._most = [hosts(shape, *all_of(node)) for node in cluster.nodes]
        everyone = [*running, *starting]
        unknown = [*(job for job in cluster.uncounted if job.on is None), *starting]
        placed = tuple(job for job in cluster.uncounted if job.on is not None)
        self._open = Pool(replace(cluster, uncounted=placed))  # where ranks may go whose places nobody knows
        places = {job.id: self._open.places(job) for job in everyone}
        places |= {job.id: self._open.anywhere(job.shape) for job in unknown}
        self._room = self._open.copy()  # what is free at `at`; without that, now
        self._room.cpus, self._room.gpus = pool.cpus, pool.gpus
        for job in unknown:
            self._room.lose(places[job.id])
        self.at: float | None = None
        later = self._room.copy()
        ends = [(end, job) for job in everyone if (end := ends_by(job, now, policy)) is not None]
        ends.sort(key=lambda each: each[0])
        for end, group in groupby(ends, key=lambda each: each[0]):
            for _, job in group:
                later.give(job.shape, places[job.id])
            if later.fits(shape):
                self.at, self._room = end, later
                break
        self._kept = promised is not None and (self.at is None or self.at > promised)
        if self._kept:
            self.at = promised

    def allows(self, shape: Shape, now: float) -> bool:
        """Whether a job may start now that comes after the reserved one."""
        if self.at is None:
            return self._leaves_enough(shape)
        if self._over_in_time(shape, now):
            return True
        if self._kept:
            return False
        beside = self._room.copy()
        beside.take(shape, self._open.anywhere(shape))
        return beside.fits(self._shape)

    def take(self, shape: Shape, now: float) -> None:
        """Such a job starts."""
        if not self._over_in_time(shape, now):
            self._room.take(shape, self._open.anywhere(shape))

    def _leaves_enough(self, shape: Shape) -> bool:
        """Whether each machine keeps, of what a job uses, all that the reserved one could ever need of it."""

        def enough(free: float, takes: float, needs: float) -> bool:
            return takes <= 0 or free - takes >= needs - SLACK

        mine = self._shape
        if not self._most:
            return enough(self._room.cpus, shape.cpus, mine.cpus) and enough(
                self._room.gpus, shape.gpus, mine.gpus
            )
        each = mine.cpus / mine.ranks, mine.gpus / mine.ranks
        for place, cpus, gpus in self._open.anywhere(shape):
            most, (free_cpus, free_gpus) = self._most[place], self._room.nodes[place]
            if most and not (
                enough(free_cpus, cpus, most * each[0]) and enough(free_gpus, gpus, most * each[1])
            ):
                return False
        return True

    def _over_in_time(self, shape: Shape, now: float) -> bool:
        if self.at is None or shape.limit is None:
            return False
        return now + shape.limit + self._margin <= self.at


class Promises:
    """By when the first job that did not fit was told to fit, from one decision to the next.

    A cluster and the record of its attempts are never quite of the same moment: one that has ended is still
    counted, or one that has started is not. So a later moment is believed only once others have gone first by
    right, or there is less of a cluster than there was.
    """

    def __init__(self) -> None:
        self._last: Reservation | None = None
        self._total = 0.0, 0.0

    def of(self, cluster: Cluster) -> Reservation | None:
        """What was promised and still counts."""
        less = cluster.total_cpus < self._total[0] - SLACK or cluster.total_gpus < self._total[1] - SLACK
        return None if less else self._last

    def keep(self, decisions: Decisions, cluster: Cluster) -> None:
        """What is promised from here on."""
        self._last = decisions.reserved
        self._total = cluster.total_cpus, cluster.total_gpus
