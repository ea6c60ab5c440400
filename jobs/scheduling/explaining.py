"""Why a waiting job does not start now, and when it may: for people. Nothing is decided here."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence

from jobs.scheduling.backlog import Backlog
from jobs.scheduling.deciding import decide
from jobs.scheduling.order import Line
from jobs.scheduling.policy import Policy
from jobs.scheduling.room import Pool, beyond_quota, too_large
from jobs.scheduling.values import (
    SLACK,
    Blocked,
    Cluster,
    Decisions,
    History,
    Reason,
    Reservation,
    Running,
    Waiting,
)


class Explainer:
    """Answers for any of the jobs that wait at one moment."""

    def __init__(
        self,
        waiting: Backlog | Iterable[Waiting],
        running: Sequence[Running],
        cluster: Cluster,
        history: History,
        policy: Policy,
        now: float,
        promised: Reservation | None = None,
    ):
        self._backlog = waiting if isinstance(waiting, Backlog) else Backlog(waiting)
        self._running = running
        self._cluster = cluster
        self.used = history.used
        self._policy = policy
        self._now = now
        self.decisions: Decisions = decide(
            self._backlog, running, cluster, history, policy, now, promised=promised
        )
        self._starting = {job.id for job in self.decisions.start}
        self.order: list[Waiting] = []
        self._over: dict[str, str] = {}  # owner -> why the first of their jobs is over the quota
        line = Line(self._backlog, running, cluster, history, policy, now)
        while (job := line.next()) is not None:
            over = line.over_quota(job.owner, job.shape) if job.id not in self._starting else None
            if over is not None:
                self._over[job.owner] = f"job {job.id} {over}"
                line.block(job.owner)
                continue
            self.order.append(job)
            if job.id in self._starting:
                line.started(job)
            else:
                line.pass_over(job)
        self._places = {job.id: place for place, job in enumerate(self.order, 1)}
        self._forecast: dict[str, float] | None = None

    def reason(self, id: str) -> Reason | None:
        """Why the job does not start; none if nothing keeps it, or it does not wait."""
        if id not in self._backlog or id in self._starting:
            return None
        job = self._backlog[id]
        return self._before_its_turn(job) or self._quota(job) or self._in_line(job)

    def _before_its_turn(self, job: Waiting) -> Reason | None:
        if job.held:
            return Reason(Blocked.HELD, "someone holds it; it waits for its release")
        if job.blocked_by:
            names = ", ".join(job.blocked_by)
            return Reason(Blocked.DEPENDENCY, f"it comes after {names}", waits_for=job.blocked_by)
        if job.not_before is not None and job.not_before > self._now:
            return Reason(Blocked.NOT_BEFORE, "its time has not come", starts=job.not_before)
        large = too_large(job.shape, self._cluster)
        return None if large is None else Reason(Blocked.RESOURCES, f"it {large}")

    def _quota(self, job: Waiting) -> Reason | None:
        never = beyond_quota(job.shape, self._policy.share(job.owner))
        if never is not None:
            return Reason(Blocked.QUOTA, never if never.startswith("its") else f"it {never}")
        if job.id in self._places or job.owner not in self._over:
            return None
        mine = tuple(other.id for other in self._running if other.owner == job.owner)
        return Reason(Blocked.QUOTA, self._over[job.owner], waits_for=mine)

    def _in_line(self, job: Waiting) -> Reason:
        place = self._places.get(job.id)
        reserved = self.decisions.reserved
        starts = self._estimates().get(job.id)
        if reserved is not None and reserved.job == job.id:
            guaranteed = reserved.at is not None
            return Reason(
                Blocked.RESOURCES,
                self._needs(job),
                position=place,
                waits_for=tuple(other.id for other in self._running),
                starts=reserved.at if guaranteed else starts,
                guaranteed=guaranteed,
            )
        if reserved is not None and Pool(self._cluster).fits(job.shape):
            text = f"there is room, but job {reserved.job}, which goes first, would wait longer for its own"
        else:
            ahead = (place or len(self.order)) - 1
            text = f"{ahead} job{' goes' if ahead == 1 else 's go'} before it; {self._needs(job)}"
        waits_for = () if reserved is None else (reserved.job,)
        return Reason(Blocked.PRIORITY, text, position=place, waits_for=waits_for, starts=starts)

    def _needs(self, job: Waiting) -> str:
        def what(cpus: float, gpus: float) -> str:
            return f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if job.gpus else "")

        free = what(max(0.0, self._cluster.free_cpus), max(0.0, self._cluster.free_gpus))
        pieces = ""
        if job.cpus <= self._cluster.free_cpus + SLACK and job.gpus <= self._cluster.free_gpus + SLACK:
            pieces = f", but not so that each of its {job.ranks} ranks finds a machine with room for it"
        return f"it needs {what(job.cpus, job.gpus)}, {free} are free{pieces}"

    def _estimates(self) -> dict[str, float]:
        """When each job may start if all go in order and take as long as expected; none past the unknown."""
        if self._forecast is not None:
            return self._forecast
        self._forecast = {}
        ends = [(_end(job, self._now), job.cpus, job.gpus) for job in self._running]
        heapq.heapify(ends)
        now, cpus, gpus = self._now, self._cluster.free_cpus, self._cluster.free_gpus
        for job in self.order:
            while job.cpus > cpus + SLACK or job.gpus > gpus + SLACK:
                if not ends or math.isinf(ends[0][0]):
                    return self._forecast
                now, more_cpus, more_gpus = heapq.heappop(ends)
                cpus, gpus = cpus + more_cpus, gpus + more_gpus
            self._forecast[job.id] = now
            takes = job.expected if job.expected is not None else job.limit
            heapq.heappush(ends, (math.inf if takes is None else now + takes, job.cpus, job.gpus))
            cpus, gpus = cpus - job.cpus, gpus - job.gpus
        return self._forecast


def _end(job: Running, now: float) -> float:
    if job.expected is not None:
        return max(now, job.expected)
    if job.yielding is not None:
        return now
    if job.limit is not None:
        return max(now, (job.started or job.opened) + job.limit)
    return math.inf
