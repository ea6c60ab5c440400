"""Who has used how much, less of it the longer ago; and which group had its turn when."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jobs.scheduling.values import Group, History, Running, Used

_TURNS = 512  # starts remembered of a group; older ones count as none


@dataclass(frozen=True, slots=True)
class Spent:
    """An attempt that has ended."""

    owner: str
    priority: int
    sequence: int  # of its job
    cpus: float
    gpus: float
    opened: float
    finished: float


class Accounts:
    """Sums that decay by half every `half_life` seconds: an attempt is added once, then forgotten."""

    def __init__(self, half_life: float):
        self._rate = math.log(2) / half_life
        self._sums: dict[tuple[str, bool], tuple[float, float]] = {}  # (owner, GPUs?) -> (seconds, as of)
        self._turns: dict[Group, tuple[list[int], list[float]]] = {}  # sequences and starts, both ascending

    def spend(self, attempt: Spent) -> None:
        """Charge an attempt that has ended. In GPU-seconds if it had GPUs, else in CPU-seconds."""
        end = attempt.finished
        amount = (attempt.gpus or attempt.cpus) * self._integral(attempt.opened, end, end)
        key = attempt.owner, attempt.gpus > 0
        at = max(end, self._sums[key][1]) if key in self._sums else end
        self._sums[key] = self._sum(key, at) + amount * self._decay(at - end), at

    def turn(self, group: Group, sequence: int, at: float) -> None:
        """A job of the group was started."""
        sequences, starts = self._turns.setdefault(group, ([], []))
        place = bisect.bisect_right(sequences, sequence)
        if place and starts[place - 1] >= at:
            return  # one submitted before it was started later: this start tells nothing more
        end = place
        while end < len(starts) and starts[end] <= at:
            end += 1
        sequences[place:end], starts[place:end] = [sequence], [at]
        if place and sequences[place - 1] == sequence:
            del sequences[place - 1], starts[place - 1]
        if len(sequences) > _TURNS:
            del sequences[0], starts[0]

    def last_turn(self, group: Group, before: int) -> float | None:
        """When a job of the group that was submitted before this sequence was last started."""
        sequences, starts = self._turns.get(group, ([], []))
        place = bisect.bisect_left(sequences, before)
        return starts[place - 1] if place else None

    def history(self, running: Iterable[Running], first: Mapping[Group, int], now: float) -> History:
        """What the policy is told. `first` is the sequence of the first waiting job of each group."""
        sums = {key: self._sum(key, now) for key in self._sums}
        for job in running:
            key = job.owner, job.gpus > 0
            amount = (job.gpus or job.cpus) * self._integral(job.opened, now, now)
            sums[key] = sums.get(key, 0.0) + amount
        owners = {owner for owner, _ in sums}
        turns = {group: self.last_turn(group, sequence) for group, sequence in first.items()}
        return History(
            used={o: Used(sums.get((o, False), 0.0), sums.get((o, True), 0.0)) for o in owners},
            turns={group: at for group, at in turns.items() if at is not None},
        )

    def _integral(self, start: float, end: float, now: float) -> float:
        """Seconds from start to end, each counted as it has decayed until `now`."""
        return max(0.0, self._decay(now - end) - self._decay(now - start)) / self._rate

    def _sum(self, key: tuple[str, bool], now: float) -> float:
        amount, at = self._sums.get(key, (0.0, now))
        return amount * self._decay(now - at)

    def _decay(self, seconds: float) -> float:
        return math.exp(-self._rate * max(seconds, 0.0))
