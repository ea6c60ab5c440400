"""Decides what starts and what makes way, and has it done."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jobs import attempt as attempts
from jobs.dispatcher import claims
from jobs.dispatcher.parts import Capacity, Launcher, Places, Timings, who
from jobs.failures import Failures
from jobs.logs import about
from jobs.outlook import Outlook, running_of, shown
from jobs.queue import Queue
from jobs.scheduling import (
    Cluster,
    Decisions,
    Growth,
    Patience,
    Policy,
    Promises,
    Waiting,
    decide,
    read_policy,
    too_large,
)
from jobs.scheduling import Running as Placed
from jobs.scheduling.values import SLACK
from jobs.settings import Settings
from jobs.store import Attempt, AttemptState, Cause, Running, StaleAttempt, Store, StoreError
from textvae.parsing import ConfigError

logger = logging.getLogger("textvae.dispatcher")

_TOGETHER = 16  # attempts opened in one transaction
_SETTLING = 10.0  # seconds after an attempt in which the cluster may still count its ranks
_LAGGING = 2.0  # seconds after an attempt in which nobody is displaced for the room that it has left
_SHOWN_EVERY = 2.0  # seconds between two publications of what decisions are made of


class Starter:
    """Starts what the policy wants started. What it knows of the queue is kept up to date by events."""

    def __init__(
        self,
        store: Store,
        queue: Queue,
        launcher: Launcher,
        capacity: Callable[[], Capacity],
        settings: Settings,
        timings: Timings,
        failures: Failures,
    ):
        self._store = store
        self._queue = queue
        self._launcher = launcher
        self._capacity = capacity
        self._settings = settings
        self._timings = timings
        self._failures = failures
        self._rules = _Rules(settings.scheduling_file, failures)
        self.outlook = Outlook(store, self._rules.read())
        self._others: tuple[float, float] | None = None  # CPUs and GPUs in use by others, as seen last
        self._decided: tuple[object, float] | None = None  # on what the last decision was made, and when
        self._shown = 0.0  # when the outlook was published
        self._sums: tuple[object, float] | None = None  # of the cluster, as published last, and when
        self._patience = Patience()
        self._promises = Promises()
        self._placed: dict[str, Places] = {}  # where the ranks of active attempts were seen last, by attempt
        self._seen: dict[str, Placed] = {}  # active attempts of the last pass
        self._gone: dict[str, tuple[Placed, float]] = {}  # attempts that have ended just now, and when
        self._unfit: dict[str, str] = {}  # jobs larger than the cluster, and why: each is recorded once

    def step(self) -> list[Attempt]:
        """Open and launch attempts of all jobs that may start; ask others to make way. Returns the former."""
        self.outlook.use(self._rules.read())
        self.outlook.refresh()
        capacity = self._capacity()
        if capacity.total_cpus <= 0:
            raise RuntimeError("the cluster has no CPUs yet")
        active = self._store.running()
        # An attempt whose ranks have gone has its version still to make: its ranks will not be anywhere else.
        self._placed |= capacity.placed
        self._placed = {job.actor: self._placed[job.actor] for job in active if job.actor in self._placed}
        cluster = self._room(capacity, active)
        now = self._store.clock().timestamp()
        self._show(capacity, now)
        known = (
            self.outlook.seen,
            self.outlook.policy,
            cluster,
            capacity.placed,
            [(job.actor, job.started) for job in active],
        )
        if self._decided is not None and self._decided[0] == known and not self._due(now):
            return []
        running = [self._running(job) for job in active]
        self._part({job.actor: each for job, each in zip(active, running, strict=True)}, now)
        history = self.outlook.history(running, cluster)
        decisions = decide(
            self.outlook.backlog,
            running,
            cluster,
            history,
            self.outlook.policy,
            now,
            promised=self._promises.of(cluster),
            gone=[job for job, _ in self._gone.values()],
        )
        self._promises.keep(decisions, cluster)
        if _apart(now, self._shown) >= _SHOWN_EVERY:
            self._queue.publish_outlook(
                shown(cluster, self._placed, decisions.reserved, history, self.outlook.typical())
            )
            self._shown = now
        self._note_unfit(cluster)
        grow = decisions.grow
        if not self._patience.over(grow, running, self.outlook.policy, now):
            grow = None
        start = [
            job for job in decisions.start if not self._settling(job, decisions.start, cluster, active, now)
        ]
        opened: list[Attempt] = []
        stale = False
        # Whoever opens an attempt looks for a drain once more; this only saves the attempt to.
        if (start or decisions.preempt or grow) and self._store.draining() is None:
            there = {(job.id, job.attempt): job.leaving for job in active}
            opened = self._start(start, there)
            stale = not self._displace(decisions, there) or (grow is not None and not self._grow(grow, there))
        self._decided = None if opened or stale or len(start) < len(decisions.start) else (known, now)
        return opened

    def _show(self, capacity: Capacity, now: float) -> None:
        sums = {name: value for name, value in vars(capacity).items() if name not in ("nodes", "placed")}
        if self._sums is None or self._sums[0] != sums or _apart(now, self._sums[1]) >= _SHOWN_EVERY:
            self._queue.publish_cluster(sums)
            self._sums = sums, now

    def _due(self, now: float) -> bool:
        """Whether the time alone may have changed who starts."""
        assert self._decided is not None
        later = self.outlook.backlog.next_time()
        return _apart(now, self._decided[1]) >= self._timings.think or (later is not None and later <= now)

    def _room(self, capacity: Capacity, active: Sequence[Running]) -> Cluster:
        """What a job may be given now.

        The cluster counts an attempt once its ranks are placed; the store, from the start.
        """
        cpus, gpus = sum(job.cpus for job in active), sum(job.gpus for job in active)
        others_cpus, others_gpus = self._held_by_others(capacity, active)
        cluster = Cluster(
            capacity.total_cpus,
            capacity.total_gpus,
            min(capacity.free_cpus, capacity.total_cpus - others_cpus - cpus),
            min(capacity.free_gpus, capacity.total_gpus - others_gpus - gpus),
            capacity.nodes,
        )
        if not cluster.nodes:
            return cluster
        # Taken, and still free on some machine: what is starting, and nobody knows where. And as long as
        # there is more of it, what has no ranks any more, or has been placed just now.
        cpus, gpus = capacity.free_cpus - cluster.free_cpus, capacity.free_gpus - cluster.free_gpus
        uncounted: list[Running] = []
        latest = active[::-1]
        for job in sorted(latest, key=lambda job: (not self._nowhere(job), job.actor in capacity.placed)):
            if not self._nowhere(job) and cpus <= SLACK and gpus <= SLACK:
                break
            uncounted.insert(0, job)
            cpus, gpus = cpus - job.cpus, gpus - job.gpus
        return replace(cluster, uncounted=tuple(self._running(job) for job in uncounted))

    def _nowhere(self, job: Running) -> bool:
        """Whether it is starting, and nobody knows where."""
        return job.state is AttemptState.STARTING and job.actor not in self._placed

    def _running(self, job: Running) -> Placed:
        return running_of(job, on=self._placed.get(job.actor))

    def _part(self, here: dict[str, Placed], now: float) -> None:
        """Remember for a moment who has ended: the cluster may still count them."""
        ended = [actor for actor in self._seen if actor not in here]
        kept = {actor: gone for actor, gone in self._gone.items() if _apart(now, gone[1]) < _LAGGING}
        self._gone = kept | {actor: (replace(self._seen[actor], ending=True), now) for actor in ended}
        self._seen = here

    def _held_by_others(self, capacity: Capacity, active: Sequence[Running]) -> tuple[float, float]:
        """The CPUs and GPUs that somebody else uses of the cluster.

        While ranks of ours are being placed nobody can tell whether what is in use is theirs. What was seen
        before counts then, and without that all of it: an attempt that is promised what others have would
        wait for its ranks until it is given up.
        """
        placed = [job for job in active if job.state is not AttemptState.STARTING]
        others = (
            max(0.0, capacity.total_cpus - capacity.free_cpus - sum(job.cpus for job in placed)),
            max(0.0, capacity.total_gpus - capacity.free_gpus - sum(job.gpus for job in placed)),
        )
        if len(placed) == len(active):
            self._others = others
        elif self._others is not None:
            others = min(others[0], self._others[0]), min(others[1], self._others[1])
        return others

    def _settling(
        self,
        job: Waiting,
        start: Sequence[Waiting],
        cluster: Cluster,
        active: Sequence[Running],
        now: float,
    ) -> bool:
        """Whether an elastic job would get more ranks in a moment.

        Its last attempt has ended, and the cluster may still count the room of it as used. If it started on
        what is left, it would have to make way for itself once more.
        """
        if job.max_ranks is None or job.number == 1 or now - job.since >= _SETTLING:
            return False
        others: list[Running | Waiting] = [*active, *(other for other in start if other.id != job.id)]
        cpus = cluster.total_cpus - sum(other.cpus for other in others)
        gpus = cluster.total_gpus - sum(other.gpus for other in others)
        return job.ranks < min(job.max_ranks, _ranks_in(job, cpus, gpus))

    def _start(self, start: Sequence[Waiting], known: dict[tuple[str, int], bool]) -> list[Attempt]:
        launched: list[Attempt] = []
        failure: RuntimeError | None = None
        waiting = list(start)
        while waiting and failure is None:
            together, waiting = waiting[:_TOGETHER], waiting[_TOGETHER:]
            opened = self._open(together, known)
            if opened is None:
                logger.info("another dispatcher has started attempts; looking again")
                break
            known.update({(attempt.job, attempt.number): False for attempt in opened})
            with claims.kept(self._queue, opened, self._timings.claim_lease) as claimed:
                for attempt in opened:
                    try:
                        if self._launch(attempt):
                            launched.append(attempt)
                    except RuntimeError as error:
                        # The others are open too, and must not be taken for lost. This one is found dead, or
                        # alive after all.
                        of = about(attempt.job, attempt.number)
                        logger.warning("%s could not be launched: %s", attempt.actor, error, extra=of)
                        failure = failure or error
                    del claimed[attempt.job]
        if failure is not None:
            raise RuntimeError("not every attempt could be launched") from failure
        return launched

    def _open(self, jobs: Sequence[Waiting], known: Collection[tuple[str, int]]) -> list[Attempt] | None:
        """Open the attempts of these jobs; none if another dispatcher has opened some in the meantime."""
        claimed = time.monotonic()
        taken = self._queue.take({job.id: job.number for job in jobs}, self._timings.claim_lease)
        for job in jobs:
            if job.id not in taken:
                self.outlook.postpone(job.id, self._timings.claim_lease)
        mine = [job for job in jobs if job.id in taken]
        opened = self._store.open_attempts(
            [(job.id, job.number) for job in mine],
            who(),
            known=known,
            ranks={job.id: job.ranks for job in mine},
        )
        if opened is None:
            # A process that was frozen here for longer may find on these jobs the leases of attempts that
            # another has opened meanwhile, and of the same numbers.
            if time.monotonic() - claimed < self._timings.claim_lease:
                for job in mine:
                    self._queue.release(job.id, job.number)
            return None
        begun = {attempt.job for attempt in opened}
        for job in mine:
            if job.id in begun:
                self.outlook.opened(job)
        # Cancelled or held in the meantime, or opened by another. Its lease is left to expire: it may be
        # the other one's.
        self.outlook.look_again(job.id for job in mine if job.id not in begun)
        return opened

    def _launch(self, attempt: Attempt) -> bool:
        """Launch an attempt, unless it has been ended meanwhile; whether it was launched."""
        of = about(attempt.job, attempt.number)
        try:
            self._store.check_attempt(attempt.job, attempt.number)
        except StaleAttempt:
            logger.info("%s was ended before it was launched", attempt.actor, extra=of)
            return False
        except StoreError as error:
            logger.warning("%s is launched unseen, and looks by itself: %s", attempt.actor, error, extra=of)
        arguments = {
            "job": attempt.job,
            "number": attempt.number,
            "settings": self._settings.to_dict(),
        }
        self._launcher.start(attempt.actor, attempts.main, arguments)
        logger.info("launched %s", attempt.actor, extra=of)
        return True

    def _displace(self, decisions: Decisions, known: Mapping[tuple[str, int], bool]) -> bool:
        reasons = {each.victim: f"job {each.by} is of a higher class" for each in decisions.preempt}
        return self._ask(reasons, known, Cause.PREEMPTED)

    def _grow(self, grow: Growth, known: Mapping[tuple[str, int], bool]) -> bool:
        return self._ask({grow.job: f"there is room for {grow.ranks} ranks"}, known, Cause.RESIZED)

    def _ask(self, reasons: Mapping[str, str], known: Mapping[tuple[str, int], bool], cause: Cause) -> bool:
        """Ask jobs to make way; false, and nobody is asked, if things are not as they were decided on."""
        if not reasons:
            return True
        asked = self._store.request_yields(reasons, who(), known=known, cause=cause)
        if asked is None:
            logger.info("room has come, was given away or is being made; looking again")
            return False
        numbers = dict(known.keys())  # of the active attempt of each job
        for job in asked:
            logger.info("job %s makes way: %s", job, reasons[job], extra=about(job, numbers[job]))
            self._queue.ring(job)
        return True

    def _note_unfit(self, cluster: Cluster) -> None:
        """Record of each job that is larger than the whole cluster, once, that it is."""
        found: dict[str, str] = {}
        for lines in self.outlook.backlog.ready(self._store.clock().timestamp()).values():
            for shape, line in lines.items():
                reason = too_large(shape, cluster)
                if reason is not None:
                    found.update((id, reason) for _, id in line)
        other = {id: reason for id, reason in found.items() if self._unfit.get(id) != reason}
        for id in self._store.note_unfit(other, who()):
            of = about(id, self.outlook.backlog[id].number)
            logger.warning("job %s waits: it %s", id, found[id], extra=of)
        self._unfit = found


def _apart(now: float, then: float) -> float:
    """Seconds between two moments of a clock that may jump: back, and `then` has passed all the same."""
    return abs(now - then)


def _ranks_in(job: Waiting, cpus: float, gpus: float) -> int:
    """How many ranks of a job so much room holds in sum."""
    each = job.one_more
    by_gpus = (gpus + SLACK) / each.gpus if each.gpus > 0 else math.inf
    return math.floor(min((cpus + SLACK) / each.cpus, by_gpus))


class _Rules:
    """The policy's file, read again when it changes."""

    def __init__(self, path: Path, failures: Failures):
        self._path = path
        self._failures = failures
        self._version: tuple[int, int] | None = None
        self._policy = Policy()

    def read(self) -> Policy:
        """The rules as they are now. A file that cannot be used is told of, and changes nothing."""
        version = self._stamp()
        if version != self._version:
            self._version = version
            try:
                self._policy = read_policy(self._path)
            except ConfigError as error:
                self._failures.failed("reading the scheduling policy", error)
            else:
                self._failures.worked("reading the scheduling policy")
        return self._policy

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size
