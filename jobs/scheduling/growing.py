"""Elastic jobs: with how many ranks they start, and when one that runs makes way to start again with more.

What they get beyond the ranks that they need is room that nobody else who waits could use now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from jobs.scheduling.policy import Policy
from jobs.scheduling.reserving import Reserved
from jobs.scheduling.room import Held, Pool
from jobs.scheduling.values import Cluster, Growth, Running, Waiting


def widen(
    start: Sequence[Waiting],
    cluster: Cluster,
    pool: Pool,
    reserved: Reserved | None,
    held: Mapping[str, Held],
    policy: Policy,
    now: float,
) -> list[Waiting]:
    """The jobs that start, each with as many ranks as it gets of the room that is left when all of them and
    all before them have theirs.

    In rounds, a rank for each in order; without making the reserved job wait.
    """

    ranks = {job.id: job.ranks for job in start}

    def takes(job: Waiting) -> bool:
        shape, mine = job.one_more, held[job.owner]
        if ranks[job.id] >= (job.max_ranks or 0):
            return False
        if not pool.fits(shape) or mine.beyond(shape, policy.share(job.owner)):
            return False
        if reserved is not None and not reserved.allows(shape, now):
            return False
        if not _placeable([each.with_ranks(ranks[each.id] + (each is job)) for each in start], cluster):
            return False
        if reserved is not None:
            reserved.take(shape, now)
        pool.take(shape)
        mine.more(shape.cpus, shape.gpus)
        ranks[job.id] += 1
        return True

    growing: Sequence[Waiting] = start
    while growing:
        growing = [job for job in growing if takes(job)]
    return [job.with_ranks(ranks[job.id]) for job in start]


def growth(
    running: Sequence[Running],
    pool: Pool,
    held: Mapping[str, Held],
    waiting: Collection[str],
    policy: Policy,
    now: float,
) -> Growth | None:
    """The running job that could have more ranks, of several the one that has the fewest; to be asked only
    while nobody waits for room.

    One at a time: the first of two to start again would take what the other had counted on. While any attempt
    starts or ends nobody can tell what will be free, so then none. Nor do those grow whose owners are
    `waiting` for their own quota: when one of them made way, another job of its owner's would start.
    """
    rules = policy.growing
    if not rules.enabled or any(
        job.started is None or job.yielding is not None or job.ending for job in running
    ):
        return None
    for job in sorted(running, key=lambda job: (job.ranks, job.opened, job.id)):
        if job.max_ranks is None or job.owner in waiting or job.started is None:
            continue
        if now - job.started < rules.uninterrupted:
            continue
        ranks, shape, mine = job.ranks, job.one_more, held[job.owner]
        while ranks < job.max_ranks and pool.fits(shape) and not mine.beyond(shape, policy.share(job.owner)):
            pool.take(shape)
            mine.more(shape.cpus, shape.gpus)
            ranks += 1
        if ranks > job.ranks:
            return Growth(job.id, ranks)
    return None


def _placeable(gangs: Sequence[Waiting], cluster: Cluster) -> bool:
    """Whether they all find machines, placed one after another as a whole."""
    if not cluster.nodes:
        return True
    pool = Pool(cluster)
    for gang in gangs:
        if not pool.fits(gang.shape):
            return False
        pool.take(gang.shape)
    return True


class Patience:
    """Since when a job could grow: it makes way once that has been so, without a break, for long enough."""

    def __init__(self) -> None:
        self._since: tuple[str, float, float] | None = None  # job, when its attempt was opened, since when

    def over(self, grow: Growth | None, running: Iterable[Running], policy: Policy, now: float) -> bool:
        """Whether this growth has been possible for long enough."""
        if grow is None:
            self._since = None
            return False
        ((job, opened),) = ((each.id, each.opened) for each in running if each.id == grow.job)
        if self._since is None or self._since[:2] != (job, opened):
            self._since = job, opened, now
        return now - self._since[2] >= policy.growing.patience
