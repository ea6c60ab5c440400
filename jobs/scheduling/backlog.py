"""The waiting jobs, indexed so that a decision costs as much as there are owners and shapes, not jobs."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable, Iterator

from jobs.scheduling.values import Group, Shape, Waiting

Place = tuple[int, str]  # sequence and id
Lines = dict[Shape, list[Place]]  # of one group, each in order of submission


class Backlog:
    """The jobs that wait. Changed by one thread at a time."""

    def __init__(self, waiting: Iterable[Waiting] = ()):
        self._jobs: dict[str, Waiting] = {}
        self._ready: dict[Group, Lines] = {}
        self._later: list[tuple[float, str]] = []  # a heap of times before which jobs must not start
        for job in waiting:
            self.put(job)

    def put(self, job: Waiting) -> None:
        """Add a job, or replace what is known of it."""
        self.discard(job.id)
        self._jobs[job.id] = job
        if job.held or job.blocked_by:
            return
        if job.not_before is not None:
            heapq.heappush(self._later, (job.not_before, job.id))
        else:
            bisect.insort(self._line(job), (job.sequence, job.id))

    def discard(self, id: str) -> None:
        """Forget a job, if it is there."""
        job = self._jobs.pop(id, None)
        lines = None if job is None else self._ready.get(job.group)
        if job is None or lines is None or job.shape not in lines:
            return
        line = lines[job.shape]
        place = bisect.bisect_left(line, (job.sequence, id))
        if place < len(line) and line[place] == (job.sequence, id):
            del line[place]
        if not line:
            del lines[job.shape]
        if not lines:
            del self._ready[job.group]

    def ready(self, now: float) -> dict[Group, Lines]:
        """The jobs that may start if there is room, by group and shape. Not to be changed."""
        while self._later and self._later[0][0] <= now:
            at, id = heapq.heappop(self._later)
            job = self._jobs.get(id)
            if job is None or job.not_before != at or job.held or job.blocked_by:
                continue  # an entry of what the job was before it was replaced
            line, entry = self._line(job), (job.sequence, id)
            place = bisect.bisect_left(line, entry)
            if line[place : place + 1] != [entry]:  # else it was put twice with one time
                line.insert(place, entry)
        return self._ready

    def next_time(self) -> float | None:
        """The earliest moment at which another job may become ready by itself."""
        return self._later[0][0] if self._later else None

    def first(self, now: float) -> dict[Group, int]:
        """The sequence of the first ready job of each group."""
        return {group: min(line[0][0] for line in lines.values()) for group, lines in self.ready(now).items()}

    def __getitem__(self, id: str) -> Waiting:
        return self._jobs[id]

    def __contains__(self, id: str) -> bool:
        return id in self._jobs

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._jobs.values())

    def __len__(self) -> int:
        return len(self._jobs)

    def _line(self, job: Waiting) -> list[Place]:
        return self._ready.setdefault(job.group, {}).setdefault(job.shape, [])
