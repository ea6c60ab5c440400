"""What `verify` and `backup` ask of the whole database, and the records that a repair changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import func, or_, select, text, update

from jobs.store.events import EventVerbs
from jobs.store.opening import Database
from jobs.store.records import checkpoint_of
from jobs.store.states import ACTIVE, EventKind, JobState
from jobs.store.tables import AttemptRow, CheckpointRow, JobRow, ModelRow, TrialRow, VersionRow
from jobs.store.values import Checkpoint, StoreError

_CHECKPOINT = tuple(column for column in CheckpointRow.__table__.columns if column.name != "purged")


def damage(store: Database) -> list[str]:
    """What the database itself finds wrong with its file, in its own words. (PostgreSQL guards itself.)"""
    with store.reading() as connection:
        if connection.dialect.name != "sqlite":
            return []
        found = [str(row[0]) for row in connection.execute(text("PRAGMA quick_check"))]
        broken = connection.execute(text("PRAGMA foreign_key_check")).all()
    return [line for line in found if line != "ok"] + [
        f"row {row[1]} of {row[0]} names a row of {row[2]} that is not there" for row in broken
    ]


def contradictions(store: Database) -> list[tuple[str, str]]:
    """Records that cannot both be true, each as (what it is about, what is wrong)."""
    active = AttemptRow.state.in_(ACTIVE)
    with store.reading() as connection:
        idle = connection.execute(
            select(JobRow.id, JobRow.attempt).where(
                JobRow.state == JobState.RUNNING,
                JobRow.trials.is_(None),  # a sweep has children instead
                ~select(AttemptRow.job)
                .where(AttemptRow.job == JobRow.id, AttemptRow.number == JobRow.attempt, active)
                .exists(),
            )
        ).all()
        astray = connection.execute(
            select(AttemptRow.job, AttemptRow.number, JobRow.state)
            .join(JobRow, JobRow.id == AttemptRow.job)
            .where(active, or_(JobRow.state != JobState.RUNNING, JobRow.attempt != AttemptRow.number))
        ).all()
        odd = connection.execute(
            select(JobRow.id, JobRow.trials, func.count(TrialRow.number).label("made"))
            .join(TrialRow, TrialRow.sweep == JobRow.id)
            .group_by(JobRow.id, JobRow.trials)
            .having(
                or_(
                    func.count(TrialRow.number) > JobRow.trials,
                    func.count(TrialRow.number) != func.max(TrialRow.number),
                )
            )
        ).all()
        unversioned = connection.execute(
            select(ModelRow.name, ModelRow.current)
            .outerjoin(
                VersionRow, (VersionRow.model == ModelRow.name) & (VersionRow.version == ModelRow.current)
            )
            .where(ModelRow.current.is_not(None), VersionRow.model.is_(None))
        ).all()
    return (
        [(f"job {row.id}", f"is running, but its attempt {row.attempt} is not active") for row in idle]
        + [(f"attempt {r.number} of {r.job}", f"is active, but its job is {r.state}") for r in astray]
        + [(f"sweep {r.id}", f"has {r.made} children, not numbers 1 to {r.trials} at most") for r in odd]
        + [(f"model {r.name}", f"serves version {r.current}, which is not recorded") for r in unversioned]
    )


def present(store: Database) -> list[Checkpoint]:
    """Every checkpoint of which there should be files, and every one of which some may be left.

    The latter are `deleted`: their files were to go, and nobody has recorded that they are gone.
    """
    query = select(*_CHECKPOINT).where(CheckpointRow.purged.is_(None)).order_by(CheckpointRow.id)
    with store.reading() as connection:
        return [checkpoint_of(row) for row in connection.execute(query)]


def discarded(store: Database) -> list[Checkpoint]:
    """Every checkpoint whose files nobody meant to delete, and that `discard` has recorded as gone."""
    # The service marks a checkpoint, deletes its files and records that later.
    query = select(*_CHECKPOINT).where(CheckpointRow.purged == CheckpointRow.deleted)
    with store.reading() as connection:
        return [checkpoint_of(row) for row in connection.execute(query.order_by(CheckpointRow.id))]


def discard(store: EventVerbs, checkpoint: Checkpoint, by: str, reason: str) -> bool:
    """Record that the files of a checkpoint are not there; whether it counted as there until now."""
    now = store.clock()
    with store.writing() as connection:
        changed = connection.execute(
            update(CheckpointRow)
            .where(CheckpointRow.id == checkpoint.id, CheckpointRow.purged.is_(None))
            .values(deleted=func.coalesce(CheckpointRow.deleted, now), purged=now)
        ).rowcount
        if changed:
            detail = {"checkpoint": checkpoint.location, "reason": reason}
            store._event(connection, EventKind.REPAIRED, job=checkpoint.job, by=by, detail=detail)
        return bool(changed)


def take_back(store: EventVerbs, checkpoint: Checkpoint, by: str) -> bool:
    """Record that the files of a checkpoint that was discarded are there after all; whether that is new."""
    with store.writing() as connection:
        changed = connection.execute(
            update(CheckpointRow)
            .where(CheckpointRow.id == checkpoint.id, CheckpointRow.purged == CheckpointRow.deleted)
            .values(deleted=None, purged=None)
        ).rowcount
        if changed:
            detail = {"checkpoint": checkpoint.location, "reason": "its files are there again"}
            store._event(connection, EventKind.REPAIRED, job=checkpoint.job, by=by, detail=detail)
        return bool(changed)


def copy_to(store: Database, path: Path) -> None:
    """Copy an SQLite database, as of one moment, to a new file, while others read and write it.

    Raises StoreError for any other kind of database, OSError if the file cannot be written.
    """
    with store.reading() as connection:
        if connection.dialect.name != "sqlite":
            raise StoreError(f"{store.name} is no SQLite file: it is backed up by its own tools")
        source = connection.connection.dbapi_connection
        assert source is not None  # a pool hands out open connections only
        with _file(path) as target:
            source.backup(target)
            # One file, without a log beside it, that also a reader without write access can open.
            target.execute("PRAGMA journal_mode = DELETE")


def write_ahead(path: Path) -> None:
    """Set the SQLite database at `path` to write ahead, as the service wants it; a copy does not.

    Raises OSError if the file cannot be written.
    """
    with _file(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


@contextmanager
def _file(path: Path) -> Iterator[sqlite3.Connection]:
    """The SQLite database at `path`. What the driver says of it is OSError: a full disk, a file gone bad."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}") from error
