"""What a rank logs goes to its attempt, whose log it belongs to."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any


class _LogMessages(logging.Handler):
    """Sends log lines to the attempt, whose log they belong to; nobody waits for them."""

    def __init__(self, attempt: Any, rank: int):
        super().__init__(logging.INFO)
        self.attempt = attempt
        self.setFormatter(logging.Formatter(f"rank {rank}: %(message)s"))
        self._sending = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(self._sending, "now", False):
            return  # sending one logged something itself
        self._sending.now = True
        try:
            self.attempt.deliver.remote({"kind": "log", "text": self.format(record)})
        except Exception:  # noqa: BLE001 - logging reports its own failures, and never raises
            self.handleError(record)
        finally:
            self._sending.now = False


@contextlib.contextmanager
def logging_to(attempt: Any, rank: int) -> Iterator[None]:
    """While it lasts, our log lines and Python's warnings go to the attempt."""
    handler = _LogMessages(attempt, rank)
    loggers = [logging.getLogger(name) for name in ("textvae", "cluster", "py.warnings")]
    levels = [each.level for each in loggers]
    logging.captureWarnings(True)
    for each in loggers:
        each.addHandler(handler)
        each.setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for each, level in zip(loggers, levels, strict=True):
            each.removeHandler(handler)
            each.setLevel(level)
