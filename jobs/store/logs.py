"""The logs of attempts, in pieces, where their files are on other nodes. Read by offset."""

from __future__ import annotations

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError

from jobs.store.opening import Database
from jobs.store.tables import LogChunkRow
from jobs.store.values import NotFound

_MOST = 2**31 - 1  # that a database takes for a number; its copy of a log ends long before


class LogVerbs(Database):
    """Keep and read the logs of attempts."""

    @property
    def remote(self) -> bool:
        """Whether other nodes write to this database too, so that a log's file may be out of reach."""
        return self._engine.dialect.name != "sqlite"

    def keep_log(self, job: str, number: int, start: int, text: bytes) -> None:
        """Keep a piece of an attempt's log that begins at byte `start`. Keeping it twice changes nothing.

        No attempt is too stale for that: nobody else writes its log. Raises NotFound if it never was.
        """
        piece = (LogChunkRow.job == job) & (LogChunkRow.attempt == number) & (LogChunkRow.start == start)
        try:
            with self.writing() as connection:
                connection.execute(
                    insert(LogChunkRow).values(job=job, attempt=number, start=start, text=text)
                )
        except IntegrityError as error:
            with self.reading() as connection:
                known = connection.execute(select(LogChunkRow.start).where(piece)).one_or_none()
            if known is None:
                raise NotFound(f"job {job} has no attempt {number}") from error

    def log_size(self, job: str, number: int) -> int | None:
        """Bytes kept of an attempt's log; none if there is nothing of it."""
        query = (
            select(LogChunkRow.start, func.length(LogChunkRow.text).label("length"))
            .where(LogChunkRow.job == job, LogChunkRow.attempt == number)
            .order_by(LogChunkRow.start.desc())
            .limit(1)
        )
        with self.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else row.start + row.length

    def log(self, job: str, number: int, offset: int = 0, *, pieces: int = 16) -> bytes:
        """What is kept of an attempt's log from byte `offset` on, as far as so many `pieces` reach."""
        mine = (LogChunkRow.job == job) & (LogChunkRow.attempt == number)
        first = select(func.max(LogChunkRow.start)).where(mine, LogChunkRow.start <= min(offset, _MOST))
        query = (
            select(LogChunkRow.start, LogChunkRow.text)
            .where(mine, LogChunkRow.start >= first.scalar_subquery())
            .order_by(LogChunkRow.start)
            .limit(pieces)
        )
        with self.reading() as connection:
            rows = connection.execute(query).all()
        if not rows:
            return b""
        return b"".join(bytes(row.text) for row in rows)[offset - rows[0].start :]
