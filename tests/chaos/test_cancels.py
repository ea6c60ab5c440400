"""Cancels of attempts that meet an end, a retry or a recovery: nothing is left, and none takes long."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.queue import Queue
from jobs.service import Service
from jobs.store import JobState, Store

from .cancelling import Cancelling, Moments
from .ground import Ground, Redis, end, until
from .launcher import kill
from .oracle import problems

SEED = int(os.environ.get("TEXTVAE_CHAOS_SEED", "1"))
ALL = os.environ.get("TEXTVAE_CHAOS") == "all"
ROUNDS = 500 if ALL else 8
TOGETHER = 8  # jobs at once


@pytest.fixture
def cancelling(ground: Ground, redis: Redis, what: str) -> Iterator[Cancelling]:
    ground.attempt_order["pace"] = 0.03
    ground.cpus = 1 if what == "queue" else TOGETHER  # to be waited for, or one for each
    dispatcher = ground.dispatcher()
    store, queue = Store(ground.settings.database_url), Queue(redis.url)
    retry = {"max_attempts": 100, "max_infrastructure": 100, "backoff": 0}
    config = {"name": "stub", "retry": retry, "training": {"epochs": 50}}

    def kill_one(attempt: str, draw: random.Random) -> None:
        kill(ground.home / "attempts" / f"{attempt}{draw.choice(('', '.rank'))}", signal.SIGKILL)

    moments = Moments(end=0.3, again=0.5, killed=2.5, claimed=0.4)
    yield Cancelling(Service(store, queue), SEED, config, moments, kill_one)
    end(dispatcher)
    queue.close()
    store.close()


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("what", ["queue", "end", "retry", "recovery"])
def test_a_cancel_leaves_nothing_whatever_it_meets(cancelling: Cancelling, ground: Ground, what: str):
    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(lambda number: cancelling.meet(what, number), range(ROUNDS)))
    store, queue = cancelling.store, cancelling.service.queue
    ground.settle(store)
    assert problems(store, ground.settings, cancelling.expected, ground.processes) == []
    assert not ground.processes.living()
    # A claim that came too late is left to expire.
    until(lambda: queue.leases(job.id for job in cancelling.expected) == {}, "every lease to end", 5)
    cancelling.judge(what)
    if what == "queue":  # so many that the slowest percent was judged
        assert len(cancelling.took[JobState.QUEUED]) >= (100 if ALL else 1)
