"""The road of a job with a process that dies at a given crash point, and what follows once it has."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select

from jobs.queue import Queue
from jobs.store import JobState, Store
from jobs.store.tables import Base, LogChunkRow

from .forking import Nursery, gone
from .ground import Ground, end, until
from .launcher import holder, kill
from .oracle import Expected, problems
from .training import STEPS

JOB, BEFORE, MODEL, SEED, EPOCHS = "job", "before", "stub", 7, 4

# The processes of which each scene knows the crash points.
SCENES: dict[str, tuple[str, ...]] = {
    "straight": ("client", "dispatcher", "attempt", "rank", "keeper"),
    "resumed": ("dispatcher", "attempt", "rank"),  # an attempt whose predecessor was killed
    "cancelled": ("client", "attempt", "rank"),  # the client is the one that cancels
}

_HOLD = 2 * STEPS + 2  # where the rank of a cancelled job waits to be told, so that no clock decides its end
_LEASE = 0.6  # seconds; a test of hundreds of crashes waits for it to end after many of them
_HASTE = {"grace": 0.4, "timings": {"claim_lease": _LEASE}}

Points = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Haunting:
    """What came of an attempt that was frozen, replaced and thawed."""

    reached: bool  # the point at which it was to be frozen
    refused: bool  # what it was about to write; neither this nor that if it ended before it could
    written: bool
    lived: float  # seconds that it and its rank were there once thawed
    problems: list[str]  # what is not as it must be then


def dump(store: Store) -> set[str]:
    """Everything that the database holds, but for the logs: each attempt writes its own, however stale."""
    tables = [table for table in Base.metadata.sorted_tables if table.name != LogChunkRow.__tablename__]
    with store.reading() as connection:
        return {f"{table} {row}" for table in tables for row in connection.execute(select(table))}


def share_of(points: Sequence[str], count: int, seed: int, alike: Callable[[str], Hashable]) -> list[str]:
    """So many of them, drawn by a seed; of those that are `alike`, a second one after one of every other."""
    drawn = random.Random(seed).sample(points, len(points))
    seen = Counter[Hashable]()
    turn = {}
    for point in drawn:
        turn[point] = seen[alike(point)]
        seen[alike(point)] += 1
    return sorted(drawn, key=lambda point: turn[point])[:count]


class Road:
    """The road of one job: a client submits it, a dispatcher launches it, an attempt and its rank train it,
    and the dispatcher's keeper serves what became of it. A worse version of the model was served before.

    Each process goes alone as far as it gets, so that its points are the same every time.
    """

    def __init__(
        self,
        scene: str,
        home: Path,
        nursery: Nursery,
        redis_url: str,
        template: Path | None,
        database_url: str | None = None,
    ):
        """`template` is the home of an earlier `prepare`, with its database; without one this home gets its
        own, and its database may be elsewhere."""
        if template is not None:
            shutil.copytree(template, home)
        self.scene = scene
        self.ground = Ground(home, nursery, redis_url, pace=0.0, database_url=database_url)
        self._release = home / "release"
        self._submit = ("submit", str(self.ground.config(MODEL, SEED, EPOCHS)), "--id", JOB)
        if template is None:
            self._prepare()

    def points(self) -> list[str]:
        """Go the road without a crash; every point on it."""
        record = self.ground.home / "points"
        self._go({role: {"role": role, "record": str(record)} for role in SCENES[self.scene]})
        return list(dict.fromkeys(record.read_text().splitlines()))

    def crash(self, point: str) -> bool:
        """Go the road up to the crash; whether its point was reached."""
        role, reached = point.split(" ")[0], self.ground.home / "reached"
        self._go({role: {"role": role, "kill": point, "reached": str(reached)}})
        return reached.exists()

    def refuse(self, point: str) -> bool:
        """Go the road with a disk that is full for one call; whether that call came."""
        role, reached = point.split(" ")[0], self.ground.home / "reached"
        self._go({role: {"role": role, "refuse": point, "reached": str(reached)}})
        return reached.exists()

    def hang(self, point: str, stall: float) -> bool:
        """Go the road with a disk that never answers one call; whether that call came.

        Ranks that say nothing are given up after `stall` seconds. An attempt that hangs is not waited for.
        """
        role, reached, processes = point.split(" ")[0], self.ground.home / "reached", self.ground.processes
        patient = self.ground.settings
        self.ground.settings = replace(patient, stall_timeout=stall)
        self._client(*self._submit)
        self._pass({role: {"role": role, "hang": point, "reached": str(reached)}})
        self.ground.settings = patient
        until(lambda: reached.exists() or not processes.living(), f"the {role} to hang or to end")
        if role == "rank":
            until(lambda: not processes.names(), "the attempt to give its rank up")
            # Whatever a rank hangs at, Ray ends it with its attempt.
            kill(self.ground.home / "attempts" / f"{JOB}-1.rank", signal.SIGKILL)
        return reached.exists()

    def haunt(self, point: str) -> Haunting:
        """Freeze the attempt at this point, have it replaced, and thaw it once its job has ended."""
        reached, processes = self.ground.home / "reached", self.ground.processes
        frozen = {"role": "attempt", "freeze": point, "reached": str(reached)}
        self._client(*self._submit)
        self._pass({"attempt": frozen})
        until(lambda: reached.exists() or not processes.living(), "the attempt to freeze or to end")
        haunted = bool(processes.living())
        processes.lose(f"{JOB}-1")
        zombie = holder(self.ground.home / "attempts" / f"{JOB}-1")
        found = self.recover()
        store = Store(self.ground.settings.database_url)
        before, began = dump(store), time.monotonic()
        if haunted:
            os.kill(zombie, signal.SIGCONT)
            until(lambda: not processes.living(), "the thawed attempt and its rank to end")
        lived = time.monotonic() - began
        found += [f"{row} was written" for row in sorted(dump(store) - before)]
        found += problems(store, self.ground.settings, self._expected(), processes)
        store.close()
        refused, written = (Path(f"{reached}.{end}").exists() for end in ("refused", "written"))
        return Haunting(haunted, refused, written, lived, found)

    def recover(self) -> list[str]:
        """Do what a user and a supervisor would do then; what is not as it must be in the end."""
        assert self._client(*self._submit) == 0, self.ground.log("clients").read_text()
        if self.scene == "cancelled":
            assert self._client("cancel", JOB) == 0
        dispatcher = self.ground.dispatcher(**_HASTE)
        store = Store(self.ground.settings.database_url)
        try:
            until(lambda: store.job(JOB).state.final, f"{JOB} to end", 30, pause=0.02)
            until(lambda: not self.ground.processes.names(), "the attempt to leave", 10)
            until(lambda: self._serves(store), "what is promoted to be served", 10)
            until(lambda: not self._orphans(), "the ranks to leave", 10)
            return problems(store, self.ground.settings, self._expected())
        finally:
            store.close()
            end(dispatcher)

    def _expected(self) -> list[Expected]:
        ends = {JobState.SUCCEEDED} | ({JobState.CANCELLED} if self.scene == "cancelled" else set())
        return [Expected(BEFORE, SEED - 1, 1), Expected(JOB, SEED, EPOCHS, may_be=frozenset(ends))]

    def _prepare(self) -> None:
        config = self.ground.config(MODEL, SEED - 1, 1)
        assert self._client("submit", str(config), "--id", BEFORE) == 0
        self._dispatch({})
        self._dispatch({})

    def _go(self, points: Points) -> None:
        """Each process of the road in turn, with what `points` says of it."""
        straight = self.scene == "straight"
        self._client(*self._submit, points=points.get("client") if straight else None)
        if not self._recorded():
            return
        if self.scene == "resumed":
            # The first attempt dies with its second checkpoint in place and not yet recorded.
            at = "attempt commit record_checkpoint #2"
            first = {"role": "attempt", "kill": at, "reached": str(self.ground.home / "first")}
            self._dispatch({"attempt": first})
            queue = Queue(self.ground.settings.redis_url)
            until(lambda: not queue.leases([JOB]), "the lease to end")
            queue.close()
        self._dispatch(points)
        if "keeper" in points:
            self._dispatch({"dispatcher": points["keeper"]})

    def _dispatch(self, points: Points) -> None:
        """One pass of a dispatcher, and the attempt that it launches, to their ends."""
        self._pass(points)
        until(lambda: not self.ground.processes.names(), "the attempt to end")
        until(lambda: not self.ground.processes.ranks(), "the rank to end")

    def _pass(self, points: Points) -> None:
        """One pass of a dispatcher, which launches an attempt."""
        inner = {role: points[role] for role in ("attempt", "rank") if role in points}
        order = {**self.ground.attempt_order, "points_of": inner, "timings": {"lease": _LEASE}}
        cancelled = self.scene == "cancelled" and self._recorded()
        if cancelled:
            order |= {"hold": _HOLD, "release": str(self._release)}
        pid = self.ground.dispatcher(passes=1, points=points.get("dispatcher"), attempt=order, **_HASTE)
        if cancelled:
            self._cancel(pid, points)
        until(lambda: gone(pid), "the dispatcher to end")

    def _cancel(self, dispatcher: int, points: Points) -> None:
        """Cancel the job whose rank is held; it goes on if the client dies before the cancel is recorded."""
        store = Store(self.ground.settings.database_url)
        until(
            lambda: (
                len(store.checkpoints(JOB)) == _HOLD // STEPS
                or (gone(dispatcher) and not self.ground.processes.names())
            ),
            "the checkpoints after which to cancel",
        )
        self._client("cancel", JOB, points=points.get("client"))
        if store.job(JOB).cancel_requested is None:
            self._release.touch()
        store.close()

    def _client(self, *words: str, points: Mapping[str, Any] | None = None) -> int | None:
        return self.ground.client(*words, points=points).wait()

    def _recorded(self) -> bool:
        store = Store(self.ground.settings.database_url)
        try:
            return any(job.id == JOB for job in store.jobs())
        finally:
            store.close()

    def _orphans(self) -> set[str]:
        """Ranks whose attempt is not there, even for those who see every process."""
        living = self.ground.processes.living()
        return {
            name for name in living if name.endswith(".rank") and name.removesuffix(".rank") not in living
        }

    def _serves(self, store: Store) -> bool:
        served = self.ground.home / "served.json"
        serves = json.loads(served.read_text()) if served.exists() else {}
        want = {version.model: version.version for version in store.served()}
        return {model: version["version"] for model, version in serves.items()} == want
