"""Verbs on attempts, and everything that an attempt writes: reports, checkpoints, its end.

Each write begins with one guarded UPDATE of the attempt's own row, which succeeds only while that attempt is
active and its job's newest. The row stays locked until the transaction ends, so nobody can end the attempt in
between. Ending it takes the same row: of two that try, one gets StaleAttempt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from jobs.store.jobs import JobVerbs, get_job
from jobs.store.tables import AttemptRow, CheckpointRow, JobRow, ReportRow, VersionRow
from jobs.store.values import (
    ACTIVE,
    Attempt,
    AttemptState,
    Cause,
    Checkpoint,
    EventKind,
    Job,
    JobState,
    NotFound,
    Report,
    StaleAttempt,
)

_ATTEMPT = tuple(AttemptRow.__table__.columns)
_REPORT = tuple(column for column in ReportRow.__table__.columns if column.name != "id")
_CHECKPOINT = tuple(column for column in CheckpointRow.__table__.columns if column.name != "purged")

_JOB_AFTER = {
    JobState.SUCCEEDED: EventKind.SUCCEEDED,
    JobState.CANCELLED: EventKind.CANCELLED,
    JobState.FAILED: EventKind.FAILED,
    JobState.QUEUED: EventKind.REQUEUED,
}


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


class AttemptVerbs(JobVerbs):
    """Open, start and finish attempts; record what they make."""

    def open_attempt(self, job: str, number: int, by: str) -> Attempt | None:
        """Begin attempt `number` of a queued job; none if someone else did, or it is not queued any more."""
        now = self.clock()
        with self.writing() as connection:
            changed = connection.execute(
                update(JobRow)
                .where(JobRow.id == job, JobRow.state == JobState.QUEUED, JobRow.attempt == number - 1)
                .values(state=JobState.RUNNING, attempt=number, finished=None)
            ).rowcount
            if not changed:
                return None
            connection.execute(
                update(JobRow).where(JobRow.id == job, JobRow.started.is_(None)).values(started=now)
            )
            connection.execute(
                insert(AttemptRow).values(
                    job=job, number=number, state=AttemptState.STARTING, opened=now, seen=now
                )
            )
            self._event(connection, EventKind.OPENED, job=job, attempt=number, by=by)
            return _attempt(connection, job, number)

    def join_attempt(self, job: str, number: int, *, host: str, resumed_from: int | None = None) -> None:
        """The attempt's process says where it is, and where it resumes from. Raises StaleAttempt."""
        with self.writing() as connection:
            self._guard(connection, job, number, host=host, resumed_from=resumed_from)

    def start_attempt(self, job: str, number: int) -> None:
        """The attempt's ranks have started. Raises StaleAttempt."""
        with self.writing() as connection:
            self._guard(connection, job, number)
            changed = connection.execute(
                update(AttemptRow)
                .where(
                    AttemptRow.job == job,
                    AttemptRow.number == number,
                    AttemptRow.state == AttemptState.STARTING,
                )
                .values(state=AttemptState.RUNNING, started=self.clock())
            ).rowcount
            if changed:
                self._event(connection, EventKind.STARTED, job=job, attempt=number, by="attempt")

    def check_attempt(self, job: str, number: int) -> Job:
        """The attempt's job, read only: is it cancelled? Raises StaleAttempt if the attempt is over."""
        with self.reading() as connection:
            value = get_job(connection, job)
            state = connection.execute(
                select(AttemptRow.state).where(AttemptRow.job == job, AttemptRow.number == number)
            ).scalar_one_or_none()
        if value.attempt != number or state not in ACTIVE:
            raise StaleAttempt(job, number)
        return value

    def finish_attempt(
        self,
        job: str,
        number: int,
        state: AttemptState,
        *,
        by: str,
        cause: Cause | None = None,
        error: str | None = None,
    ) -> Job:
        """End the attempt, and move its job on; returns the job. Raises StaleAttempt.

        A failed or lost attempt puts the job back into the queue while it has attempts left, unless the cause
        is a bad config or someone has cancelled the job.
        """
        now = self.clock()
        error = None if error is None else _text(error)
        with self.writing() as connection:
            self._guard(connection, job, number)
            connection.execute(
                update(AttemptRow)
                .where(AttemptRow.job == job, AttemptRow.number == number)
                .values(state=state, finished=now, cause=cause, error=error)
            )
            before = get_job(connection, job, lock=True)
            after = _job_after(before, state, cause)
            connection.execute(
                update(JobRow)
                .where(JobRow.id == job)
                .values(
                    state=after,
                    finished=now if after.final else None,
                    error=error if after in (JobState.FAILED, JobState.QUEUED) else None,
                )
            )
            detail = {"state": str(state), "cause": cause and str(cause), "error": error}
            self._event(connection, EventKind.FINISHED, job=job, attempt=number, by=by, detail=detail)
            self._event(connection, _JOB_AFTER[after], job=job, attempt=number, by=by)
            return get_job(connection, job)

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
                connection, EventKind.CHECKPOINT, job=job, attempt=number, by="attempt", detail=detail
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

    def purged(self, checkpoint: int) -> None:
        """The files of a checkpoint that is marked as deleted are gone."""
        with self.writing() as connection:
            connection.execute(
                update(CheckpointRow)
                .where(CheckpointRow.id == checkpoint, CheckpointRow.deleted.is_not(None))
                .values(purged=self.clock())
            )

    def attempts(self, job: str | None = None, *, active: bool = False) -> list[Attempt]:
        """Attempts of a job, or of all, in order; only the active ones if asked."""
        query = select(*_ATTEMPT).order_by(AttemptRow.job, AttemptRow.number)
        if job is not None:
            query = query.where(AttemptRow.job == job)
        if active:
            query = query.where(AttemptRow.state.in_(ACTIVE))
        with self.reading() as connection:
            return [_attempt_of(row) for row in connection.execute(query)]

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

    def _guard(self, connection: Connection, job: str, number: int, **values: Any) -> None:
        """The one statement that every write of an attempt stands behind."""
        newest = select(JobRow.attempt).where(JobRow.id == job).scalar_subquery()
        changed = connection.execute(
            update(AttemptRow)
            .where(
                AttemptRow.job == job,
                AttemptRow.number == number,
                AttemptRow.number == newest,
                AttemptRow.state.in_(ACTIVE),
            )
            .values(seen=self.clock(), **values)
        ).rowcount
        if not changed:
            raise StaleAttempt(job, number)

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


def _text(text: str) -> str:
    """The text with what a database refuses spelled out: NUL, bytes of a file's name that are no UTF-8."""
    return text.replace("\0", r"\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _attempt_of(row: Any) -> Attempt:
    values = dict(row._mapping)
    values["state"] = AttemptState(values["state"])
    values["cause"] = Cause(values["cause"]) if values["cause"] else None
    return Attempt(**values)


def _attempt(connection: Connection, job: str, number: int) -> Attempt:
    return _attempt_of(
        connection.execute(select(*_ATTEMPT).where(AttemptRow.job == job, AttemptRow.number == number)).one()
    )


def _job_after(job: Job, state: AttemptState, cause: Cause | None) -> JobState:
    """Where a job goes when its attempt ends in `state`."""
    if state is AttemptState.SUCCEEDED:
        return JobState.SUCCEEDED
    if state is AttemptState.CANCELLED or job.cancel_requested is not None:
        return JobState.CANCELLED
    if cause is Cause.BAD_CONFIG or job.attempt >= job.attempt_limit:
        return JobState.FAILED
    return JobState.QUEUED
