"""The artifact store, compared with what is recorded of it.

What cannot be read now may be good: it is named as unreachable, and nothing is repaired of it. The artifact
store and `Parts.check` raise an OSError for that.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from jobs.store import Checkpoint, NotFound, Version, repairs
from jobs.verify.parts import Disagreement, Finding, Kind, Parts

_BY = "verify"
_OLD = 3600.0  # seconds after which nobody writes at something half-written any more
_HALF = (".partial", ".old")


def checkpoints(parts: Parts) -> Iterator[Finding]:
    store = parts.service.store
    bad: list[tuple[Checkpoint, str]] = []
    for recorded in repairs.present(store):
        try:
            if recorded.deleted is not None:
                if _left_over(parts, recorded):
                    yield (
                        Disagreement(Kind.LEFT_OVER, recorded.location, "was to be deleted", "delete it"),
                        _deleter(parts, recorded),
                    )
                continue
            wrong = _wrong(parts, recorded.location, recorded.digest)
        except OSError as error:
            yield _unreachable(recorded.location, error)
            continue
        if wrong is not None and not _gone_since(parts, recorded):
            bad.append((recorded, wrong))
    # Asked last, as it may have gone while the others were read.
    if bad and not parts.artifacts.list():
        why = f"holds nothing, not one of {len(bad)} recorded checkpoints: is it mounted, and the right one?"
        yield _unreachable(parts.artifacts.root, why)
        return
    for recorded, wrong in bad:
        yield (
            Disagreement(
                Kind.CHECKPOINT,
                recorded.location,
                wrong,
                "record that it is gone; the job resumes from an earlier one",
            ),
            partial(repairs.discard, store, recorded, _BY, wrong),
        )


def _unreachable(what: str, why: object) -> Finding:
    return Disagreement(Kind.UNREACHABLE, what, str(why), None), None


def _wrong(parts: Parts, location: str, digest: str) -> str | None:
    """What is wrong with the files of a record; none if they are what was recorded.

    Raises OSError if that cannot be known.
    """
    try:
        parts.check(parts.artifacts.fetch(location, parts.cache), digest=digest)
    except OSError:
        raise
    except parts.broken as error:
        return str(error)
    return None


def _left_over(parts: Parts, recorded: Checkpoint) -> bool:
    """Whether a checkpoint that was to be deleted is there, and nobody is about to do it."""
    # An attempt that works on the job deletes by itself what it marked.
    busy = any(attempt.state.active for attempt in parts.service.store.attempts(recorded.job))
    return not busy and parts.artifacts.exists(recorded.location)


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
            try:
                wrong = _wrong(parts, version.location, version.digest)
                if wrong is None:
                    continue
                again = _source_of(parts, version)
            except OSError as error:
                yield _unreachable(f"version {version.version} of {version.model}", error)
                continue
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
    # An attempt puts files before it records them. What was there, and is no active attempt's a moment later,
    # has been recorded by then or never will be: so what is recorded is read last.
    listed = artifacts.list()
    half = list(_half_written(parts))
    torn = artifacts.torn("jobs") | artifacts.torn("models")
    active = store.attempts(active=True)
    making = {store.job(attempt.job, exact=True).name for attempt in active}
    recorded = {checkpoint.location for checkpoint in repairs.present(store)}
    discarded = {checkpoint.location: checkpoint for checkpoint in repairs.discarded(store)}
    models = store.models()
    recorded |= {version.location for model in models for version in store.versions(model.name)}
    owners = {"jobs": {job.id for job in store.jobs()}, "models": {model.name for model in models}}

    def in_the_making(name: str) -> bool:
        if any(name.startswith(f"jobs/{a.job}/attempt-{a.number}/") for a in active):
            return True
        kind, owner, _ = _split(name)
        return kind == "models" and owner in making  # a version is put in place before it is recorded

    def strange(name: str) -> str | None:
        """Why it is none of this database, if it is not."""
        kind, owner, rest = _split(name)
        if kind not in owners or not rest:
            return "nothing names it, and nothing of ours is called so"
        return None if owner in owners[kind] else f"there is no {kind[:-1]} {owner}: of another database?"

    for name in listed:
        if name in recorded or in_the_making(name):
            continue
        if (why := strange(name)) is not None:
            yield Disagreement(Kind.UNRECORDED, name, why, None), None
            continue
        try:
            if not artifacts.exists(name):
                continue  # it was pruned meanwhile
            if name in discarded and _wrong(parts, name, discarded[name].digest) is None:
                # The artifact store was not all there when it was looked for.
                yield (
                    Disagreement(
                        Kind.UNRECORDED, name, "is recorded as gone, and is there", "record that it is there"
                    ),
                    partial(repairs.take_back, store, discarded[name], _BY),
                )
                continue
        except OSError as error:
            yield _unreachable(name, error)
            continue
        yield (
            Disagreement(Kind.UNRECORDED, name, "nothing names it", "delete it"),
            partial(artifacts.delete, name),
        )
    for name, written in torn.items():
        if name in recorded or in_the_making(name) or time.time() - written < _OLD:
            continue
        if (why := strange(name)) is not None:
            yield Disagreement(Kind.HALF_WRITTEN, name, why, None), None
            continue
        yield (
            Disagreement(Kind.HALF_WRITTEN, name, "has no manifest: whoever wrote it has died", "delete it"),
            partial(artifacts.delete, name),
        )
    for path, age in half:
        if age < _OLD:
            continue  # somebody may be at it: an attempt, or a command that fetches a checkpoint
        yield (
            Disagreement(Kind.HALF_WRITTEN, str(path), "whoever wrote it has died", "delete it"),
            partial(shutil.rmtree, path),
        )


def _split(name: str) -> tuple[str, str, str]:
    """Jobs or models, of whom, and the rest of an artifact's name."""
    kind, _, rest = name.partition("/")
    owner, _, rest = rest.partition("/")
    return kind, owner, rest


def _half_written(parts: Parts) -> Iterator[tuple[Path, float]]:
    """Folders that were begun or stepped aside, with the age in seconds of what was written last.

    (An object store knows none: see `torn`.)
    """
    now = time.time()
    for root in (parts.artifacts.local, parts.cache):
        if root is None or not root.is_dir():
            continue
        for path in root.rglob(".*"):
            if path.suffix in _HALF and path.is_dir():
                with suppress(FileNotFoundError):  # whoever is at it is done
                    yield path, now - max(each.stat().st_mtime for each in (path, *path.iterdir()))
