"""Who goes next. Groups are overdue ones first, then by level, then by what their owner has had."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from jobs.scheduling.backlog import Backlog, Lines
from jobs.scheduling.policy import Policy
from jobs.scheduling.room import Held, beyond_quota, too_large
from jobs.scheduling.values import Cluster, Group, History, Running, Shape, Used, Waiting

Key = tuple[int, float, float, int, int]
_NOTHING = Held()


def possible(group: Group, shape: Shape, cluster: Cluster, policy: Policy) -> bool:
    """Whether a job of this shape could ever start, whatever else ends."""
    return too_large(shape, cluster) is None and beyond_quota(shape, policy.share(group[0])) is None


def first_of_groups(backlog: Backlog, cluster: Cluster, policy: Policy, now: float) -> dict[Group, int]:
    """The sequence of the first job of each group that could start."""
    found: dict[Group, int] = {}
    for group, lines in backlog.ready(now).items():
        heads = [line[0][0] for shape, line in lines.items() if possible(group, shape, cluster, policy)]
        if heads:
            found[group] = min(heads)
    return found


class _Candidates:
    """The jobs of one group that are still to be looked at, in order of submission."""

    def __init__(self, group: Group, lines: Lines, allowed: Iterable[Shape]):
        self.group = group
        self._lines = lines
        self._heap = [(lines[shape][0], shape, 0) for shape in allowed]
        heapq.heapify(self._heap)
        self.first = self._heap[0][0] if self._heap else None  # the one whose turn it is
        self.waited = 0.0

    def head(self) -> tuple[int, str] | None:
        return self._heap[0][0] if self._heap else None

    def drop(self, failed: set[Shape]) -> Iterator[Shape]:
        """Leave out jobs that are known not to fit; yields their shapes."""
        while self._heap and self._heap[0][1] in failed:
            yield heapq.heappop(self._heap)[1]

    def advance(self) -> None:
        _, shape, place = self._heap[0]
        line = self._lines[shape]
        if place + 1 < len(line):
            heapq.heapreplace(self._heap, (line[place + 1], shape, place + 1))
        else:
            heapq.heappop(self._heap)


class Line:
    """The waiting jobs in the order in which they go, as owners are charged for those that start."""

    def __init__(
        self,
        backlog: Backlog,
        running: Iterable[Running],
        cluster: Cluster,
        history: History,
        policy: Policy,
        now: float,
    ):
        self._backlog = backlog
        self._cluster = cluster
        self._history = history
        self._policy = policy
        self._now = now
        self._failed: set[Shape] = set()
        self.blocked: set[str] = set()  # owners whose jobs wait for others of theirs to end
        self._rates: dict[str, float] = {}  # what each owner holds, in clusters
        self.held: dict[str, Held] = {}
        for job in running:
            self.held.setdefault(job.owner, Held()).add(job.cpus, job.gpus)
            self._charge(job.owner, job.cpus, job.gpus)
        candidates = [
            _Candidates(group, lines, [s for s in lines if possible(group, s, cluster, policy)])
            for group, lines in backlog.ready(now).items()
        ]
        candidates = [each for each in candidates if each.first is not None]
        self._top = max((each.group[1] for each in candidates), default=0)
        for each in candidates:
            assert each.first is not None
            self._set_waited(each, history.turns.get(each.group))
        self._heap = [(self._key(each), each.group, each) for each in candidates]
        heapq.heapify(self._heap)

    def next(self) -> Waiting | None:
        """The job to look at; then call `started`, `fail` or `block`."""
        while self._heap:
            key, group, candidates = self._heap[0]
            owner = group[0]
            for shape in candidates.drop(self._failed):
                if self.over_quota(owner, shape):
                    self.blocked.add(owner)
            head = candidates.head()
            if owner in self.blocked or head is None:
                heapq.heappop(self._heap)
                continue
            current = self._key(candidates)
            if current != key:
                heapq.heapreplace(self._heap, (current, group, candidates))
                continue
            return self._backlog[head[1]]
        return None

    def over_quota(self, owner: str, shape: Shape) -> str | None:
        """Why such a job would take its owner over the quota now; none if it would not."""
        return self.held.get(owner, _NOTHING).full(shape, self._policy.share(owner))

    def started(self, job: Waiting) -> None:
        """It starts: its owner is charged and holds more; its group has had a turn if it was the first."""
        self.held.setdefault(job.owner, Held()).add(job.cpus, job.gpus)
        self.pass_over(job)

    def pass_over(self, job: Waiting) -> None:
        """Go on behind it, as if it had started, without counting it against its owner's quota."""
        candidates = self._heap[0][2]
        in_turn = candidates.first == (job.sequence, job.id)
        candidates.advance()
        self._charge(job.owner, job.cpus, job.gpus)
        if in_turn:
            candidates.first = candidates.head()
            if candidates.first is not None:
                self._set_waited(candidates, self._now)

    def fail(self, shape: Shape) -> None:
        """Jobs of this shape do not fit now."""
        self._failed.add(shape)

    def block(self, owner: str) -> None:
        """Jobs of this owner wait for others of theirs to end."""
        self.blocked.add(owner)

    def share(self, owner: str) -> float:
        """What an owner has had and holds, in seconds of the whole cluster, by weight. The least is first."""
        used = self._history.used.get(owner, Used())
        had = _ratio(used.cpu_seconds, self._cluster.total_cpus) + _ratio(
            used.gpu_seconds, self._cluster.total_gpus
        )
        holds = self._policy.lookahead * self._rates.get(owner, 0.0)
        return (had + holds) / self._policy.share(owner).weight

    def _key(self, candidates: _Candidates) -> Key:
        owner, priority = candidates.group
        head = candidates.head()
        sequence = head[0] if head else 0
        late = candidates.waited - self._policy.overdue_after(priority, self._top)
        if late >= 0:
            return 0, -late, 0.0, -priority, sequence
        level = self._policy.level(priority, candidates.waited, self._top)
        return 1, -level, self.share(owner), -priority, sequence

    def _set_waited(self, candidates: _Candidates, turn: float | None) -> None:
        assert candidates.first is not None
        job = self._backlog[candidates.first[1]]
        ready = max(job.since, job.not_before or job.since)
        candidates.waited = self._now - (ready if turn is None else max(ready, turn))

    def _charge(self, owner: str, cpus: float, gpus: float) -> None:
        rate = _ratio(gpus, self._cluster.total_gpus) if gpus > 0 else _ratio(cpus, self._cluster.total_cpus)
        self._rates[owner] = self._rates.get(owner, 0.0) + rate


def _ratio(amount: float, total: float) -> float:
    return amount / total if total > 0 else 0.0
