"""What people and the scheduler may order: hold, release, make way, hurry, drain."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, select, text, true, update

from jobs.store.jobs import get_job, lock_in_order
from jobs.store.states import ACTIVE, Cause, EventKind, JobState
from jobs.store.tables import AttemptRow, JobRow, SwitchRow, attempt_in
from jobs.store.values import Conflict, Drain, Job
from jobs.store.waiting import DRAIN, WaitingVerbs

_DECIDING = 7350073  # PostgreSQL's advisory lock of whoever gives room away, or has others make room


class OrderVerbs(WaitingVerbs):
    """Hold, release, make way, hurry, drain."""

    def hold(self, job: str, by: str) -> Job:
        """Keep a job from starting until it is released; an attempt under way goes on.

        Holding it twice changes nothing. Raises Conflict if it has ended.
        """
        with self.writing() as connection:
            return self._hold(connection, job, by)

    def _hold(self, connection: Connection, job: str, by: str) -> Job:
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
            return self._release(connection, job, by)

    def _release(self, connection: Connection, job: str, by: str) -> Job:
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

    def request_yield(
        self, job: str, by: str, reason: str | None = None, *, cause: Cause = Cause.PREEMPTED
    ) -> bool:
        """Ask a running job's attempt to make way, with a checkpoint; whether that is new.

        `cause` is why: PREEMPTED for others, RESIZED for itself, with more ranks, REQUEUED because a person
        says so. It waits again afterwards, at nobody's expense. A job that is being cancelled is not asked.
        """
        with self.writing() as connection:
            return self._request_yield(connection, job, by, reason, cause)

    def request_yields(
        self,
        reasons: Mapping[str, str],
        by: str,
        *,
        known: Mapping[tuple[str, int], bool],
        cause: Cause = Cause.PREEMPTED,
    ) -> list[str] | None:
        """Ask several running jobs to make way, each for a reason; returns those of which that is new.

        None, and nobody is asked, unless the active attempts, each a job and a number, are those that are
        `known`, and leave or stay as it says: room has come, was given away or is being made since. So of
        several that decide at once, one goes ahead and the others look again.
        """
        with self.writing() as connection:
            decide_alone(connection)
            lock_in_order(connection, reasons)
            rows = connection.execute(
                select(AttemptRow.job, AttemptRow.number, JobRow.cancel_requested, JobRow.yield_requested)
                .join(JobRow, JobRow.id == AttemptRow.job)
                .where(attempt_in(ACTIVE))
            )
            if {(job, number): any(leaving) for job, number, *leaving in rows} != known:
                return None
            return [
                job
                for job, reason in reasons.items()
                if self._request_yield(connection, job, by, reason, cause)
            ]

    def _request_yield(
        self, connection: Connection, job: str, by: str, reason: str | None, cause: Cause
    ) -> bool:
        changed = connection.execute(
            update(JobRow)
            .where(
                JobRow.id == job,
                JobRow.state == JobState.RUNNING,
                JobRow.trials.is_(None),
                JobRow.cancel_requested.is_(None),
                JobRow.yield_requested.is_(None),
                # A job that is held would not start again.
                JobRow.held.is_(None) if cause is Cause.RESIZED else true(),
            )
            .values(yield_requested=self.clock(), yield_cause=cause)
        ).rowcount
        value = get_job(connection, job)
        if changed:
            self._event(
                connection,
                EventKind.YIELD_REQUESTED,
                job=job,
                attempt=value.attempt,
                by=by,
                detail={"reason": reason} if reason else None,
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
                held = f"; it is held: `textvae-jobs release {job}` lets it start" if value.held else ""
                raise Conflict(f"job {job} is {value.state} and waits for no moment{held}")
            self._event(connection, EventKind.REQUEUED, job=job, by=by)
            return value

    def drain(self, by: str) -> Drain:
        """Open no attempt any more from here on, whoever tries; what is under way goes on."""
        return self._switch(DRAIN, True, by) or Drain(self.clock(), by)

    def end_drain(self, by: str) -> bool:
        """Open attempts again; whether it had been drained."""
        drained = self.draining() is not None
        self._switch(DRAIN, False, by)
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


def decide_alone(connection: Connection) -> None:
    """Until this transaction ends, no other one gives room away or has others make room."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _DECIDING})


def _drain(connection: Connection) -> Drain | None:
    row = connection.execute(select(SwitchRow.since, SwitchRow.by).where(SwitchRow.name == DRAIN)).one()
    return None if row.since is None else Drain(row.since, row.by)
