"""What the processes of a chaos test are. All that they need is imported here, once, by their mother."""

from __future__ import annotations

import logging
import os
import pwd
import signal
import sqlite3  # noqa: F401 - whoever changes its user may not be allowed to read it any more
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg  # noqa: F401
import redis  # noqa: F401 - its import takes longer than what most children do
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite  # noqa: F401

import textvae.sources
import textvae.train  # noqa: F401
from cluster.faults import of_host
from jobs import attempt as attempts
from jobs import service
from jobs.attempt import Timings, Tools, work
from jobs.cli import follow, jobs, main, submit  # noqa: F401
from jobs.dispatcher import Dispatcher
from jobs.dispatcher import Timings as DispatcherTimings
from jobs.keeper import Keeper
from jobs.queue import Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import Cause, Store, opening
from jobs.store.opening import utc_now
from textvae import checkpoint
from textvae.artifacts import Artifacts
from textvae.parsing import ConfigError

from . import points
from .launcher import Processes, hold
from .serving import FileServer
from .training import Fit, RankDied, train

# A storm must not take hours: everything is as in production but for the seconds that it waits.
LAUNCH_GRACE = 2.0
ATTEMPT = Timings(poll=0.2, renew=0.4, lease=1.5, patience=30)
DISPATCHER = DispatcherTimings(
    rest=0.2, reconcile=0.5, claim_lease=1.5, cancel_grace=5, start_timeout=30, silence=3
)


def clock_of(order: dict[str, Any]) -> Callable[[], datetime]:
    """The machine's clock; once there is a file `jump`, it is wrong by as many seconds as that says."""
    if "jump" not in order:
        return utc_now
    jump = Path(order["jump"])
    return lambda: utc_now() + timedelta(seconds=float(jump.read_text()) if jump.exists() else 0)


def cli(order: dict[str, Any]) -> int:
    """`textvae-jobs WORDS`; its exit code is put into the file `answer` once it is known."""
    os.environ.update(order["environment"])
    if "user" in order:
        os.setuid(pwd.getpwnam(order["user"]).pw_uid)
    points.install(order)
    code = main._run(order["words"], None, {})
    sys.stdout.flush()
    answer = Path(order["answer"])
    elsewhere = answer.with_suffix(".partial")
    elsewhere.write_text(str(code))
    elsewhere.rename(answer)
    return code


def dispatcher(order: dict[str, Any]) -> None:
    """The daemon, until SIGTERM; or `passes` of it."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    service.LAUNCH_GRACE = order.get("grace", LAUNCH_GRACE)
    opening.BUSY_SECONDS = order.get("busy", opening.BUSY_SECONDS)
    settings = Settings.from_dict(order["settings"])
    launcher = points.watched_launcher(
        Processes(Path(order["folder"]), order["mother"], order["attempt"], cpus=order["cpus"])
    )
    points.install(order)
    store = Store(settings.database_url, clock_of(order))
    queue = Queue(settings.redis_url)
    keeper = Keeper(store, FileServer(settings.home), Artifacts(settings.storage).location, every=0.3)
    dispatching = Dispatcher(
        Service(store, queue),
        launcher,
        launcher.capacity,
        settings,
        keeper=keeper,
        timings=replace(DISPATCHER, **order.get("timings", {})),
    )
    if "passes" in order:
        for now in range(order["passes"]):
            dispatching.step(float(now))
            keeper.step(float(now))
        return
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    dispatching.loop(stop)


def attempt(order: dict[str, Any]) -> None:
    """`jobs.attempt.main`, with a rank that is a forked process."""
    name = Path(order["name"])
    if not hold(name):
        return
    own: dict[str, Any] = order.get("points_of", {})
    held = {"hold": order.get("hold"), "release": order.get("release")}
    fit = Fit(order["mother"], name, {"pace": order["pace"], "points": own.get("rank"), **held})
    tools = Tools(
        fit=fit,
        artifacts=Artifacts(Settings.from_dict(order["settings"]).storage),
        verify=checkpoint.verify,
        broken=checkpoint.CheckpointError,
        hopeless=lambda error: isinstance(error, ConfigError),
        infrastructure=_fault,
        leave=lambda: os._exit(0),
    )
    attempts.real_tools = lambda _: tools
    attempts.Store = partial(Store, clock=clock_of(order))  # type: ignore[misc,assignment]
    timings = replace(ATTEMPT, **order.get("timings", {}))
    work.Timings = lambda: timings  # type: ignore[assignment,misc]
    points.install({"points": own.get("attempt")})
    attempts.main({key: order[key] for key in ("job", "number", "settings")})


def _fault(error: BaseException) -> Cause | None:
    fault = "rank-lost" if isinstance(error, RankDied) else of_host(error)
    return None if fault is None else Cause(fault)


def rank(order: dict[str, Any]) -> None:
    """A training rank of an attempt."""
    points.install(order)
    train(order)
