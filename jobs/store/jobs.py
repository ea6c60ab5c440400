"""Verbs on jobs and their history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from jobs.store.opening import Database
from jobs.store.tables import AttemptRow, EventRow, JobRow
from jobs.store.values import (
    ACTIVE,
    Ambiguous,
    AttemptState,
    Conflict,
    Event,
    EventKind,
    Job,
    JobState,
    NotFound,
)

# Everything but the config: a list of a thousand jobs must not parse a thousand of them.
_JOB = (
    JobRow.id,
    JobRow.sequence,
    JobRow.name,
    JobRow.owner,
    JobRow.priority,
    JobRow.state,
    JobRow.attempt,
    JobRow.attempt_limit,
    JobRow.ranks,
    JobRow.cpus,
    JobRow.gpus,
    JobRow.created,
    JobRow.started,
    JobRow.finished,
    JobRow.cancel_requested,
    JobRow.error,
)
_EVENT = (
    EventRow.id,
    EventRow.at,
    EventRow.job,
    EventRow.attempt,
    EventRow.kind,
    EventRow.by,
    EventRow.detail,
)


def job_of(row: Any) -> Job:
    """The value of a row of `_JOB`."""
    values = dict(row._mapping)
    values["state"] = JobState(values["state"])
    return Job(**values)


def get_job(connection: Connection, job: str, *, lock: bool = False) -> Job:
    """The job with exactly this id, inside a transaction; with a `lock` nobody else changes it until its end.

    (SQLite needs no lock, a transaction that writes has the database to itself, and leaves FOR UPDATE out.)
    """
    query = select(*_JOB).where(JobRow.id == job)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound(f"no job {job!r}")
    return job_of(row)


class JobVerbs(Database):
    """Submit, look up, list, cancel, retry; and the events."""

    def add_job(
        self,
        id: str,
        *,
        config: Mapping[str, Any],
        name: str,
        owner: str,
        priority: int,
        ranks: int,
        cpus: float,
        gpus: float,
        attempt_limit: int,
    ) -> tuple[Job, bool]:
        """Record a job as queued; returns it, and whether it is new.

        An id that exists with the same config is the same job. Raises Conflict if its config differs.
        """
        try:
            with self.writing() as connection:
                connection.execute(
                    insert(JobRow).values(
                        id=id,
                        name=name,
                        owner=owner,
                        priority=priority,
                        config=dict(config),
                        ranks=ranks,
                        cpus=cpus,
                        gpus=gpus,
                        state=JobState.QUEUED,
                        attempt=0,
                        attempt_limit=attempt_limit,
                        created=self.clock(),
                    )
                )
                self._event(connection, EventKind.SUBMITTED, job=id, by=owner)
                return get_job(connection, id), True
        except IntegrityError:
            job = self.job(id, exact=True)
            if self.config(id) != dict(config):
                raise Conflict(
                    f"job {id} exists with another config; take another id, or the config that it was given"
                ) from None
            return job, False

    def job(self, id: str, *, exact: bool = False) -> Job:
        """The job with this id or, unless `exact`, with this beginning of one. Raises NotFound, Ambiguous."""
        with self.reading() as connection:
            try:
                return get_job(connection, id)
            except NotFound:
                if exact or not id:
                    raise
            rows = connection.execute(
                select(*_JOB).where(JobRow.id.startswith(id, autoescape=True)).order_by(JobRow.id).limit(11)
            ).all()
        if not rows:
            raise NotFound(f"no job's id begins with {id!r}")
        if len(rows) > 1:
            raise Ambiguous(id, [row.id for row in rows])
        return job_of(rows[0])

    def config(self, job: str) -> dict[str, Any]:
        """The whole config of a job, as submitted (`jobs.config.from_mapping` parses it)."""
        with self.reading() as connection:
            config = connection.execute(select(JobRow.config).where(JobRow.id == job)).scalar_one_or_none()
        if config is None:
            raise NotFound(f"no job {job!r}")
        return dict(config)

    def jobs(
        self,
        states: Iterable[JobState] | None = None,
        *,
        owner: str | None = None,
        name: str | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """Jobs, the newest first."""
        query = select(*_JOB).order_by(JobRow.sequence.desc()).limit(limit)
        if states is not None:
            query = query.where(JobRow.state.in_(list(states)))
        if owner is not None:
            query = query.where(JobRow.owner == owner)
        if name is not None:
            query = query.where(JobRow.name == name)
        with self.reading() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def count(self, states: Iterable[JobState] | None = None) -> int:
        """How many jobs there are, in these states if any are named."""
        query = select(func.count()).select_from(JobRow)
        if states is not None:
            query = query.where(JobRow.state.in_(list(states)))
        with self.reading() as connection:
            return connection.execute(query).scalar_one()

    def queued(self) -> list[Job]:
        """The jobs that wait, in the order in which they go: by priority, then age."""
        query = (
            select(*_JOB)
            .where(JobRow.state == JobState.QUEUED)
            .order_by(JobRow.priority.desc(), JobRow.sequence)
        )
        with self.reading() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def request_cancel(self, job: str, by: str) -> Job:
        """Cancel a queued job at once; mark a running one, whose attempt then stops.

        An ended one stays as it is. Asking twice changes nothing.
        """
        now = self.clock()
        with self.writing() as connection:
            # Locked, so that the job cannot pass from one of the two states to the other in between.
            get_job(connection, job, lock=True)
            cancelled = connection.execute(
                update(JobRow)
                .where(JobRow.id == job, JobRow.state == JobState.QUEUED)
                .values(state=JobState.CANCELLED, cancel_requested=now, finished=now)
            ).rowcount
            requested = connection.execute(
                update(JobRow)
                .where(JobRow.id == job, JobRow.state == JobState.RUNNING, JobRow.cancel_requested.is_(None))
                .values(cancel_requested=now)
            ).rowcount
            if cancelled:
                self._event(connection, EventKind.CANCELLED, job=job, by=by)
            elif requested:
                self._event(connection, EventKind.CANCEL_REQUESTED, job=job, by=by)
            return get_job(connection, job)

    def retry(self, job: str, by: str, attempts: int) -> Job:
        """Put a failed or cancelled job back into the queue, with `attempts` more attempts.

        Raises Conflict if it is in another state.
        """
        with self.writing() as connection:
            changed = connection.execute(
                update(JobRow)
                .where(JobRow.id == job, JobRow.state.in_([JobState.FAILED, JobState.CANCELLED]))
                .values(
                    state=JobState.QUEUED,
                    attempt_limit=JobRow.attempt + attempts,
                    cancel_requested=None,
                    finished=None,
                    error=None,
                )
            ).rowcount
            value = get_job(connection, job)
            if not changed:
                raise Conflict(f"job {job} is {value.state}; only a failed or cancelled job can be retried")
            self._event(connection, EventKind.RETRIED, job=job, by=by)
            return value

    def events(self, job: str | None = None, *, after: int = 0, limit: int | None = None) -> list[Event]:
        """Events of a job, or of everything, the oldest first; only those with an id above `after`."""
        query = select(*_EVENT).where(EventRow.id > after).order_by(EventRow.id).limit(limit)
        if job is not None:
            query = query.where(EventRow.job == job)
        with self.reading() as connection:
            return [
                Event(**{**row._mapping, "kind": EventKind(row.kind)}) for row in connection.execute(query)
            ]

    def note_unfit(self, job: str, by: str, reason: str) -> bool:
        """Record, once for each reason, that a job needs more than the cluster has; whether it is new."""
        with self.writing() as connection:
            known = connection.execute(
                select(EventRow.detail).where(EventRow.job == job, EventRow.kind == EventKind.UNFIT)
            ).scalars()
            if any(detail.get("reason") == reason for detail in known):
                return False
            self._event(connection, EventKind.UNFIT, job=job, by=by, detail={"reason": reason})
            return True

    def committed(self, states: Iterable[AttemptState] = ACTIVE) -> tuple[float, float]:
        """The CPUs and GPUs of attempts in these states: of all that hold any, or will."""
        query = (
            select(JobRow.cpus, JobRow.gpus)
            .join(AttemptRow, AttemptRow.job == JobRow.id)
            .where(AttemptRow.state.in_(list(states)))
        )
        with self.reading() as connection:
            rows = connection.execute(query).all()
        return sum(row.cpus for row in rows), sum(row.gpus for row in rows)

    def _event(
        self,
        connection: Connection,
        kind: EventKind,
        *,
        by: str,
        job: str | None = None,
        attempt: int | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        connection.execute(
            insert(EventRow).values(
                at=self.clock(), job=job, attempt=attempt, kind=kind, by=by, detail=dict(detail or {})
            )
        )
