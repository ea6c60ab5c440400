"""How the daemons log what keeps failing: once, not every second."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from jobs.queue import QueueUnavailable
from jobs.store import StoreError


class Failures:
    """Logs that something fails when it begins to, or fails another way; and that it works again."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._known: dict[str, str] = {}

    def failed(self, what: str, error: BaseException, about: Mapping[str, object] | None = None) -> None:
        """`what` failed; an error that nobody expects is logged with its traceback.

        `about` says which job and attempt it is about (`jobs.logs.about`), if it is about one.
        """
        text = f"{type(error).__name__}: {error}"
        if self._known.get(what) != text:
            self._known[what] = text
            expected = isinstance(error, QueueUnavailable | StoreError | RuntimeError | OSError)
            told = error if expected else text
            self._logger.warning("%s: %s", what, told, exc_info=None if expected else error, extra=about)

    def worked(self, what: str, about: Mapping[str, object] | None = None) -> None:
        """`what` worked."""
        if self._known.pop(what, None) is not None:
            self._logger.info("%s: works again", what, extra=about)
