"""The artifact store, compared with what is recorded of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from jobs.store import Checkpoint, NotFound, Version, repairs
from jobs.verify.parts import Disagreement, Finding, Kind, Parts

_BY = "verify"
_OLD = 3600.0  # seconds after which nobody writes at something half-written any more
_HALF = (".partial", ".old")


def checkpoints(parts: Parts) -> Iterator[Finding]:
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
            partial(repairs.discard, store, recorded, _BY, wrong),
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


def versions(parts: Parts) -> Iterator[Finding]:
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


def files(parts: Parts) -> Iterator[Finding]:
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
