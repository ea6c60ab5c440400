"""What people ask of the service: submit, cancel, retry, wait, promote, roll back; and reconciling its parts.

Every verb writes the store first and touches Redis second. Whatever happens in between, `reconcile` heals.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from jobs.config import JobConfig, default_owner, from_mapping
from jobs.queue import PRIORITIES, Bell, Entry, Queue, QueueUnavailable
from jobs.store import (
    Attempt,
    AttemptState,
    Cause,
    Conflict,
    Drain,
    Job,
    NewTrial,
    Queued,
    Retry,
    StaleAttempt,
    Store,
    Taken,
    Version,
)
from jobs.sweeps.search import checked

# Without 0/o, 1/l/i and u/v: an id is read aloud and typed.
ALPHABET = "23456789abcdefghjkmnpqrstwxyz"
_GIVEN_ID = re.compile(r"[a-z0-9][a-z0-9-]{2,39}")
_OWNER = 200  # characters: PostgreSQL takes no more
_SWEEP_ID = 35  # characters of a sweep's id: its children's have up to five more, and 40 at most
CLAIM_LEASE = 15.0  # seconds that a claim on a job holds; its attempt is recorded meanwhile, and renews it
LAUNCH_GRACE = 20.0  # seconds that a launched attempt's process may take to come up before it counts as lost


class InvalidRequest(ValueError):
    """An id, an owner or a priority that cannot be; the message says what can."""


class Launcher(Protocol):
    """What the service needs of `cluster.launching`."""

    def state(self, name: str) -> Literal["alive", "dead", "unknown"]:
        """Whether the process of that name is there; unknown if the cluster does not answer."""


@dataclass(frozen=True)
class Submission:
    """What `submit` did."""

    job: Job
    created: bool  # False: a job with this id and config was there already
    queued: bool  # False: Redis does not answer; the dispatcher queues the job once it does
    problem: str | None = None  # why it is not queued yet


class Service:
    """The service over its store and its queue."""

    def __init__(self, store: Store, queue: Queue, *, randomness: random.Random | None = None):
        self.store = store
        self.queue = queue
        self._random = randomness or random.SystemRandom()

    def submit(
        self,
        config: JobConfig,
        *,
        owner: str | None = None,
        priority: int = 0,
        id: str | None = None,
        after: Sequence[str] = (),
        after_any: Sequence[str] = (),
        not_before: datetime | None = None,
        held: bool = False,
    ) -> Submission:
        """Record a job and queue it. Submitting an `id` again returns the job that is there.

        A config with a sweep is recorded as one, whose children a dispatcher makes.

        It waits for the success of the jobs `after`, for the end, whatever it is, of those `after_any`, for
        the moment `not_before`, and for its release if it is `held`.

        Raises InvalidRequest, NotFound, Ambiguous, Conflict (the id exists with another config or other
        dependencies, or a job that must succeed first has failed), ConfigError (a child of the sweep cannot
        be), StoreUnavailable. It works without Redis.
        """
        if priority not in PRIORITIES:
            raise InvalidRequest(
                f"priority {priority} must be from {PRIORITIES[0]} to {PRIORITIES[-1]}; higher goes first"
            )
        if id is not None and not _GIVEN_ID.fullmatch(id):
            raise InvalidRequest(f"id {id!r} must be 3 to 40 of a-z, 0-9 and '-', the first no '-'")
        if config.sweep is not None and id is not None and len(id) > _SWEEP_ID:
            raise InvalidRequest(
                f"id {id!r} must be {_SWEEP_ID} characters at most: it is a sweep's, and its children are "
                f"called {id}.1 and so on"
            )
        owner = owner or default_owner()
        if len(owner) > _OWNER:
            raise InvalidRequest(f"the owner's name has {len(owner)} characters; there may be {_OWNER}")
        trials = None if config.sweep is None else checked(config).size
        first = [self.store.job(other).id for other in after]
        first_any = [self.store.job(other).id for other in after_any]
        while True:
            try:
                job, created = self.store.add_job(
                    id or self._make_id(),
                    # A sweep's as it was given: see `Space`.
                    config=config.model_dump(mode="json", exclude_unset=trials is not None),
                    name=config.name,
                    owner=owner,
                    priority=priority,
                    # A sweep itself takes nothing from the cluster.
                    ranks=0 if trials else config.resources.min_ranks,
                    max_ranks=None if trials else config.resources.max_ranks,
                    cpus=0 if trials else config.resources.cpus,
                    gpus=0 if trials else config.resources.gpus,
                    trials=trials,
                    retry=Retry(**config.retry.model_dump()),
                    time_limit=config.time_limit,
                    not_before=not_before,
                    after=first,
                    after_any=first_any,
                    held=held,
                )
            except Taken as error:
                if id is None:
                    continue  # a made id that exists already
                # An older version may have written the same config otherwise, with fewer keys.
                if not error.config or from_mapping(self.store.config(id)) != config:
                    raise
                job, created = self.store.job(id, exact=True), False
            if created or id is not None:
                break
        problem = self._push(job)
        return Submission(job, created, queued=problem is None, problem=problem)

    def cancel(self, job: str, *, by: str | None = None) -> Job:
        """Cancel a job: at once if it waits; a running one is asked to stop, with a checkpoint, and is killed
        if it does not. One that has ended stays as it is.

        `job` may be abbreviated. Raises NotFound, Ambiguous.
        """
        value = self.store.request_cancel(self.store.job(job).id, by or default_owner())
        children = [] if value.trials is None else self.store.jobs(parent=value.id)
        for each in (value, *children):
            if each.cancel_requested is not None:
                self._tell(lambda each=each: self._announce_cancel(each))  # type: ignore[misc]
        return value

    def stop_early(self, child: str, reason: str, *, by: str) -> Job | None:
        """Stop a child that is behind the others of its sweep; none if it is stopping or has ended."""
        value = self.store.stop_early(child, reason, by)
        if value is not None:
            self._tell(lambda: self._announce_cancel(value))
        return value

    def add_trials(self, sweep: str, children: Sequence[NewTrial], *, by: str) -> list[Job]:
        """Make children of a sweep and queue them; none if it may have none now, or has others by now."""
        made = self.store.add_trials(sweep, children, by)
        if made:
            self._tell(lambda: self.queue.push([entry_of(job) for job in made]))
            self._tell(lambda: self.queue.ring(sweep))
        return made

    def end_sweep(self, sweep: str, *, by: str) -> Job | None:
        """End a sweep if all of its children have ended; none if it is not so far, or has ended."""
        value = self.store.end_sweep(sweep, by)
        if value is not None:
            self._tell(lambda: self._announce_cancel(value))
        return value

    def retry(self, job: str, *, by: str | None = None) -> Submission:
        """Queue a failed or cancelled job again, with as many attempts as its config allows.

        The first of them resumes from the newest good checkpoint.

        `job` may be abbreviated. Raises NotFound, Ambiguous, Conflict.
        """
        value = self.store.retry(self.store.job(job).id, by or default_owner())
        problem = self._push(value)
        if value.trials is not None:
            self._tell(self.reconcile_queue)  # its children wait again
            self._tell(self.queue.ring)
        return Submission(value, created=False, queued=problem is None, problem=problem)

    def hold(self, job: str, *, by: str | None = None) -> Job:
        """Keep a job from starting until it is released. Raises NotFound, Ambiguous, Conflict."""
        value = self.store.hold(self.store.job(job).id, by or default_owner())
        self._tell(self._removing(value))
        return value

    def release(self, job: str, *, by: str | None = None) -> Job:
        """Let a held job start. Raises NotFound, Ambiguous, Conflict."""
        value = self.store.release(self.store.job(job).id, by or default_owner())
        self._push(value)
        if value.trials is not None:
            self._tell(self.reconcile_queue)
            self._tell(self.queue.ring)
        return value

    def requeue(self, job: str, *, by: str | None = None) -> Job:
        """Put a job back into the queue, wherever it is.

        A running one makes way with a checkpoint and goes on later, at nobody's expense; one that waits for
        its next retry waits no more; a failed or cancelled one is retried.

        Raises NotFound, Ambiguous, Conflict (it succeeded, or waits in the queue already).
        """
        who = by or default_owner()
        value = self.store.job(job)
        if value.state.final:
            return self.retry(value.id, by=who).job
        if value.state == "queued":
            value = self.store.hurry(value.id, who)
            self._push(value)
            return value
        if value.trials is not None:
            raise Conflict(f"job {value.id} is a sweep: requeue its children, such as {value.id}.1")
        self.store.request_yield(value.id, who, "requeued by hand", cause=Cause.REQUEUED)
        self._tell(lambda: self.queue.ring(value.id))
        return self.store.job(value.id, exact=True)

    def drain(self, on: bool = True, *, by: str | None = None) -> Drain | None:
        """Start nothing new, whatever is queued, and let what is under way go on; or end that."""
        if on:
            return self.store.drain(by or default_owner())
        self.store.end_drain(by or default_owner())
        self._tell(self.queue.ring)
        return None

    def promote(self, model: str, version: int, *, by: str | None = None, reason: str = "") -> Version:
        """Make a version the served one. Raises NotFound."""
        value = self.store.promote(model, version, by=by or default_owner(), reason=reason)
        self._tell(self.queue.ring)
        return value

    def rollback(self, model: str, *, by: str | None = None, reason: str = "") -> Version:
        """Serve the version before the current one again. Raises NotFound, Conflict."""
        value = self.store.roll_back(model, by=by or default_owner(), reason=reason)
        self._tell(self.queue.ring)
        return value

    def wait(
        self,
        job: str,
        timeout: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Job:
        """Wait until a job has ended; returns it, still running if `timeout` seconds pass first.

        The store is asked once a second; Redis only makes it quicker.
        """
        id = self.store.job(job).id
        deadline = None if timeout is None else clock() + timeout
        bell: Bell | None = None
        while True:
            if bell is None:
                bell = self._bell(id)
            value = self.store.job(id, exact=True)
            left = 1.0 if deadline is None else min(1.0, deadline - clock())
            if value.state.final or left <= 0:
                return value
            try:
                if bell is None:
                    sleep(left)
                else:
                    bell.wait(left)
            except QueueUnavailable:
                bell = None
                sleep(left)

    def finish(
        self,
        job: str,
        number: int,
        state: AttemptState,
        *,
        by: str,
        cause: Cause | None = None,
        error: str | None = None,
    ) -> Job:
        """End an attempt, release its lease, and queue its job again if it is to be retried.

        Raises StaleAttempt.
        """
        value = self.store.finish_attempt(job, number, state, by=by, cause=cause, error=error)

        def tell() -> None:
            self.queue.release(job, number)
            waiting = [self.store.waiting(job)] if not value.state.final else self.store.freed_by(job)
            entries = [entry_of(queued) for queued in waiting if queued is not None and queued.eligible]
            if entries:
                self.queue.push(entries)
            else:
                self.queue.ring()  # what it held is free
            self.queue.ring(job)

        self._tell(tell)
        return value

    def reconcile_queue(self) -> None:
        """Make Redis hold exactly the jobs that may start, by the store. Raises QueueUnavailable."""
        # Redis is read first: what is in it now was in the store before. Read the other way round, a job
        # that is submitted in between would look foreign.
        entries = self.queue.entries()
        waiting = {job.id: job for job in self.store.queued() if job.eligible}
        foreign = [id for id in entries if id not in waiting]
        missing = [entry_of(job) for id, job in waiting.items() if entries.get(id) != job.attempt + 1]
        if missing:
            self.queue.push(missing)
            entries = self.queue.entries()
        if not same_order(entries, waiting):
            # Redis of a time in which these ids were other jobs: their places are wrong.
            self.queue.push([entry_of(job) for job in waiting.values()])
        if foreign:
            self.queue.remove(foreign)

    def reconcile_attempts(self, launcher: Launcher, *, by: str = "dispatcher") -> list[Attempt]:
        """End the active attempts that are confirmed dead; returns them. Raises QueueUnavailable.

        Unreachable is not dead: the cluster must say that the process is gone, and no lease may be left of
        it. Of a job that is to be cancelled its word is enough: nobody waits for more, and one that lives
        after all finds that it is over at its next look at the database. A crash between opening and
        launching looks the same after LAUNCH_GRACE.
        """
        ended = []
        silent: QueueUnavailable | None = None
        for attempt in self.store.attempts(active=True):
            if launcher.state(attempt.actor) != "dead":
                continue
            came_up = attempt.host is not None
            if not came_up or self.store.job(attempt.job).cancel_requested is None:
                # A clock that was set back must not keep it for as long as that.
                age = abs((self.store.clock() - attempt.opened).total_seconds())
                if attempt.state is AttemptState.STARTING and age < LAUNCH_GRACE:
                    continue
                try:
                    if self.queue.leases([attempt.job]).get(attempt.job) == attempt.number:
                        continue
                except QueueUnavailable as unavailable:
                    silent = unavailable
                    continue
            cause = Cause.DIED if came_up else Cause.NEVER_STARTED
            error = (
                f"attempt {attempt.number} died without a word"
                if came_up
                else f"attempt {attempt.number} never started"
            )
            try:
                self.finish(attempt.job, attempt.number, AttemptState.LOST, by=by, cause=cause, error=error)
            except StaleAttempt:
                continue  # it ended by itself in the meantime
            ended.append(attempt)
        if silent is not None:
            raise silent
        return ended

    def reconcile(self, launcher: Launcher) -> list[Attempt]:
        """Heal whatever a crash left behind: dead attempts, then the queue. Returns the attempts it ended."""
        ended = self.reconcile_attempts(launcher)
        self.reconcile_queue()
        return ended

    def _make_id(self) -> str:
        return "".join(self._random.choice(ALPHABET) for _ in range(8))

    def _removing(self, job: Job) -> Callable[[], object]:
        """Takes a job, and the children that it may have, out of the queue."""
        children = [] if job.trials is None else self.store.jobs(parent=job.id)
        return lambda: self.queue.remove([each.id for each in (job, *children)])

    def _push(self, job: Job) -> str | None:
        """Queue a job that may start; why it could not be, if it could not."""
        if job.trials is not None:
            try:
                self.queue.ring()  # it is never queued itself: a dispatcher makes its children
            except QueueUnavailable as error:
                return str(error)
            return None
        waiting = self.store.waiting(job.id) if job.state == "queued" else None
        if waiting is None or not waiting.eligible:
            return None
        try:
            self.queue.push([entry_of(waiting)])
        except QueueUnavailable as error:
            return str(error)
        return None

    def _announce_cancel(self, job: Job) -> None:
        if job.state.final:
            self.queue.remove([job.id])
            freed = self.store.freed_by(job.id)
            if freed:
                self.queue.push([entry_of(queued) for queued in freed])
        self.queue.ring(job.id)
        self.queue.ring()

    def _tell(self, say: Callable[[], object]) -> None:
        """Wake whoever should act now. Without Redis they find it in the store, a little later."""
        try:
            say()
        except QueueUnavailable:
            return

    def _bell(self, job: str) -> Bell | None:
        try:
            return self.queue.bell(job)
        except QueueUnavailable:
            return None


def same_order(entries: Collection[str], waiting: Collection[str]) -> bool:
    """Whether the jobs that are in both stand in the same order."""
    return [id for id in entries if id in waiting] == [id for id in waiting if id in entries]


def entry_of(job: Queued | Job) -> Entry:
    """The queue's entry for a job that waits."""
    return Entry(job.id, job.attempt + 1, job.priority, job.sequence)
