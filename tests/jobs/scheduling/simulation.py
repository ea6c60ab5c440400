"""A cluster and its users on a simulated clock. What starts, yields and waits is decided by the real code."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from jobs.scheduling import (
    Accounts,
    Backlog,
    Cluster,
    Decisions,
    History,
    Node,
    Patience,
    Policy,
    Promises,
    Reservation,
    Running,
    Spent,
    Waiting,
    decide,
    first_of_groups,
)

Places = list[tuple[int, int]]  # machine, and ranks on it
CHECKPOINT = 20.0  # seconds of work between two checkpoints: what a failure loses at most


@dataclass
class Job:
    """A job of a mix, and what became of it."""

    first: Waiting  # as submitted
    arrives: float
    work: float  # seconds, with the ranks without which it does not start
    fails_after: list[float] = field(default_factory=list)  # seconds into its first attempts
    after: str | None = None  # a job that must have ended
    held_until: float | None = None
    done: float = 0.0  # seconds of work that are saved
    attempts: int = 0
    displaced: int = 0
    grown: list[tuple[int, int]] = field(
        default_factory=list
    )  # ranks before and after it made way for itself
    finished: float | None = None
    waits: list[tuple[float, float]] = field(default_factory=list)  # when it was ready, when it started
    turns_before: list[int] = field(default_factory=list)  # for each wait: starts of its group ahead of it


@dataclass
class Mix:
    """Users, their jobs, the machines and what happens to them."""

    policy: Policy
    machines: list[Node]
    jobs: list[Job]
    outages: list[tuple[float, float, int]] = field(default_factory=list)  # from, to, machine
    lag: float = 0.0  # seconds that the cluster counts an attempt after its end, at most


@dataclass(frozen=True)
class Pass:
    """One decision, with all that it was made of."""

    now: float
    waiting: tuple[Waiting, ...]
    running: tuple[Running, ...]
    cluster: Cluster
    history: History
    policy: Policy
    decisions: Decisions
    promised: Reservation | None  # what the last one told the job for which room is kept
    gone: tuple[Running, ...]  # attempts that have ended, and still count
    truth: Cluster  # without those


@dataclass
class _Attempt:
    view: Running
    placed: Places
    ends: float
    serial: int
    succeeds: bool


class Simulation:
    """Runs a mix to its end, or until `horizon`; `watch` sees every decision before it is carried out."""

    def __init__(
        self, mix: Mix, seed: int, watch: Callable[[Pass], None] = lambda _: None, tick: float = 60.0
    ):
        self.mix = mix
        self.now = 0.0
        self.jobs = {job.first.id: job for job in mix.jobs}
        self.backlog = Backlog()
        self.running: dict[str, _Attempt] = {}
        self.accounts = Accounts(mix.policy.half_life)
        self.spent: dict[str, float] = defaultdict(float)  # cluster-seconds by owner, not decayed
        self.passes = 0
        self.watch = watch
        self._tick = tick
        self._patience = Patience()
        self._promises = Promises()
        self._gone: list[_Attempt] = []
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._down: set[int] = set()
        self._free = [[node.cpus, node.gpus] for node in mix.machines]
        self._starts: list[tuple[tuple[str, int], int, float]] = []  # group, sequence, when
        self._ready_since: dict[str, float] = {}

    def run(self, horizon: float = 1e9) -> None:
        for job in self.mix.jobs:
            self._at(job.arrives, lambda job=job: self._wait(job))
        for begins, ends, machine in self.mix.outages:
            self._at(begins, lambda machine=machine: self._lose(machine))
            self._at(ends, lambda machine=machine: self._down.discard(machine))
        while self._events and self.now < horizon:
            self.now = self._events[0][0]
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            self._decide()
            if len(self.backlog) and (not self._events or self._events[0][0] > self.now + self._tick):
                self._at(self.now + self._tick, lambda: None)  # waiting alone changes the order too
            assert self.passes < 20_000, "it does not come to an end"

    def cluster(self, free: list[list[float]] | None = None) -> Cluster:
        """The machines with so much free on each, or what there is in truth."""
        free = self._free if free is None else free
        whole = [(i, self.mix.machines[i]) for i in self._up()]
        return Cluster(
            sum(machine.cpus for _, machine in whole),
            sum(machine.gpus for _, machine in whole),
            sum(free[i][0] for i, _ in whole),
            sum(free[i][1] for i, _ in whole),
            tuple(Node(*free[i], machine.cpus, machine.gpus, _name(i)) for i, machine in whole),
        )

    def _counted_free(self) -> list[list[float]]:
        """What is free by the cluster's count, in which an attempt is a moment longer than it is there."""
        free = [[*node] for node in self._free]
        for attempt in self._gone:
            _take(free, attempt.view, attempt.placed)
        return free

    def _decide(self) -> None:
        self.passes += 1
        cluster, policy = self.cluster(self._counted_free()), self.mix.policy
        running = tuple(attempt.view for attempt in self.running.values())
        first = first_of_groups(self.backlog, cluster, policy, self.now)
        history = self.accounts.history(running, first, self.now)
        promised = self._promises.of(cluster)
        gone = tuple(attempt.view for attempt in self._gone)
        decisions = decide(
            self.backlog, running, cluster, history, policy, self.now, promised=promised, gone=gone
        )
        self._promises.keep(decisions, cluster)
        waiting, truth = tuple(self.backlog), self.cluster()
        self.watch(
            Pass(self.now, waiting, running, cluster, history, policy, decisions, promised, gone, truth)
        )
        for each in decisions.preempt:
            self._yield(self.running[each.victim])
        if self._patience.over(decisions.grow, running, policy, self.now) and decisions.grow:
            self._yield(self.running[decisions.grow.job], for_itself=True)
        for place, job in enumerate(decisions.start):
            self._start(self.jobs[job.id], job, decisions.start[place + 1 :])
        if decisions.grow:
            self._at(self.now + policy.growing.patience, lambda: None)

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._serial), what))

    def _wait(self, job: Job) -> None:
        blocked = job.after is not None and self.jobs[job.after].finished is None
        held = job.held_until is not None and self.now < job.held_until
        if held and job.held_until is not None and not job.attempts:
            self._at(job.held_until, lambda: self._wait(job))
        view = replace(
            job.first,
            since=self.now,
            number=job.attempts + 1,
            held=held,
            blocked_by=(job.after,) if blocked and job.after else (),
        )
        self.backlog.put(view)
        if view.not_before is not None and view.not_before > self.now:
            self._at(view.not_before, lambda: None)
        self._ready_since[view.id] = max(self.now, view.not_before or 0.0)

    def _place(self, view: Waiting, then: Sequence[Waiting]) -> Places:
        """Ranks by machine, at random: who is served must not count on where. Others that start still fit."""
        free = self._counted_free()
        ranks = [0] * len(free)
        for _ in range(view.ranks):
            open_to_it = [i for i in self._up() if _hosts(free[i], view)]
            if not open_to_it:
                break
            _take(free, view, [(machine := self._random.choice(open_to_it), 1)])
            ranks[machine] += 1
        if sum(ranks) == view.ranks and self._packed(then, free) is not None:
            return [(machine, n) for machine, n in enumerate(ranks) if n]
        packed = self._packed([view], self._counted_free())
        assert packed is not None, f"{view.id} found no room for all of its {view.ranks} ranks"
        return packed[0]

    def _packed(self, gangs: Sequence[Waiting], free: list[list[float]]) -> list[Places] | None:
        """Where they go, one after another, each to the machines that hold most of it; none if one does not
        fit."""
        found = []
        for gang in gangs:
            places: Places = []
            left = gang.ranks
            for machine in sorted(self._up(), key=lambda i: -min(_hosts(free[i], gang), gang.ranks)):
                if ranks := min(left, _hosts(free[machine], gang)):
                    places.append((machine, ranks))
                    left -= ranks
            if left:
                return None
            _take(free, gang, places)
            found.append(places)
        return found

    def _up(self) -> list[int]:
        return [i for i in range(len(self.mix.machines)) if i not in self._down]

    def _start(self, job: Job, view: Waiting, then: Sequence[Waiting]) -> None:
        self.backlog.discard(view.id)
        placed = self._place(view, then)
        _take(self._free, view, placed)
        ready = self._ready_since.pop(view.id)
        ahead = sum(
            group == view.group and sequence < view.sequence and when >= ready
            for group, sequence, when in self._starts
        )
        if job.grown and not job.grown[-1][1]:
            job.grown[-1] = job.grown[-1][0], view.ranks
        job.waits.append((ready, self.now))
        job.turns_before.append(ahead)
        self._starts.append((view.group, view.sequence, self.now))
        self.accounts.turn(view.group, view.sequence, self.now)
        started = self.now + self._random.uniform(0.1, 3)
        fails = job.fails_after[job.attempts] if job.attempts < len(job.fails_after) else None
        left_to_do = (job.work - job.done) * job.first.ranks / view.ranks
        succeeds = fails is None or fails >= left_to_do
        job.attempts += 1
        running = Running(
            view.id,
            view.owner,
            view.priority,
            view.ranks,
            view.cpus,
            view.gpus,
            opened=self.now,
            started=started,
            limit=view.limit,
            displaced=job.displaced,
            max_ranks=view.max_ranks,
            on=tuple((_name(machine), ranks) for machine, ranks in placed),
        )
        serial = next(self._serial)
        ends = started + (left_to_do if succeeds or fails is None else fails)
        self.running[view.id] = _Attempt(running, placed, ends, serial, succeeds)
        self._at(ends, lambda: self._end(view.id, serial))
        if view.max_ranks is not None:
            self._at(started + self.mix.policy.growing.uninterrupted, lambda: None)

    def _end(self, id: str, serial: int) -> None:
        attempt = self.running.get(id)
        if attempt is None or attempt.serial != serial:
            return  # it yielded, or its machine was lost, before
        job, trained = self.jobs[id], self._trained(attempt)
        self._leave(attempt)
        if attempt.succeeds:
            assert job.finished is None, f"{id} was finished twice"
            job.finished = self.now
            for other in self.mix.jobs:
                if other.after == id and other.arrives <= self.now and other.first.id in self.backlog:
                    self._wait(other)
        else:
            self._lost(job, trained)

    def _yield(self, attempt: _Attempt, *, for_itself: bool = False) -> None:
        attempt.view = replace(attempt.view, yielding=self.now)
        id, serial = attempt.view.id, attempt.serial

        def yielded() -> None:
            attempt = self.running.get(id)
            if attempt is None or attempt.serial != serial:
                return  # it ended by itself before
            job = self.jobs[id]
            job.done += self._trained(attempt)  # to its last step
            if for_itself:
                job.grown.append((attempt.view.ranks, 0))
            else:
                job.displaced += 1
            self._leave(attempt)
            self._wait(job)

        self._at(self.now + self._random.uniform(0.1, 10), yielded)

    def _lose(self, machine: int) -> None:
        self._down.add(machine)
        for id, attempt in list(self.running.items()):
            if any(machine == lost for lost, _ in attempt.placed):
                trained = self._trained(attempt)
                self._leave(attempt)
                self._lost(self.jobs[id], trained)

    def _lost(self, job: Job, trained: float) -> None:
        job.done += trained // CHECKPOINT * CHECKPOINT  # of work
        self._wait(job)

    def _trained(self, attempt: _Attempt) -> float:
        assert attempt.view.started is not None
        seconds = max(0.0, min(self.now, attempt.ends) - attempt.view.started)
        return seconds * attempt.view.ranks / self.jobs[attempt.view.id].first.ranks

    def _leave(self, attempt: _Attempt) -> None:
        view = attempt.view
        del self.running[view.id]
        for machine, ranks in attempt.placed:
            self._free[machine][0] += ranks * view.cpus / view.ranks
            self._free[machine][1] += ranks * view.gpus / view.ranks
        attempt.view = replace(view, ending=True)
        if self.mix.lag and not any(machine in self._down for machine, _ in attempt.placed):
            self._gone.append(attempt)
            self._at(self.now + self._random.uniform(0, self.mix.lag), lambda: self._gone.remove(attempt))
        self.accounts.spend(Spent(view.owner, view.priority, 0, view.cpus, view.gpus, view.opened, self.now))
        total = sum(node.gpus if view.gpus else node.cpus for node in self.mix.machines)
        self.spent[view.owner] += (view.gpus or view.cpus) / total * (self.now - view.opened)


def _name(machine: int) -> str:
    return f"machine-{machine}"


def _hosts(free: list[float], view: Waiting) -> int:
    """How many of its ranks a machine has room for."""
    fit = int((free[0] + 1e-6) / (view.cpus / view.ranks))
    return min(fit, int((free[1] + 1e-6) / (view.gpus / view.ranks))) if view.gpus else fit


def _take(free: list[list[float]], view: Waiting | Running, places: Places) -> None:
    for machine, ranks in places:
        free[machine][0] -= ranks * view.cpus / view.ranks
        free[machine][1] -= ranks * view.gpus / view.ranks
