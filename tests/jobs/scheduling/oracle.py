"""What every decision must hold, said again without heaps, indexes and shortcuts."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from jobs.scheduling import Cluster, Node, Policy, Running, Used, Waiting
from jobs.scheduling.room import Pool

from .simulation import Pass


def fits(job: Waiting, cpus: float, gpus: float) -> bool:
    return job.cpus <= cpus + 1e-6 and job.gpus <= gpus + 1e-6


def whole(nodes: Sequence[Node]) -> list[Node]:
    """The machines as they are when nobody uses them."""
    return [Node(node.total_cpus or 0, node.total_gpus or 0) for node in nodes]


def packs(job: Waiting, nodes: Sequence[Node]) -> bool:
    """Whether the machines hold all of its ranks, each rank on one machine."""
    return sum(most(job, node) for node in nodes) >= job.ranks


def most(job: Waiting, node: Node) -> int:
    """How many of its ranks the machine holds."""
    return _most(job.ranks, job.cpus, job.gpus, node.cpus, node.gpus)


@functools.lru_cache(2**16)  # asked some thousand times a pass, of few shapes
def _most(ranks: int, cpus: float, gpus: float, free_cpus: float, free_gpus: float) -> int:
    def holds(n: int) -> bool:
        return n * cpus / ranks <= free_cpus + 1e-6 and n * gpus / ranks <= free_gpus + 1e-6

    return max((n for n in range(ranks + 1) if holds(n)), default=0)


class Spec:
    """The rules for one pass."""

    def __init__(self, seen: Pass, ahead: int = 0):
        self.now, self.policy, self.cluster, self.history = seen.now, seen.policy, seen.cluster, seen.history
        self.running = list(seen.running)
        # What counts of the last decision's promise: nothing once others have gone first by right.
        self.told: float | None = None
        if seen.promised is not None and not ahead:
            self.told, self._for = seen.promised.at, seen.promised.job
        self._empty = whole(seen.cluster.nodes)
        self.waiting = [job for job in seen.waiting if self._possible(job)]
        self.top = max((job.priority for job in self.waiting), default=0)
        self._had: dict[str, float] = {}  # of each owner, the share but for what this pass starts
        self._turns: dict[tuple[str, int], float] = {}  # of each group, since when it waits
        for job in sorted(self.waiting, key=lambda job: (job.sequence, job.id)):
            if job.group not in self._turns:
                since = max(job.since, job.not_before or job.since)
                self._turns[job.group] = max(since, self.history.turns.get(job.group, since))

    def kept(self, reserved: Waiting) -> float | None:
        """The moment that it was told, if that cannot be confirmed by what is seen now."""
        if self.told is None or self._for != reserved.id or self.told <= self.now:
            return None
        at, _ = latest_fit(self, reserved, [])
        return self.told if at is None or at > self.told else None

    def waited(self, job: Waiting) -> float:
        """Seconds since the group had a turn: its first job was ready, or one before that started."""
        return self.now - self._turns[job.group]

    def overdue(self, job: Waiting) -> bool:
        lift = max(0, self.top - job.priority) * self.policy.ageing
        return self.waited(job) >= lift + self.policy.overdue

    def level(self, job: Waiting) -> int:
        return min(self.top, job.priority + math.floor(self.waited(job) / self.policy.ageing))

    def share(self, owner: str, started: Sequence[Waiting] = ()) -> float:
        if owner not in self._had:
            used, had = self.history.used.get(owner, Used()), 0.0
            if self.cluster.total_cpus:
                had += used.cpu_seconds / self.cluster.total_cpus
            if self.cluster.total_gpus:
                had += used.gpu_seconds / self.cluster.total_gpus
            self._had[owner] = had + sum(self._will_have(job) for job in self.running if job.owner == owner)
        had = self._had[owner] + sum(self._will_have(job) for job in started if job.owner == owner)
        return had / self.policy.share(owner).weight

    def _will_have(self, job: Running | Waiting) -> float:
        total = self.cluster.total_gpus if job.gpus else self.cluster.total_cpus
        return self.policy.lookahead * (job.gpus or job.cpus) / total if total else 0.0

    def over_quota(self, job: Waiting, started: Sequence[Waiting] = ()) -> bool:
        share = self.policy.share(job.owner)
        held = [other for other in [*self.running, *started] if other.owner == job.owner]
        return (
            (share.jobs is not None and len(held) + 1 > share.jobs)
            or (share.cpus is not None and sum(o.cpus for o in held) + job.cpus > share.cpus + 1e-6)
            or (share.gpus is not None and sum(o.gpus for o in held) + job.gpus > share.gpus + 1e-6)
        )

    def _possible(self, job: Waiting) -> bool:
        share = self.policy.share(job.owner)
        return (
            not job.held
            and not job.blocked_by
            and (job.not_before is None or job.not_before <= self.now)
            and fits(job, self.cluster.total_cpus, self.cluster.total_gpus)
            and packs(job, self._empty)
            and (share.cpus is None or job.cpus <= share.cpus + 1e-6)
            and (share.gpus is None or job.gpus <= share.gpus + 1e-6)
            and share.jobs != 0
        )


Free = dict[str, tuple[float, float]]  # of each machine, by name: CPUs and GPUs


def free(cluster: Cluster) -> Free:
    return {node.name: (node.cpus, node.gpus) for node in cluster.nodes}


def less(room: Free, takes: Free, sign: int = -1) -> Free:
    return {
        name: (cpus + sign * takes.get(name, (0, 0))[0], gpus + sign * takes.get(name, (0, 0))[1])
        for name, (cpus, gpus) in room.items()
    }


def held(job: Running) -> Free:
    """What a running job has of its machines."""
    return {
        name: (ranks * job.cpus / job.ranks, ranks * job.gpus / job.ranks) for name, ranks in job.on or ()
    }


def worst(job: Waiting, cluster: Cluster) -> Free:
    """What each machine has to give if a job that starts has as many ranks there as there is room for now."""
    ranks = {node.name: most(job, node) for node in cluster.nodes}
    return {name: (n * job.cpus / job.ranks, n * job.gpus / job.ranks) for name, n in ranks.items()}


def latest_fit(spec: Spec, reserved: Waiting, started: Sequence[Waiting]) -> tuple[float | None, Free]:
    """When it fits at the latest if every attempt uses all of its time, and the ranks of those that start are
    wherever they could be; and what is free then. No moment if no limit says so: what is free now."""
    ends = {job.id: _ends(job, spec.policy, spec.now) for job in spec.running}
    ends |= {job.id: _ends(as_running(job, spec.now), spec.policy, spec.now) for job in started}
    for moment in sorted({spec.now, *(end for end in ends.values() if end is not None)}):
        room = free(spec.cluster)
        for other in spec.running:
            if (end := ends[other.id]) is not None and end <= moment:
                room = less(room, held(other), +1)
        for job in started:
            if (end := ends[job.id]) is None or end > moment:
                room = less(room, worst(job, spec.cluster))
        if packs(reserved, nodes(room)):
            return moment, room
    room = free(spec.cluster)
    for job in started:
        room = less(room, worst(job, spec.cluster))
    return None, room


def true_fit(seen: Pass, id: str) -> float | None:
    """When that job fits at the latest, before anything of this decision has started, in truth."""
    job = next(job for job in seen.waiting if job.id == id)
    return latest_fit(Spec(replace(seen, cluster=seen.truth)), job, [])[0]


def nodes(room: Free) -> list[Node]:
    """Of a machine on which ranks may be in several ways there may be less than nothing left."""
    return [Node(max(0, cpus), max(0, gpus)) for cpus, gpus in room.values()]


def _ends(other: Running, policy: Policy, now: float) -> float | None:
    known = [] if other.limit is None else [other.opened + other.limit + policy.margin]
    known += [] if other.yielding is None else [other.yielding + policy.margin]
    return max(now, min(known)) if known else None


def check(seen: Pass, ahead: int) -> None:
    """Raises AssertionError, saying what is wrong with the decision; `ahead` start before room is kept."""
    spec = Spec(seen, ahead)
    decisions, cluster, now = seen.decisions, seen.cluster, seen.now
    started = list(decisions.start)
    _check_room(started, cluster)
    _check_quotas(spec, started)
    left = [job for job in spec.waiting if job.id not in {s.id for s in started}]
    asked = {job.id: job for job in spec.waiting}
    least = [asked[job.id] for job in started]  # as if none of them had more ranks than it needs
    reserved = next((job for job in left if decisions.reserved and job.id == decisions.reserved.job), None)
    assert (reserved is None) == (decisions.reserved is None)
    for i, job in enumerate(started):
        assert job.ready(now), f"{job.id} was started and may not"
        if not spec.overdue(job):
            _check_inversion(spec, asked[job.id], left, least[:i], reserved, cluster)
    _check_nobody_is_forgotten(spec, left, started, least, reserved, cluster)
    _check_reservation(spec, started, reserved, decisions.reserved.at if decisions.reserved else None)
    _check_preemption(spec, seen)
    _check_elastic(spec, seen, left, reserved)


def _check_room(started: list[Waiting], cluster: Cluster) -> None:
    assert sum(job.cpus for job in started) <= cluster.free_cpus + 1e-6
    assert sum(job.gpus for job in started) <= cluster.free_gpus + 1e-6
    for job in started:
        assert packs(job, cluster.nodes), f"{job.id} was started without room for all of its ranks"


def _check_quotas(spec: Spec, started: list[Waiting]) -> None:
    for i, job in enumerate(started):
        assert not spec.over_quota(job, started[:i]), f"{job.id} takes {job.owner} over the quota"


def _check_inversion(
    spec: Spec,
    job: Waiting,
    left: list[Waiting],
    before: list[Waiting],
    reserved: Waiting | None,
    cluster: Cluster,
) -> None:
    """No job of higher priority was left waiting that could have had this one's room."""
    pool = Pool(cluster)
    for earlier in before:
        pool.take(earlier.shape)
    for other in left:
        if other.priority <= spec.level(job) or spec.over_quota(other, before) or not pool.fits(other.shape):
            continue
        if _owner_waits(spec, other, left, before):
            continue
        # It would have fitted in its place; then it must be one that makes the reserved job wait.
        assert reserved is not None and other.id != reserved.id, f"{job.id} went before {other.id}"
        assert _delays(spec, other, reserved, before), (
            f"{job.id} went before {other.id}, which would not have delayed {reserved.id}"
        )


def _owner_waits(spec: Spec, other: Waiting, left: list[Waiting], started: list[Waiting]) -> bool:
    """Whether a job of the same owner that goes before it is kept back by the quota."""
    return any(
        mine.owner == other.owner and spec.level(mine) >= spec.level(other) and spec.over_quota(mine, started)
        for mine in left
    )


def _delays(spec: Spec, job: Waiting, reserved: Waiting, started: Sequence[Waiting]) -> bool:
    """Whether `reserved` fits later, or may, if `job` starts now."""
    if (kept := spec.kept(reserved)) is not None:
        return job.limit is None or spec.now + job.limit + spec.policy.margin > kept
    without, room = latest_fit(spec, reserved, started)
    if without is not None:
        with_it, _ = latest_fit(spec, reserved, [*started, replace(job, id="it")])
        return with_it is None or with_it > without + 1e-6
    # It may fit at any moment: of what this one uses, each machine must have left what that needs at most.
    each = reserved.cpus / reserved.ranks, reserved.gpus / reserved.ranks
    takes = worst(job, spec.cluster)
    for node, empty in zip(spec.cluster.nodes, whole(spec.cluster.nodes), strict=True):
        could = most(reserved, empty)
        for kind in (0, 1):
            taken = takes[node.name][kind]
            if could and taken > 0 and room[node.name][kind] - taken < could * each[kind] - 1e-6:
                return True
    return False


def _check_nobody_is_forgotten(
    spec: Spec,
    left: list[Waiting],
    started: list[Waiting],
    least: list[Waiting],
    reserved: Waiting | None,
    cluster: Cluster,
) -> None:
    """Room stays free only if nobody can use it: then a job waits that does not fit, or is over its quota."""
    if reserved is None:
        blocked = {job.owner for job in left if spec.over_quota(job, started)}
        assert {job.owner for job in left} <= blocked, "a job that fits was not started"
    else:
        pool = Pool(cluster)
        for job in least:
            pool.take(job.shape)
        assert not pool.fits(reserved.shape), f"{reserved.id} fits and was not started"


def _check_reservation(
    spec: Spec, started: list[Waiting], reserved: Waiting | None, at: float | None
) -> None:
    """What started from behind the reserved job does not make it wait."""
    if reserved is None:
        return
    for i, job in enumerate(started):
        behind = spec.level(job) < reserved.priority and not spec.overdue(job)
        if behind:
            assert not _delays(spec, job, reserved, started[:i]), f"{job.id} delays {reserved.id}"
            _check_whatever_ends(spec, job, reserved, started[:i], at)
    fit, _ = latest_fit(spec, reserved, started)
    if at is not None and spec.kept(reserved) is None:
        assert fit is not None and fit <= at + 1e-6, f"{reserved.id} was promised {at}, and fits at {fit}"


def _check_whatever_ends(
    spec: Spec, job: Waiting, reserved: Waiting, before: Sequence[Waiting], at: float | None
) -> None:
    """If no limit says when, any of those that run may end at any time: what fits then, fits beside it."""
    if at is not None:
        return
    room = free(spec.cluster)
    for other in before:
        room = less(room, worst(other, spec.cluster))
    some = spec.running[:6]
    for ended in itertools.chain.from_iterable(itertools.combinations(some, n) for n in range(len(some) + 1)):
        then = room
        for other in ended:
            then = less(then, held(other), +1)
        if packs(reserved, nodes(then)):
            assert packs(reserved, nodes(less(then, worst(job, spec.cluster)))), (
                f"{reserved.id} would fit without {job.id} once {[o.id for o in ended]} have ended"
            )


def _check_preemption(spec: Spec, seen: Pass) -> None:
    rules = spec.policy.preemption
    waiting = {job.id: job for job in spec.waiting}
    running = {job.id: job for job in spec.running}
    for each in seen.decisions.preempt:
        victim, by = running[each.victim], waiting[each.by]
        assert victim.priority + rules.gap <= by.priority, f"{by.id} displaced one of its own class"
        assert victim.displaced < rules.times
        assert victim.yielding is None
        assert victim.started is not None and seen.now - victim.started >= rules.uninterrupted
    if seen.decisions.preempt:
        # Enough, and none of them for nothing.
        by = waiting[seen.decisions.preempt[0].by]
        victims = [running[each.victim] for each in seen.decisions.preempt]
        leaving = [job for job in [*spec.running, *seen.gone] if job.yielding is not None or job.ending]
        taken = list(seen.decisions.start)

        pool = Pool(seen.cluster)
        for job in taken:
            pool.take(job.shape)
        names = [node.name for node in seen.cluster.nodes]
        after = {name: (cpus, gpus) for name, (cpus, gpus) in zip(names, pool.nodes, strict=True)}

        def room(ending: list[Running]) -> bool:
            then = after
            for job in ending:
                then = less(then, held(job), +1)
            return packs(by, nodes(then))

        assert room([*leaving, *victims])
        for victim in victims:
            assert not room([*leaving, *(v for v in victims if v is not victim)]), f"{victim.id} for nothing"


def _check_elastic(spec: Spec, seen: Pass, left: list[Waiting], reserved: Waiting | None) -> None:
    """Ranks are between the least and the most; who grows takes nothing that anybody waits for."""
    asked = {job.id: job for job in spec.waiting}
    for job in seen.decisions.start:
        least = asked[job.id]
        assert least.ranks <= job.ranks <= (least.max_ranks or least.ranks), f"{job.id} has {job.ranks} ranks"
        assert job.cpus == pytest.approx(least.cpus * job.ranks / least.ranks)
        assert job.gpus == pytest.approx(least.gpus * job.ranks / least.ranks)
    running = {job.id: job for job in spec.running}
    if (each := seen.decisions.grow) is not None:
        job = running[each.job]
        assert not seen.decisions.start and reserved is None, f"{job.id} grows while others wait"
        waiting = {other.owner for other in left}
        blocked = {other.owner for other in left if spec.over_quota(other)}  # and who comes behind those
        assert waiting <= blocked - {job.owner}, f"{job.id} grows while others wait"
        assert job.ranks < each.ranks <= (job.max_ranks or 0), f"{job.id} gains nothing"
        assert job.started is not None
        assert seen.now - job.started >= spec.policy.growing.uninterrupted
        assert all(o.started is not None and o.yielding is None and not o.ending for o in spec.running)
        more = each.ranks / job.ranks - 1
        assert job.cpus * more <= seen.cluster.free_cpus + 1e-6, "more is grown into than is free"
        assert job.gpus * more <= seen.cluster.free_gpus + 1e-6, "more is grown into than is free"
        share = spec.policy.share(job.owner)
        mine = [o for o in spec.running if o.owner == job.owner]
        assert share.cpus is None or sum(o.cpus for o in mine) + job.cpus * more <= share.cpus + 1e-6
        assert share.gpus is None or sum(o.gpus for o in mine) + job.gpus * more <= share.gpus + 1e-6


def reference(seen: Pass) -> tuple[list[tuple[str, int]], str | None, int]:
    """What starts, in order, with how many ranks, for which job room is kept, and how many start before that
    one: found by looking at every job every time."""
    spec, started, out, blocked = Spec(seen), [], set(), set()  # type: ignore[var-annotated]
    pool = Pool(seen.cluster)
    reserved: Waiting | None = None
    ahead = 0
    turned: set[tuple[str, int]] = set()

    def key(job: Waiting) -> tuple[float, ...]:
        waited = 0.0 if job.group in turned else spec.waited(job)
        late = waited - max(0, spec.top - job.priority) * spec.policy.ageing - spec.policy.overdue
        if late >= 0:
            return 0, -late, 0, -job.priority, job.sequence
        level = min(spec.top, job.priority + math.floor(waited / spec.policy.ageing))
        return 1, -level, spec.share(job.owner, started), -job.priority, job.sequence

    while True:
        rest = [job for job in spec.waiting if job.id not in out and job.owner not in blocked]
        heads: dict[tuple[str, int], Waiting] = {}
        for job in sorted(rest, key=lambda job: job.sequence):
            heads.setdefault(job.group, job)
        if not heads or (reserved is not None and seen.decisions.preempt):
            if not seen.decisions.preempt:
                _widen(spec, started, pool, reserved, seen.cluster)
            ranks = [(job.id, job.ranks) for job in started]
            return ranks, None if reserved is None else reserved.id, ahead
        job = min(heads.values(), key=key)
        if spec.over_quota(job, started):
            blocked.add(job.owner)
            continue
        out.add(job.id)
        if not pool.fits(job.shape):
            if reserved is None:
                reserved, ahead = job, len(started)
                spec = Spec(seen, ahead)
        elif reserved is None or not _delays(spec, job, reserved, started):
            first = min((j for j in spec.waiting if j.group == job.group), key=lambda j: j.sequence)
            earlier = [j for j in spec.waiting if j.group == job.group and j.sequence < job.sequence]
            if job is first or all(j in started for j in earlier):
                turned.add(job.group)
            pool.take(job.shape)
            started.append(job)


def _widen(
    spec: Spec, started: list[Waiting], pool: Pool, reserved: Waiting | None, cluster: Cluster
) -> None:
    """Give those that start what is left, a rank each in turns, as if each rank were a job of its own."""
    growing = [i for i, job in enumerate(started) if job.ranks < (job.max_ranks or 0)]
    apart = list(started)  # each further rank counts by itself, wherever it goes
    while growing:
        full = []
        for i in growing:
            job = started[i]
            more = replace(
                job, id=f"{job.id}+{job.ranks}", ranks=1, cpus=job.cpus / job.ranks, gpus=job.gpus / job.ranks
            )
            share = spec.policy.share(job.owner)
            mine = [other for other in [*spec.running, *started] if other.owner == job.owner]
            if (
                not pool.fits(more.shape)
                or (share.cpus is not None and sum(o.cpus for o in mine) + more.cpus > share.cpus + 1e-6)
                or (share.gpus is not None and sum(o.gpus for o in mine) + more.gpus > share.gpus + 1e-6)
                or (reserved is not None and _delays(spec, more, reserved, apart))
                or not _one_by_one([*started[:i], job.with_ranks(job.ranks + 1), *started[i + 1 :]], cluster)
            ):
                full.append(i)
                continue
            pool.take(more.shape)
            apart.append(more)
            started[i] = replace(
                job, ranks=job.ranks + 1, cpus=job.cpus + more.cpus, gpus=job.gpus + more.gpus
            )
            if started[i].ranks == job.max_ranks:
                full.append(i)
        growing = [i for i in growing if i not in full]


def _one_by_one(gangs: list[Waiting], cluster: Cluster) -> bool:
    pool = Pool(cluster)
    for gang in gangs:
        if not pool.fits(gang.shape):
            return False
        pool.take(gang.shape)
    return True


def as_running(job: Waiting, now: float) -> Running:
    return Running(
        job.id, job.owner, job.priority, job.ranks, job.cpus, job.gpus, opened=now, limit=job.limit
    )
