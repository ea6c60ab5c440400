"""Verbs on sweeps: make children, stop those that are behind, end the sweep once; read what children came to.

A sweep is a job that is never scheduled: it waits (`queued`) until it has children, runs while it has, and
ends in one transaction. Whoever makes children, or ends it, holds the lock of the sweep's row and goes by
what is recorded then, so that it does not matter how many try at once, nor where one of them dies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from jobs.store.jobs import JOB, get_job, insert_job, job_of, lock_in_order
from jobs.store.models import ModelVerbs
from jobs.store.states import EventKind, JobState
from jobs.store.tables import CheckpointRow, JobRow, ReportRow, TrialRow
from jobs.store.values import Job, NewTrial, NotFound, Tally, Trial
from jobs.store.waiting import UNHINDERED, drained

_OPEN = (JobState.QUEUED, JobState.RUNNING)
_SWEEPS = select(*JOB).where(JobRow.trials.is_not(None), JobRow.state.in_(_OPEN)).order_by(JobRow.sequence)


class SweepVerbs(ModelVerbs):
    """Make the children of sweeps, and end sweeps. What is ordered of a sweep is ordered of its children."""

    def sweeps(self) -> list[Job]:
        """The sweeps that have not ended, the oldest first."""
        with self.reading() as connection:
            return [job_of(row) for row in connection.execute(_SWEEPS)]

    def add_trials(self, sweep: str, children: Sequence[NewTrial], by: str) -> list[Job]:
        """Make children of a sweep; returns those that were made, in the order given: all or none.

        None are made if the first is not the sweep's next one by now, as another dispatcher was quicker, or
        if the sweep may make none: it is held, cancelled, has ended, waits for something, or nothing new
        starts at all. Raises NotFound if there is no such sweep.
        """
        now = self.clock()
        with self.writing() as connection:
            parent = _sweep(connection, sweep)
            made = connection.execute(
                select(func.count()).select_from(TrialRow).where(TrialRow.sweep == sweep)
            ).scalar_one()
            numbers = [child.number for child in children]
            may = (
                (JobRow.id == sweep)
                & JobRow.state.in_(_OPEN)
                & JobRow.cancel_requested.is_(None)
                & JobRow.error.is_(None)
                & UNHINDERED
            )
            if (
                not children
                or numbers != list(range(made + 1, made + 1 + len(children)))
                or numbers[-1] > (parent.trials or 0)
                or drained(connection)
                or connection.execute(select(JobRow.id).where(may), {"job": sweep, "now": now}).first()
                is None
            ):
                return []
            connection.execute(
                update(JobRow)
                .where(JobRow.id == sweep)
                .values(state=JobState.RUNNING, started=parent.started or now, not_before=None)
            )
            for child in children:
                self._add_trial(connection, parent, child, by)
            return [get_job(connection, child_id(sweep, child.number)) for child in children]

    def stop_early(self, child: str, reason: str, by: str) -> Job | None:
        """Stop a child that is behind its siblings, as a cancel does; none if it is stopping or has ended."""
        now = self.clock()
        with self.writing() as connection:
            before = get_job(connection, child, lock=True)
            if before.state.final or before.cancel_requested is not None:
                return None
            waits = before.state is JobState.QUEUED
            ended = {"state": JobState.CANCELLED, "finished": now, "error": reason} if waits else {}
            connection.execute(
                update(JobRow).where(JobRow.id == child).values(cancel_requested=now, stopped=reason, **ended)
            )
            detail = {"reason": reason}
            self._event(connection, EventKind.STOP_REQUESTED, job=child, by=by, detail=detail)
            if waits:
                self._event(connection, EventKind.CANCELLED, job=child, by=by)
                self._cancel_dependents(connection, child, JobState.CANCELLED, by)
            return get_job(connection, child)

    def make_no_more(self, sweep: str, reason: str, by: str) -> bool:
        """Let a sweep have no more children, and fail once those that it has have ended.

        Returns whether that is new.
        """
        with self.writing() as connection:
            before = _sweep(connection, sweep)
            if before.state.final or before.error is not None:
                return False
            connection.execute(update(JobRow).where(JobRow.id == sweep).values(error=reason))
            self._event(connection, EventKind.ENOUGH, job=sweep, by=by, detail={"reason": reason})
            return True

    def end_sweep(self, sweep: str, by: str) -> Job | None:
        """End a sweep of whose children all have been made and have ended; none if it is not so far.

        It has succeeded if one of them has. Of several that try, one ends it.
        """
        with self.writing() as connection:
            _sweep(connection, sweep)
            return self._end(connection, sweep, by)

    def request_cancel(self, job: str, by: str) -> Job:
        """Cancel a job (`JobVerbs.request_cancel`); of a sweep its children too, and it makes no more."""
        with self.writing() as connection:
            before = get_job(connection, job, lock=True)
            value = self._cancel(connection, job, by)
            if before.trials is None or before.state.final:
                return value
            for child in _children(connection, job, _OPEN):
                self._cancel(connection, child, by)
        # By itself: whoever holds children must not wait for what comes after the sweep, which may be older.
        return self.end_sweep(job, by) or value

    def retry(self, job: str, by: str) -> Job:
        """Retry a job (`JobVerbs.retry`).

        Of a sweep its failed and cancelled children too, but not those that were stopped early; and it makes
        those that it has not made. A child that was stopped early and is retried by itself is spared from
        then on. Raises Conflict if the job did not fail and was not cancelled.
        """
        with self.writing() as connection:
            before = get_job(connection, job)  # `_retry` locks what it comes after first
            if before.stopped is not None:
                connection.execute(update(TrialRow).where(TrialRow.job == job).values(spared=True))
            if before.trials is None:
                return self._retry(connection, job, by)
            made = connection.execute(select(TrialRow.job).where(TrialRow.sweep == job).limit(1)).first()
            value = self._retry(connection, job, by, JobState.RUNNING if made else JobState.QUEUED)
            for child in _children(connection, job, (JobState.FAILED, JobState.CANCELLED)):
                if get_job(connection, child).stopped is None:
                    self._retry(connection, child, by)
            return value

    def hold(self, job: str, by: str) -> Job:
        """Hold a job (`OrderVerbs.hold`); of a sweep its children too, and it makes no more meanwhile."""
        with self.writing() as connection:
            value = self._hold(connection, job, by)
            for child in _children(connection, job, _OPEN) if value.trials is not None else ():
                self._hold(connection, child, by)
            return value

    def release(self, job: str, by: str) -> Job:
        """Release a job (`OrderVerbs.release`); of a sweep its children too."""
        with self.writing() as connection:
            value = self._release(connection, job, by)
            for child in _children(connection, job, _OPEN) if value.trials is not None else ():
                self._release(connection, child, by)
            return value

    def trials(self, sweep: str, mode: str = "max") -> list[Trial]:
        """The children of a sweep by number, with the value of each one's best checkpoint (max or min)."""
        best = func.max(CheckpointRow.value) if mode == "max" else func.min(CheckpointRow.value)
        values = select(CheckpointRow.job, best.label("value")).group_by(CheckpointRow.job)
        epochs = select(ReportRow.job, func.max(ReportRow.epoch).label("epochs")).group_by(ReportRow.job)
        ours = select(TrialRow.job).where(TrialRow.sweep == sweep)
        valued = values.where(CheckpointRow.job.in_(ours)).subquery()
        reported = epochs.where(ReportRow.job.in_(ours)).subquery()
        query = (
            select(
                TrialRow.sweep,
                TrialRow.number,
                TrialRow.job,
                TrialRow.parameters,
                TrialRow.spared,
                JobRow.state,
                JobRow.attempt,
                JobRow.cancel_requested,
                JobRow.held,
                JobRow.stopped,
                JobRow.error,
                JobRow.started,
                JobRow.finished,
                func.coalesce(reported.c.epochs, 0).label("epochs"),
                valued.c.value,
            )
            .join(JobRow, JobRow.id == TrialRow.job)
            .outerjoin(valued, valued.c.job == TrialRow.job)
            .outerjoin(reported, reported.c.job == TrialRow.job)
            .where(TrialRow.sweep == sweep)
            .order_by(TrialRow.number)
        )
        with self.reading() as connection:
            return [
                Trial(**{**row._mapping, "state": JobState(row.state)}) for row in connection.execute(query)
            ]

    def curves(self, sweep: str, metric: str) -> dict[str, dict[int, float]]:
        """What each child of a sweep has reported of a metric of the validation reviews, by epoch."""
        query = (
            select(ReportRow.job, ReportRow.epoch, ReportRow.validation)
            .join(TrialRow, TrialRow.job == ReportRow.job)
            .where(TrialRow.sweep == sweep)
            .order_by(ReportRow.job, ReportRow.epoch, ReportRow.attempt)  # a newer attempt's counts
        )
        found: dict[str, dict[int, float]] = {}
        with self.reading() as connection:
            for row in connection.execute(query):
                if metric in row.validation:
                    found.setdefault(row.job, {})[row.epoch] = float(row.validation[metric])
        return found

    def tally(self, sweeps: Collection[str]) -> dict[str, Tally]:
        """How many children each of these sweeps has, and in which states."""
        query = (
            select(JobRow.parent, JobRow.state, func.count().label("n"))
            .where(JobRow.parent.in_(list(sweeps)))
            .group_by(JobRow.parent, JobRow.state)
        )
        if not sweeps:
            return {}
        states: dict[str, dict[JobState, int]] = {sweep: {} for sweep in sweeps}
        with self.reading() as connection:
            for row in connection.execute(query):
                states[row.parent][JobState(row.state)] = row.n
        return {sweep: Tally(sum(found.values()), found) for sweep, found in states.items()}

    def changes(self, sweep: str) -> tuple[object, ...]:
        """What differs once a child of a sweep has started, reported or ended, and then only."""
        query = select(JobRow.id, JobRow.state, JobRow.cancel_requested).where(JobRow.parent == sweep)
        newest = (select(func.max(ReportRow.id)).join(TrialRow, TrialRow.job == ReportRow.job)).where(
            TrialRow.sweep == sweep
        )
        with self.reading() as connection:
            children = tuple(tuple(row) for row in connection.execute(query.order_by(JobRow.sequence)))
            return (connection.execute(newest).scalar_one(), children)

    def _add_trial(self, connection: Connection, parent: Job, child: NewTrial, by: str) -> None:
        id = child_id(parent.id, child.number)
        insert_job(
            connection,
            self.clock(),
            id=id,
            name=parent.name,
            owner=parent.owner,
            priority=parent.priority,
            config=dict(child.config),
            ranks=child.ranks,
            max_ranks=child.max_ranks,
            cpus=child.cpus,
            gpus=child.gpus,
            time_limit=child.time_limit,
            retry=dataclasses.asdict(child.retry),
            parent=parent.id,
        )
        connection.execute(
            insert(TrialRow).values(
                sweep=parent.id, number=child.number, job=id, parameters=dict(child.parameters)
            )
        )
        detail = {"child": id, "parameters": dict(child.parameters)}
        self._event(connection, EventKind.CHILD, job=parent.id, by=by, detail=detail)
        self._event(connection, EventKind.SUBMITTED, job=id, by=by, detail={"sweep": parent.id})

    def _end(self, connection: Connection, sweep: str, by: str) -> Job | None:
        """End a sweep whose row is locked, if it is so far."""
        parent = get_job(connection, sweep)
        if parent.state.final:
            return None
        rows = connection.execute(select(JobRow.state, JobRow.stopped).where(JobRow.parent == sweep)).all()
        no_more = parent.cancel_requested is not None or parent.error is not None
        if any(row.state in _OPEN for row in rows) or (len(rows) != parent.trials and not no_more):
            return None
        counts: dict[str, int] = {}
        for row in rows:
            what = "stopped early" if row.stopped and row.state == JobState.CANCELLED else str(row.state)
            counts[what] = counts.get(what, 0) + 1
        state, error = JobState.SUCCEEDED, parent.error
        if parent.cancel_requested is not None:
            state = JobState.CANCELLED
        elif error is not None:
            state = JobState.FAILED
        elif JobState.SUCCEEDED not in counts:
            told = ", ".join(f"{n} {what}" for what, n in counts.items())
            state, error = JobState.FAILED, f"none of its children succeeded: {told}"
        changed = connection.execute(
            update(JobRow)
            .where(JobRow.id == sweep, JobRow.state.in_(_OPEN))
            .values(state=state, finished=self.clock(), error=error, held=None)
        ).rowcount
        if not changed:
            return None
        self._event(connection, _KIND_OF[state], job=sweep, by=by, detail=counts)
        if state is not JobState.SUCCEEDED:
            self._cancel_dependents(connection, sweep, state, by)
        return get_job(connection, sweep)


_KIND_OF: Mapping[JobState, EventKind] = {
    JobState.SUCCEEDED: EventKind.SUCCEEDED,
    JobState.FAILED: EventKind.FAILED,
    JobState.CANCELLED: EventKind.CANCELLED,
}


def best_trial(trials: Iterable[Trial], mode: str) -> Trial | None:
    """The child whose best checkpoint is the best, of those that succeeded: only these make versions."""
    done = [(t.value, t) for t in trials if t.value is not None and t.state is JobState.SUCCEEDED]
    sign = 1 if mode == "max" else -1
    return max(done, key=lambda pair: (sign * pair[0], -pair[1].number))[1] if done else None


def child_id(sweep: str, number: int) -> str:
    """The id of a sweep's child. No id that a client gives to a job has a dot."""
    return f"{sweep}.{number}"


def _sweep(connection: Connection, sweep: str) -> Job:
    """The sweep, locked until the transaction ends."""
    parent = get_job(connection, sweep, lock=True)
    if parent.trials is None:
        raise NotFound(f"job {sweep} is no sweep")
    return parent


def _children(connection: Connection, sweep: str, states: Collection[Any]) -> list[str]:
    """The children of a sweep in these states, locked, the oldest first."""
    query = select(JobRow.id).where(JobRow.parent == sweep)
    ids = lock_in_order(connection, list(connection.execute(query).scalars()))
    rows = connection.execute(select(JobRow.id, JobRow.state).where(JobRow.parent == sweep))
    now = {row.id: row.state for row in rows}
    return [id for id in ids if now[id] in states]
