"""Database, queue, cluster and served models, compared with one another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from jobs.keeper import Essence, Keeper
from jobs.service import CLAIM_LEASE, LAUNCH_GRACE, same_order
from jobs.store import AttemptState, repairs
from jobs.verify.parts import Cluster, Disagreement, Finding, Kind, Parts

Key = TypeVar("Key")
Value = TypeVar("Value")

_MOMENT = 0.5  # seconds between two looks at what may be under way
_CLEARING = 10.0  # seconds that what is left of an attempt may stay, and a lease that Redis lost be away
_SILENCE = 60.0  # seconds without a sign of life after which an attempt is taken for frozen
_LEAVING = 60.0  # seconds that the process of an attempt that has ended may take to go


def _lasting(
    look: Callable[[], Mapping[Key, Value]],
    seconds: float,
    *,
    enough: Callable[[Mapping[Key, Value]], bool] = lambda found: False,
) -> Mapping[Key, Value]:
    """What every look finds, for so many seconds or until it is `enough`; most often nothing is at once."""
    found = look()
    deadline = time.monotonic() + seconds
    while found and time.monotonic() < deadline:
        time.sleep(_MOMENT)
        again = look()
        found = {what: again[what] for what in found if what in again}
        if enough(found):
            break
    return found


def database(parts: Parts) -> Iterator[Finding]:
    store = parts.service.store
    for line in repairs.damage(store):
        yield Disagreement(Kind.DAMAGE, "the database", line, None), None
    for what, wrong in repairs.contradictions(store):
        yield Disagreement(Kind.CONTRADICTION, what, wrong, None), None


def processes(parts: Parts) -> Iterator[Finding]:
    if parts.cluster is None:
        return
    store, cluster = parts.service.store, parts.cluster
    # An attempt is recorded before it is launched, and its end before its process ends: what ran before this
    # look at the records, and is none of the active ones, has been told to go.
    names = cluster.names()
    active = {attempt.actor for attempt in store.attempts(active=True)}
    now = store.clock()
    for name in sorted(names - active):
        attempt = next((a for a in store.attempts(name.rpartition("-")[0]) if a.actor == name), None)
        if attempt is None:
            detail = "runs still; no attempt of that name is recorded"
            yield Disagreement(Kind.ZOMBIE, name, detail, None), None
        elif attempt.finished is not None and (now - attempt.finished).total_seconds() >= _LEAVING:
            yield (
                Disagreement(Kind.ZOMBIE, name, "runs still; its attempt has ended", "kill it"),
                partial(cluster.stop, name),
            )


def leftovers(parts: Parts) -> Iterator[Finding]:
    if parts.cluster is None:
        return
    # An attempt that has just gone takes its ranks along, and a dispatcher at work gives back the rest.
    left = _lasting(parts.cluster.leftovers, _CLEARING)
    for what, removable in sorted(left.items()):
        detail = "is there still; the attempt that has made it is gone"
        if removable:
            yield Disagreement(Kind.ABANDONED, what, detail, "give it back"), parts.cluster.give_back
        else:
            yield Disagreement(Kind.ABANDONED, what, detail, None), None


def attempts(parts: Parts) -> Iterator[Finding]:
    if parts.cluster is None:
        return
    store, queue, cluster = parts.service.store, parts.service.queue, parts.cluster
    names = cluster.names()
    active = {attempt.actor: attempt for attempt in store.attempts(active=True)}
    now = store.clock()
    leases = queue.leases({attempt.job for attempt in active.values()})
    for name, attempt in sorted(active.items()):
        age = (now - attempt.opened).total_seconds()
        if name in names or leases.get(attempt.job) == attempt.number:
            continue
        if attempt.state is AttemptState.STARTING and age < LAUNCH_GRACE:
            continue
        yield (
            Disagreement(Kind.DEAD, name, "is active, but has no process", "record it as lost"),
            lambda: parts.service.reconcile_attempts(_Snapshot(cluster)),
        )


def silent(parts: Parts) -> Iterator[Finding]:
    cluster = parts.cluster
    if cluster is None:
        return
    # If Redis has just come up empty, attempts that live take their leases again within seconds.
    for name, seconds in sorted(_lasting(lambda: _silent(parts, cluster), _CLEARING).items()):
        detail = f"runs, but holds no lease and has written nothing for {seconds:.0f} s: is it frozen?"
        yield Disagreement(Kind.SILENT, name, detail, None), None


def _silent(parts: Parts, cluster: Cluster) -> dict[str, float]:
    """Active attempts that are there and give no sign of life, and for how many seconds they have not."""
    store = parts.service.store
    active = store.attempts(active=True)
    leases = parts.service.queue.leases({attempt.job for attempt in active})
    names, now = cluster.names(), store.clock()
    mute = {a.actor: (now - a.seen).total_seconds() for a in active if leases.get(a.job) != a.number}
    return {name: seconds for name, seconds in mute.items() if name in names and seconds >= _SILENCE}


class _Snapshot:
    """Which attempts are alive, as `Service.reconcile_attempts` asks: once, after it knows of them."""

    def __init__(self, cluster: Cluster):
        self._cluster = cluster
        self._names: set[str] | None = None

    def state(self, name: str) -> Any:
        if self._names is None:
            self._names = self._cluster.names()
        return "alive" if name in self._names else "dead"


def queue(parts: Parts) -> Iterator[Finding]:
    store, queue = parts.service.store, parts.service.queue
    entries = queue.entries()
    waiting = {job.id: job.attempt + 1 for job in store.queued() if job.eligible}
    wrong = {id for id, number in waiting.items() if entries.get(id) != number}
    foreign = set(entries) - set(waiting)
    if wrong or foreign:
        # A submit or a claim may have been under way: what is wrong for good is so a moment later.
        time.sleep(_MOMENT)
        entries = queue.entries()
        waiting = {job.id: job.attempt + 1 for job in store.queued() if job.eligible}
        wrong &= {id for id, number in waiting.items() if entries.get(id) != number}
        foreign &= set(entries) - set(waiting)
    for id in sorted(wrong):
        held = f"attempt {entries[id]}" if id in entries else "nothing"
        yield (
            Disagreement(
                Kind.NOT_QUEUED,
                f"job {id}",
                f"waits for attempt {waiting[id]}, the queue holds {held} of it",
                "queue it",
            ),
            parts.service.reconcile_queue,
        )
    if not same_order(entries, waiting):
        yield (
            Disagreement(
                Kind.NOT_QUEUED, "the queue", "holds jobs in another order than they go in", "queue them anew"
            ),
            parts.service.reconcile_queue,
        )
    for id in sorted(foreign):
        yield (
            Disagreement(Kind.FOREIGN, f"job {id}", "is in the queue and may not start", "take it out"),
            parts.service.reconcile_queue,
        )


def leases(parts: Parts) -> Iterator[Finding]:
    # An attempt ends before it gives up its lease, and a claim takes one before its attempt is recorded. What
    # is astray for good is so a moment later; a claim that was given up, until it ends by itself.
    astray = _lasting(
        lambda: _astray(parts), CLAIM_LEASE, enough=lambda left: not any(each.claim for each in left.values())
    )
    for (job, number), each in sorted(astray.items()):
        yield (
            Disagreement(Kind.LEASE, f"job {job}", f"attempt {number} {each.detail}", "release it"),
            partial(parts.service.queue.release, job, number),
        )


@dataclass(frozen=True)
class _Astray:
    """A lease that no active attempt holds."""

    detail: str
    claim: bool  # whether it may be a claim's, whose attempt is about to be recorded


def _astray(parts: Parts) -> dict[tuple[str, int], _Astray]:
    """Such leases, by job and the number of the attempt."""
    store = parts.service.store
    # Attempts last: one that is opened meanwhile is active by the time that it is looked for.
    held = parts.service.queue.all_leases()
    newest = {job.id: job.attempt for job in store.jobs()}
    active = {(attempt.job, attempt.number) for attempt in store.attempts(active=True)}
    found = {}
    for job, lease in held.items():
        if (job, lease.number) in active:
            continue
        claim = False
        if job not in newest:
            detail = "holds a lease; there is no such job"
        elif lease.number <= newest[job]:
            detail = "has ended and holds a lease"
        else:
            detail = f"holds a lease; its job has had {newest[job]}"
            claim = lease.number == newest[job] + 1 and lease.seconds <= CLAIM_LEASE
        found[job, lease.number] = _Astray(detail, claim)
    return found


def dispatcher(parts: Parts) -> Iterator[Finding]:
    if parts.service.queue.cluster() is None:
        detail = "has not looked at the cluster within the last minute; `textvae-jobs up` starts one"
        yield Disagreement(Kind.NO_DISPATCHER, "the dispatcher", detail, None), None


def served(parts: Parts) -> Iterator[Finding]:
    if parts.server is None:
        return
    keeper = Keeper(parts.service.store, parts.server, parts.artifacts.location)
    served, promoted = keeper.served(), keeper.promoted()
    if served == promoted:
        return
    what = f"are {_versions(served)}, promoted are {_versions(promoted)}"
    if promoted:
        yield Disagreement(Kind.NOT_SERVED, "the served models", what, "serve them"), keeper.compare
    else:
        detail = f"{what}: of another database?"
        yield Disagreement(Kind.NOT_SERVED, "the served models", detail, None), None


def _versions(essence: Essence) -> str:
    told = (f"{name} v{version} ({(digest or '?')[:12]})" for name, (version, digest) in essence.items())
    return ", ".join(sorted(told)) or "none"
