"""The daemon: claims jobs, launches attempts, watches over them, and keeps Serve at the promoted versions.

It holds nothing in memory that matters: it may die at any moment, the next one goes on from the store, the
queue and the cluster, and running attempts do not notice. Several may run at once; the store's guarded
UPDATEs decide between them. `python -m jobs.dispatcher` runs it until SIGTERM.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from jobs import logs
from jobs.dispatcher.overdue import Overdue
from jobs.dispatcher.parts import Capacity, Launcher, Snapshot, Timings, who
from jobs.dispatcher.silence import Silence
from jobs.dispatcher.starting import Starter
from jobs.failures import Failures
from jobs.keeper import Keeper
from jobs.queue import Bell, Queue, QueueUnavailable
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import Attempt, AttemptState, Cause, Running, StaleAttempt, Store
from jobs.sweeps.sweeper import Sweeper

__all__ = ["Capacity", "Dispatcher", "Launcher", "Snapshot", "Timings", "main", "who"]

logger = logging.getLogger("textvae.dispatcher")

_SHARE = 0.003  # of the time, that comparing the queue with the store may take


class Dispatcher:
    """claim -> launch -> watch, in passes; and sweeps are advanced."""

    def __init__(
        self,
        service: Service,
        launcher: Launcher,
        capacity: Callable[[], Capacity],
        settings: Settings,
        *,
        keeper: Keeper | None = None,
        timings: Timings | None = None,
    ):
        """`capacity` asks the cluster for its resources and raises RuntimeError if it does not answer."""
        self._service = service
        self._store = service.store
        self._queue = service.queue
        self._launcher = launcher
        self._keeper = keeper
        self._timings = timings or Timings(start_timeout=settings.start_timeout)
        self._failures = Failures(logger)
        self._overdue = Overdue(self._timings)
        self._silence = Silence(service.store, service.queue, self._timings)
        self._starter = Starter(
            service.store, service.queue, launcher, capacity, settings, self._timings, self._failures
        )
        self._sweeper = Sweeper(service, self._failures, who())
        self._reconciled: float | None = None  # when, none to do it in the next pass
        self._compared: tuple[float, float] | None = None  # when all of the queue was, and the time it took

    def loop(
        self,
        stop: threading.Event,
        ready: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Work until `stop` is set. Attempts go on without it.

        `ready` is called once, after the first pass in which store, queue and cluster all answered.
        """
        keeping: threading.Thread | None = None
        if self._keeper is not None:
            keeping = threading.Thread(
                target=self._keeper.loop, args=(stop, clock), name="serve", daemon=True
            )
            keeping.start()
        bell: Bell | None = None
        while not stop.is_set():
            # The bell is made before the pass: what rings during the pass is heard after it.
            bell = bell or self._bell()
            if self.step(clock()) and ready is not None:
                ready()
                ready = None
            bell = self._rest(bell, stop)
        if keeping is not None:
            keeping.join(timeout=5)
        logger.info("stopped; running attempts go on")

    def step(self, now: float) -> bool:
        """One pass; whether all of it worked.

        `now` is a monotonic time in seconds.
        """
        watched = self._try("watching attempts", lambda: self.watch(now))
        watched &= self._try("listening to attempts", lambda: self.listen(now))
        swept = self._try("advancing sweeps", lambda: self._sweeper.step(now))
        launched = self._try("launching attempts", self.launch)
        # Last: whoever rang the bell may be looking at the clock.
        reconciled = True
        if self._reconciled is None or now - self._reconciled >= self._timings.reconcile:
            self._reconciled = None
            reconciled = self._try("reconciling the queue", lambda: self._reconcile(now))
            if reconciled:
                self._reconciled = now
        return reconciled and watched and swept and launched

    def launch(self) -> list[Attempt]:
        """Open and launch attempts of all jobs that may start, and have others make way; returns them."""
        return self._starter.step()

    def watch(self, now: float) -> None:
        """End attempts that cannot stop, do not stop or do not start in time, and those that are dead."""
        active = self._store.running()
        for job, verdict in self._overdue.broken(active, now):
            self._kill(job, verdict.state, verdict.cause, verdict.error)
        if active:
            for attempt in self._service.reconcile_attempts(
                Snapshot(self._launcher, self._failures), by=who()
            ):
                about = logs.about(attempt.job, attempt.number)
                logger.warning("%s was lost", attempt.actor, extra=about)

    def listen(self, now: float) -> None:
        """End attempts that are there but frozen. Raises QueueUnavailable."""
        for job in self._silence.broken(self._store.running(), now):
            error = f"gave no sign of life for {self._timings.silence:.0f} s, frozen or hung, and was killed"
            self._kill(job, AttemptState.LOST, Cause.LEASE_LOST, error)

    def _reconcile(self, now: float) -> None:
        """Compare the queue with the store: by number often, job by job if that differs or now and then."""
        if self._compared is not None:
            at, took = self._compared
            ready = sum(
                len(line)
                for lines in self._starter.outlook.backlog.ready(self._store.clock().timestamp()).values()
                for line in lines.values()
            )
            if now - at < took / _SHARE and len(self._queue) == ready:
                return
        began = time.perf_counter()
        self._starter.outlook.reload()
        self._service.reconcile_queue()
        self._compared = now, time.perf_counter() - began

    def _kill(self, attempt: Running, state: AttemptState, cause: Cause, error: str) -> None:
        about = logs.about(attempt.id, attempt.attempt)
        try:
            self._launcher.stop(attempt.actor)
        except RuntimeError as failure:
            self._failures.failed(f"stopping {attempt.actor}", failure, about)
            return  # the next pass tries again; the other attempts must not wait for this one
        self._failures.worked(f"stopping {attempt.actor}", about)
        logger.warning("stopped %s: %s", attempt.actor, error, extra=about)
        if Snapshot(self._launcher, self._failures).state(attempt.actor) != "dead":
            return  # not confirmed: the next pass tries again
        try:
            self._service.finish(
                attempt.id,
                attempt.attempt,
                state,
                by=who(),
                cause=cause,
                error=f"attempt {attempt.attempt} {error}",
            )
        except StaleAttempt:
            logger.info("%s had ended by itself", attempt.actor, extra=about)

    def _try(self, what: str, work: Callable[[], object]) -> bool:
        """Do one part of a pass. Whatever it raises, the daemon must go on with the others."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - logged with its traceback, and tried again in the next pass
            self._failures.failed(what, error)
            return False
        self._failures.worked(what)
        return True

    def _bell(self) -> Bell | None:
        try:
            return self._queue.bell()
        except QueueUnavailable:
            return None  # the pass itself logs it

    def _rest(self, bell: Bell | None, stop: threading.Event) -> Bell | None:
        if bell is not None:
            try:
                bell.wait(self._timings.rest)
                return bell
            except QueueUnavailable:
                self._reconciled = None  # it may come back empty
        stop.wait(self._timings.rest)
        return None


def main() -> None:
    """Run the daemon with the settings of the environment and the local stack."""
    from jobs.wiring import RayLauncher, keeper  # imports ray and torch

    settings = Settings.from_environment(os.environ).connected()
    logs.configure(sys.stderr, settings.log_format)
    settings.create_home()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    store = Store(settings.database_url)
    queue = Queue(settings.redis_url)
    launcher = RayLauncher(settings)
    serve = keeper(settings, store)
    if serve is None:
        logger.warning("no Serve is known: promoted versions are recorded, not served")
    dispatcher = Dispatcher(Service(store, queue), launcher, launcher.capacity, settings, keeper=serve)
    logger.info("started: %s", "; ".join(f"{s.name} {s.value}" for s in settings.describe()))

    def ready() -> None:
        settings.ready_file.parent.mkdir(exist_ok=True)
        settings.ready_file.touch(mode=0o600)
        settings.ready_file.write_text(str(os.getpid()), encoding="utf-8")

    dispatcher.loop(stop, ready)
    queue.close()
    store.close()
