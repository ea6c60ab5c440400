"""Do database, Redis, cluster, served models and artifacts agree? Every disagreement by name, and repairs.

The database is the truth. What the others say is read before what the database says wherever the database is
written last, and after it where it is written first; what looks wrong is looked at twice. So a service at
work is not taken for a broken one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from jobs.keeper import Keeper, Server
from jobs.queue import QueueUnavailable
from jobs.service import LAUNCH_GRACE, Service, same_order
from jobs.store import AttemptState, Checkpoint, NotFound, Version, repairs

BY = "verify"
_OLD = 3600.0  # seconds after which nobody writes at something half-written any more
_HALF = (".partial", ".old")


class Kind(StrEnum):
    """What two parts disagree about."""

    DAMAGE = "damage"
    """The database file is damaged."""
    CONTRADICTION = "contradiction"
    """Two records cannot both be true."""
    NOT_QUEUED = "not-queued"
    """A job that may start is not in the queue, or for another attempt."""
    FOREIGN = "foreign"
    """The queue holds a job that may not start."""
    LEASE = "lease"
    """An attempt that has ended holds a lease still."""
    DEAD = "dead"
    """An active attempt has no process."""
    ZOMBIE = "zombie"
    """The process of an attempt that has ended runs still."""
    CHECKPOINT = "checkpoint"
    """The files of a recorded checkpoint are missing, or not what was recorded."""
    VERSION = "version"
    """The files of a model version are missing, or not what was recorded."""
    LEFT_OVER = "left-over"
    """Files that should have been deleted are there."""
    UNRECORDED = "unrecorded"
    """A whole checkpoint or version in the artifact store that no record names."""
    HALF_WRITTEN = "half-written"
    """What a process that was killed left of a checkpoint that it wrote, copied or deleted."""
    NOT_SERVED = "not-served"
    """What is served is not what was promoted."""
    NO_DISPATCHER = "no-dispatcher"
    """No dispatcher has looked at the cluster within the last minute."""
    UNREACHABLE = "unreachable"
    """A part does not answer, so that it could not be compared."""


@dataclass(frozen=True)
class Disagreement:
    """One thing about which two parts disagree."""

    kind: Kind
    what: str
    detail: str
    repair: str | None  # what a repair does; none: a person must decide
    repaired: bool = False


class Artifacts(Protocol):
    """What is asked of the artifact store (`textvae.artifacts.Artifacts`)."""

    local: Path | None

    def exists(self, name: str) -> bool: ...
    def fetch(self, name: str, cache: Path) -> Path: ...
    def put(self, folder: Path, name: str) -> None: ...
    def delete(self, name: str) -> None: ...
    def list(self, prefix: str = "") -> list[str]: ...
    def location(self, name: str) -> str: ...


class Cluster(Protocol):
    """What is asked of the launcher. Its verbs raise RuntimeError if the cluster does not answer."""

    def names(self) -> set[str]: ...
    def stop(self, name: str) -> object: ...


@dataclass(frozen=True)
class Parts:
    """What there is to compare. Without a cluster or a server, nothing is said of them."""

    service: Service
    artifacts: Artifacts
    check: Callable[..., object]  # textvae.checkpoint.verify(folder, digest=...)
    broken: tuple[type[Exception], ...]  # what that, and the artifact store, raise for what is not there
    cache: Path
    cluster: Cluster | None = None
    server: Server | None = None
    redis: bool = True  # whether there is one


_Finding = tuple[Disagreement, Callable[[], object] | None]


def verify(parts: Parts, *, repair: bool = False) -> list[Disagreement]:
    """Every disagreement; with `repair` those that can be are repaired, and say so.

    Raises StoreUnavailable without a database: there is nothing then to compare anything with.
    """
    found: list[Disagreement] = []
    with_redis = (_attempts, _queue, _dispatcher) if parts.redis else ()
    for look in (_database, *with_redis, _checkpoints, _versions, _files, _served):
        try:
            findings = list(look(parts))
        except (QueueUnavailable, OSError, RuntimeError) as error:
            found.append(Disagreement(Kind.UNREACHABLE, look.__name__.strip("_"), str(error), None))
            continue
        for finding, mend in findings:
            if not repair or mend is None:
                found.append(finding)
                continue
            try:
                mend()
            except (QueueUnavailable, OSError, RuntimeError) as error:
                found.append(replace(finding, detail=f"{finding.detail}; not repaired: {error}"))
                continue
            found.append(replace(finding, repaired=True))
    return found


def _database(parts: Parts) -> Iterator[_Finding]:
    store = parts.service.store
    for line in repairs.damage(store):
        yield Disagreement(Kind.DAMAGE, "the database", line, None), None
    for what, wrong in repairs.contradictions(store):
        yield Disagreement(Kind.CONTRADICTION, what, wrong, None), None


def _attempts(parts: Parts) -> Iterator[_Finding]:
    if parts.cluster is None:
        return
    store, queue, cluster = parts.service.store, parts.service.queue, parts.cluster
    # An attempt is recorded before it is launched, and its end before its process ends: what ran before this
    # look at the records, and is none of the active ones, has been told to go.
    names = cluster.names()
    active = {attempt.actor: attempt for attempt in store.attempts(active=True)}
    for name in sorted(names - set(active)):
        job, _, number = name.rpartition("-")
        known = number.isdigit() and any(a.number == int(number) for a in store.attempts(job))
        detail = "its attempt has ended" if known else "no attempt of that name is recorded"
        yield (
            Disagreement(Kind.ZOMBIE, name, f"runs still; {detail}", "kill it" if known else None),
            partial(cluster.stop, name) if known else None,
        )
    leases = queue.leases({attempt.job for attempt in active.values()})
    now = store.clock()
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


class _Snapshot:
    """Which attempts are alive, as `Service.reconcile_attempts` asks."""

    def __init__(self, cluster: Cluster):
        self._names = cluster.names()

    def state(self, name: str) -> Any:
        return "alive" if name in self._names else "dead"


def _queue(parts: Parts) -> Iterator[_Finding]:
    store, queue = parts.service.store, parts.service.queue
    entries = queue.entries()
    waiting = {job.id: job.attempt + 1 for job in store.queued() if job.eligible}
    wrong = {id for id, number in waiting.items() if entries.get(id) != number}
    foreign = set(entries) - set(waiting)
    if wrong or foreign:
        # A submit or a claim may have been under way: what is wrong for good is so a moment later.
        time.sleep(0.5)
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
    if not wrong and not same_order(entries, waiting):
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
    active = {attempt.job: attempt.number for attempt in store.attempts(active=True)}
    ended = {job.id: job.attempt for job in store.jobs() if job.attempt and job.id not in active}
    for id, number in sorted(queue.leases(ended).items()):
        if number <= ended[id]:
            yield (
                Disagreement(
                    Kind.LEASE, f"job {id}", f"attempt {number} has ended and holds a lease", "release it"
                ),
                partial(queue.release, id, number),
            )


def _dispatcher(parts: Parts) -> Iterator[_Finding]:
    if parts.service.queue.cluster() is None:
        detail = "has not looked at the cluster within the last minute; `textvae-jobs up` starts one"
        yield Disagreement(Kind.NO_DISPATCHER, "the dispatcher", detail, None), None


def _checkpoints(parts: Parts) -> Iterator[_Finding]:
    store = parts.service.store
    for recorded in repairs.present(store):
        if recorded.deleted is not None:
            # An attempt that works on the job deletes by itself what it marked.
            busy = any(attempt.state.active for attempt in store.attempts(recorded.job))
            if not busy and parts.artifacts.exists(recorded.location):
                yield (
                    Disagreement(Kind.LEFT_OVER, recorded.location, "was to be deleted", "delete it"),
                    _deleter(parts, recorded),
                )
            continue
        wrong = _wrong(parts, recorded.location, recorded.digest)
        if wrong is None or _gone_since(parts, recorded):
            continue
        yield (
            Disagreement(
                Kind.CHECKPOINT,
                recorded.location,
                wrong,
                "record that it is gone; the job resumes from an earlier one",
            ),
            partial(repairs.discard, store, recorded, BY, wrong),
        )


def _wrong(parts: Parts, location: str, digest: str) -> str | None:
    """What is wrong with the files of a record; none if they are what was recorded."""
    try:
        parts.check(parts.artifacts.fetch(location, parts.cache), digest=digest)
    except parts.broken as error:
        return str(error)
    return None


def _gone_since(parts: Parts, recorded: Checkpoint) -> bool:
    """Whether the record has changed meanwhile: a busy job prunes its checkpoints."""
    now = parts.service.store.checkpoint(recorded.id)
    return now.deleted is not None or now.digest != recorded.digest


def _deleter(parts: Parts, recorded: Checkpoint) -> Callable[[], object]:
    def delete() -> None:
        parts.artifacts.delete(recorded.location)
        parts.service.store.purged(recorded.id)

    return delete


def _versions(parts: Parts) -> Iterator[_Finding]:
    store = parts.service.store
    for model in store.models():
        for version in store.versions(model.name):
            wrong = _wrong(parts, version.location, version.digest)
            if wrong is None:
                continue
            again = _source_of(parts, version)
            serves = " (it is served now: roll back)" if version.version == model.current else ""
            yield (
                Disagreement(
                    Kind.VERSION,
                    f"version {version.version} of {version.model}",
                    wrong + ("" if again else serves),
                    f"copy it again from {again.location}" if again else None,
                ),
                _copier(parts, again, version) if again else None,
            )


def _source_of(parts: Parts, version: Version) -> Checkpoint | None:
    """The checkpoint that a version was made of, if its files are good."""
    try:
        source = parts.service.store.checkpoint(version.checkpoint)
    except NotFound:
        return None
    good = source.deleted is None and _wrong(parts, source.location, version.digest) is None
    return source if good else None


def _copier(parts: Parts, source: Checkpoint, version: Version) -> Callable[[], object]:
    def copy() -> None:
        folder = parts.artifacts.fetch(source.location, parts.cache)
        parts.artifacts.delete(version.location)
        parts.artifacts.put(folder, version.location)

    return copy


def _files(parts: Parts) -> Iterator[_Finding]:
    store, artifacts = parts.service.store, parts.artifacts
    # Files are put before they are recorded: what was listed and is no active attempt's should be recorded.
    listed = artifacts.list()
    half = list(_half_written(parts))
    recorded = {checkpoint.location for checkpoint in repairs.present(store)}
    models = store.models()
    recorded |= {version.location for model in models for version in store.versions(model.name)}
    jobs = {job.id for job in store.jobs()}
    active = store.attempts(active=True)
    making = {store.job(attempt.job, exact=True).name for attempt in active}
    for name in listed:
        parts_of = name.split("/")
        if name in recorded or len(parts_of) < 3 or parts_of[0] not in ("jobs", "models"):
            continue
        owner = parts_of[1]
        if parts_of[0] == "jobs" and any(f"jobs/{a.job}/attempt-{a.number}/" in name for a in active):
            continue
        if parts_of[0] == "models" and owner in making:
            continue  # a version is put in place before it is recorded
        ours = owner in jobs if parts_of[0] == "jobs" else any(owner == model.name for model in models)
        detail = (
            "nothing names it" if ours else f"there is no {parts_of[0][:-1]} {owner}: of another database?"
        )
        yield (
            Disagreement(Kind.UNRECORDED, name, detail, "delete it" if ours else None),
            partial(parts.artifacts.delete, name) if ours else None,
        )
    for path, age in half:
        if active and age < _OLD:
            continue  # somebody may be at it
        yield (
            Disagreement(Kind.HALF_WRITTEN, str(path), "whoever wrote it has died", "delete it"),
            partial(shutil.rmtree, path),
        )


def _half_written(parts: Parts) -> Iterator[tuple[Path, float]]:
    """Folders that were begun or stepped aside, with their age. (An object store knows none: see `list`.)"""
    now = time.time()
    for root in (parts.artifacts.local, parts.cache):
        if root is None or not root.is_dir():
            continue
        for path in root.rglob(".*"):
            if path.suffix in _HALF and path.is_dir():
                yield path, now - path.stat().st_mtime


def _served(parts: Parts) -> Iterator[_Finding]:
    if parts.server is None:
        return
    store = parts.service.store
    current: Mapping[str, Mapping[str, Any]] = parts.server.current()
    served = {name: version.get("version") for name, version in current.items()}
    promoted = {version.model: version.version for version in store.served()}
    if promoted and served != promoted:
        yield (
            Disagreement(
                Kind.NOT_SERVED, "the served models", f"are {served}, promoted are {promoted}", "serve them"
            ),
            Keeper(store, parts.server, parts.artifacts.location).compare,
        )
