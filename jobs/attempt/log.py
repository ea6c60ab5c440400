"""An attempt's log: a file in the home of its node and, where others read it, a copy in the database."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from jobs.store.opening import utc_now

CHUNK = 64 * 1024  # bytes that one copy takes at most
LIMIT = 16 * 2**20  # bytes of one attempt's log that are copied; the file itself has no limit

Copy = Callable[[int, bytes], None]  # keeps the bytes of a log that begin at an offset


class AttemptLog:
    """An attempt's log file: whole lines, each with its moment in UTC. Safe to share between threads."""

    def __init__(self, path: Path, clock: Callable[[], datetime] = utc_now, *, label: str = ""):
        """Each line carries the `label`, such as the attempt's name, after its moment."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: IO[str] = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        self._lock = threading.Lock()
        self._clock = clock
        self._label = f"{label} " if label else ""
        self._copied = 0  # bytes
        self._copying = threading.Lock()

    def write(self, text: str) -> None:
        """Add the lines of `text`. After the log is closed, a thread's last words are dropped."""
        moment = self._clock().strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        with self._lock:
            if not self._file.closed:
                for line in text.rstrip("\n").split("\n"):
                    self._file.write(f"{moment} {self._label}{line}\n")

    def copy(self, keep: Copy) -> None:
        """Hand what is new to `keep`, in whole lines. If it raises, the next call begins where it failed."""
        with self._copying, self.path.open("rb") as file:
            while self._copied < LIMIT:
                file.seek(self._copied)
                new = file.read(CHUNK)
                lines = new[: new.rfind(b"\n") + 1] or (new if len(new) == CHUNK else b"")
                if not lines:
                    return
                if self._copied + len(lines) >= LIMIT:
                    lines = b"(the log goes on in its file, on the attempt's node)\n"
                    keep(self._copied, lines)
                    self._copied = LIMIT
                    return
                keep(self._copied, lines)
                self._copied += len(lines)

    @contextmanager
    def hearing(self, *names: str) -> Iterator[None]:
        """While it lasts, what these loggers of this process say is in the log too."""
        handler = _Lines(self)
        loggers = [logging.getLogger(name) for name in names]
        levels = [each.level for each in loggers]
        for each in loggers:
            each.addHandler(handler)
            each.setLevel(logging.INFO)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.removeHandler(handler)
                each.setLevel(level)

    def __enter__(self) -> AttemptLog:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._file.close()


class _Lines(logging.Handler):
    """Writes log records into an attempt's log."""

    def __init__(self, log: AttemptLog):
        super().__init__(logging.INFO)
        self._log = log
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(self.format(record))
