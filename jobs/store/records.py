"""What an attempt records: reports and checkpoints. Each write stands behind the attempt's guard."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from jobs.store.attempts import AttemptVerbs
from jobs.store.states import ACTIVE, EventKind
from jobs.store.tables import AttemptRow, CheckpointRow, JobRow, ReportRow, VersionRow
from jobs.store.values import Checkpoint, NotFound, Report

_REPORT = tuple(column for column in ReportRow.__table__.columns if column.name != "id")
_CHECKPOINT = tuple(column for column in CheckpointRow.__table__.columns if column.name != "purged")


@dataclass(frozen=True)
class NewReport:
    """What an attempt reports about one epoch."""

    epoch: int  # 1 for the first
    step: int
    seconds: float
    tokens_per_second: float
    train: Mapping[str, float]
    validation: Mapping[str, float]


@dataclass(frozen=True)
class NewCheckpoint:
    """What an attempt records about a checkpoint whose files are in place."""

    name: str
    location: str
    digest: str
    epoch: int
    step: int
    batch: int
    value: float | None
    metrics: Mapping[str, float]


class RecordVerbs(AttemptVerbs):
    """Record reports and checkpoints; read them; mark what need not be kept."""

    def record_report(self, job: str, number: int, report: NewReport) -> None:
        """Record the metrics of an epoch; the same epoch again replaces them. Raises StaleAttempt."""
        with self.writing() as connection:
            self._guard(connection, job, number)
            self._put_report(connection, job, number, report)

    def record_checkpoint(
        self, job: str, number: int, checkpoint: NewCheckpoint, report: NewReport | None = None
    ) -> Checkpoint:
        """Record a checkpoint, and the report that came with it, in one transaction. Raises StaleAttempt.

        The same name again replaces the record: Ray may restart the ranks inside an attempt.
        """
        now = self.clock()
        values = {
            "location": checkpoint.location,
            "digest": checkpoint.digest,
            "epoch": checkpoint.epoch,
            "step": checkpoint.step,
            "batch": checkpoint.batch,
            "value": _finite(checkpoint.value),
            "metrics": finite(checkpoint.metrics),
            "created": now,
            "deleted": None,
            "purged": None,
        }
        with self.writing() as connection:
            self._guard(connection, job, number)
            farthest = connection.execute(
                select(func.max(CheckpointRow.step)).where(CheckpointRow.job == job)
            ).scalar_one()
            if farthest is None or checkpoint.step > farthest:
                # Progress: the failures of infrastructure before it are not in a row with those after it.
                connection.execute(
                    update(JobRow)
                    .where(JobRow.id == job, JobRow.infrastructure_used > 0)
                    .values(infrastructure_used=0)
                )
            named = (
                (CheckpointRow.job == job)
                & (CheckpointRow.attempt == number)
                & (CheckpointRow.name == checkpoint.name)
            )
            if not connection.execute(update(CheckpointRow).where(named).values(values)).rowcount:
                connection.execute(
                    insert(CheckpointRow).values(job=job, attempt=number, name=checkpoint.name, **values)
                )
            if report is not None:
                self._put_report(connection, job, number, report)
            detail = {"name": checkpoint.name, "step": checkpoint.step, "value": values["value"]}
            self._event(
                connection, EventKind.CHECKPOINTED, job=job, attempt=number, by="attempt", detail=detail
            )
            return checkpoint_of(connection.execute(select(*_CHECKPOINT).where(named)).one())

    def prune(self, job: str, number: int, *, keep_last: int, mode: str) -> list[Checkpoint]:
        """Mark as deleted what need not be kept of the job's checkpoints; returns all whose files can go.

        Kept are the newest `keep_last`, the best by value (`mode` max or min), what a model version names,
        and what an active attempt began from. Those returned include earlier ones whose files were left
        behind by a crash: call `purged` for each once its files are gone. Raises StaleAttempt.
        """
        with self.writing() as connection:
            self._guard(connection, job, number)
            alive = [
                checkpoint_of(row)
                for row in connection.execute(
                    select(*_CHECKPOINT)
                    .where(CheckpointRow.job == job, CheckpointRow.deleted.is_(None))
                    .order_by(*_NEWEST)
                )
            ]
            keep = {checkpoint.id for checkpoint in alive[:keep_last]}
            best = best_of(alive, mode)
            if best is not None:
                keep.add(best.id)
            keep.update(
                connection.execute(select(VersionRow.checkpoint).where(VersionRow.job == job)).scalars()
            )
            keep.update(
                id
                for id in connection.execute(
                    select(AttemptRow.resumed_from).where(AttemptRow.job == job, AttemptRow.state.in_(ACTIVE))
                ).scalars()
                if id is not None
            )
            connection.execute(
                update(CheckpointRow)
                .where(CheckpointRow.id.in_([c.id for c in alive if c.id not in keep]))
                .values(deleted=self.clock())
            )
            rows = connection.execute(
                select(*_CHECKPOINT).where(
                    CheckpointRow.job == job,
                    CheckpointRow.deleted.is_not(None),
                    CheckpointRow.purged.is_(None),
                )
            ).all()
            return [checkpoint_of(row) for row in rows]

    def purged(self, checkpoint: int, *, of: tuple[str, int] | None = None) -> None:
        """The files of a checkpoint that is marked as deleted are gone.

        `of` are the job and the number of the attempt that says so, an operator's repair has none. Raises
        StaleAttempt.
        """
        with self.writing() as connection:
            if of is not None:
                self._guard(connection, *of)
            connection.execute(
                update(CheckpointRow)
                .where(CheckpointRow.id == checkpoint, CheckpointRow.deleted.is_not(None))
                .values(purged=self.clock())
            )

    def reports(self, job: str) -> list[Report]:
        """The reports of a job by epoch; of an epoch that two attempts reported, the newer attempt's."""
        query = select(*_REPORT).where(ReportRow.job == job).order_by(ReportRow.epoch, ReportRow.attempt)
        with self.reading() as connection:
            rows = connection.execute(query).all()
        return list({row.epoch: Report(**row._mapping) for row in rows}.values())

    def checkpoints(self, job: str, *, deleted: bool = False) -> list[Checkpoint]:
        """The checkpoints of a job, the newest first; with those marked as deleted if asked."""
        query = select(*_CHECKPOINT).where(CheckpointRow.job == job).order_by(*_NEWEST)
        if not deleted:
            query = query.where(CheckpointRow.deleted.is_(None))
        with self.reading() as connection:
            return [checkpoint_of(row) for row in connection.execute(query)]

    def checkpoint(self, id: int) -> Checkpoint:
        """The checkpoint with this id. Raises NotFound."""
        with self.reading() as connection:
            row = connection.execute(select(*_CHECKPOINT).where(CheckpointRow.id == id)).one_or_none()
        if row is None:
            raise NotFound(f"no checkpoint {id}")
        return checkpoint_of(row)

    def _put_report(self, connection: Connection, job: str, number: int, report: NewReport) -> None:
        connection.execute(
            delete(ReportRow).where(
                ReportRow.job == job, ReportRow.attempt == number, ReportRow.epoch == report.epoch
            )
        )
        connection.execute(
            insert(ReportRow).values(
                job=job,
                attempt=number,
                epoch=report.epoch,
                step=report.step,
                seconds=report.seconds,
                tokens_per_second=report.tokens_per_second,
                train=finite(report.train),
                validation=finite(report.validation),
                created=self.clock(),
            )
        )


_NEWEST = (CheckpointRow.step.desc(), CheckpointRow.attempt.desc(), CheckpointRow.id.desc())


def best_of(checkpoints: Iterable[Checkpoint], mode: str) -> Checkpoint | None:
    """The checkpoint with the best value; of equals the earliest, as training on brought nothing."""
    valued = [(c.value, c) for c in checkpoints if c.value is not None]
    sign = 1 if mode == "max" else -1
    return max(valued, key=lambda pair: (sign * pair[0], -pair[1].step, -pair[1].id))[1] if valued else None


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are numbers: JSON knows no NaN, and PostgreSQL refuses it."""
    return {name: float(value) for name, value in metrics.items() if _finite(value) is not None}


def checkpoint_of(row: Any) -> Checkpoint:
    """The value of a row of `_CHECKPOINT`."""
    return Checkpoint(**row._mapping)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
