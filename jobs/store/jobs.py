"""Verbs on jobs: submit, look up, list, cancel, retry."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from jobs.store.events import EventVerbs
from jobs.store.states import EventKind, JobState
from jobs.store.tables import DependencyRow, JobRow
from jobs.store.values import Ambiguous, Conflict, Dependency, Job, NotFound, Retry, Taken

# Everything but the config: a list of a thousand jobs must not parse a thousand of them.
JOB = (
    JobRow.id,
    JobRow.sequence,
    JobRow.name,
    JobRow.owner,
    JobRow.priority,
    JobRow.state,
    JobRow.attempt,
    JobRow.ranks,
    JobRow.cpus,
    JobRow.gpus,
    JobRow.created,
    JobRow.started,
    JobRow.finished,
    JobRow.cancel_requested,
    JobRow.error,
    JobRow.not_before,
    JobRow.held,
    JobRow.yield_requested,
    JobRow.time_limit,
    JobRow.retry,
    JobRow.errors_used,
    JobRow.infrastructure_used,
    JobRow.max_ranks,
    JobRow.yield_cause,
    JobRow.trials,
    JobRow.parent,
    JobRow.stopped,
)

FINAL = tuple(state for state in JobState if state.final)

# Asked in every transaction: putting a statement together takes longer than its answer.
_BY_ID = select(*JOB).where(JobRow.id == bindparam("job"))
_BY_ID_LOCKED = _BY_ID.with_for_update(key_share=True)


def job_of(row: Any) -> Job:
    """The value of a row of `JOB`."""
    return Job.of(row._mapping)


def get_job(connection: Connection, job: str, *, lock: bool = False) -> Job:
    """The job with exactly this id, inside a transaction; with a `lock` nobody else changes it until its end.

    (SQLite needs no lock, a transaction that writes has the database to itself, and leaves it out. In
    PostgreSQL it is FOR NO KEY UPDATE: `EventVerbs.writing` says why.)
    """
    row = connection.execute(_BY_ID_LOCKED if lock else _BY_ID, {"job": job}).one_or_none()
    if row is None:
        raise NotFound(f"no job {job!r}")
    return job_of(row)


def unmet(other: Any = JobRow) -> ColumnElement[bool]:
    """Whether the job of a DependencyRow must still wait for `other`, a JobRow that it is joined with."""
    ended = other.state.in_(FINAL)
    return (DependencyRow.any & ~ended) | (~DependencyRow.any & (other.state != JobState.SUCCEEDED))


class JobVerbs(EventVerbs):
    """Submit, look up, list, cancel, retry."""

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
        max_ranks: int | None = None,
        retry: Retry | None = None,
        time_limit: float | None = None,
        not_before: datetime | None = None,
        after: Sequence[str] = (),
        after_any: Sequence[str] = (),
        held: bool = False,
        trials: int | None = None,
    ) -> tuple[Job, bool]:
        """Record a job as queued; returns it, and whether it is new. With `trials` it is a sweep of so many.

        `cpus` and `gpus` are of all `ranks`. With `max_ranks` its attempts may have more, up to so many.

        It waits for the success of the jobs `after`, and for the end, whatever it is, of those `after_any`.
        An id that exists with the same config and dependencies is the same job. Raises Taken if they differ,
        Conflict if a job that it needs has ended badly already, NotFound if there is no such job.
        """
        now = self.clock()
        wanted = dict.fromkeys(after_any, True) | dict.fromkeys(after, False)
        try:
            with self.writing() as connection:
                insert_job(
                    connection,
                    now,
                    id=id,
                    name=name,
                    owner=owner,
                    priority=priority,
                    config=dict(config),
                    ranks=ranks,
                    cpus=cpus,
                    gpus=gpus,
                    max_ranks=max_ranks,
                    not_before=not_before,
                    held=now if held else None,
                    time_limit=time_limit,
                    retry=dataclasses.asdict(retry or Retry()),
                    trials=trials,
                )
                self._depend(connection, id, wanted)
                detail = {"after": list(after), "after_any": list(after_any)} if wanted else None
                self._event(connection, EventKind.SUBMITTED, job=id, by=owner, detail=detail)
                if held:
                    self._event(connection, EventKind.HELD, job=id, by=owner)
                return get_job(connection, id), True
        except IntegrityError:
            job = self.job(id, exact=True)
            # What it comes after is compared first: two configs that differ may still mean the same.
            if {d.on_job: d.any for d in self.dependencies(id)} != wanted:
                raise Taken(id, config=False) from None
            if self.config(id) != dict(config):
                raise Taken(id, config=True) from None
            return job, False

    def job(self, id: str, *, exact: bool = False) -> Job:
        """The job with this id or, unless `exact`, with this beginning of one. Raises NotFound, Ambiguous.

        A beginning that fits a sweep means the sweep, not one of its children.
        """
        with self.reading() as connection:
            try:
                return get_job(connection, id)
            except NotFound:
                if exact or not id:
                    raise
            child = func.coalesce(JobRow.parent, "").startswith(id, autoescape=True)
            rows = connection.execute(
                select(*JOB)
                .where(JobRow.id.startswith(id, autoescape=True), ~child)
                .order_by(JobRow.id)
                .limit(11)
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
        parent: str | None = None,
        children: bool = True,
    ) -> list[Job]:
        """Jobs, the newest first; of a sweep's the children of `parent`, of no sweep's unless `children`."""
        query = select(*JOB).order_by(JobRow.sequence.desc()).limit(limit)
        if states is not None:
            query = query.where(JobRow.state.in_(list(states)))
        if owner is not None:
            query = query.where(JobRow.owner == owner)
        if name is not None:
            query = query.where(JobRow.name == name)
        if parent is not None:
            query = query.where(JobRow.parent == parent)
        if not children:
            query = query.where(JobRow.parent.is_(None))
        with self.reading() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def count(self, states: Iterable[JobState] | None = None) -> int:
        """How many jobs there are, in these states if any are named."""
        query = select(func.count()).select_from(JobRow)
        if states is not None:
            query = query.where(JobRow.state.in_(list(states)))
        with self.reading() as connection:
            return connection.execute(query).scalar_one()

    def dependencies(self, job: str) -> list[Dependency]:
        """The jobs that a job comes after, in the order of their submission."""
        query = (
            select(DependencyRow.job, DependencyRow.on_job, DependencyRow.any, JobRow.state)
            .join(JobRow, JobRow.id == DependencyRow.on_job)
            .where(DependencyRow.job == job)
            .order_by(JobRow.sequence)
        )
        with self.reading() as connection:
            return [
                Dependency(**{**row._mapping, "state": JobState(row.state)})
                for row in connection.execute(query)
            ]

    def dependents(self, *jobs: str) -> list[str]:
        """The jobs that come after any of these, each once, in the order of their submission."""
        query = (
            select(DependencyRow.job)
            .join(JobRow, JobRow.id == DependencyRow.job)
            .where(DependencyRow.on_job.in_(jobs))
            .order_by(JobRow.sequence)
        )
        with self.reading() as connection:
            return list(dict.fromkeys(connection.execute(query).scalars()))

    def request_cancel(self, job: str, by: str) -> Job:
        """Cancel a queued job at once; mark a running one, whose attempt then stops.

        An ended one stays as it is. Asking twice changes nothing. The jobs that need its success are
        cancelled with it.
        """
        with self.writing() as connection:
            # Locked, so that the job cannot pass from one of the two states to the other in between.
            get_job(connection, job, lock=True)
            return self._cancel(connection, job, by)

    def retry(self, job: str, by: str) -> Job:
        """Put a failed or cancelled job back into the queue, with as many attempts as its `retry` allows.

        Raises Conflict if it is in another state, or needs the success of a job that has ended badly.
        """
        with self.writing() as connection:
            return self._retry(connection, job, by)

    def _cancel(self, connection: Connection, job: str, by: str) -> Job:
        """Cancel a job that is locked."""
        now = self.clock()
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
            self._cancel_dependents(connection, job, JobState.CANCELLED, by)
        elif requested:
            self._event(connection, EventKind.CANCEL_REQUESTED, job=job, by=by)
        return get_job(connection, job)

    def _retry(self, connection: Connection, job: str, by: str, state: JobState = JobState.QUEUED) -> Job:
        """Put a failed or cancelled job back into this state."""
        self._refuse_hopeless(connection, job)
        changed = connection.execute(
            update(JobRow)
            .where(JobRow.id == job, JobRow.state.in_([JobState.FAILED, JobState.CANCELLED]))
            .values(
                state=state,
                errors_used=0,
                infrastructure_used=0,
                cancel_requested=None,
                yield_requested=None,
                yield_cause=None,
                not_before=None,
                held=None,
                finished=None,
                error=None,
                stopped=None,
            )
        ).rowcount
        value = get_job(connection, job)
        if not changed:
            raise Conflict(f"job {job} is {value.state}; only a failed or cancelled job can be retried")
        self._event(connection, EventKind.RETRIED, job=job, by=by)
        return value

    def _depend(self, connection: Connection, job: str, wanted: Mapping[str, bool]) -> None:
        """Let a new job wait for others: for the end of each or, where not `wanted`, for its success."""
        if not wanted:
            return
        missing = set(wanted) - set(lock_in_order(connection, wanted, read=True)) | ({job} & set(wanted))
        if missing:
            raise NotFound(f"no job {min(missing)!r} for job {job} to come after")
        connection.execute(
            insert(DependencyRow),
            [{"job": job, "on_job": on_job, "any": any_} for on_job, any_ in wanted.items()],
        )
        self._refuse_hopeless(connection, job)

    def _refuse_hopeless(self, connection: Connection, job: str) -> None:
        """Raises Conflict if a job waits for the success of one that has ended without it.

        Those that it waits for stay locked: one that fails just now must find it among those that wait.
        """
        others = connection.execute(select(DependencyRow.on_job).where(DependencyRow.job == job)).scalars()
        lock_in_order(connection, list(others), read=True)
        row = connection.execute(
            select(JobRow.id, JobRow.state)
            .join(DependencyRow, DependencyRow.on_job == JobRow.id)
            .where(DependencyRow.job == job, unmet(), JobRow.state.in_(FINAL))
            .order_by(JobRow.sequence)
        ).first()
        if row is not None:
            raise Conflict(f"job {job} comes after job {row.id}, which is {row.state}: retry that one first")

    def _cancel_dependents(self, connection: Connection, job: str, state: JobState, by: str) -> None:
        """A job has ended without success: those that wait for its success, and for theirs, end too."""
        edges: list[tuple[str, str]] = []  # who waits for whom
        while (found := _waiting(connection, job)) != edges:  # until nobody joins them any more
            edges = found
            lock_in_order(connection, [waiting for waiting, _ in edges])
        now, ended = self.clock(), {job: state}
        for waiting, first in edges:
            if first not in ended or waiting in ended:
                continue
            changed = connection.execute(
                update(JobRow)
                .where(JobRow.id == waiting, JobRow.state == JobState.QUEUED)
                .values(
                    state=JobState.CANCELLED,
                    finished=now,
                    cancel_requested=now,
                    error=f"job {first}, which it comes after, is {ended[first]}",
                )
            ).rowcount
            if changed:
                ended[waiting] = JobState.CANCELLED
                self._event(connection, EventKind.CANCELLED, job=waiting, by=by, detail={"because": first})


def insert_job(connection: Connection, now: datetime, **values: Any) -> None:
    """Add a job that waits for its first attempt."""
    connection.execute(
        insert(JobRow).values(
            state=JobState.QUEUED, attempt=0, created=now, errors_used=0, infrastructure_used=0, **values
        )
    )


def _waiting(connection: Connection, job: str) -> list[tuple[str, str]]:
    """Who waits for whom among the queued jobs that need the success of `job`, directly or not; in the order
    of submission, so that a job stands behind all that it waits for."""
    found: dict[tuple[str, str], int] = {}
    new = [job]
    while new:
        rows = connection.execute(
            select(DependencyRow.job, DependencyRow.on_job, JobRow.sequence)
            .join(JobRow, JobRow.id == DependencyRow.job)
            .where(DependencyRow.on_job.in_(new), ~DependencyRow.any, JobRow.state == JobState.QUEUED)
        ).all()
        known = {waiting for waiting, _ in found}
        found |= {(row.job, row.on_job): row.sequence for row in rows}
        new = [waiting for waiting in dict.fromkeys(row.job for row in rows) if waiting not in known]
    return sorted(found, key=lambda edge: (found[edge], edge))


def lock_in_order(connection: Connection, jobs: Iterable[str], *, read: bool = False) -> list[str]:
    """Lock those of these jobs that there are, oldest first: two that lock some never wait in a circle."""
    query = select(JobRow.id).where(JobRow.id.in_(list(jobs))).order_by(JobRow.sequence)
    return list(connection.execute(query.with_for_update(read=read, key_share=not read)).scalars())
