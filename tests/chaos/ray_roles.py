"""The processes of a job on a real Ray, with crash points of their own."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from jobs import attempt as attempts
from jobs import service
from jobs.attempt import Timings as AttemptTimings
from jobs.attempt import work
from jobs.dispatcher import Dispatcher, Timings
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import Store
from jobs.wiring import RayLauncher

from . import points

# As in production, but for the seconds that one waits for a process that has died.
_LAUNCH_GRACE = 3.0
_ATTEMPT = AttemptTimings(poll=0.2, renew=0.4, lease=3)
_DISPATCHER = Timings(rest=0.2, reconcile=0.5, claim_lease=3)


class _Launcher(RayLauncher):
    """Starts attempts that know their crash points.

    `own` has those of the roles `attempt` and `rank`, and of the `first` attempt, if it has others.
    """

    def __init__(self, settings: Settings, own: Mapping[str, Any]):
        super().__init__(settings)
        self._own = own

    def start(
        self, name: str, function: Callable[[dict[str, Any]], object], arguments: Mapping[str, Any]
    ) -> object:
        assert function is attempts.main
        return super().start(name, attempt, {**arguments, "points_of": self._own})


def main() -> None:
    """`jobs.dispatcher.main`, with what the JSON of the only argument says."""
    order = json.loads(sys.argv[1])
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    service.LAUNCH_GRACE = _LAUNCH_GRACE
    settings = Settings.from_dict(order["settings"])
    launcher = _Launcher(settings, order["points_of"])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    points.install(order)
    points.watch_ray()
    store, queue = Store(settings.database_url), Queue(settings.redis_url)
    timings = replace(_DISPATCHER, **order["timings"])
    Dispatcher(Service(store, queue), launcher, launcher.capacity, settings, timings=timings).loop(stop)
    queue.close()
    store.close()


def attempt(arguments: dict[str, Any]) -> None:
    """`jobs.attempt.main`, in the attempt's actor."""
    from cluster import trainer, training  # noqa: F401 - what imports call is no point

    own = arguments["points_of"]
    work.Timings = lambda: _ATTEMPT  # type: ignore[assignment,misc]
    training._rank = partial(rank, own.get("rank"))  # type: ignore[assignment]
    role = "first" if arguments["number"] == 1 and "first" in own else "attempt"
    points.install({"points": own.get(role)})
    points.watch_ray()
    attempts.main(arguments)


def rank(own: dict[str, Any] | None, config: dict[str, Any]) -> None:
    """`cluster.training._rank`, in a rank's process."""
    from cluster import training

    points.install({"points": own})
    points.watch_ray()
    training._rank(config)
