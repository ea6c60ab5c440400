"""A kill storm: jobs are submitted and trained while processes of their road are killed with -9 at random.

What is killed, in which order and after which pause is drawn from the seed, so that a storm can be had again;
which instruction a process is at when its kill arrives is up to the machine. Someone restarts what must be
there (a dispatcher, Redis), as a supervisor or `textvae-jobs up` would, and a client that was killed is
started again with the same command, as its user would.
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

KINDS = ("attempt", "rank", "dispatcher", "client", "redis")
_WEIGHTS = (6, 3, 3, 2, 1)


@dataclass(frozen=True)
class Plan:
    """How large a storm is."""

    seed: int
    jobs: int
    kills: int
    real: int = 0  # of the jobs, those that textvae.train trains
    pause: tuple[float, float] = (0.05, 0.5)  # seconds between two kills
    clients: int = 3  # at once
    dispatchers: int = 2
    models: int = 3
    patience: float = 60.0  # seconds after the last kill within which every job must have ended


@dataclass
class Journal:
    """What happened."""

    expected: list[Expected] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
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
        self._draw = random.Random(plan.seed)
        self._journal = Journal()
        self._dispatchers: list[int] = []
        self._clients: dict[str, Client] = {}
        self._later: list[
            tuple[str, tuple[str, ...]]
        ] = []  # of jobs that nobody has submitted yet, the command
        self._submit: dict[str, tuple[str, ...]] = {}  # and of those that are not acknowledged
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
            left, following = plan.kills, time.monotonic() + self._pause()
            kind = self._draw_kind()
            last = time.monotonic()
            while left or self._later or self._submit or self._unfinished(store):
                self._come(plan.kills - left)
                self._tend()
                now = time.monotonic()
                if left and not (self._submit or self._unfinished(store)):
                    if not self._later:
                        self._note(f"every job has ended before {left} more kills")
                        break
                    self._come(early=True)  # else there is nobody to kill, and they wait for kills
                if left and now >= following and self._bearable(store, left) and self._kill(kind):
                    left, last, following = left - 1, now, now + self._pause()
                    kind = self._draw_kind()
                if not left and now - last > plan.patience:
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

    def _draw_jobs(self) -> None:
        for number in range(self._plan.jobs):
            id, seed = f"job-{number:03}", self._draw.randrange(10_000)
            real = number < self._plan.real
            epochs = 4 if real else self._draw.randint(2, 5)
            model = "real" if real else f"stub-{number % self._plan.models}"
            path = self._ground.config(model, seed, epochs, data=self._data if real else None)
            self._later.append((id, ("submit", str(path), "--id", id)))
            self._journal.expected.append(Expected(id, seed, epochs, real))

    def _come(self, killed: int = 0, *, early: bool = False) -> None:
        """Jobs come as the storm goes on, so that until its last kill there are some at every stage."""
        jobs, kills = self._plan.jobs, self._plan.kills
        while self._later and (early or (jobs - len(self._later) - 4) * kills <= killed * jobs):
            id, words = self._later.pop(0)
            self._submit[id] = words
            early = False

    def _bearable(self, store: Store, left: int) -> bool:
        """Whether jobs end as fast as kills come: the last kill must leave few, on whatever machine."""
        plan = self._plan
        ended = store.count([state for state in JobState if state.final])
        return (plan.kills - left) * plan.jobs <= (ended + 10) * plan.kills

    def _unfinished(self, store: Store) -> int:
        return store.count([JobState.QUEUED, JobState.RUNNING])

    def _draw_kind(self) -> str:
        return self._draw.choices(KINDS, _WEIGHTS)[0]

    def _pause(self) -> float:
        return self._draw.uniform(*self._plan.pause)

    def _tend(self) -> None:
        """Look after clients, dispatchers and Redis."""
        for id, client in list(self._clients.items()):
            if client.done:
                del self._clients[id]
                if client.code == 0:
                    del self._submit[id]
        for id, words in self._submit.items():
            if len(self._clients) >= self._plan.clients:
                break
            if id not in self._clients:
                self._clients[id] = self._ground.client(*words)
        now = time.monotonic()
        for when, what in list(self._due):
            if now >= when:
                self._due.remove((when, what))
                if what == "redis":
                    self._redis.start()
                else:
                    self._dispatchers.append(self._ground.dispatcher())

    def _kill(self, kind: str) -> bool:
        """Kill one of that kind; False if there is none now (the next look finds one)."""
        folder = self._ground.home / "attempts"
        pids: dict[str, int] = {}
        if kind == "attempt":
            pids = {name: holder(folder / name) for name in self._ground.processes.names()}
        elif kind == "rank":
            pids = {name: holder(folder / name) for name in self._ground.processes.ranks()}
        elif kind == "dispatcher":
            pids = {f"dispatcher {pid}": pid for pid in self._dispatchers}
        elif kind == "client":
            pids = {f"client of {id}": client.pid for id, client in self._clients.items()}
        elif self._redis.running:
            pids = {"redis": self._redis.pid}
        pids = {name: pid for name, pid in pids.items() if pid and not gone(pid)}
        if not pids:
            if kind != "client" or self._submit:
                return False
            if not self._later:
                return self._kill("attempt")
            self._come(early=True)
            return False
        name = self._draw.choice(sorted(pids))
        if kind == "redis":
            self._redis.stop()
            self._due.append((time.monotonic() + self._pause(), "redis"))
        else:
            try:
                os.kill(pids[name], signal.SIGKILL)
            except ProcessLookupError:
                return False
        if kind == "dispatcher":
            self._dispatchers.remove(pids[name])
            self._due.append((time.monotonic() + self._pause(), "dispatcher"))
        self._journal.killed[kind] += 1
        self._note(f"killed {name}")
        return True

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
