"""The history: one line for every change, written in the transaction of the change itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, insert, select, text

from jobs.store.opening import Database
from jobs.store.states import EventKind
from jobs.store.tables import EventRow, JobRow
from jobs.store.values import Event

_EVENT = (
    EventRow.id,
    EventRow.at,
    EventRow.job,
    EventRow.attempt,
    EventRow.kind,
    EventRow.actor,
    EventRow.detail,
)
_EVENTS = select(*_EVENT)

_TOGETHER = 500  # jobs told of in one transaction: it takes 20 ms
_PENDING = "textvae_events"  # where a connection keeps the lines that its transaction will end with
_LOCK = 7350072  # PostgreSQL's advisory lock, held from the first line to the commit


class EventVerbs(Database):
    """Read the history; add to it."""

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write; it is rolled back if the block raises. Its events come last.

        Whoever follows the history by id must not be overtaken by a smaller id that is committed later.
        SQLite has one writer at a time. PostgreSQL numbers rows as they are inserted, so there whoever adds
        events waits its turn: not long, nor in a circle, as they are the last thing before the commit. Their
        INSERT names jobs, and would wait for one whose row somebody holds FOR UPDATE: so every verb locks
        rows FOR NO KEY UPDATE, and no harder.
        """
        with super().writing() as connection:
            connection.info[_PENDING] = []
            yield connection
            rows = connection.info.pop(_PENDING)
            if rows:
                if connection.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
                connection.execute(insert(EventRow), rows)

    def events(
        self,
        job: str | None = None,
        *,
        after: int = 0,
        limit: int | None = None,
        newest: bool = False,
        children: bool = False,
    ) -> list[Event]:
        """Events of a job, or of everything, the oldest first; only those with an id above `after`.

        With `children` those of a sweep's children are among them.
        With a `limit` the first so many of them, or the last if `newest`.
        """
        order = EventRow.id.desc() if newest else EventRow.id
        query = _EVENTS.where(EventRow.id > after).order_by(order).limit(limit)
        if job is not None:
            own = EventRow.job == job
            if children:
                own |= EventRow.job.in_(select(JobRow.id).where(JobRow.parent == job))
            query = query.where(own)
        with self.reading() as connection:
            found = [
                Event(**{**row._mapping, "kind": EventKind(row.kind)}) for row in connection.execute(query)
            ]
        return found[::-1] if newest else found

    def record_event(
        self,
        kind: EventKind,
        *,
        by: str,
        job: str | None = None,
        attempt: int | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a line that tells of no change in the database, such as a repair elsewhere."""
        with self.writing() as connection:
            self._event(connection, kind, by=by, job=job, attempt=attempt, detail=detail)

    def note_unfit(self, reasons: Mapping[str, str], by: str) -> list[str]:
        """Record, once for each reason, that these jobs need more than the cluster has; those it is new of.

        A machine that is lost may make thousands too large at once: a transaction has hundreds of them.
        """
        new, jobs = [], list(reasons)
        for start in range(0, len(jobs), _TOGETHER):
            some = jobs[start : start + _TOGETHER]
            with self.writing() as connection:
                told = select(EventRow.job, EventRow.detail).where(
                    EventRow.job.in_(some), EventRow.kind == EventKind.UNFIT
                )
                known = {(job, detail.get("reason")) for job, detail in connection.execute(told)}
                untold = [job for job in some if (job, reasons[job]) not in known]
                for job in untold:
                    self._event(connection, EventKind.UNFIT, job=job, by=by, detail={"reason": reasons[job]})
            new += untold
        return new

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
        """Tell of a change that this transaction makes."""
        connection.info[_PENDING].append(
            {
                "at": self.clock(),
                "job": job,
                "attempt": attempt,
                "kind": kind,
                "actor": by,
                "detail": dict(detail or {}),
            }
        )
