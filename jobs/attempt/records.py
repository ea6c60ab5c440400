"""What an attempt writes down, and reads back: its state, checkpoints, the model version that it makes.

The store must take every record, and is waited for; Redis only hears of it, and may be away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from jobs.attempt.log import AttemptLog
from jobs.attempt.parts import Timings, Tools
from jobs.config import JobConfig, from_mapping
from jobs.queue import Queue, QueueUnavailable
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import (
    AttemptState,
    Cause,
    Checkpoint,
    Job,
    NewCheckpoint,
    NewReport,
    NotFound,
    StaleAttempt,
    Store,
    StoreUnavailable,
    Version,
    beats,
)

Value = TypeVar("Value")

BY = "attempt"


class Records:
    """The records of attempt `number` of `job`.

    Every verb that writes to the store raises StaleAttempt once the attempt does not count any more.
    """

    def __init__(
        self,
        store: Store,
        queue: Queue,
        settings: Settings,
        job: str,
        number: int,
        log: AttemptLog,
        tools: Tools,
        timings: Timings,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.job = job
        self.number = number
        self.queue = queue
        self.prefix = f"jobs/{job}/attempt-{number}"
        self._store = store
        self._service = Service(store, queue)
        self._settings = settings
        self._log = log
        self._tools = tools
        self._timings = timings
        self._clock = clock
        self._pause = threading.Event()  # never set: waiting on it is an interruptible sleep
        self._redis_failed = False

    @cached_property
    def config(self) -> JobConfig:
        """The job's config. Raises ConfigError if this version of the package does not understand it."""
        return from_mapping(self._persist(lambda: self._store.config(self.job)))

    @cached_property
    def ranks(self) -> int:
        """The ranks that this attempt was opened with."""
        (mine,) = (
            each
            for each in self._persist(lambda: self._store.attempts(self.job))
            if each.number == self.number
        )
        return mine.ranks

    def join(self, host: str, resumed_from: int | None = None) -> None:
        """This process works on the attempt."""
        self._persist(
            lambda: self._store.join_attempt(self.job, self.number, host=host, resumed_from=resumed_from)
        )

    def start(self) -> None:
        """The ranks are there."""
        self._persist(lambda: self._store.start_attempt(self.job, self.number))
        self.hear(lambda: self.queue.ring(self.job))

    def check(self) -> Job:
        """The job as it is now. Raises StoreUnavailable at once, without waiting."""
        return self._store.check_attempt(self.job, self.number)

    def renew(self) -> bool:
        """Renew the lease; False if Redis is away."""
        held = self.hear(lambda: self.queue.renew(self.job, self.number, self._timings.lease))
        if held is False:
            raise StaleAttempt(self.job, self.number)
        return held is not None

    def see(self) -> None:
        """Tell the database that this process is alive. Raises StoreUnavailable at once, without waiting."""
        self._store.see_attempt(self.job, self.number)

    def progress(self, message: Mapping[str, Any]) -> None:
        """Show where training is."""
        shown = {name: value for name, value in message.items() if name != "kind"}
        shown |= {"attempt": self.number, "at": self._store.clock().isoformat()}
        self.hear(lambda: self.queue.publish_progress(self.job, shown))

    def checkpoint(self, message: Mapping[str, Any]) -> None:
        """Record a checkpoint whose files are in place with its report, then delete what need not be kept."""
        select = self.config.select
        position, given = message["position"], message.get("report")
        report = None if given is None else NewReport(**given)
        metrics = {} if report is None else dict(report.validation)
        new = NewCheckpoint(
            name=message["name"].rpartition("/")[2],
            location=message["name"],
            digest=message["digest"],
            epoch=position["epoch"],
            step=position["step"],
            batch=position["batch"],
            value=metrics.get(select.metric),
            metrics=metrics,
        )
        recorded = self._persist(lambda: self._store.record_checkpoint(self.job, self.number, new, report))
        value = "" if recorded.value is None else f", {select.metric} {recorded.value:.4f}"
        self._log.write(f"checkpoint {recorded.name}: step {recorded.step}{value}, sha256 {recorded.digest}")
        self.hear(lambda: self.queue.ring(self.job))
        self._prune()

    def resume_point(self) -> Checkpoint | None:
        """The newest checkpoint of an earlier attempt whose files are what the record says."""
        for checkpoint in self._persist(lambda: self._store.checkpoints(self.job)):
            if checkpoint.attempt < self.number and self._verified(checkpoint) is not None:
                return checkpoint
        return None

    def sweep(self) -> None:
        """Delete what earlier attempts put in place and died before they recorded it: nothing names it."""
        recorded = {
            c.location for c in self._persist(lambda: self._store.checkpoints(self.job, deleted=True))
        }
        earlier = [f"jobs/{self.job}/attempt-{number}" for number in range(1, self.number)]
        try:
            for location in (found for prefix in earlier for found in self._tools.artifacts.list(prefix)):
                if location not in recorded:
                    self._tools.artifacts.delete(location)
                    self._log.write(f"deleted {location}, which was never recorded")
        except (OSError, RuntimeError) as error:
            # Training must not fail for it: the next attempt tries again.
            self._log.write(f"looking for checkpoints that were never recorded: {error}")

    def promote(self) -> Version | None:
        """Make the job's best checkpoint a model version and serve it, if it beats what is served."""
        select, model = self.config.select, self.config.name
        sign = -1 if select.mode == "max" else 1
        valued = [
            (c.value, c)
            for c in self._persist(lambda: self._store.checkpoints(self.job))
            if c.value is not None
        ]
        # The best first; of equals the earliest, as training on brought nothing.
        for value, best in sorted(valued, key=lambda pair: (sign * pair[0], pair[1].step, pair[1].id)):
            served = self._version(model)
            if served is not None and not beats(value, select.metric, select.mode, served):
                self._log.write(
                    f"not promoted: {select.metric} {value:.4f} of {best.name} does not beat "
                    f"{served.metrics[select.metric]:.4f} of version {served.version} of {model}"
                )
                return None
            folder = self._verified(best)
            if folder is not None:
                return self._make_version(
                    best, folder, f"{select.metric} {value:.4f}, the best of job {self.job}"
                )
        self._log.write(f"not promoted: no good checkpoint has a {select.metric}")
        return None

    def finish(self, state: AttemptState, cause: Cause | None = None, error: str | None = None) -> None:
        """End the attempt, and move its job on."""
        self._log.write(f"{state}{f' ({cause})' if cause else ''}{f': {error}' if error else ''}")
        job = self._persist(
            lambda: self._service.finish(self.job, self.number, state, by=BY, cause=cause, error=error)
        )
        self._log.write(f"job {self.job} is {job.state}")

    def copy_log(self) -> None:
        """Keep what is new of the log in the database, if its readers may be on other nodes.

        Raises StoreError; what could not be kept is tried again the next time.
        """
        if self._store.remote:
            self._log.copy(lambda start, text: self._store.keep_log(self.job, self.number, start, text))

    def hear(self, call: Callable[[], Value]) -> Value | None:
        """What Redis says; none if it does not answer, which is logged once and stops nothing."""
        try:
            value = call()
        except QueueUnavailable as error:
            if not self._redis_failed:
                self._redis_failed = True
                self._log.write(f"going on without Redis: {error}")
            return None
        if self._redis_failed:
            self._redis_failed = False
            self._log.write("Redis answers again")
        return value

    def _prune(self) -> None:
        """Delete the files of checkpoints that need not be kept: first marked in the store, then deleted."""
        keep_last, mode = self.config.training.keep_last, self.config.select.mode
        of = self.job, self.number
        doomed = self._persist(
            lambda: self._store.prune(self.job, self.number, keep_last=keep_last, mode=mode)
        )
        for checkpoint in doomed:
            try:
                self._tools.artifacts.delete(checkpoint.location)
            except (OSError, RuntimeError) as error:
                # Training must not fail for it: the record stays marked, and the next prune tries again.
                self._log.write(f"{checkpoint.location} could not be deleted: {error}")
            else:
                self._persist(lambda id=checkpoint.id: self._store.purged(id, of=of))  # type: ignore[misc]

    def _verified(self, checkpoint: Checkpoint) -> Path | None:
        """The checkpoint's files, if they are what the record says; if not, the log tells why.

        An artifact store that does not answer raises: that says nothing about the checkpoint.
        """
        artifacts = self._tools.artifacts
        if not artifacts.exists(checkpoint.location):
            self._log.write(f"checkpoint {checkpoint.location} is gone; passing it over")
            return None
        try:
            folder = artifacts.fetch(checkpoint.location, self._settings.cache)
            self._tools.verify(folder, digest=checkpoint.digest)
        except self._tools.broken as error:
            self._log.write(f"checkpoint {checkpoint.location} is not good ({error}); passing it over")
            return None
        return folder

    def _version(self, model: str, version: int | None = None) -> Version | None:
        """The version of that number, the served one by default; none if there is none."""
        try:
            return self._persist(lambda: self._store.version(model, version))
        except NotFound:
            return None

    def _make_version(self, checkpoint: Checkpoint, folder: Path, reason: str) -> Version | None:
        """Copy a checkpoint to where nothing prunes it, and record it as the served version.

        The number is reserved first, so that of two jobs of one model name neither writes into the other's
        files; that leaves a gap if this one is stale, or not the better one any more.
        """
        model = self.config.name
        number, location = self._reserve(model)
        self._tools.artifacts.put(folder, location)
        try:
            version = self._persist(
                lambda: self._store.record_version(
                    self.job,
                    self.number,
                    model=model,
                    version=number,
                    checkpoint=checkpoint.id,
                    location=location,
                    metric=self.config.select.metric,
                    mode=self.config.select.mode,
                    reason=reason,
                )
            )
        except StaleAttempt:
            # An earlier try may have been recorded after all, with its answer lost.
            if self._version(model, number) is None:
                self._tools.artifacts.delete(location)
            raise
        if version is None:
            self._tools.artifacts.delete(location)
            self._log.write(f"not promoted: another job made a better version of {model} in the meantime")
        else:
            self._log.write(f"promoted {checkpoint.name} as version {number} of {model}: {reason}")
            self.hear(self.queue.ring)
        return version

    def _reserve(self, model: str) -> tuple[int, str]:
        """A version number for `model`, and where its files go.

        A store that went on while its database was restored from a backup holds some numbers already.
        """
        while True:
            number = self._persist(lambda: self._store.reserve_version(self.job, self.number, model))
            location = f"models/{model}/v{number}"
            if not self._tools.artifacts.exists(location):
                return number, location
            self._log.write(
                f"{location} holds a version that is not recorded, and stays; trying the next number"
            )

    def _persist(self, call: Callable[[], Value]) -> Value:
        """The call's value, tried again while the database does not answer, up to `patience`."""
        deadline = self._clock() + self._timings.patience
        while True:
            try:
                return call()
            except StoreUnavailable as error:
                if self._clock() >= deadline:
                    raise
                self._log.write(f"{error}; trying again")
                self._pause.wait(self._timings.poll)
