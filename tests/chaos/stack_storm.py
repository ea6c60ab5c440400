"""A kill storm over the service as a user has it: processes of its local stack are killed with -9 at random.

What is killed, in which order and after which pause is drawn from the seed. Whoever operates it calls
`textvae-jobs up` when a part has died that nothing else starts again.
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
class Plan:
    """How large a storm is. Its first kills are one of each kind, in a drawn order."""

    seed: int
    kills: int
    epochs: int = 40
    pause: tuple[float, float] = (0.0, 2.0)  # seconds before a kill, and before `up`
    busy: int = 2  # jobs under way, always
    patience: float = 60.0  # seconds for jobs to end after the last kill, beyond those that they train


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
        self._draw = random.Random(plan.seed)
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
            kinds = sorted(WEIGHTS)
            self._draw.shuffle(kinds)
            kinds += self._draw.choices(list(WEIGHTS), list(WEIGHTS.values()), k=plan.kills)
            for kind in kinds[: plan.kills]:
                self._kill(kind)
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

    def _kill(self, kind: str) -> None:
        """Kill one process of that kind, once there is one, at a drawn moment; `up` if it is needed."""
        moment = self._pause()
        while True:
            while self._unfinished() < self._plan.busy:
                self._submit()
            until(lambda: self._service.processes(kind) or not self._unfinished(), f"a {kind}", SLOW, 0.05)
            time.sleep(moment)
            there = self._service.processes(kind)
            if not there:
                continue  # its job has ended meanwhile
            victim = self._draw.choice(there)
            try:
                os.kill(victim.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            break
        self.journal.killed[kind] += 1
        self._note(f"killed {kind} {victim.pid}")
        if kind in _OPERATED:
            time.sleep(self._pause())
            self._up()

    def _submit(self) -> None:
        number = len(self._service.expected)
        id = self._service.submit(
            f"storm-{number % 3}", self._draw.randrange(10_000), self._plan.epochs, f"storm-{number:03}"
        )
        self._note(f"submitted {id}")

    def _up(self) -> None:
        self._service.up()
        self._note("up")

    def _unfinished(self) -> int:
        return self._store.count([JobState.QUEUED, JobState.RUNNING])

    def _served(self) -> bool:
        want = {version.model: version.version for version in self._store.served()}
        return self._service.serves() == want

    def _pause(self) -> float:
        return self._draw.uniform(*self._plan.pause)

    def _note(self, line: str) -> None:
        self.journal.lines.append(f"{time.monotonic() - self._began:7.2f} {line}")
