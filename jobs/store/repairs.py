"""What `verify` and `backup` ask of the whole database, and the records that a repair changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Executable, exists, func, or_, select, text, update
from sqlalchemy.orm import aliased

from jobs.store.events import EventVerbs
from jobs.store.opening import Database
from jobs.store.records import checkpoint_of
from jobs.store.states import ACTIVE, AttemptState, EventKind, JobState
from jobs.store.tables import (
    AttemptRow,
    CheckpointRow,
    DependencyRow,
    JobRow,
    ModelRow,
    PromotionRow,
    TrialRow,
    VersionRow,
)
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
    with store.reading() as connection:
        return [
            (what.format(**row._mapping), wrong.format(**row._mapping))
            for query, what, wrong in _contradictory()
            for row in connection.execute(query)
        ]


def _contradictory() -> Iterator[tuple[Executable, str, str]]:
    """What finds records that contradict others, what they are about, and what is said of them.

    Each is one statement: what a transaction changes together is seen together.
    """
    active = AttemptRow.state.in_(ACTIVE)
    newest = (AttemptRow.job == JobRow.id) & (AttemptRow.number == JobRow.attempt)
    plain = JobRow.trials.is_(None)  # a sweep has children instead of attempts
    yield (
        select(JobRow.id, JobRow.attempt).where(
            JobRow.state == JobState.RUNNING, plain, ~exists().where(newest, active)
        ),
        "job {id}",
        "is running, but its attempt {attempt} is not active",
    )
    yield (
        select(AttemptRow.job, AttemptRow.number, JobRow.state)
        .join(JobRow, JobRow.id == AttemptRow.job)
        .where(active, or_(JobRow.state != JobState.RUNNING, JobRow.attempt != AttemptRow.number)),
        "attempt {number} of {job}",
        "is active, but its job is {state}",
    )
    recorded = func.count(AttemptRow.number)
    yield (
        select(JobRow.id, JobRow.attempt, recorded.label("n"))
        .outerjoin(AttemptRow, AttemptRow.job == JobRow.id)
        .group_by(JobRow.id, JobRow.attempt)
        .having(
            or_(recorded != JobRow.attempt, func.coalesce(func.max(AttemptRow.number), 0) != JobRow.attempt)
        ),
        "job {id}",
        "has had {attempt} attempts, but {n} are recorded, or with other numbers",
    )
    yield (
        select(JobRow.id, JobRow.attempt).where(
            JobRow.state == JobState.SUCCEEDED,
            plain,
            ~exists().where(newest, or_(active, AttemptRow.state == AttemptState.SUCCEEDED)),
        ),
        "job {id}",
        "has succeeded, but its attempt {attempt} has not",
    )
    yield (
        select(AttemptRow.job, AttemptRow.number, JobRow.state)
        .join(JobRow, JobRow.id == AttemptRow.job)
        .where(AttemptRow.state == AttemptState.SUCCEEDED, JobRow.state != JobState.SUCCEEDED),
        "attempt {number} of {job}",
        "has succeeded, but its job is {state}",
    )
    yield (
        select(AttemptRow.job, AttemptRow.number, AttemptRow.state).where(
            active == AttemptRow.finished.is_not(None)
        ),
        "attempt {number} of {job}",
        "is {state}, but when it ended says otherwise",
    )
    source = aliased(CheckpointRow)
    yield (
        select(AttemptRow.job, AttemptRow.number, AttemptRow.resumed_from)
        .outerjoin(source, (source.id == AttemptRow.resumed_from) & (source.job == AttemptRow.job))
        .where(AttemptRow.resumed_from.is_not(None), source.id.is_(None)),
        "attempt {number} of {job}",
        "went on from checkpoint {resumed_from}, which is none of its job",
    )
    other = aliased(JobRow)
    yield (
        select(JobRow.id, other.id.label("first"), other.state)
        .join(DependencyRow, DependencyRow.job == JobRow.id)
        .join(other, other.id == DependencyRow.on_job)
        .where(
            JobRow.state == JobState.QUEUED,
            ~DependencyRow.any,
            other.state.in_([JobState.FAILED, JobState.CANCELLED]),
        ),
        "job {id}",
        "waits for the success of job {first}, which is {state}",
    )
    yield (
        select(JobRow.id, JobRow.trials, func.count(TrialRow.number).label("made"))
        .join(TrialRow, TrialRow.sweep == JobRow.id)
        .group_by(JobRow.id, JobRow.trials)
        .having(
            or_(
                func.count(TrialRow.number) > JobRow.trials,
                func.count(TrialRow.number) != func.max(TrialRow.number),
            )
        ),
        "sweep {id}",
        "has {made} children, not numbers 1 to {trials} at most",
    )
    yield (
        select(JobRow.id, JobRow.parent, TrialRow.sweep)
        .outerjoin(TrialRow, TrialRow.job == JobRow.id)
        .where(JobRow.parent.is_distinct_from(TrialRow.sweep)),
        "job {id}",
        "is a child of {parent} by its own record, of {sweep} by the sweep's",
    )
    yield (
        select(ModelRow.name, ModelRow.current)
        .outerjoin(VersionRow, (VersionRow.model == ModelRow.name) & (VersionRow.version == ModelRow.current))
        .where(ModelRow.current.is_not(None), VersionRow.model.is_(None)),
        "model {name}",
        "serves version {current}, which is not recorded",
    )
    later = aliased(PromotionRow)
    last = ~exists().where(later.model == PromotionRow.model, later.id > PromotionRow.id)
    yield (
        select(ModelRow.name, ModelRow.current, PromotionRow.version)
        .outerjoin(PromotionRow, (PromotionRow.model == ModelRow.name) & last)
        .where(ModelRow.current.is_distinct_from(PromotionRow.version)),
        "model {name}",
        "serves version {current}, but promoted last was {version}",
    )
    yield (
        select(ModelRow.name, ModelRow.last_version, func.max(VersionRow.version).label("version"))
        .join(VersionRow, VersionRow.model == ModelRow.name)
        .group_by(ModelRow.name, ModelRow.last_version)
        .having(func.max(VersionRow.version) > ModelRow.last_version),
        "model {name}",
        "has a version {version}, but gave out {last_version} numbers",
    )
    yield (
        select(VersionRow.model, VersionRow.version, CheckpointRow.location)
        .join(CheckpointRow, CheckpointRow.id == VersionRow.checkpoint)
        .where(or_(CheckpointRow.digest != VersionRow.digest, CheckpointRow.job != VersionRow.job)),
        "version {version} of {model}",
        "is said to be made of {location}, which has another SHA-256 or is of another job",
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
