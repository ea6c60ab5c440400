"""Keeps what is served at the promoted versions, whatever happens to either side."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from jobs.failures import Failures
from jobs.logs import about
from jobs.store import Store, Version

logger = logging.getLogger("textvae.serve")

Essence = dict[str, tuple[int | None, str | None]]
"""Of each model the version and its SHA-256: what must agree. A server may tell more about what it serves."""


class Server(Protocol):
    """What serves the model versions: `cluster.serving`, or a test's. Its verbs raise if it does not answer.

    Both speak of {model name: {"version": int, "location": folder or URI, "digest": SHA-256}}.
    """

    def apply(self, desired: Mapping[str, Mapping[str, Any]]) -> object:
        """Serve exactly these versions."""

    def current(self) -> Mapping[str, Mapping[str, Any]]:
        """What is served now."""


class Keeper:
    """Keeps what is served at the promoted versions."""

    def __init__(
        self,
        store: Store,
        server: Server,
        location: Callable[[str], str],
        *,
        every: float = 2.0,
        longest_wait: float = 60.0,
    ):
        """`location` turns an artifact's name into the folder or URI that the server reads.

        It is looked `every` so many seconds; after failures more rarely, up to `longest_wait`.
        """
        self._store = store
        self._server = server
        self._location = location
        self._every = every
        self._longest_wait = longest_wait
        self._failures = Failures(logger)
        self._wait = self._every
        self._next: float | None = None  # earliest time of the next look

    def loop(self, stop: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        """Work until `stop` is set."""
        while not stop.wait(min(0.5, self._every)):
            self.step(clock())

    def step(self, now: float) -> bool:
        """Look if it is time to, and change what is served if it differs; whether it was changed."""
        if self._next is not None and now < self._next:
            return False
        try:
            changed = self.compare()
        except Exception as error:  # noqa: BLE001 - logged with its traceback, and tried again with backoff
            self._failures.failed("serving the promoted versions", error)
            self._wait = min(self._wait * 2, self._longest_wait)
            self._next = now + self._wait
            return False
        self._failures.worked("serving the promoted versions")
        self._wait = self._every
        self._next = now + self._wait
        return changed

    def compare(self) -> bool:
        """Change what is served if it differs; whether it did. Raises what the server or the store raise.

        While nothing is promoted it is left as it is: Serve need not be there yet.
        """
        promoted = self._store.served()
        desired = self._desired(promoted)
        if not desired or (before := self.served()) == (after := _essence(desired)):
            return False
        self._server.apply(desired)
        for each in promoted:
            if before.get(each.model) != after[each.model]:
                of = about(each.job, self._store.checkpoint(each.checkpoint).attempt)
                logger.info("serving %s v%d, of job %s", each.model, each.version, each.job, extra=of)
        for name in sorted(before.keys() - after.keys()):
            logger.info("serving %s no more", name)
        return True

    def promoted(self) -> Essence:
        """What should be served. Raises what the store raises."""
        return _essence(self._desired(self._store.served()))

    def served(self) -> Essence:
        """What is served now. Raises what the server raises."""
        return _essence(self._server.current())

    def _desired(self, promoted: Iterable[Version]) -> dict[str, dict[str, Any]]:
        return {
            version.model: {
                "version": version.version,
                "location": self._location(version.location),
                "digest": version.digest,
            }
            for version in promoted
        }


def _essence(versions: Mapping[str, Mapping[str, Any]]) -> Essence:
    return {name: (version.get("version"), version.get("digest")) for name, version in versions.items()}
