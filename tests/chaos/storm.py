"""A kill storm: jobs are submitted and trained while processes of their road are killed with -9 at random.

What is hit, in which order and after which pause is drawn from the seed before it begins, and each victim
from the seed and the number of its blow, so that a storm can be had again; which instruction a process is at
when its kill arrives is up to the machine. Someone restarts what must be there (a dispatcher, Redis), as a
supervisor or `textvae-jobs up` would, and a client that was killed is started again with the same command, as
its user would. Now and then Redis is emptied, which kills nobody.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from jobs.store import JobState, Store

from .forking import gone
from .ground import Client, Ground, Redis, end
from .launcher import holder
from .oracle import Expected

# What is killed, and how often beyond the first time.
WEIGHTS = {"attempt": 6, "rank": 3, "dispatcher": 3, "client": 2, "redis": 1}
FLUSH = "flush"  # Redis is emptied


@dataclass(frozen=True)
class Blow:
    """One thing that the storm does."""

    kind: str
    pause: float  # seconds since the one before it
    repair: float  # and until someone restarts what was killed


@dataclass(frozen=True)
class Plan:
    """How large a storm is. Its first kills are one of each kind, in a drawn order."""

    seed: int
    jobs: int
    kills: int
    flushes: int = 1  # beside the kills
    real: int = 0  # of the jobs, those that textvae.train trains
    pause: tuple[float, float] = (0.05, 0.5)  # seconds between two kills
    clients: int = 3  # at once
    dispatchers: int = 2
    models: int = 3
    patience: float = 60.0  # seconds after the last kill within which every job must have ended

    def blows(self) -> list[Blow]:
        """Everything that the storm does, in order: the same for the same plan, whatever the clock says."""
        draw = random.Random(self.seed)
        kinds = draw.sample(sorted(WEIGHTS), len(WEIGHTS))
        kinds += draw.choices(list(WEIGHTS), list(WEIGHTS.values()), k=self.kills - len(kinds))
        for _ in range(self.flushes):
            kinds.insert(draw.randint(1, len(kinds)), FLUSH)
        return [Blow(kind, draw.uniform(*self.pause), draw.uniform(*self.pause)) for kind in kinds]


@dataclass
class Journal:
    """What happened."""

    expected: list[Expected] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    flushed: int = 0
    lines: list[str] = field(default_factory=list)
    seconds: float = 0.0
    settled: float | None = None  # seconds from the last kill to the end of the last job; none: not in time


class Storm:
    """One storm over one home."""

    def __init__(self, plan: Plan, ground: Ground, redis: Redis, data: Path | None = None):
        self._plan = plan
        self._ground = ground
        self._redis = redis
        self._data = data
        self._blows = plan.blows()
        self._struck = 0  # of them
        self._journal = Journal()
        self._dispatchers: list[int] = []
        self._clients: dict[str, Client] = {}
        self._commands: dict[str, tuple[str, ...]] = {}  # of each job, how it is submitted
        self._later: list[str] = []  # the jobs that nobody has submitted yet
        self._submit: list[str] = []  # and those that are not acknowledged
        self._due: list[tuple[float, str]] = []  # when to start again what was killed
        self._began = time.monotonic()

    def rage(self) -> Journal:
        """Let it happen; returns once every job has ended, or `patience` has run out."""
        plan = self._plan
        self._draw_jobs()
        store = Store(self._ground.settings.database_url)
        try:
            for _ in range(plan.dispatchers):
                self._dispatchers.append(self._ground.dispatcher())
            last = time.monotonic()
            while self._next or self._later or self._submit or self._unfinished(store):
                self._come()
                self._tend()
                now = time.monotonic()
                if self._next and not (self._submit or self._unfinished(store)):
                    if not self._later:
                        self._note(f"every job has ended before {len(self._blows) - self._struck} more blows")
                        break
                    self._come(early=True)  # else there is nobody to kill, and they wait for kills
                blow = self._next
                if blow and now >= last + blow.pause and self._bearable(store) and self._strike(blow):
                    self._struck, last = self._struck + 1, now
                if not self._next and now - last > plan.patience:
                    return self._journal
                time.sleep(0.01)
            self._journal.settled = time.monotonic() - last
            self._settle(store)
        finally:
            for pid in self._dispatchers:
                end(pid)
            store.close()
            self._journal.seconds = time.monotonic() - self._began
        return self._journal

    @property
    def _next(self) -> Blow | None:
        """What the storm does next; none once it is over."""
        return self._blows[self._struck] if self._struck < len(self._blows) else None

    def _draw_jobs(self) -> None:
        draw = random.Random(f"{self._plan.seed} jobs")
        for number in range(self._plan.jobs):
            id, seed = f"job-{number:03}", draw.randrange(10_000)
            real = number < self._plan.real
            epochs = 4 if real else draw.randint(2, 5)
            model = "real" if real else f"stub-{number % self._plan.models}"
            path = self._ground.config(model, seed, epochs, data=self._data if real else None)
            self._commands[id] = ("submit", str(path), "--id", id)
            self._later.append(id)
            self._journal.expected.append(Expected(id, seed, epochs, real))

    def _come(self, *, early: bool = False) -> None:
        """Jobs come as the storm goes on, so that until its last kill there are some at every stage."""
        jobs, blows = self._plan.jobs, len(self._blows)
        while self._later and (early or (jobs - len(self._later) - 4) * blows <= self._struck * jobs):
            self._submit.append(self._later.pop(0))
            early = False

    def _bearable(self, store: Store) -> bool:
        """Whether jobs end as fast as kills come: the last kill must leave few, on whatever machine."""
        ended = store.count([state for state in JobState if state.final])
        return self._struck * self._plan.jobs <= (ended + 10) * len(self._blows)

    def _unfinished(self, store: Store) -> int:
        return store.count([JobState.QUEUED, JobState.RUNNING])

    def _tend(self) -> None:
        """Look after clients, dispatchers and Redis."""
        for id, client in list(self._clients.items()):
            if client.done:
                del self._clients[id]
                if client.code == 0:
                    self._submit.remove(id)
        for id in self._submit:
            if len(self._clients) >= self._plan.clients:
                break
            if id not in self._clients:
                self._clients[id] = self._ground.client(*self._commands[id])
        now = time.monotonic()
        for when, what in list(self._due):
            if now >= when:
                self._due.remove((when, what))
                if what == "redis":
                    self._redis.start()
                else:
                    self._dispatchers.append(self._ground.dispatcher())

    def _strike(self, blow: Blow) -> bool:
        """Do what comes next; False if there is nothing to do it to now (the next look finds something)."""
        if blow.kind == FLUSH:
            if not self._redis.running:
                return False
            self._redis.flush()
            self._journal.flushed += 1
            self._note("emptied redis")
            return True
        draw = random.Random(f"{self._plan.seed} {self._struck}")
        pids = {name: pid for name, pid in self._pids(blow.kind).items() if pid and not gone(pid)}
        if not pids:
            if blow.kind == "client":
                self._bring_client(draw)
            return False
        name = draw.choice(sorted(pids))
        if blow.kind == "redis":
            self._redis.stop()
        else:
            try:
                os.kill(pids[name], signal.SIGKILL)
            except ProcessLookupError:
                return False
        if blow.kind == "dispatcher":
            self._dispatchers.remove(pids[name])
        if blow.kind in ("dispatcher", "redis"):
            self._due.append((time.monotonic() + blow.repair, blow.kind))
        self._journal.killed[blow.kind] += 1
        self._note(f"killed {name}")
        return True

    def _pids(self, kind: str) -> dict[str, int]:
        """The processes of that kind, by their names."""
        folder, processes = self._ground.home / "attempts", self._ground.processes
        match kind:
            case "attempt":
                return {name: holder(folder / name) for name in processes.names()}
            case "rank":
                return {name: holder(folder / name) for name in processes.ranks()}
            case "dispatcher":
                return {f"dispatcher {pid}": pid for pid in self._dispatchers}
            case "client":
                return {f"client of {id}": client.pid for id, client in self._clients.items()}
            case _:
                return {"redis": self._redis.pid} if self._redis.running else {}

    def _bring_client(self, draw: random.Random) -> None:
        """See that there is a client: of a job that would come later or, as users do, of one that came."""
        if self._submit:
            return  # it is started in a moment
        if self._later:
            self._come(early=True)
        else:
            self._submit.append(draw.choice(sorted(self._commands)))

    def _settle(self, store: Store) -> None:
        """Every job has ended: let the last processes leave, and what is promoted be served."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            self._tend()
            busy = self._ground.processes.names() | self._ground.processes.ranks()
            if not busy and not self._due and self._ground.serves_what_is_promoted(store):
                break
            time.sleep(0.05)
        time.sleep(1.0)  # the dispatcher's next comparison of the queue

    def _note(self, line: str) -> None:
        self._journal.lines.append(f"{time.monotonic() - self._began:7.2f} {line}")
