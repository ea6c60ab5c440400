"""The tables. A change here needs a migration in jobs/migrations."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    ColumnElement,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    bindparam,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Utc(TypeDecorator[datetime]):
    """A moment in UTC. SQLite keeps no zone, so it is taken off on the way in and put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of every table."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        datetime: Utc(),
        dict[str, Any]: JSON(),
        str: Text(),
        float: Float(),
        int: Integer(),
        bytes: LargeBinary(),
    }


class JobRow(Base):
    """One job. Its config is read only by whoever asks for it: lists must not load it."""

    __tablename__ = "jobs"
    # SQLite hands out a number again once its row is gone unless told not to; order of submission needs it.
    __table_args__ = (
        Index("jobs_by_state", "state", "priority", "sequence"),
        Index("jobs_by_owner", "owner", "sequence"),
        Index("jobs_by_parent", "parent"),
        # Few jobs are sweeps, and a dispatcher asks for them in every pass.
        Index(
            "jobs_sweeps",
            "state",
            sqlite_where=text("trials IS NOT NULL"),
            postgresql_where=text("trials IS NOT NULL"),
        ),
        {"sqlite_autoincrement": True},
    )

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    name: Mapped[str] = mapped_column(String(63))
    owner: Mapped[str] = mapped_column(String(200))
    priority: Mapped[int]
    config: Mapped[dict[str, Any]]
    ranks: Mapped[int]
    cpus: Mapped[float]
    gpus: Mapped[float]
    state: Mapped[str] = mapped_column(String(20))
    attempt: Mapped[int]
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    cancel_requested: Mapped[datetime | None]
    error: Mapped[str | None]
    not_before: Mapped[datetime | None]
    held: Mapped[datetime | None]
    yield_requested: Mapped[datetime | None]
    time_limit: Mapped[float | None]
    retry: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    errors_used: Mapped[int] = mapped_column(server_default="0")
    infrastructure_used: Mapped[int] = mapped_column(server_default="0")
    max_ranks: Mapped[int | None]
    yield_cause: Mapped[str | None] = mapped_column(String(20))
    # Of a sweep: how many children it has in the end; it is never scheduled itself.
    trials: Mapped[int | None]
    # Of a child: its sweep, as `TrialRow` says too. Here so that lists find it, or leave it out, quickly.
    parent: Mapped[str | None] = mapped_column(String(40))
    stopped: Mapped[str | None]


class AttemptRow(Base):
    """One attempt. Its row is the lock under which everything that it writes is written."""

    __tablename__ = "attempts"
    __table_args__ = (
        # The database itself holds that a job has one active attempt at most.
        Index(
            "attempts_one_active",
            "job",
            unique=True,
            sqlite_where=text("state IN ('starting', 'running')"),
            postgresql_where=text("state IN ('starting', 'running')"),
        ),
        Index("attempts_by_end", "finished"),
    )

    job: Mapped[str] = mapped_column(String(40), ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(20))
    opened: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    seen: Mapped[datetime]
    host: Mapped[str | None] = mapped_column(String(255))
    resumed_from: Mapped[int | None]
    error: Mapped[str | None]
    cause: Mapped[str | None] = mapped_column(String(20))
    cpus: Mapped[float] = mapped_column(server_default="0")
    gpus: Mapped[float] = mapped_column(server_default="0")
    seconds: Mapped[float | None]
    ranks: Mapped[int] = mapped_column(server_default="0")


def attempt_in(states: Iterable[str]) -> ColumnElement[bool]:
    """Whether an AttemptRow is in one of these states; of active ones the database need not look at others.

    The states stand in the statement itself: with parameters in their place no partial index is ever used.
    """
    values = [str(state) for state in states]
    return AttemptRow.state.in_(bindparam("states", values, expanding=True, literal_execute=True))


class DependencyRow(Base):
    """One job that waits for another: for its success or, if `any`, for its end."""

    __tablename__ = "dependencies"
    __table_args__ = (Index("dependencies_by_on_job", "on_job"),)

    job: Mapped[str] = mapped_column(String(40), ForeignKey("jobs.id"), primary_key=True)
    on_job: Mapped[str] = mapped_column(String(40), ForeignKey("jobs.id"), primary_key=True)
    any: Mapped[bool]


class TrialRow(Base):
    """One child of a sweep. That a number has one row at most is what makes a child once."""

    __tablename__ = "trials"

    sweep: Mapped[str] = mapped_column(String(40), ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job: Mapped[str] = mapped_column(String(40), ForeignKey("jobs.id"), unique=True)
    parameters: Mapped[dict[str, Any]]
    spared: Mapped[bool] = mapped_column(server_default=text("false"))


class SwitchRow(Base):
    """One switch of the whole service, such as `drain`; `since` is null while it is off."""

    __tablename__ = "switches"

    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    since: Mapped[datetime | None]
    by: Mapped[str | None] = mapped_column(String(200))


class LogChunkRow(Base):
    """A piece of an attempt's log: UTF-8 text, whole lines, from byte `start` of the log on."""

    __tablename__ = "log_chunks"
    __table_args__ = (ForeignKeyConstraint(["job", "attempt"], ["attempts.job", "attempts.number"]),)

    job: Mapped[str] = mapped_column(String(40), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    start: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[bytes]


class ReportRow(Base):
    """The metrics of one epoch as one attempt saw them."""

    __tablename__ = "reports"
    __table_args__ = (
        UniqueConstraint("job", "attempt", "epoch"),
        ForeignKeyConstraint(["job", "attempt"], ["attempts.job", "attempts.number"]),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(String(40))
    attempt: Mapped[int]
    epoch: Mapped[int]
    step: Mapped[int]
    seconds: Mapped[float]
    tokens_per_second: Mapped[float]
    train: Mapped[dict[str, Any]]
    validation: Mapped[dict[str, Any]]
    created: Mapped[datetime]


class CheckpointRow(Base):
    """One checkpoint. `deleted` is set before its files go, `purged` once they are gone."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        UniqueConstraint("job", "attempt", "name"),
        ForeignKeyConstraint(["job", "attempt"], ["attempts.job", "attempts.number"]),
        CheckConstraint("purged IS NULL OR deleted IS NOT NULL", name="checkpoints_purged_after_deleted"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(String(40))
    attempt: Mapped[int]
    name: Mapped[str] = mapped_column(String(100))
    location: Mapped[str]
    digest: Mapped[str] = mapped_column(String(64))
    epoch: Mapped[int]
    step: Mapped[int]
    batch: Mapped[int]
    value: Mapped[float | None]
    metrics: Mapped[dict[str, Any]]
    created: Mapped[datetime]
    deleted: Mapped[datetime | None]
    purged: Mapped[datetime | None]


class ModelRow(Base):
    """One model name: the served version, and the highest version number ever given out."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    last_version: Mapped[int]
    current: Mapped[int | None]


class VersionRow(Base):
    """One model version."""

    __tablename__ = "model_versions"

    model: Mapped[str] = mapped_column(String(63), ForeignKey("models.name"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job: Mapped[str] = mapped_column(String(40), ForeignKey("jobs.id"))
    checkpoint: Mapped[int] = mapped_column(ForeignKey("checkpoints.id"), index=True)
    location: Mapped[str]
    digest: Mapped[str] = mapped_column(String(64))
    metric: Mapped[str] = mapped_column(String(100))
    mode: Mapped[str] = mapped_column(String(3))
    value: Mapped[float | None]
    metrics: Mapped[dict[str, Any]]
    created: Mapped[datetime]


class PromotionRow(Base):
    """One change of a model name's served version."""

    __tablename__ = "promotions"
    __table_args__ = (
        ForeignKeyConstraint(["model", "version"], ["model_versions.model", "model_versions.version"]),
        Index("promotions_by_model", "model", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model: Mapped[str] = mapped_column(String(63))
    version: Mapped[int]
    at: Mapped[datetime]
    by: Mapped[str] = mapped_column(String(200))
    reason: Mapped[str]
    rollback: Mapped[bool]


class EventRow(Base):
    """One line of the history; rows are only ever added, which triggers of the database hold."""

    __tablename__ = "events"
    __table_args__ = (Index("events_by_job", "job", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    job: Mapped[str | None] = mapped_column(String(40), ForeignKey("jobs.id"))
    attempt: Mapped[int | None]
    kind: Mapped[str] = mapped_column(String(30))
    actor: Mapped[str] = mapped_column(String(200))
    detail: Mapped[dict[str, Any]]
