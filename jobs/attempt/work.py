"""One attempt at work: training on one thread, watching over the lease and for a cancel on another."""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from jobs.attempt.log import AttemptLog
from jobs.attempt.parts import Timings, Tools, short
from jobs.attempt.records import Records
from jobs.queue import Bell, Queue
from jobs.settings import Settings
from jobs.store import AttemptState, Cause, Job, StaleAttempt, Store, StoreError, StoreUnavailable

# What an attempt ends as that stopped because it was asked to, and what its log says.
_STOPPED = {
    Cause.CANCELLED: AttemptState.CANCELLED,
    Cause.STOPPED_EARLY: AttemptState.CANCELLED,
    Cause.PREEMPTED: AttemptState.PREEMPTED,
    Cause.RESIZED: AttemptState.PREEMPTED,
    Cause.REQUEUED: AttemptState.PREEMPTED,
    Cause.TIMEOUT: AttemptState.FAILED,
}
_SAID = {
    Cause.CANCELLED: "cancelled",
    Cause.STOPPED_EARLY: "stopped early",
    Cause.PREEMPTED: "asked to make way",
    Cause.RESIZED: "asked to start again with more ranks",
    Cause.REQUEUED: "requeued",
    Cause.TIMEOUT: "out of time",
}


class Work:
    """Attempt `number` of `job`, from its first record to its last."""

    def __init__(
        self,
        store: Store,
        queue: Queue,
        settings: Settings,
        job: str,
        number: int,
        log: AttemptLog,
        tools: Tools,
        *,
        timings: Timings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._settings = settings
        self._log = log
        self._tools = tools
        self._timings = timings or Timings()
        self._clock = clock
        self._records = Records(store, queue, settings, job, number, log, tools, self._timings, clock)
        self._started: float | None = None  # when the ranks said something first
        self._heard = 0.0  # and last
        self._trained = False  # they have told of a step
        self._stop = threading.Event()  # training is asked to stop
        self._why = Cause.CANCELLED  # why it is
        self._excuse: str | None = None  # the error that is recorded then
        self._stale = threading.Event()  # this attempt does not count any more
        self._ending = threading.Event()  # its last record is being written
        self._renewing = threading.Lock()  # the lease, which must not come back once that is written
        self._behind = False  # the copy of the log could not be kept
        self._over = threading.Event()  # the watching thread may go

    def run(self) -> None:
        """Train, record, promote. The attempt's record is ended whatever happens, unless it is stale."""
        records = self._records
        host = socket.gethostname()
        watching = threading.Thread(target=self._watch, name=f"watch-{records.job}", daemon=True)
        self._log.write(f"attempt {records.number} of job {records.job} on {host}, process {os.getpid()}")
        try:
            records.join(host)
            records.renew()
            watching.start()
            try:
                self._train(host)
            except StaleAttempt:
                raise
            except Exception as error:
                self._log.write(traceback.format_exc())
                if self._stale.is_set():
                    raise StaleAttempt(records.job, records.number) from error
                self._finish(AttemptState.FAILED, self._cause(error), short(error))
        except StaleAttempt as error:
            self._stale.set()
            self._log.write(f"{error}; stopping")
        finally:
            self._over.set()
            if watching.is_alive():
                watching.join(timeout=self._timings.poll + 5)
            self._copy_log()

    def on_message(self, message: dict[str, Any]) -> dict[str, Any]:
        """Take a message of rank 0; the reply says whether to stop.

        A checkpoint is recorded when this returns. If this attempt is stale it raises StaleAttempt.
        """
        if self._stale.is_set():
            raise StaleAttempt(self._records.job, self._records.number)
        try:
            if self._started is None:
                # The first word of a rank: they have all been placed.
                self._records.start()
                self._started = self._clock()
            self._heard = self._clock()
            match message.get("kind"):
                case "progress":
                    self._trained = True
                    self._records.progress(message)
                case "checkpoint":
                    self._trained = True
                    self._records.checkpoint(message)
                case "log":
                    self._log.write(str(message["text"]))
                case kind:
                    raise ValueError(
                        f"a rank sent a message of kind {kind!r}: not progress, checkpoint or log"
                    )
        except StaleAttempt:
            self._stale.set()
            raise
        return {"stop": self._stop.is_set()}

    def _train(self, host: str) -> None:
        records = self._records
        resources = records.config.resources
        resume = records.resume_point()
        records.sweep()
        if resume is not None:
            records.join(host, resumed_from=resume.id)
            self._log.write(f"resuming from {resume.location}, step {resume.step}")
        ranks = records.ranks
        self._log.write(f"training {records.config.name} with {ranks} rank(s)")
        result = self._tools.fit(
            records.config.training_config().model_dump(mode="json"),
            ranks=ranks,
            max_ranks=resources.max_ranks,
            cpus_per_rank=resources.cpus_per_rank,
            gpus_per_rank=resources.gpus_per_rank,
            data_folder=self._settings.data,
            storage=self._settings.storage,
            prefix=records.prefix,
            resume=None if resume is None else (resume.location, resume.digest),
            ray_storage=self._settings.ray_results,
            name=f"{records.job}-{records.number}",
            on_message=self.on_message,
            start_timeout=self._settings.start_timeout,
        )
        if self._stale.is_set():
            raise StaleAttempt(records.job, records.number)
        if result.status == "finished":
            records.promote()
            self._finish(AttemptState.SUCCEEDED)
        elif self._stop.is_set():
            self._finish(_STOPPED[self._why], self._why, self._excuse)
        else:
            raise RuntimeError(f"training ended as {result.status} without being asked to stop")

    def _finish(self, state: AttemptState, cause: Cause | None = None, error: str | None = None) -> None:
        with self._renewing:
            self._ending.set()  # from here on the watching thread may find the attempt ended: by us
        self._records.finish(state, cause, error)

    def _watch(self) -> None:
        """Renew the lease, and learn of a cancel or of being stale, until the attempt is over."""
        bell: Bell | None = None
        renewed = self._clock()
        while not self._over.is_set():
            try:
                if self._clock() - renewed >= self._timings.renew:
                    renewed = self._clock()
                    self._renew()
                self._obey(self._records.check())
                self._listen()
            except StaleAttempt as error:
                if not self._ending.is_set():
                    self._abandon(str(error))
                return
            except StoreError as error:
                # Whether it is away or refuses: a thread that ended here would never hear of a cancel.
                self._log.write(f"{error}; training goes on")
            else:
                self._copy_log()
            bell = self._rest(bell)

    def _renew(self) -> None:
        with self._renewing:
            if not self._ending.is_set() and not self._records.renew():
                self._records.see()  # else who can reach Redis would take this attempt for frozen

    def _obey(self, job: Job) -> None:
        why = self._order(job)
        if why is None or self._stop.is_set():
            return
        self._why = why
        if why is Cause.TIMEOUT:
            self._excuse = f"it trained for {job.time_limit:g} s, as long as its time_limit allows"
        elif why is Cause.STOPPED_EARLY:
            self._excuse = job.stopped
        self._stop.set()
        if self._trained:
            told = f"{_SAID[why]}, as {self._excuse}" if self._excuse else _SAID[why]
            self._log.write(f"{told}: stopping with a checkpoint")
            return
        # There are no ranks yet, or they prepare reviews and model, which may take minutes: nothing to lose.
        self._end(_STOPPED[why], why, self._excuse, said=f"{_SAID[why]} before training began")

    def _listen(self) -> None:
        """Give training up that has said nothing for so long that it must hang, whatever it hangs at.

        That may be the other thread, which deletes checkpoints and makes the version.
        """
        limit = self._settings.stall_timeout
        if self._started is None or self._clock() - self._heard < limit:
            return
        error = f"its ranks have said nothing for {limit:g} s: they hang, or the disk does"
        self._end(AttemptState.FAILED, Cause.RANK_LOST, error, said=error)

    def _end(self, state: AttemptState, cause: Cause, error: str | None, *, said: str) -> None:
        """End the attempt from the watching thread: the other one may never come back from training."""
        if self._ending.is_set():
            return  # it has come back, and is writing the last record
        try:
            self._finish(state, cause, error)
        except StoreError as failure:
            # It has ended already, perhaps by this very record, whose answer was lost; or the database is
            # away, and a dispatcher will find this process gone. The ranks must not be kept for either.
            self._log.write(str(failure))
        finally:
            self._abandon(said)

    def _order(self, job: Job) -> Cause | None:
        """Why training has to stop; none if it may go on."""
        if job.cancel_requested is not None:
            return Cause.CANCELLED if job.stopped is None else Cause.STOPPED_EARLY
        if job.yield_requested is not None:
            return job.yield_cause or Cause.PREEMPTED
        limit, started = job.time_limit, self._started
        if limit is not None and started is not None and self._clock() - started >= limit:
            return Cause.TIMEOUT
        return None

    def _cause(self, error: Exception) -> Cause:
        """Whose matter an error is that ended training."""
        if self._tools.hopeless(error):
            return Cause.BAD_CONFIG
        if isinstance(error, StoreUnavailable):
            return Cause.UNREACHABLE
        return self._tools.infrastructure(error) or Cause.ERROR

    def _copy_log(self) -> None:
        """Keep the log where others can read it. Its file remains, so nothing has to wait for this."""
        try:
            self._records.copy_log()
        except StoreError as error:
            if not self._behind:
                self._log.write(f"{error}; the log is copied later")
            self._behind = True
        else:
            self._behind = False

    def _abandon(self, reason: str) -> None:
        """Stop everything at once."""
        self._stale.set()
        self._stop.set()
        # Whoever does not count any more must be gone soon, whether or not database and disk answer.
        saying = threading.Thread(target=self._say_goodbye, args=(reason,), name="goodbye", daemon=True)
        saying.start()
        saying.join(timeout=1.0)
        self._tools.leave()

    def _say_goodbye(self, reason: str) -> None:
        self._log.write(f"{reason}; ending this process and its ranks")
        self._copy_log()

    def _rest(self, bell: Bell | None) -> Bell | None:
        """Wait until the job's bell rings, for one poll at most."""
        queue, job = self._records.queue, self._records.job
        if bell is None:
            bell = self._records.hear(lambda: queue.bell(job))
        if bell is None:
            self._over.wait(self._timings.poll)
            return None
        heard = self._records.hear(lambda: bell.wait(self._timings.poll))
        if heard is None:
            self._over.wait(self._timings.poll)  # a Redis that is gone answers at once
            return None
        return bell
