"""What a scheduler reads and may ask for: who waits, who is running, who used what; holds; the drain."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, exists, func, select, update
from sqlalchemy.orm import aliased

from jobs.store.jobs import JobVerbs, get_job, unmet
from jobs.store.states import ACTIVE, AttemptState, EventKind, JobState
from jobs.store.tables import AttemptRow, DependencyRow, JobRow, SwitchRow
from jobs.store.values import Conflict, Drain, Job, Queued, Running, Usage

_DRAIN = "drain"

_QUEUED = (
    JobRow.id,
    JobRow.name,
    JobRow.owner,
    JobRow.priority,
    JobRow.sequence,
    JobRow.attempt,
    JobRow.ranks,
    JobRow.cpus,
    JobRow.gpus,
    JobRow.created,
    JobRow.not_before,
    JobRow.held,
    JobRow.time_limit,
)
_RUNNING = (
    JobRow.id,
    JobRow.name,
    JobRow.owner,
    JobRow.priority,
    JobRow.sequence,
    AttemptRow.number.label("attempt"),
    AttemptRow.state,
    JobRow.ranks,
    AttemptRow.cpus,
    AttemptRow.gpus,
    JobRow.created,
    AttemptRow.opened,
    AttemptRow.started,
    JobRow.time_limit,
    JobRow.cancel_requested,
    JobRow.yield_requested,
)


class WaitingVerbs(JobVerbs):
    """Who waits and who is running; hold, release, yield, drain."""

    def queued(self, now: datetime | None = None) -> list[Queued]:
        """The jobs that wait, in the order in which they go: by priority, then age.

        Those that are held, come after others or do not start before a moment past `now` (this one, if none
        is given) are among them; the others are `eligible`.
        """
        return self._queued(now, JobRow.state == JobState.QUEUED)

    def waiting(self, job: str, now: datetime | None = None) -> Queued | None:
        """The job as `queued` shows it; none if it does not wait."""
        found = self._queued(now, (JobRow.state == JobState.QUEUED) & (JobRow.id == job))
        return found[0] if found else None

    def freed_by(self, job: str, now: datetime | None = None) -> list[Queued]:
        """The jobs that come after a job and are eligible now."""
        after = select(DependencyRow.job).where(DependencyRow.on_job == job)
        found = self._queued(now, (JobRow.state == JobState.QUEUED) & JobRow.id.in_(after))
        return [queued for queued in found if queued.eligible]

    def running(self) -> list[Running]:
        """The jobs with an active attempt, in the order in which the attempts were opened."""
        query = (
            select(*_RUNNING)
            .join(AttemptRow, AttemptRow.job == JobRow.id)
            .where(AttemptRow.state.in_(ACTIVE))
            .order_by(AttemptRow.opened, JobRow.sequence)
        )
        with self.reading() as connection:
            return [
                Running(**{**row._mapping, "state": AttemptState(row.state)})
                for row in connection.execute(query)
            ]

    def committed(self, states: Iterable[AttemptState] = ACTIVE) -> tuple[float, float]:
        """The CPUs and GPUs of attempts in these states: of all that hold any, or will."""
        query = select(AttemptRow.cpus, AttemptRow.gpus).where(AttemptRow.state.in_(list(states)))
        with self.reading() as connection:
            rows = connection.execute(query).all()
        return sum(row.cpus for row in rows), sum(row.gpus for row in rows)

    def usage(self, since: datetime | None = None, *, now: datetime | None = None) -> dict[str, Usage]:
        """What each owner's attempts have used between `since` (the beginning) and `now`."""
        return self._usage(JobRow.owner, since, now)

    def usage_by_job(
        self, since: datetime | None = None, *, owner: str | None = None, now: datetime | None = None
    ) -> dict[str, Usage]:
        """What each job's attempts have used between `since` (the beginning) and `now`."""
        return self._usage(JobRow.id, since, now, owner)

    def hold(self, job: str, by: str) -> Job:
        """Keep a job from starting until it is released; an attempt under way goes on.

        Holding it twice changes nothing. Raises Conflict if it has ended.
        """
        with self.writing() as connection:
            changed = connection.execute(
                update(JobRow)
                .where(
                    JobRow.id == job,
                    JobRow.state.in_([JobState.QUEUED, JobState.RUNNING]),
                    JobRow.held.is_(None),
                )
                .values(held=self.clock())
            ).rowcount
            value = get_job(connection, job)
            if changed:
                self._event(connection, EventKind.HELD, job=job, by=by)
            elif value.state.final:
                raise Conflict(f"job {job} is {value.state}; only one that has not ended can be held")
            return value

    def release(self, job: str, by: str) -> Job:
        """Let a held job start; one that is not held stays as it is. Raises Conflict if it has ended."""
        with self.writing() as connection:
            changed = connection.execute(
                update(JobRow)
                .where(
                    JobRow.id == job,
                    JobRow.state.in_([JobState.QUEUED, JobState.RUNNING]),
                    JobRow.held.is_not(None),
                )
                .values(held=None)
            ).rowcount
            value = get_job(connection, job)
            if changed:
                self._event(connection, EventKind.RELEASED, job=job, by=by)
            elif value.state.final:
                raise Conflict(f"job {job} is {value.state}; only one that has not ended can be released")
            return value

    def request_yield(self, job: str, by: str, reason: str | None = None) -> bool:
        """Ask a running job's attempt to make way, with a checkpoint; whether that is new.

        It waits again afterwards, at nobody's expense. A job that is being cancelled is not asked.
        """
        with self.writing() as connection:
            changed = connection.execute(
                update(JobRow)
                .where(
                    JobRow.id == job,
                    JobRow.state == JobState.RUNNING,
                    JobRow.cancel_requested.is_(None),
                    JobRow.yield_requested.is_(None),
                )
                .values(yield_requested=self.clock())
            ).rowcount
            value = get_job(connection, job)
            if changed:
                detail = {"reason": reason} if reason else None
                self._event(
                    connection,
                    EventKind.YIELD_REQUESTED,
                    job=job,
                    attempt=value.attempt,
                    by=by,
                    detail=detail,
                )
            return bool(changed)

    def hurry(self, job: str, by: str) -> Job:
        """Let a queued job that waits for a moment, such as that of its next retry, start now.

        Raises Conflict if it does not wait for one.
        """
        with self.writing() as connection:
            changed = connection.execute(
                update(JobRow)
                .where(JobRow.id == job, JobRow.state == JobState.QUEUED, JobRow.not_before > self.clock())
                .values(not_before=None)
            ).rowcount
            value = get_job(connection, job)
            if not changed:
                raise Conflict(f"job {job} is {value.state} and waits for no moment")
            self._event(connection, EventKind.REQUEUED, job=job, by=by)
            return value

    def drain(self, by: str) -> Drain:
        """Open no attempt any more from here on, whoever tries; what is under way goes on."""
        return self._switch(_DRAIN, True, by) or Drain(self.clock(), by)

    def end_drain(self, by: str) -> bool:
        """Open attempts again; whether it had been drained."""
        drained = self.draining() is not None
        self._switch(_DRAIN, False, by)
        return drained

    def draining(self) -> Drain | None:
        """Since when, and by whom, the service is being drained; none if it is not."""
        with self.reading() as connection:
            return _drain(connection)

    def _switch(self, name: str, on: bool, by: str) -> Drain | None:
        with self.writing() as connection:
            off = SwitchRow.since.is_(None)
            changed = connection.execute(
                update(SwitchRow)
                .where(SwitchRow.name == name, off if on else ~off)
                .values(since=self.clock() if on else None, by=by if on else None)
            ).rowcount
            if changed:
                self._event(connection, EventKind.DRAIN_BEGUN if on else EventKind.DRAIN_ENDED, by=by)
            return _drain(connection)

    def _queued(self, now: datetime | None, which: ColumnElement[bool]) -> list[Queued]:
        now = now or self.clock()
        other = aliased(JobRow)  # JobRow are those that wait, `other` what they wait for
        blocking = (
            select(DependencyRow.job, DependencyRow.on_job)
            .join(JobRow, JobRow.id == DependencyRow.job)
            .join(other, other.id == DependencyRow.on_job)
            .where(unmet(other), which)
            .order_by(other.sequence)
        )
        query = select(*_QUEUED).where(which).order_by(JobRow.priority.desc(), JobRow.sequence)
        with self.reading() as connection:
            rows = connection.execute(query).all()
            blocked: dict[str, list[str]] = {}
            for row in connection.execute(blocking):
                blocked.setdefault(row.job, []).append(row.on_job)
        return [
            Queued(
                **row._mapping,
                blocked_by=tuple(blocked.get(row.id, ())),
                eligible=row.held is None
                and (row.not_before is None or row.not_before <= now)
                and row.id not in blocked,
            )
            for row in rows
        ]

    def _usage(
        self, key: Any, since: datetime | None, now: datetime | None, owner: str | None = None
    ) -> dict[str, Usage]:
        now = now or self.clock()
        sums: dict[str, list[float]] = {}

        def add(of: str, cpu: float, gpu: float, seconds: float, attempts: int) -> None:
            total = sums.setdefault(of, [0.0, 0.0, 0.0, 0])
            for i, value in enumerate((cpu, gpu, seconds, attempts)):
                total[i] += value

        seconds = AttemptRow.seconds
        whole: ColumnElement[bool] = AttemptRow.finished.is_not(None)
        # Those that lie across an end of the period: counted one by one, for the part within it.
        across: ColumnElement[bool] = AttemptRow.finished.is_(None)
        if since is not None:
            whole &= (AttemptRow.finished > since) & (AttemptRow.started >= since)
            across |= (AttemptRow.finished > since) & (AttemptRow.started < since)
        ended = (
            select(
                key.label("of"),
                func.sum(seconds * AttemptRow.cpus).label("cpu"),
                func.sum(seconds * AttemptRow.gpus).label("gpu"),
                func.sum(seconds).label("seconds"),
                func.count().label("attempts"),
            )
            .join(JobRow, JobRow.id == AttemptRow.job)
            .where(whole, AttemptRow.started.is_not(None))
            .group_by(key)
        )
        others = (
            select(
                key.label("of"),
                AttemptRow.cpus,
                AttemptRow.gpus,
                AttemptRow.started,
                AttemptRow.finished,
            )
            .join(JobRow, JobRow.id == AttemptRow.job)
            .where(across, AttemptRow.started.is_not(None))
        )
        if owner is not None:
            ended, others = ended.where(JobRow.owner == owner), others.where(JobRow.owner == owner)
        with self.reading() as connection:
            for row in connection.execute(ended):
                add(row.of, row.cpu, row.gpu, row.seconds, row.attempts)
            for row in connection.execute(others):
                begin = row.started if since is None else max(row.started, since)
                took = max(0.0, ((row.finished or now) - begin).total_seconds())
                add(row.of, took * row.cpus, took * row.gpus, took, 1)
        return {of: Usage(cpu, gpu, took, int(attempts)) for of, (cpu, gpu, took, attempts) in sums.items()}


def may_start(connection: Connection, job: str, now: datetime) -> ColumnElement[bool] | None:
    """What must hold of a job's row for an attempt of it to be opened in this transaction; none if, as the
    service is being drained, nothing helps.

    It cannot change before the transaction ends: the row itself is about to be updated, and whoever begins a
    drain waits for the lock that is taken here.
    """
    switch = select(SwitchRow.since).where(SwitchRow.name == _DRAIN).with_for_update(read=True)
    if connection.execute(switch).scalar_one() is not None:
        return None
    other = aliased(JobRow)
    blocking = (
        select(DependencyRow.job)
        .join(other, other.id == DependencyRow.on_job)
        .where(DependencyRow.job == job, unmet(other))
    )
    return (
        (JobRow.id == job)
        & (JobRow.state == JobState.QUEUED)
        & JobRow.held.is_(None)
        & (JobRow.not_before.is_(None) | (JobRow.not_before <= now))
        & ~exists(blocking.subquery().select())
    )


def _drain(connection: Connection) -> Drain | None:
    row = connection.execute(select(SwitchRow.since, SwitchRow.by).where(SwitchRow.name == _DRAIN)).one()
    return None if row.since is None else Drain(row.since, row.by)
