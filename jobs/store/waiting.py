"""What a scheduler reads: who waits, who is running, who used what; and what it may start."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, bindparam, case, exists, func, select
from sqlalchemy.orm import aliased

from jobs.store.jobs import JobVerbs, unmet
from jobs.store.states import ACTIVE, AttemptState, Cause, JobState
from jobs.store.tables import AttemptRow, DependencyRow, JobRow, SwitchRow, Utc, attempt_in
from jobs.store.values import Ended, Queued, Running, Usage

DRAIN = "drain"

_WAITS = JobRow.state == JobState.QUEUED

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
    JobRow.max_ranks,
)
_RUNNING = (
    JobRow.id,
    JobRow.name,
    JobRow.owner,
    JobRow.priority,
    JobRow.sequence,
    AttemptRow.number.label("attempt"),
    AttemptRow.state,
    AttemptRow.ranks,
    AttemptRow.cpus,
    AttemptRow.gpus,
    JobRow.created,
    AttemptRow.opened,
    AttemptRow.host,
    AttemptRow.started,
    JobRow.time_limit,
    JobRow.cancel_requested,
    JobRow.yield_requested,
    JobRow.yield_cause,
    JobRow.max_ranks,
)


_ENDED = (
    AttemptRow.job,
    AttemptRow.number,
    AttemptRow.state,
    AttemptRow.cause,
    JobRow.owner,
    JobRow.priority,
    JobRow.sequence,
    AttemptRow.cpus,
    AttemptRow.gpus,
    AttemptRow.opened,
    AttemptRow.started,
    AttemptRow.finished,
)


def _past(which: ColumnElement[bool]) -> Select[str, datetime | None, Any]:
    """Of the jobs that have ended attempts: when the newest ended, and how many made way for others."""
    for_no_other = func.coalesce(AttemptRow.cause, "").in_((Cause.RESIZED, Cause.REQUEUED))
    made_way = case(((AttemptRow.state == AttemptState.PREEMPTED) & ~for_no_other, 1), else_=0)
    return (
        select(
            AttemptRow.job,
            func.max(AttemptRow.finished).label("finished"),
            func.sum(made_way).label("preempted"),
        )
        .join(JobRow, JobRow.id == AttemptRow.job)
        .where(which, JobRow.attempt > 0, AttemptRow.finished.is_not(None))
        .group_by(AttemptRow.job)
    )


class _Asked(NamedTuple):
    """What is asked of jobs that wait."""

    jobs: Select[*tuple[Any, ...]]  # themselves
    blocking: Select[str, str]  # what they wait for
    past: Select[str, datetime | None, Any]


def _asked(which: ColumnElement[bool]) -> _Asked:
    other = aliased(JobRow)  # JobRow are those that wait, `other` what they wait for
    blocking = (
        select(DependencyRow.job, DependencyRow.on_job)
        .join(JobRow, JobRow.id == DependencyRow.job)
        .join(other, other.id == DependencyRow.on_job)
        .where(unmet(other), which)
        .order_by(other.sequence)
    )
    jobs = select(*_QUEUED).where(which).order_by(JobRow.priority.desc(), JobRow.sequence)
    return _Asked(jobs, blocking, _past(which))


# Asked by every submit, or in each pass of a dispatcher: to put a statement together takes longer than its
# answer.
_ALL_QUEUED = _asked(_WAITS & JobRow.trials.is_(None))
_ONE_QUEUED = _asked(_WAITS & (JobRow.id == bindparam("job")))
_SOME_QUEUED = _asked(_WAITS & JobRow.trials.is_(None) & JobRow.id.in_(bindparam("jobs", expanding=True)))
_ALL_RUNNING = (
    select(*_RUNNING)
    .join(AttemptRow, AttemptRow.job == JobRow.id)
    .where(attempt_in(ACTIVE))
    .order_by(AttemptRow.opened, JobRow.sequence)
)
_PAST_OF_RUNNING = _past(JobRow.state == JobState.RUNNING)
_ALL_ENDED = (
    select(*_ENDED)
    .join(JobRow, JobRow.id == AttemptRow.job)
    .where(AttemptRow.finished.is_not(None))
    .order_by(AttemptRow.finished, JobRow.sequence)
)


def _blocking() -> Select[str]:
    other = aliased(JobRow)
    return (
        select(DependencyRow.job)
        .join(other, other.id == DependencyRow.on_job)
        .where(DependencyRow.job == bindparam("job"), unmet(other))
    )


NOW = bindparam("now", type_=Utc())

# Of the row of the job that the parameter `job` names: whether it is not held, its moment has come, and what
# it comes after has ended.
UNHINDERED = (
    JobRow.held.is_(None)
    & (JobRow.not_before.is_(None) | (JobRow.not_before <= NOW))
    & ~exists(_blocking().subquery().select())
)

# What must hold of that row for an attempt of it to be opened, unless the service is being `drained`. It
# cannot change before the transaction ends, as the row itself is about to be updated.
MAY_START = (
    (JobRow.id == bindparam("job")) & (JobRow.state == JobState.QUEUED) & JobRow.trials.is_(None) & UNHINDERED
)


class WaitingVerbs(JobVerbs):
    """Who waits, who is running, who used what."""

    def queued(self, now: datetime | None = None) -> list[Queued]:
        """The jobs that wait, in the order in which they go: by priority, then age.

        Those that are held, come after others or do not start before a moment past `now` (this one, if none
        is given) are among them; the others are `eligible`. Sweeps are not: their children are.
        """
        return self._queued(now, _ALL_QUEUED)

    def waiting(self, job: str, now: datetime | None = None) -> Queued | None:
        """The job, or the sweep, as `queued` shows it; none if it does not wait."""
        found = self._queued(now, _ONE_QUEUED, job=job)
        return found[0] if found else None

    def waiting_among(self, jobs: Collection[str], now: datetime | None = None) -> list[Queued]:
        """Those of these jobs that wait, as `queued` shows them."""
        if not jobs:
            return []
        return self._queued(now, _SOME_QUEUED, jobs=list(jobs))

    def freed_by(self, job: str, now: datetime | None = None) -> list[Queued]:
        """The jobs that come after a job and are eligible now."""
        # Asked for by their ids: a subquery would be looked up for each of all that wait.
        return [queued for queued in self.waiting_among(self.dependents(job), now) if queued.eligible]

    def running(self) -> list[Running]:
        """The jobs with an active attempt, in the order in which the attempts were opened."""
        with self.reading() as connection:
            rows = connection.execute(_ALL_RUNNING).all()
            past = {row.job: row for row in connection.execute(_PAST_OF_RUNNING)}
        return [
            Running(
                **{
                    **row._mapping,
                    "state": AttemptState(row.state),
                    "yield_cause": Cause(row.yield_cause) if row.yield_cause else None,
                },
                preempted=past[row.id].preempted if row.id in past else 0,
            )
            for row in rows
        ]

    def ended(
        self,
        since: datetime | None = None,
        *,
        of: Collection[str] | None = None,
        limit: int | None = None,
    ) -> list[Ended]:
        """The attempts that ended at `since` or later, in that order; only those of the jobs `of`."""
        query = _ALL_ENDED
        if since is not None:
            query = query.where(AttemptRow.finished >= since)
        if of is not None:
            query = query.where(AttemptRow.job.in_(of))
        if limit is not None:
            query = query.limit(limit)
        with self.reading() as connection:
            return [
                Ended(
                    **{
                        **row._mapping,
                        "state": AttemptState(row.state),
                        "cause": Cause(row.cause) if row.cause else None,
                    }
                )
                for row in connection.execute(query)
            ]

    def committed(self, states: Iterable[AttemptState] = ACTIVE) -> tuple[float, float]:
        """The CPUs and GPUs of attempts in these states: of all that hold any, or will."""
        query = select(AttemptRow.cpus, AttemptRow.gpus).where(attempt_in(states))
        with self.reading() as connection:
            rows = connection.execute(query).all()
        return sum(row.cpus for row in rows), sum(row.gpus for row in rows)

    def usage(self, since: datetime | None = None, *, now: datetime | None = None) -> dict[str, Usage]:
        """What each owner's attempts have used between `since` (the beginning) and `now`."""
        return self._usage(JobRow.owner, since, now)

    def usage_by_job(
        self, since: datetime | None = None, *, owner: str | None = None, now: datetime | None = None
    ) -> dict[str, Usage]:
        """What each job's attempts have used between `since` (the beginning) and `now`.

        What a sweep's children have used is the sweep's.
        """
        return self._usage(func.coalesce(JobRow.parent, JobRow.id), since, now, owner)

    def _queued(self, now: datetime | None, asked: _Asked, **which: object) -> list[Queued]:
        now = now or self.clock()
        with self.reading() as connection:
            rows = connection.execute(asked.jobs, which).all()
            blocked: dict[str, list[str]] = {}
            for row in connection.execute(asked.blocking, which):
                blocked.setdefault(row.job, []).append(row.on_job)
            past = {row.job: row for row in connection.execute(asked.past, which)}
        return [
            Queued(
                **row._mapping,
                since=past[row.id].finished if row.id in past else row.created,
                preempted=past[row.id].preempted if row.id in past else 0,
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


def drained(connection: Connection) -> bool:
    """Whether nothing new starts; whoever begins or ends that waits for this transaction."""
    switch = select(SwitchRow.since).where(SwitchRow.name == DRAIN).with_for_update(read=True)
    return connection.execute(switch).scalar_one() is not None
