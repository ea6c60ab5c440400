"""What starts now, what makes room for whom, and for which job room is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jobs.scheduling.backlog import Backlog
from jobs.scheduling.growing import growth, widen
from jobs.scheduling.order import Line
from jobs.scheduling.policy import Policy
from jobs.scheduling.reserving import Reserved
from jobs.scheduling.room import Pool
from jobs.scheduling.values import (
    SLACK,
    Cluster,
    Decisions,
    History,
    Preemption,
    Reservation,
    Running,
    Waiting,
)


def decide(
    waiting: Backlog | Iterable[Waiting],
    running: Sequence[Running],
    cluster: Cluster,
    history: History,
    policy: Policy,
    now: float,
    *,
    promised: Reservation | None = None,
    gone: Sequence[Running] = (),
) -> Decisions:
    """What to do at the moment `now`. Nothing is changed; the same arguments give the same answer.

    Jobs are looked at in order (`Line`) and start while they fit. Room is kept for the first that does not
    fit, and running jobs make way for it. If none does, those behind it start if it need not wait longer for
    that. What is left then goes to those of them that may have more ranks than they need, and if nobody is
    left waiting, to those that run.

    `promised` is what the last decision told the first job that did not fit. The jobs of `gone` have ended a
    moment ago, and the cluster may still count them.
    """
    backlog = waiting if isinstance(waiting, Backlog) else Backlog(waiting)
    pool = Pool(cluster)
    line = Line(backlog, running, cluster, history, policy, now)
    start: list[Waiting] = []
    first: Waiting | None = None
    reserved: Reserved | None = None
    preempt: tuple[Preemption, ...] = ()
    while not preempt and (job := line.next()) is not None:
        shape = job.shape
        if line.over_quota(job.owner, shape):
            # Its owner's later jobs wait behind it, or small ones would keep it out for ever.
            line.block(job.owner)
        elif not pool.fits(shape):
            line.fail(shape)
            if reserved is None:
                first = job
                starting = [_as_running(s, now) for s in start]
                told = None if start else _still(promised, job, now)
                reserved = Reserved(shape, running, starting, cluster, pool, now, policy, told)
                preempt = make_room(job, [*running, *gone], pool, reserved.at, policy, now)
        elif reserved is not None and not reserved.allows(shape, now):
            line.fail(shape)
        else:
            pool.take(shape)
            if reserved is not None:
                reserved.take(shape, now)
            start.append(job)
            line.started(job)
        if reserved is not None and pool.cpus <= SLACK:
            break  # every job needs some of a CPU
    if not preempt:  # what is free now counts among the room that is being made
        start = widen(start, cluster, pool, reserved, line.held, policy, now)
    if first is not None and reserved is not None:
        return Decisions(tuple(start), preempt, Reservation(first.id, reserved.at))
    grow = None if start else growth(running, pool, line.held, line.blocked, policy, now)
    return Decisions(tuple(start), grow=grow)


def make_room(
    job: Waiting, running: Sequence[Running], pool: Pool, at: float | None, policy: Policy, now: float
) -> tuple[Preemption, ...]:
    """Which running jobs yield to `job`, the first that does not fit; none if that would not be enough.

    Only the priorities that were asked for count here, never what waiting has lifted: so no job can displace
    one that displaced it.
    """
    rules = policy.preemption
    if not rules.enabled or now - max(job.since, job.not_before or job.since) < rules.patience:
        return ()
    if at is not None and at <= now + rules.patience:
        return ()
    room = pool.copy()
    for other in running:
        if other.yielding is not None or other.ending:
            room.give(other.shape, room.places(other))
    candidates = sorted(
        (other for other in running if _displaceable(other, job, policy, now)),
        key=lambda other: (other.priority, -(other.started or 0.0), other.id),
    )
    chosen: list[Running] = []
    for other in candidates:
        if room.fits(job.shape):
            break
        room.give(other.shape, room.places(other))
        chosen.append(other)
    if not room.fits(job.shape):
        return ()
    for other in chosen[::-1]:  # of those that were taken, the ones that later ones made unnecessary
        room.take(other.shape, room.places(other))
        if room.fits(job.shape):
            chosen.remove(other)
        else:
            room.give(other.shape, room.places(other))
    return tuple(Preemption(other.id, job.id) for other in chosen)


def _still(promised: Reservation | None, job: Waiting, now: float) -> float | None:
    """By when it was told to fit, unless that has passed: then it was not to be."""
    if promised is None or promised.job != job.id or promised.at is None or promised.at <= now:
        return None
    return promised.at


def _displaceable(other: Running, job: Waiting, policy: Policy, now: float) -> bool:
    rules = policy.preemption
    return (
        other.yielding is None
        and not other.ending
        and other.priority + rules.gap <= job.priority
        and other.displaced < rules.times
        and other.started is not None
        and now - other.started >= rules.uninterrupted
    )


def _as_running(job: Waiting, now: float) -> Running:
    """A job that starts in this pass, as the next one would see it."""
    return Running(
        job.id, job.owner, job.priority, job.ranks, job.cpus, job.gpus, opened=now, limit=job.limit
    )
