"""A copy of the database and of every artifact that it names, taken while the service is at work; and back.

A backup is a folder:

    backup.json   what it holds: format, moment, schema, SHA-256 of the database and of each manifest
    textvae.db    the SQLite database as of one moment; none if the database is of another kind
    storage/      checkpoints and model versions, under their names

The database is copied first, by SQLite's own online backup, then what it names. Artifacts never change, so
the two agree but for checkpoints that were pruned in between; those are marked as deleted in the copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from jobs.migrations import HEAD
from jobs.settings import Settings, sqlite_url
from jobs.store import Checkpoint, Store, repairs

DATABASE, STORAGE, CONTENTS = "textvae.db", "storage", "backup.json"
FORMAT = 1
BY = "backup"

Progress = Callable[[str, int, int], object]


class BackupError(RuntimeError):
    """A backup cannot be made here, or this folder is none, or it is damaged; the message says which."""


class Artifacts(Protocol):
    """What is asked of an artifact store (`textvae.artifacts.Artifacts`)."""

    def fetch(self, name: str, cache: Path) -> Path: ...
    def put(self, folder: Path, name: str) -> None: ...


@dataclass(frozen=True)
class Tools:
    """The parts that know artifacts."""

    open: Callable[[str], Artifacts]  # an artifact store by its root
    check: Callable[..., object]  # textvae.checkpoint.verify(folder, digest=...)
    broken: tuple[type[Exception], ...]  # what these raise for an artifact that is not there or not good


@dataclass(frozen=True)
class Backup:
    """What a backup holds."""

    folder: Path
    created: datetime
    database: bool  # whether it holds the database
    artifacts: int
    missing: tuple[str, ...]  # artifacts that are recorded and could not be read


def backup(
    store: Store,
    settings: Settings,
    folder: Path,
    tools: Tools,
    *,
    artifacts_only: bool = False,
    progress: Progress = lambda name, done, total: None,
) -> Backup:
    """Write a backup to `folder`, which must not exist; it appears whole or not at all.

    `progress` hears each artifact's name, and how many of how many there were before it. Raises BackupError.
    """
    if not artifacts_only and not settings.database_url.startswith("sqlite"):
        raise BackupError(
            f"{store.name} is backed up by its own tools, such as pg_dump; do that first, then back up "
            "what it names with --artifacts-only"
        )
    if folder.exists():
        raise BackupError(f"{folder} exists; name a folder that does not")
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(mode=0o700)
        created = store.clock()
        if artifacts_only:
            copied, missing = _copy_artifacts(store, store, settings, partial, tools, progress)
        else:
            repairs.copy_to(store, partial / DATABASE)
            copy = Store(sqlite_url(partial / DATABASE))
            try:
                copied, missing = _copy_artifacts(store, copy, settings, partial, tools, progress)
            finally:
                copy.close()
            _sync(partial / DATABASE)
        contents = {
            "format": FORMAT,
            "created": created.isoformat(),
            "schema": HEAD,
            "database": None if artifacts_only else _sha256(partial / DATABASE),
            "artifacts": copied,
            "missing": missing,
        }
        (partial / CONTENTS).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
        _sync(partial / CONTENTS)
        _sync(partial)
        partial.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        raise BackupError(f"the backup {folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing of it is left once it has its name
    return Backup(folder, created, not artifacts_only, len(copied), tuple(missing))


def restore(
    folder: Path,
    settings: Settings,
    tools: Tools,
    *,
    progress: Progress = lambda name, done, total: None,
) -> Backup:
    """Make a new home of a backup; the home appears whole or not at all.

    An artifact store outside of the home is filled first; what it holds already stays. Attempts that were
    under way when the backup was taken have no process any more: the first dispatcher records them as lost,
    and their jobs go on from their newest checkpoints.

    Raises BackupError.
    """
    contents = _read(folder)
    held = contents["database"] is not None
    if held:
        if settings.database_url != sqlite_url(settings.home / DATABASE):
            raise BackupError(
                "the database of a backup is restored to the home folder: unset TEXTVAE_DATABASE_URL"
            )
        if settings.home.exists() and any(settings.home.iterdir()):
            raise BackupError(
                f"{settings.home} is not empty; restore to a TEXTVAE_HOME that is, or is not there"
            )
        if _sha256(folder / DATABASE) != contents["database"]:
            raise BackupError(f"{folder / DATABASE} is damaged: its SHA-256 is not that of the backup")
    source = tools.open(str(folder / STORAGE))
    partial = settings.home.parent / f".{settings.home.name}.{uuid.uuid4().hex[:8]}.partial"
    inside = "://" not in settings.storage and Path(settings.storage).is_relative_to(settings.home)
    storage = settings.storage
    if held and inside:  # it comes to its place with the home
        storage = str(partial / Path(storage).relative_to(settings.home))
    try:
        settings.home.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(mode=0o700)
        target = tools.open(storage)
        for done, (name, digest) in enumerate(contents["artifacts"].items()):
            progress(name, done, len(contents["artifacts"]))
            try:
                found = source.fetch(name, partial / "unused")
                tools.check(found, digest=digest)
                target.put(found, name)
            except tools.broken as error:
                raise BackupError(f"{name} cannot be restored: {error}") from error
        if held:
            shutil.copyfile(folder / DATABASE, partial / DATABASE)
            (partial / DATABASE).chmod(0o600)
            Store(sqlite_url(partial / DATABASE)).close()  # migrates an older one, refuses a newer
            repairs.write_ahead(partial / DATABASE)
            _sync(partial / DATABASE)
            _sync(partial)
            partial.rename(settings.home)  # onto an empty folder, or none
            _sync(settings.home.parent)
    except OSError as error:
        raise BackupError(f"{folder} cannot be restored: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    created = datetime.fromisoformat(contents["created"])
    return Backup(folder, created, held, len(contents["artifacts"]), tuple(contents["missing"]))


def _copy_artifacts(
    live: Store, copy: Store, settings: Settings, partial: Path, tools: Tools, progress: Progress
) -> tuple[dict[str, str], list[str]]:
    """Copy what `copy` names; each artifact's digest, and those that could not be read."""
    source, target = tools.open(settings.storage), tools.open(str(partial / STORAGE))
    checkpoints = {c.location: c for c in repairs.present(copy) if c.deleted is None}
    versions = {v.location: v.digest for model in copy.models() for v in copy.versions(model.name)}
    wanted = {location: c.digest for location, c in checkpoints.items()} | versions
    copied: dict[str, str] = {}
    missing: list[str] = []
    for done, (name, digest) in enumerate(wanted.items()):
        progress(name, done, len(wanted))
        try:
            folder = source.fetch(name, settings.cache)
            tools.check(folder, digest=digest)
            target.put(folder, name)
        except tools.broken as error:
            recorded = checkpoints.get(name)
            if recorded is None or not _pruned(live, recorded):
                missing.append(name)
            # One that cannot be read now may be good: the copy must not say that it is gone.
            if recorded is not None and copy is not live and not isinstance(error, OSError):
                repairs.discard(copy, recorded, BY, f"not in the backup: {error}")
            continue
        copied[name] = digest
    return copied, missing


def _pruned(live: Store, recorded: Checkpoint) -> bool:
    """Whether the service has deleted the checkpoint since the database was copied."""
    now = live.checkpoint(recorded.id)
    return now.deleted is not None or now.digest != recorded.digest


def _read(folder: Path) -> dict[str, Any]:
    """What the backup at `folder` says of itself."""
    try:
        contents = dict(json.loads((folder / CONTENTS).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise BackupError(f"{folder} is no backup: {CONTENTS} cannot be read ({error})") from error
    if contents.get("format") != FORMAT:
        raise BackupError(
            f"{folder} is a backup of format {contents.get('format')!r}; this version reads format {FORMAT}"
        )
    return contents


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
