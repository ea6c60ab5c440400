"""Reading the logs of attempts by offset, wherever they are; how the daemons log."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO

from jobs.settings import Settings
from jobs.store import Store

_AT_ONCE = 2**20  # bytes
_LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (.*)", re.DOTALL)


@dataclass(frozen=True)
class Line:
    """One line of an attempt's log."""

    job: str
    attempt: int
    offset: int  # in bytes, of its beginning
    next: int  # offset at which the line after it begins
    at: str | None  # ISO 8601 in UTC; none for a line that something else wrote into the log
    text: str


class Logs:
    """The logs of attempts: their files where they are in reach, else what the database keeps of them."""

    def __init__(self, store: Store, settings: Settings):
        self._store = store
        self._settings = settings

    def size(self, job: str, number: int) -> int | None:
        """Bytes of the log so far; none if there is none."""
        try:
            return self._settings.attempt_log(job, number).stat().st_size
        except FileNotFoundError:
            return self._store.log_size(job, number)

    def read(self, job: str, number: int, offset: int = 0) -> bytes:
        """What is in the log from byte `offset` on, up to about a megabyte; empty at its end."""
        try:
            with self._settings.attempt_log(job, number).open("rb") as file:
                file.seek(offset)
                return file.read(_AT_ONCE)
        except FileNotFoundError:
            return self._store.log(job, number, offset)

    def lines(self, job: str, number: int, offset: int = 0) -> Iterator[Line]:
        """The whole lines from byte `offset`, the beginning of one, to where the log ends now."""
        rest = b""
        while added := self.read(job, number, offset + len(rest)):
            rest += added
            *whole, rest = rest.split(b"\n")
            for raw in whole:
                text = raw.decode("utf-8", "replace")
                match = _LINE.fullmatch(text)
                at, said = match.groups() if match else (None, text)
                end = offset + len(raw) + 1
                label = f"{job}-{number} "
                yield Line(job, number, offset, end, at, said.removeprefix(label))
                offset = end


def configure(stream: IO[str], form: str = "text") -> None:
    """Let this process, a daemon, log to `stream`: lines of text, or one JSON object a line."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        JsonLines()
        if form == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def about(job: str, attempt: int | None = None) -> dict[str, object]:
    """`extra` of a log call: which job, and which attempt of it, the line is about.

    Of a job that waits it is the attempt that it waits for; a sweep has none.
    """
    return {"job": job, "attempt": attempt}


class JsonLines(logging.Formatter):
    """One JSON object a line: at, level, logger, message; error; job and attempt where it is about a job."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "at": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if getattr(record, "job", None) is not None:
            line |= {name: getattr(record, name, None) for name in ("job", "attempt")}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
