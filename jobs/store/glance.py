"""The newest jobs, read from an SQLite file by its driver alone.

`textvae-jobs list` must answer at once, and importing SQLAlchemy takes longer than that. Whatever is not as
usual (another database, none yet, another schema, one that does not answer) is left to `Store`, which
migrates it or says what is wrong.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from jobs.migrations import HEAD
from jobs.store.states import JobState
from jobs.store.values import Job

_SCHEME = "sqlite:///"
_COLUMNS = tuple(field.name for field in fields(Job))
_MOMENTS = tuple(field.name for field in fields(Job) if "datetime" in str(field.type))


def newest(
    url: str,
    states: Sequence[JobState] | None = None,
    *,
    owner: str | None = None,
    limit: int,
    children: bool = True,
) -> list[Job] | None:
    """What `Store.jobs` returns, the newest first; None where only Store can tell."""
    path = url.removeprefix(_SCHEME)
    if path == url or not path or set(path) & {"?", "%"}:
        return None
    wanted: list[str] = []
    given: list[object] = []
    if states is not None:
        wanted.append(f"state IN ({', '.join('?' * len(states))})")
        given += [str(state) for state in states]
    if owner is not None:
        wanted.append("owner = ?")
        given.append(owner)
    if not children:
        wanted.append("parent IS NULL")
    where = f"WHERE {' AND '.join(wanted)}" if wanted else ""
    query = f"SELECT {', '.join(_COLUMNS)} FROM jobs {where} ORDER BY sequence DESC LIMIT ?"
    try:
        # mode=rw: a file that is not there is not made.
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True)) as connection:
            if connection.execute("SELECT version_num FROM alembic_version").fetchall() != [(HEAD,)]:
                return None
            return [_job(row) for row in connection.execute(query, [*given, limit])]
    except sqlite3.Error:
        return None


def _job(row: Sequence[Any]) -> Job:
    columns = dict(zip(_COLUMNS, row, strict=True))
    for name in _MOMENTS:
        if columns[name] is not None:
            columns[name] = datetime.fromisoformat(columns[name]).replace(tzinfo=UTC)
    return Job.of({**columns, "retry": json.loads(columns["retry"])})
