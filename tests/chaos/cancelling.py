"""Jobs that are cancelled at a bad moment: as they wait, end, are tried again or have just been killed."""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jobs.config import from_mapping
from jobs.service import Service
from jobs.store import AttemptState, Conflict, JobState

from .ground import at_once, until
from .oracle import Expected

LIMIT = {JobState.QUEUED: 2.0, JobState.RUNNING: 10.0}  # seconds that 99 of 100 cancels take at most


@dataclass(frozen=True)
class Moments:
    """Until how many seconds after what a cancel waits."""

    end: float  # after an attempt of two epochs has begun: about as long as it takes
    again: float  # after it was told to be tried again
    killed: float  # after a process was killed: until the next attempt has begun
    claimed: float = 0.0  # after the job ahead of it has ended: until it is claimed itself


class Cancelling:
    """One user's jobs. `config` is of a job that trains for long; `kill` ends a process of an attempt."""

    def __init__(
        self,
        service: Service,
        seed: int,
        config: dict[str, Any],
        moments: Moments,
        kill: Callable[[str, random.Random], None],
        *,
        real: bool = False,
        pause: float = 0.005,
    ):
        self.service = service
        self.store = service.store
        self.expected: list[Expected] = []
        self.took: dict[JobState, list[float]] = defaultdict(list)
        self._seed = seed
        self._config = config
        self._moments = moments
        self._kill = kill
        self._real = real
        self._pause = pause  # seconds between two looks at a job

    def meet(self, what: str, number: int) -> None:
        """Submit a job and cancel it while that happens to it; returns once it has ended."""
        draw = random.Random(f"{self._seed} {what} {number}")
        if what == "queue":
            self._submit("ahead", number, epochs=1)
        id = self._submit(what, number, **({"epochs": 2} if what == "end" else {}))
        if what != "queue":
            self._until_it_runs(id)
        getattr(self, f"_{what}")(id, draw)

    def _submit(self, what: str, number: int, **training: int) -> str:
        training = self._config["training"] | training
        config = from_mapping(self._config | {"seed": number, "training": training})
        id, may_be = f"{what}-{number:03}", frozenset({JobState.SUCCEEDED, JobState.CANCELLED})
        self.expected.append(Expected(id, number, training["epochs"], real=self._real, may_be=may_be))
        assert self.service.submit(config, id=id, owner="ada").queued
        return id

    def _until_it_runs(self, id: str) -> None:
        patience = 300 if self._real else 60  # a real one imports PyTorch three times
        until(lambda: self._running(id) or self._over(id), f"{id} to run", patience, self._pause)

    def _queue(self, id: str, draw: random.Random) -> None:
        """It waits behind another job, which has just begun; or just ended, and it is about to be claimed."""
        ahead = id.replace("queue", "ahead")
        until(lambda: self.store.attempts(ahead), f"{ahead} to begin", 60, self._pause)
        if draw.random() < 0.5:
            until(lambda: self._over(ahead), f"{ahead} to end", 60, self._pause)
            time.sleep(draw.uniform(0, self._moments.claimed))
        self.cancel(id)

    def _end(self, id: str, draw: random.Random) -> None:
        time.sleep(draw.uniform(0, self._moments.end))
        self.cancel(id)

    def _recovery(self, id: str, draw: random.Random) -> None:
        self._kill(f"{id}-{self.store.job(id).attempt}", draw)
        time.sleep(draw.uniform(0, self._moments.killed))
        self.cancel(id)

    def _retry(self, id: str, draw: random.Random) -> None:
        self.cancel(id)

        def retry() -> None:
            with suppress(Conflict):  # it was not over yet
                self.service.retry(id, by="ada")

        def cancel() -> None:
            time.sleep(draw.choice((0.0, draw.uniform(0, self._moments.again))))
            self.service.cancel(id, by="ada")

        at_once(retry, cancel)
        self.cancel(id)  # in case the retry came last

    def cancel(self, id: str) -> None:
        """Cancel it, and note how long that took by what the cancel found it to be."""
        ended, began = self._over(id), time.monotonic()
        # A queued one is over at once; one that was claimed a moment ago has an attempt to stop.
        waited = self.service.cancel(id, by="ada").state.final
        until(lambda: self._over(id), f"the cancel of {id}", pause=self._pause)
        if not ended:
            self.took[JobState.QUEUED if waited else JobState.RUNNING].append(time.monotonic() - began)

    def judge(self, what: str) -> None:
        """Tell how long the cancels took and how the jobs ended, and fail if that is not as promised."""
        for state, took in self.took.items():
            slowest = sorted(took)[math.ceil(0.99 * len(took)) - 1]
            print(
                f"{what}: {len(took)} cancels of {state} jobs, p99 {slowest:.2f} s, longest {max(took):.2f} s"
            )
            if len(took) >= 100:  # of fewer, one slow moment of a busy machine is the slowest percent
                assert slowest <= LIMIT[state]
        ends = {job.id: self.store.job(job.id).state for job in self.expected}
        succeeded = [id for id, state in ends.items() if state is JobState.SUCCEEDED]
        print(f"{what}: {len(ends) - len(succeeded)} cancelled, {len(succeeded)} succeeded")
        assert len(succeeded) < len(ends)
        assert all(id.startswith(("end-", "ahead-")) for id in succeeded)

    def _running(self, id: str) -> bool:
        return any(attempt.state is AttemptState.RUNNING for attempt in self.store.attempts(id))

    def _over(self, id: str) -> bool:
        return self.store.job(id).state.final
