"""Why a job that waits does not start: in words for a person, in fields for a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from jobs.store import EventKind, Job, Queued, Store

if TYPE_CHECKING:
    from jobs.scheduling import Reason

# What stands before the scheduler's own words, so that they read after "waits for".
_SCHEDULER = {
    "quota": "its owner's quota",
    "resources": "room",
    "priority": "its turn",
}


@dataclass(frozen=True)
class Why:
    """Why a job does not start now."""

    blocked: str  # held, dependency, not-before, drain, service, quota, resources, priority, starting
    text: str  # reads after "waits for"
    position: int | None = None  # 1 goes first; none if it could not go now, or nobody can tell
    waits_for: tuple[str, ...] = ()  # the jobs that have to end first
    starts: datetime | None = None  # at the latest if `guaranteed`, else an estimate
    guaranteed: bool = False


def why(
    store: Store,
    job: Job,
    *,
    up: bool = True,
    cluster: Mapping[str, float] | None = None,
    reason: Callable[[str], Reason | None] | None = None,
) -> Why | None:
    """Why `job` does not start; none if it does not wait.

    `up` says whether the service is there at all, `cluster` what a dispatcher saw of the cluster last, and
    `reason` asks the scheduler, if a dispatcher has shown what it decides on.
    """
    waiting = store.waiting(job.id)
    if waiting is None:
        return None
    own = _own(store, job, waiting)
    if own is not None:
        return own
    drain = store.draining()
    if drain is not None:
        return Why("drain", f"the end of a drain that {drain.by} began: nothing new starts")
    if not up:
        return Why("service", "the service, which is not up: textvae-jobs up")
    if job.trials is not None:
        return Why("starting", "the dispatcher to make its children")
    if reason is None:
        return _in_line(store, waiting, cluster)
    given = reason(job.id)
    if given is None:
        return Why("starting", "the dispatcher to start it")
    return Why(
        str(given.blocked),
        f"{_SCHEDULER.get(str(given.blocked), given.blocked)}: {given.text}",
        given.position,
        given.waits_for,
        None if given.starts is None else datetime.fromtimestamp(given.starts, UTC),
        given.guaranteed,
    )


def _own(store: Store, job: Job, waiting: Queued) -> Why | None:
    """What keeps it that has to do with no other job in the queue."""
    if waiting.held is not None:
        holders = [event for event in store.events(job.id) if event.kind is EventKind.HELD]
        return Why("held", f"its release: {holders[-1].actor if holders else 'someone'} holds it")
    if waiting.blocked_by:
        others = [d for d in store.dependencies(job.id) if d.on_job in waiting.blocked_by]
        told = ", ".join(f"job {d.on_job}, which is {d.state}" for d in others)
        return Why(
            "dependency",
            f"{'the end' if all(d.any for d in others) else 'the success'} of {told}",
            waits_for=waiting.blocked_by,
        )
    if not waiting.eligible and waiting.not_before is not None:
        text = "its moment"
        if job.attempt and job.error:
            text = f"its next retry: attempt {job.attempt} failed"
        return Why("not-before", text, starts=waiting.not_before, guaranteed=False)
    return None


def _in_line(store: Store, waiting: Queued, cluster: Mapping[str, float] | None) -> Why:
    """What the store alone can tell, while no dispatcher says what it sees."""
    unfit = [event for event in store.events(waiting.id) if event.kind is EventKind.UNFIT]
    if unfit and not _fits(waiting, cluster):
        return Why("resources", f"a larger cluster: it {unfit[-1].detail['reason']}")
    before = []
    for other in store.queued():
        if other.id == waiting.id:
            break
        if other.eligible:
            before.append(other.id)
    # It may have been claimed between these looks: it does not wait for itself.
    busy = [other for other in store.running() if other.id != waiting.id]
    taken = f"running jobs hold {needs_of(sum(b.cpus for b in busy), sum(b.gpus for b in busy))}"
    position = len(before) + 1
    holders = tuple(other.id for other in busy)
    if before:
        return Why(
            "priority", f"{_several(len(before), 'job')} ahead of it; {taken}", position, tuple(before)
        )
    if busy:
        needs = needs_of(waiting.cpus, waiting.gpus)
        return Why("resources", f"{needs} to be free; {taken}", position, holders)
    return Why("starting", "the dispatcher to start it", position)


def _fits(job: Queued, cluster: Mapping[str, float] | None) -> bool:
    return cluster is not None and job.cpus <= cluster["total_cpus"] and job.gpus <= cluster["total_gpus"]


def needs_of(cpus: float, gpus: float) -> str:
    """`2 CPUs`, `4 CPUs and 1 GPU`."""
    return _several(cpus, "CPU") + (f" and {_several(gpus, 'GPU')}" if gpus else "")


def _several(n: float, noun: str) -> str:
    return f"{n:g} {noun}" + ("" if n == 1 else "s")
