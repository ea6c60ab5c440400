"""The road of a real job on a real Ray, with a process that dies at a given call into Ray."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import launching
from jobs.config import from_mapping
from jobs.queue import Queue
from jobs.service import Service
from jobs.store import Store

from ..local_ray import LocalRay
from .forking import ROOT
from .ground import Redis, until
from .oracle import Expected, problems

SEED, EPOCHS = 7, 2
ROLES = ("dispatcher", "attempt", "rank")

_FREEZE = "attempt Dummy begin record_checkpoint #2"  # with ranks, and without a lock of the database
# Of a dispatcher that replaces a frozen attempt; until another one has begun, its claim keeps that.
_IMPATIENT = {"silence": 1, "claim_lease": 20}
_SLOW = 240  # seconds in which even a busy machine gets as far as that

Points = Mapping[str, Mapping[str, Any]]


class Road:
    """The road of one job: a dispatcher launches its attempt, which trains on a rank of Ray Train's.

    Or that attempt freezes, and the dispatcher ends it and launches another one.
    Each has a home, a Redis and a database of its own, so that several can be gone at once on one Ray.
    """

    def __init__(self, number: int, home: Path, ray: LocalRay, config: Mapping[str, Any]):
        home.mkdir(parents=True)
        self.job = f"road-{number}"
        self._redis = Redis(home / "redis")
        self.settings = ray.settings(home / "service", self._redis.url)
        self.store, self._queue = Store(self.settings.database_url), Queue(self.settings.redis_url)
        self.service = Service(self.store, self._queue)
        self._home = home
        self._frozen = home / "frozen"  # there once the first attempt has frozen
        self._dispatcher: subprocess.Popen[bytes] | None = None
        self._timings: Mapping[str, float] = {}
        training = {**config["training"], "epochs": EPOCHS}
        retry = {"max_attempts": 100, "max_infrastructure": 100, "backoff": 0}  # patient with who kills it
        own = {"name": "real", "seed": SEED, "training": training, "retry": retry}
        self.service.submit(from_mapping({**config, **own}), id=self.job)

    def points(self, *, freezes: bool) -> list[str]:
        """Go the road without a crash, or with a first attempt that freezes; every point on it."""
        record = self._home / "points"
        self._dispatch({role: {"role": role, "record": str(record)} for role in ROLES}, freezes)
        self._end()
        assert self._frozen.exists() == freezes, f"{_FREEZE} and {record.read_text()}"
        return [point for point in dict.fromkeys(record.read_text().splitlines()) if " ray " in point]

    def crash(self, point: str, *, freezes: bool) -> bool:
        """Go the road up to the crash; whether its point was reached."""
        role, reached = point.split(" ")[0], self._home / "reached"
        self._dispatch({role: {"role": role, "kill": point, "reached": str(reached)}}, freezes)
        until(lambda: reached.exists() or self._over(), f"{point} or the end", _SLOW, 0.1)
        return reached.exists()

    def recover(self) -> None:
        """Have another dispatcher, as a supervisor would, and wait until the job has ended."""
        self._dispatch({})
        self._end()

    def problems(self) -> list[str]:
        """What is not as it must be in the end. It trains for comparison, so one at a time."""
        served = {version.model: version.version for version in self.store.served()}
        return problems(self.store, self.settings, [Expected(self.job, SEED, EPOCHS, True)], served=served)

    def log(self) -> str:
        """Everything that its processes have logged."""
        return "\n".join(f"{path}:\n{path.read_text()}" for path in self._home.rglob("*.log"))

    def __enter__(self) -> Road:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """End what is there still; pytest shows the logs of a test that fails."""
        if kind is not None:
            print(self.log())
        self._kill()
        for attempt in self.store.attempts(active=True):
            launching.stop(attempt.actor)
        self._queue.close()
        self.store.close()
        self._redis.stop()

    def _dispatch(self, points: Points, freezes: bool = False) -> None:
        """Have a dispatcher, in place of the one that there is, and the processes that it starts.

        If the first attempt `freezes`, this dispatcher and those to come are impatient.
        """
        self._kill()
        own = {role: points[role] for role in ("attempt", "rank") if role in points}
        if freezes:
            self._timings = _IMPATIENT
            freeze = {"role": "attempt", "freeze": _FREEZE, "reached": str(self._frozen)}
            own["first"] = {**own.get("attempt", {}), **freeze}
        whole = {
            "settings": self.settings.to_dict(),
            "timings": self._timings,
            "points": points.get("dispatcher"),
            "points_of": own,
        }
        # By its name the function of an attempt is imported on Ray's workers, so it is not of __main__.
        code = "from tests.chaos import ray_roles; ray_roles.main()"
        with (self._home / "dispatcher.log").open("ab") as log:
            self._dispatcher = subprocess.Popen(
                [sys.executable, "-c", code, json.dumps(whole)], cwd=ROOT, stdout=log, stderr=log
            )

    def _kill(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.send_signal(signal.SIGKILL)
            self._dispatcher.wait()
            self._dispatcher = None

    def _over(self) -> bool:
        """Whether the job has ended, and its last attempt has left."""
        job = self.store.job(self.job)
        return job.state.final and launching.state(f"{job.id}-{job.attempt}") == "dead"

    def _end(self) -> None:
        until(self._over, f"{self.job} to end", _SLOW, 0.1)
