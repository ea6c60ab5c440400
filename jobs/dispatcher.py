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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from jobs import attempt as attempts
from jobs.failures import Failures
from jobs.keeper import Keeper
from jobs.queue import Bell, Queue, QueueUnavailable
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import Attempt, AttemptState, Cause, Job, JobState, NotFound, StaleAttempt, Store

logger = logging.getLogger("textvae.dispatcher")

BY = "dispatcher"
State = Literal["alive", "dead", "unknown"]


@dataclass(frozen=True)
class Capacity:
    """What the cluster has, and what of it nobody uses."""

    total_cpus: float
    total_gpus: float
    free_cpus: float
    free_gpus: float


@dataclass(frozen=True)
class Timings:
    """Seconds."""

    rest: float = 1.0  # longest wait for the bell between two passes
    reconcile: float = 5.0  # between two comparisons of the queue with the store
    claim_lease: float = 15.0  # that a claim holds before the attempt renews it
    cancel_grace: float = 30.0  # that an attempt has to stop by itself after a cancel
    start_timeout: float = 120.0  # in which the ranks of an attempt must have started


class Launcher(Protocol):
    """How attempts are started and ended: `cluster.launching`, or a test's.

    Its verbs raise RuntimeError if the cluster does not answer.
    """

    def start(
        self, name: str, function: Callable[[dict[str, Any]], object], arguments: Mapping[str, Any]
    ) -> object:
        """Start `function(arguments)` under a name; starting a name twice finds the first."""

    def stop(self, name: str) -> object:
        """Kill what runs under that name, and wait until it is gone."""

    def names(self) -> set[str]:
        """What runs; raises if the cluster does not answer."""


class Snapshot:
    """Which attempts are alive, asked of the cluster once, when the first answer is needed."""

    def __init__(self, launcher: Launcher, failures: Failures):
        self._launcher = launcher
        self._failures = failures
        self._asked = False
        self._names: set[str] | None = None

    def state(self, name: str) -> State:
        """Alive or dead; unknown if the cluster does not answer."""
        if not self._asked:
            self._asked = True
            try:
                self._names = self._launcher.names()
                self._failures.worked("asking the cluster for attempts")
            except RuntimeError as error:
                self._failures.failed("asking the cluster for attempts", error)
        if self._names is None:
            return "unknown"
        return "alive" if name in self._names else "dead"


class Dispatcher:
    """claim -> launch -> watch, in passes."""

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
        self._capacity = capacity
        self._settings = settings
        self._keeper = keeper
        self._timings = timings or Timings(start_timeout=settings.start_timeout)
        self._failures = Failures(logger)
        self._reconciled: float | None = None  # when, none to do it in the next pass
        self._others: tuple[float, float] | None = None  # CPUs and GPUs in use by others, as seen last

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

        `now` is a monotonic time in seconds; the store's clock tells ages.
        """
        reconciled = True
        if self._reconciled is None or now - self._reconciled >= self._timings.reconcile:
            self._reconciled = None
            reconciled = self._try("reconciling the queue", self._service.reconcile_queue)
            if reconciled:
                self._reconciled = now
        watched = self._try("watching attempts", self.watch)
        launched = self._try("launching attempts", self.launch)
        return reconciled and watched and launched

    def launch(self) -> list[Attempt]:
        """Open and launch attempts for as many jobs as fit; returns them."""
        launched: list[Attempt] = []
        if self._store.draining() is not None:
            return launched
        capacity = self._capacity()
        if capacity.total_cpus <= 0:
            raise RuntimeError("the cluster has no CPUs yet")
        self._queue.publish_cluster(vars(capacity))
        others_cpus, others_gpus = self._held_by_others(capacity)
        while True:
            # The cluster counts an attempt once its ranks are placed; the store, from the start.
            cpus, gpus = self._store.committed()
            claim = self._queue.claim(
                free_cpus=min(capacity.free_cpus, capacity.total_cpus - others_cpus - cpus),
                free_gpus=min(capacity.free_gpus, capacity.total_gpus - others_gpus - gpus),
                total_cpus=capacity.total_cpus,
                total_gpus=capacity.total_gpus,
                ttl=self._timings.claim_lease,
            )
            for id in claim.unfit:
                self._note_unfit(id, capacity)
            if claim.job is None:
                return launched
            attempt = self._store.open_attempt(claim.job, claim.number, by=BY)
            if attempt is None:
                # Another dispatcher opened it, or the job was cancelled. The lease is left to expire:
                # it may be the other one's.
                continue
            arguments = {
                "job": attempt.job,
                "number": attempt.number,
                "settings": self._settings.to_dict(),
            }
            # If this fails, or we die here, the attempt is found dead, or found alive after all.
            self._launcher.start(attempt.actor, attempts.main, arguments)
            logger.info("launched %s", attempt.actor)
            launched.append(attempt)

    def _held_by_others(self, capacity: Capacity) -> tuple[float, float]:
        """The CPUs and GPUs that somebody else uses of the cluster.

        While ranks of ours are being placed nobody can tell whether what is in use is theirs. What was seen
        before counts then, and without that all of it: an attempt that is promised what others have would
        wait for its ranks until it is given up.
        """
        (cpus, gpus), (placing_cpus, placing_gpus) = (
            self._store.committed(),
            self._store.committed([AttemptState.STARTING]),
        )
        others = (
            max(0.0, capacity.total_cpus - capacity.free_cpus - (cpus - placing_cpus)),
            max(0.0, capacity.total_gpus - capacity.free_gpus - (gpus - placing_gpus)),
        )
        if not placing_cpus:
            self._others = others
        elif self._others is not None:
            others = min(others[0], self._others[0]), min(others[1], self._others[1])
        return others

    def watch(self) -> None:
        """End attempts that do not stop or do not start in time, and those that are dead."""
        now = self._store.clock()
        for attempt in self._store.attempts(active=True):
            job = self._store.job(attempt.job, exact=True)
            if job.cancel_requested is not None:
                waited = (now - job.cancel_requested).total_seconds()
                if waited >= self._timings.cancel_grace:
                    error = (
                        f"did not stop within {self._timings.cancel_grace:.0f} s of its cancel and was killed"
                    )
                    self._kill(attempt, AttemptState.CANCELLED, Cause.KILLED, error)
            elif attempt.state is AttemptState.STARTING:
                waited = (now - attempt.opened).total_seconds()
                if waited >= self._timings.start_timeout:
                    error = (
                        f"its ranks did not start within {self._timings.start_timeout:.0f} s: "
                        "the cluster had no room for them, or they hung"
                    )
                    self._kill(attempt, AttemptState.LOST, Cause.START_TIMEOUT, error)
        for attempt in self._service.reconcile_attempts(Snapshot(self._launcher, self._failures)):
            logger.warning("%s was lost", attempt.actor)

    def _kill(self, attempt: Attempt, state: AttemptState, cause: Cause, error: str) -> None:
        try:
            self._launcher.stop(attempt.actor)
        except RuntimeError as failure:
            self._failures.failed(f"stopping {attempt.actor}", failure)
            return  # the next pass tries again; the other attempts must not wait for this one
        self._failures.worked(f"stopping {attempt.actor}")
        logger.warning("stopped %s: %s", attempt.actor, error)
        if Snapshot(self._launcher, self._failures).state(attempt.actor) != "dead":
            return  # not confirmed: the next pass tries again
        try:
            self._service.finish(
                attempt.job,
                attempt.number,
                state,
                by=BY,
                cause=cause,
                error=f"attempt {attempt.number} {error}",
            )
        except StaleAttempt:
            logger.info("%s had ended by itself", attempt.actor)

    def _note_unfit(self, id: str, capacity: Capacity) -> None:
        try:
            job = self._store.job(id, exact=True)
        except NotFound:
            return  # not ours: the next comparison with the store takes it out of the queue
        reason = unfit_reason(job, capacity.total_cpus, capacity.total_gpus)
        if reason and job.state is JobState.QUEUED and self._store.note_unfit(job.id, BY, reason):
            logger.warning("job %s waits: it %s", job.id, reason)

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


def unfit_reason(job: Job, total_cpus: float, total_gpus: float) -> str | None:
    """Why a job can never start on a cluster of this size; none if it can."""
    if job.gpus > total_gpus:
        return f"needs {job.gpus:g} GPUs, the cluster has {total_gpus:g}"
    if job.cpus > total_cpus:
        return f"needs {job.cpus:g} CPUs, the cluster has {total_cpus:g}"
    return None


def main() -> None:
    """Run the daemon with the settings of the environment and the local stack."""
    from jobs.wiring import RayLauncher, keeper  # imports ray and torch

    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    settings = Settings.from_environment(os.environ).connected()
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


if __name__ == "__main__":
    # As __main__ this module is another one than jobs.dispatcher; run the one that the others import.
    from jobs.dispatcher import main as run_daemon

    run_daemon()
