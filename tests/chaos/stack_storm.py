"""A kill storm over the service as a user has it: processes of its local stack are killed with -9 at random.

What is killed, in which order and after which pause is drawn from the seed before it begins, each victim
from the seed and the number of its blow. Whoever operates it calls `textvae-jobs up` when a part
has died that nothing else starts again.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

from jobs.store import CauseKind, JobState, Store

from .ground import until
from .oracle import problems
from .stack import SLOW, Service

# What is killed, and how often beyond the first time.
WEIGHTS = {
    "attempt": 4,
    "rank": 4,
    "dispatcher": 2,
    "redis": 2,
    "replica": 2,
    "proxy": 1,
    "controller": 1,
    "head": 1,
    "raylet": 1,
}
_OPERATED = ("dispatcher", "redis", "head", "raylet")  # what only `up` starts again


@dataclass(frozen=True)
class Blow:
    """What is killed, how many seconds after it was seen, and how many before `up`, if that is needed."""

    kind: str
    moment: float
    rest: float


@dataclass(frozen=True)
class Plan:
    """How large a storm is. Its first kills are one of each kind, in a drawn order."""

    seed: int
    kills: int
    epochs: int = 40
    pause: tuple[float, float] = (0.0, 2.0)  # seconds before a kill, and before `up`
    busy: int = 2  # jobs under way, always
    patience: float = 60.0  # seconds for jobs to end after the last kill, beyond those that they train

    def blows(self) -> list[Blow]:
        """What is drawn of it: one of each kind first."""
        draw = random.Random(self.seed)
        kinds = sorted(WEIGHTS)
        draw.shuffle(kinds)
        kinds += draw.choices(list(WEIGHTS), list(WEIGHTS.values()), k=self.kills)
        pause = self.pause
        return [Blow(kind, draw.uniform(*pause), draw.uniform(*pause)) for kind in kinds[: self.kills]]


@dataclass
class Journal:
    """What happened."""

    killed: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    calm: float = 0.0  # seconds from a submit to the end of a job when nothing is killed
    settled: float = 0.0  # seconds from the last `up` to the end of the last job
    found: list[str] = field(default_factory=list)


class StackStorm:
    """One storm over one service, beside whatever jobs it has had."""

    def __init__(self, plan: Plan, service: Service):
        self._plan = plan
        self._service = service
        self._store = Store(service.settings.database_url)
        self._began = time.monotonic()
        self.journal = Journal()

    def rage(self) -> Journal:
        """Let it happen; the journal, with what is not as it must be."""
        journal, plan = self.journal, self._plan
        try:
            began = time.monotonic()
            self._submit()
            until(lambda: not self._unfinished(), "a job to end in peace", SLOW, 0.05)
            journal.calm = time.monotonic() - began
            for number, blow in enumerate(plan.blows()):
                self._kill(number, blow)
            self._up()
            last = time.monotonic()
            # Those under way train side by side or one after the other.
            patience = plan.patience + plan.busy * journal.calm
            until(lambda: not self._unfinished(), "every job to end", patience, 0.05)
            journal.settled = time.monotonic() - last
            until(lambda: not self._service.processes("attempt", "rank"), "every process to end", 60, 0.2)
            until(self._served, "what is promoted to be served", SLOW, 0.5)
            journal.found = problems(
                self._store, self._service.settings, self._service.expected, served=self._service.served()
            )
            journal.found += self._blamed()
        finally:
            self._store.close()
        return journal

    def _blamed(self) -> list[str]:
        """Attempts whose end counts as an error of training: nothing here is."""
        attempts = [each for job in self._service.expected for each in self._store.attempts(job.id)]
        return [
            f"{each.actor} ended with cause {each.cause}: {each.error}"
            for each in attempts
            if each.cause is not None and each.cause.kind is not CauseKind.INFRASTRUCTURE
        ]

    def _kill(self, number: int, blow: Blow) -> None:
        """Kill one process of that kind, once there is one; `up` if it is needed."""
        kind = blow.kind
        while True:
            while self._unfinished() < self._plan.busy:
                self._submit()
            until(lambda: self._service.processes(kind) or not self._unfinished(), f"a {kind}", SLOW, 0.05)
            time.sleep(blow.moment)
            there = self._service.processes(kind)
            if not there:
                continue  # its job has ended meanwhile
            victim = random.Random(f"{self._plan.seed} {number}").choice(there)
            try:
                os.kill(victim.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            break
        self.journal.killed[kind] += 1
        self._note(f"killed {kind} {victim.pid}")
        if kind in _OPERATED:
            time.sleep(blow.rest)
            self._up()

    def _submit(self) -> None:
        number = len(self._service.expected)
        seed = random.Random(f"{self._plan.seed} job {number}").randrange(10_000)
        id = self._service.submit(f"storm-{number % 3}", seed, self._plan.epochs, f"storm-{number:03}")
        self._note(f"submitted {id}")

    def _up(self) -> None:
        self._service.up()
        self._note("up")

    def _unfinished(self) -> int:
        return self._store.count([JobState.QUEUED, JobState.RUNNING])

    def _served(self) -> bool:
        want = {version.model: version.version for version in self._store.served()}
        return self._service.serves() == want

    def _note(self, line: str) -> None:
        self.journal.lines.append(f"{time.monotonic() - self._began:7.2f} {line}")
