"""The store as the scheduling policy wants to see it, kept up to date by following the events.

A pass of the dispatcher must not read ten thousand waiting jobs to learn that nothing has changed. What is
here may be behind by a moment: whatever is decided on it, the store's guarded UPDATEs have the last word.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from jobs.scheduling import (
    Accounts,
    Backlog,
    Cluster,
    Explainer,
    History,
    Node,
    Policy,
    Reservation,
    Running,
    Spent,
    Used,
    Waiting,
    first_of_groups,
)
from jobs.store import AttemptState, Ended, EventKind, Queued, Store
from jobs.store import Running as Active

Made = TypeVar("Made", Cluster, Node, Reservation, Running)

_PAGE = 1000  # events, or ended attempts, read at once
_MEMORY = 10  # half-lives after which what was used counts no more
_TYPICAL = 20  # of an owner's last attempts, from which the length of the next is guessed

# Events that change nothing of who waits.
_SILENT = (
    EventKind.STARTED,
    EventKind.CHECKPOINTED,
    EventKind.FINISHED,  # what becomes of the job is told by another one
    EventKind.YIELD_REQUESTED,
    EventKind.CANCEL_REQUESTED,
    EventKind.STOP_REQUESTED,
    EventKind.CHILD,  # it is told of by its own submission
    EventKind.ENOUGH,
    EventKind.UNFIT,
    EventKind.VERSION,
    EventKind.PROMOTED,
    EventKind.ROLLED_BACK,
    EventKind.DRAIN_BEGUN,
    EventKind.DRAIN_ENDED,
)
_ENDED = (EventKind.SUCCEEDED, EventKind.FAILED, EventKind.CANCELLED)
_LEFT = (EventKind.CLAIMED, *_ENDED)  # after these a job does not wait


class Outlook:
    """Who waits, who has used what. For one thread; every verb raises StoreError if the store does."""

    def __init__(self, store: Store, policy: Policy):
        self.policy = policy
        self.backlog = Backlog()
        self.seen = -1  # id of the newest event that is taken in; before the first, none
        self._store = store
        self._accounts = Accounts(policy.half_life)
        self._typical: dict[str, deque[float]] = {}
        self._counted: set[tuple[str, int]] = set()  # ended attempts that were there at the beginning
        self._postponed: dict[str, tuple[float, float]] = {}  # job -> since when, for how many seconds

    def use(self, policy: Policy) -> None:
        """Go by other rules from now on."""
        if policy.half_life != self.policy.half_life:
            self.seen = -1  # what was used is to be added up anew
        self.policy = policy

    def refresh(self) -> None:
        """Take in what has happened since the last time."""
        if self.seen < 0:
            self._begin()
        more = True
        while more and (events := self._store.events(after=self.seen, limit=_PAGE)):
            more = len(events) == _PAGE
            last = {event.job: event.kind for event in events if event.job and event.kind not in _SILENT}
            for job, kind in last.items():
                if kind in _LEFT:
                    self.backlog.discard(job)
            changed = {job for job, kind in last.items() if kind not in _LEFT}
            ended = {event.job for event in events if event.job and event.kind in _ENDED}
            if ended:
                changed.update(self._store.dependents(*ended))
            self._settle(
                {
                    (event.job, event.attempt or 0)
                    for event in events
                    if event.job and event.kind is EventKind.FINISHED
                }
            )
            self.look_again(changed)
            self.seen = events[-1].id
        now = self._store.clock().timestamp()
        # A clock that was put back ends the wait too: it is there to save a look, not to keep a job.
        due = [job for job, (at, seconds) in self._postponed.items() if not 0 <= now - at < seconds]
        self.look_again(due)

    def reload(self) -> None:
        """Read anew who waits. Following the events comes to the same, unless the database was replaced."""
        newest = self._store.events(newest=True, limit=1)
        if not newest or newest[0].id < self.seen:
            self.seen = -1  # an older copy of it: nothing that is known here need be true
        self.refresh()
        self.backlog = Backlog(waiting_of(job) for job in self._store.queued())

    def look_again(self, jobs: Iterable[str]) -> None:
        """Read these jobs anew: they may wait or not."""
        jobs = set(jobs)
        if not jobs:
            return
        found = {job.id: job for job in self._store.waiting_among(jobs)}
        for id in jobs:
            self._postponed.pop(id, None)
            if id in found:
                self.backlog.put(waiting_of(found[id]))
            else:
                self.backlog.discard(id)

    def postpone(self, job: str, seconds: float) -> None:
        """Leave a job out for a while: somebody else is about to start it."""
        self.backlog.discard(job)
        self._postponed[job] = self._store.clock().timestamp(), seconds

    def opened(self, job: Waiting) -> None:
        """An attempt of it was opened: it waits no more, and its group has had a turn."""
        self.backlog.discard(job.id)
        self._accounts.turn(job.group, job.sequence, self._store.clock().timestamp())

    def history(self, running: Iterable[Running], cluster: Cluster) -> History:
        """What went before, up to now."""
        now = self._store.clock().timestamp()
        first = first_of_groups(self.backlog, cluster, self.policy, now)
        return self._accounts.history(running, first, now)

    def typical(self) -> dict[str, float]:
        """Seconds that an attempt of each owner took of late, on average."""
        return {owner: sum(last) / len(last) for owner, last in self._typical.items()}

    def _begin(self) -> None:
        newest = self._store.events(newest=True, limit=1)
        self.seen = newest[0].id if newest else 0
        self._accounts = Accounts(self.policy.half_life)
        self._typical.clear()
        self._counted.clear()
        start = self._store.clock()
        since = start - timedelta(seconds=_MEMORY * self.policy.half_life)
        last: set[tuple[str, int]] = set()
        while page := self._store.ended(since, limit=_PAGE):
            fresh = [ended for ended in page if (ended.job, ended.number) not in last]
            for ended in fresh:
                self._spend(ended)
                # These may be told of by events that are still to come.
                if ended.finished > start - timedelta(minutes=5):
                    self._counted.add((ended.job, ended.number))
            if len(page) < _PAGE or not fresh:
                break
            since = page[-1].finished
            last = {(ended.job, ended.number) for ended in page if ended.finished == since}
        self.backlog = Backlog(waiting_of(job) for job in self._store.queued())
        for job in self._store.running():
            self._accounts.turn((job.owner, job.priority), job.sequence, job.opened.timestamp())

    def _settle(self, finished: set[tuple[str, int]]) -> None:
        """Charge these attempts."""
        finished = finished - self._counted
        if finished:
            for ended in self._store.ended(of={job for job, _ in finished}):
                if (ended.job, ended.number) in finished:
                    self._spend(ended)

    def _spend(self, ended: Ended) -> None:
        opened, finished = ended.opened.timestamp(), ended.finished.timestamp()
        self._accounts.spend(
            Spent(ended.owner, ended.priority, ended.sequence, ended.cpus, ended.gpus, opened, finished)
        )
        self._accounts.turn((ended.owner, ended.priority), ended.sequence, opened)
        if ended.state is AttemptState.SUCCEEDED:
            self._typical.setdefault(ended.owner, deque(maxlen=_TYPICAL)).append(finished - opened)


def waiting_of(job: Queued, typical: Mapping[str, float] | None = None) -> Waiting:
    """A waiting job as the policy sees it."""
    return Waiting(
        job.id,
        job.owner,
        job.priority,
        job.ranks,
        job.cpus,
        job.gpus,
        job.sequence,
        job.since.timestamp(),
        number=job.attempt + 1,
        limit=job.time_limit,
        not_before=None if job.not_before is None else job.not_before.timestamp(),
        held=job.held is not None,
        blocked_by=job.blocked_by,
        expected=(typical or {}).get(job.owner),
        max_ranks=job.max_ranks,
    )


def running_of(
    job: Active,
    progress: Mapping[str, Any] | None = None,
    *,
    on: Iterable[tuple[str, int]] | None = None,
) -> Running:
    """A running job as the policy sees it, `on` these machines; none if nobody knows.

    Its live progress says when it may end, for estimates.
    """
    return Running(
        job.id,
        job.owner,
        job.priority,
        job.ranks,
        job.cpus,
        job.gpus,
        job.opened.timestamp(),
        started=None if job.started is None else job.started.timestamp(),
        limit=job.time_limit,
        displaced=job.preempted,
        yielding=None if job.yield_requested is None else job.yield_requested.timestamp(),
        ending=job.cancel_requested is not None,
        expected=ends_at(job, progress),
        max_ranks=job.max_ranks,
        on=None if on is None else tuple((name, ranks) for name, ranks in on),
    )


def ends_at(job: Active, progress: Mapping[str, Any] | None) -> float | None:
    """When an attempt may end that has come as far as its progress says; none if that says nothing.

    Steps count from the job's beginning: how fast a later attempt goes cannot be told from them.
    """
    if job.started is None or not progress or job.attempt != 1 or progress.get("attempt") != 1:
        return None
    done, total, at = progress.get("step"), progress.get("steps"), progress.get("at")
    if not done or not total or not at:
        return None
    trained = (datetime.fromisoformat(str(at)) - job.started).total_seconds()
    return job.started.timestamp() + trained * max(1.0, float(total) / float(done))


def shown(
    cluster: Cluster,
    placed: Mapping[str, tuple[tuple[str, int], ...]],
    promised: Reservation | None,
    history: History,
    typical: Mapping[str, float],
) -> dict[str, Any]:
    """What the dispatcher lets others see, as plain values: with it, `explainer` comes to its conclusions.

    `placed` is where the ranks of attempts are, by attempt.
    """
    return {
        "cluster": asdict(cluster),
        "placed": dict(placed),
        "promised": None if promised is None else asdict(promised),
        "used": {owner: asdict(used) for owner, used in history.used.items()},
        "turns": [[owner, priority, at] for (owner, priority), at in history.turns.items()],
        "typical": dict(typical),
    }


def explainer(
    store: Store,
    seen: Mapping[str, Any],
    policy: Policy,
    progress: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    running: Iterable[Active] | None = None,
    waiting: Iterable[Queued] | None = None,
) -> Explainer:
    """Why jobs wait, from what a dispatcher has `shown` and from the store, unless that was read already."""
    told = seen["cluster"]
    cluster = replace(
        _made(Cluster, told),
        nodes=tuple(_made(Node, node) for node in told.get("nodes", ())),
        uncounted=tuple(_made(Running, job) for job in told.get("uncounted", ())),
    )
    placed = seen.get("placed", {})
    promised = seen.get("promised")
    history = History(
        used={owner: Used(**used) for owner, used in seen["used"].items()},
        turns={(owner, priority): at for owner, priority, at in seen["turns"]},
    )
    running = store.running() if running is None else running
    waiting = store.queued() if waiting is None else waiting
    return Explainer(
        [waiting_of(job, seen.get("typical")) for job in waiting],
        [running_of(job, (progress or {}).get(job.id), on=placed.get(job.actor)) for job in running],
        cluster,
        history,
        policy,
        store.clock().timestamp(),
        None if promised is None else _made(Reservation, promised),
    )


def _made(kind: type[Made], told: Mapping[str, Any]) -> Made:
    """A value as a dispatcher has shown it. One of a later version may show more of it."""
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in told.items() if name in known})
