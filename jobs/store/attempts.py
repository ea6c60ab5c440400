"""Verbs on attempts: open, start and end them.

Each write of an attempt begins with one guarded UPDATE of its own row, which succeeds only while that attempt
is active and its job's newest. The row stays locked until the transaction ends, so nobody can end the attempt
in between. Ending it takes the same row: of two that try, one gets StaleAttempt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from jobs.store.jobs import get_job, lock_in_order
from jobs.store.orders import OrderVerbs, decide_alone
from jobs.store.retries import After, after, kind_of
from jobs.store.states import ACTIVE, AttemptState, Cause, CauseKind, EventKind, JobState
from jobs.store.tables import AttemptRow, JobRow, attempt_in
from jobs.store.values import Attempt, Job, StaleAttempt
from jobs.store.waiting import MAY_START, NOW, drained

_ATTEMPT = tuple(AttemptRow.__table__.columns)
_ATTEMPTS = select(*_ATTEMPT).order_by(AttemptRow.job, AttemptRow.number)
_BY_NUMBER = select(*_ATTEMPT).where(
    AttemptRow.job == bindparam("job"), AttemptRow.number == bindparam("number")
)
_OPEN = (
    update(JobRow)
    .where(MAY_START, JobRow.attempt == bindparam("before"))
    .values(
        state=JobState.RUNNING,
        attempt=bindparam("number"),
        finished=None,
        not_before=None,
        yield_requested=None,
        yield_cause=None,
        started=func.coalesce(JobRow.started, NOW),
    )
)

_JOB_AFTER = {
    JobState.SUCCEEDED: EventKind.SUCCEEDED,
    JobState.CANCELLED: EventKind.CANCELLED,
    JobState.FAILED: EventKind.FAILED,
    JobState.QUEUED: EventKind.REQUEUED,
}


class AttemptVerbs(OrderVerbs):
    """Open, start and finish attempts."""

    def open_attempt(self, job: str, number: int, by: str, *, ranks: int | None = None) -> Attempt | None:
        """Begin attempt `number` of a queued job; none if someone else did, or if it may not start.

        Whatever a scheduler thought a moment ago, here, in one transaction, it is decided: the job waits, it
        is neither held nor told to start later, what it comes after has ended, and nobody drains the service.
        It has as many `ranks` as the job needs, or more if the job may have more. ValueError if it may not.
        """
        with self.writing() as connection:
            return self._open(connection, job, number, by, ranks)

    def open_attempts(
        self,
        starts: Iterable[tuple[str, int]],
        by: str,
        *,
        known: Collection[tuple[str, int]],
        ranks: Mapping[str, int] | None = None,
    ) -> list[Attempt] | None:
        """Begin several attempts, each a job and a number; those that may not start are left out.

        Those of the jobs that `ranks` names have so many.

        None, and nothing is begun, if an attempt is active that is not `known`: another dispatcher has given
        away room since. So of several that decide at once, one goes ahead and the others look again.
        """
        with self.writing() as connection:
            decide_alone(connection)
            active = connection.execute(select(AttemptRow.job, AttemptRow.number).where(attempt_in(ACTIVE)))
            if any((row.job, row.number) not in known for row in active):
                return None
            starts = list(starts)
            lock_in_order(connection, [job for job, _ in starts])
            opened = [self._open(connection, job, n, by, (ranks or {}).get(job)) for job, n in starts]
            return [attempt for attempt in opened if attempt is not None]

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

    def see_attempt(self, job: str, number: int) -> None:
        """The attempt's process is alive, although Redis may not hear of it. Raises StaleAttempt."""
        with self.writing() as connection:
            self._guard(connection, job, number)

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

        What becomes of the job, and when it may be tried again, is `jobs.store.retries.after`. If it ends
        without success, the jobs that need its success end with it.
        """
        error = None if error is None else _text(error)
        with self.writing() as connection:
            self._guard(connection, job, number)
            before = get_job(connection, job, lock=True)
            # Once there is nothing left to wait for: nobody has read the ends up to this moment yet.
            now = self.clock()
            attempt = _attempt(connection, job, number)
            trained = 0.0 if attempt.started is None else (now - attempt.started).total_seconds()
            connection.execute(
                update(AttemptRow)
                .where(AttemptRow.job == job, AttemptRow.number == number)
                .values(state=state, finished=now, cause=cause, error=error, seconds=max(0.0, trained))
            )
            then = after(before, state, cause, now)
            shown = error if then.why is None else f"{error or state}; {then.why}"
            if then.state is JobState.CANCELLED:
                shown = before.stopped
            connection.execute(
                update(JobRow)
                .where(JobRow.id == job)
                .values(
                    state=then.state,
                    finished=now if then.state.final else None,
                    error=None if then.state is JobState.SUCCEEDED else shown,
                    not_before=then.not_before,
                    yield_requested=None,
                    yield_cause=None,
                    errors_used=then.errors_used,
                    infrastructure_used=then.infrastructure_used,
                )
            )
            detail = {
                "state": str(state),
                "cause": cause and str(cause),
                "kind": None if state is AttemptState.SUCCEEDED else str(kind_of(state, cause)),
                "error": error,
            }
            self._event(connection, EventKind.FINISHED, job=job, attempt=number, by=by, detail=detail)
            made_way = then.state is JobState.QUEUED and kind_of(state, cause) is CauseKind.PREEMPTION
            self._event(
                connection,
                EventKind.PREEMPTED if made_way else _JOB_AFTER[then.state],
                job=job,
                attempt=number,
                by=by,
                detail=_counts(then) | ({"cause": str(cause)} if cause is Cause.RESIZED else {}),
            )
            if then.state in (JobState.FAILED, JobState.CANCELLED):
                self._cancel_dependents(connection, job, then.state, by)
            return get_job(connection, job)

    def attempts(self, job: str | None = None, *, active: bool = False) -> list[Attempt]:
        """Attempts of a job, or of all, in order; only the active ones if asked."""
        query = _ATTEMPTS
        if job is not None:
            query = query.where(AttemptRow.job == job)
        if active:
            query = query.where(attempt_in(ACTIVE))
        with self.reading() as connection:
            return [_attempt_of(row) for row in connection.execute(query)]

    def _open(
        self, connection: Connection, job: str, number: int, by: str, ranks: int | None
    ) -> Attempt | None:
        if drained(connection):
            return None
        now = self.clock()
        told = {"job": job, "number": number, "before": number - 1, "now": now}
        if not connection.execute(_OPEN, told).rowcount:
            return None
        value = get_job(connection, job)
        ranks = value.ranks if ranks is None else ranks
        if not value.ranks <= ranks <= (value.max_ranks or value.ranks):
            raise ValueError(f"job {job} cannot have {ranks} ranks")
        connection.execute(
            insert(AttemptRow).values(
                job=job,
                number=number,
                state=AttemptState.STARTING,
                opened=now,
                seen=now,
                ranks=ranks,
                cpus=value.cpus * ranks / value.ranks,
                gpus=value.gpus * ranks / value.ranks,
            )
        )
        detail = None if value.max_ranks is None else {"ranks": ranks}
        self._event(connection, EventKind.CLAIMED, job=job, attempt=number, by=by, detail=detail)
        return _attempt(connection, job, number)

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


def _text(text: str) -> str:
    """The text with what a database refuses spelled out: NUL, bytes of a file's name that are no UTF-8."""
    return text.replace("\0", r"\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def _attempt_of(row: Any) -> Attempt:
    values = dict(row._mapping)
    values["state"] = AttemptState(values["state"])
    values["cause"] = Cause(values["cause"]) if values["cause"] else None
    return Attempt(**values)


def _attempt(connection: Connection, job: str, number: int) -> Attempt:
    return _attempt_of(connection.execute(_BY_NUMBER, {"job": job, "number": number}).one())


def _counts(then: After) -> dict[str, Any]:
    """What an event tells of a job that is tried again, or not."""
    if then.state not in (JobState.QUEUED, JobState.FAILED):
        return {}
    return {
        "errors_used": then.errors_used,
        "infrastructure_used": then.infrastructure_used,
        "not_before": then.not_before and then.not_before.isoformat(),
        "why": then.why,
    }
