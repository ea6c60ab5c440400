"""Attempts that are frozen, replaced, and thawed: whatever they were about to write changes nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from jobs.store import AttemptState, Cause, JobState, Store

from .crashes import Road
from .forking import Nursery
from .ground import Ground, Redis, end, until
from .launcher import holder, kill
from .oracle import Expected, problems

SEED = int(os.environ.get("TEXTVAE_CHAOS_SEED", "1"))
ALL = os.environ.get("TEXTVAE_CHAOS") == "all"
SHARE = 4
_STOP, _CONT = signal.SIGSTOP, signal.SIGCONT


@pytest.mark.timeout(3600)
def test_what_a_thawed_attempt_writes_changes_nothing(tmp_path: Path, nursery: Nursery, redis: Redis):
    """Frozen before each of its calls but commits: an open transaction of SQLite keeps all others out."""
    template = tmp_path / "template"
    Road("straight", template, nursery, redis.url, None)
    redis.flush()
    points = Road("straight", tmp_path / "whole", nursery, redis.url, template).points()
    points = [p for p in points if p.startswith("attempt ") and " commit " not in p and " watch " not in p]
    chosen = points if ALL else random.Random(SEED).sample(points, SHARE)
    found, lived = [], []
    for number, point in enumerate(chosen):
        redis.flush()
        home = tmp_path / str(number)
        haunted, seconds, problems_ = Road("straight", home, nursery, redis.url, template).haunt(point)
        if haunted:
            lived.append(seconds)
        found += [f"{point}: {problem}" for problem in problems_]
        shutil.rmtree(home)
    print(f"{len(lived)} zombies of {len(chosen)}; they lived for {max(lived):.1f} s at most once thawed")
    assert not found, "\n".join(found)
    assert len(lived) >= 0.8 * len(chosen)
    assert max(lived) < 5.0


def test_a_frozen_attempt_that_the_cluster_sees_is_killed_and_tried_again(ground: Ground, redis: Redis):
    ground.attempt_order["pace"] = 0.1
    dispatcher = ground.dispatcher()
    assert ground.client("submit", str(ground.config("stub", 3, 3)), "--id", "job").wait() == 0
    store = Store(ground.settings.database_url)
    until(lambda: store.checkpoints("job"), "a checkpoint")
    name = ground.home / "attempts" / "job-1"
    assert kill(name, _STOP)
    until(lambda: store.job("job").state.final, "the job to end", 60)
    first, *_ = store.attempts("job")
    assert (first.state, first.cause) == (AttemptState.LOST, Cause.LEASE_LOST)
    assert first.error is not None and "frozen" in first.error
    ground.settle(store)
    end(dispatcher)
    assert problems(store, ground.settings, [Expected("job", 3, 3)]) == []
    store.close()


def test_a_frozen_client_holds_up_nobody(ground: Ground, redis: Redis):
    """Frozen before each of its calls while others submit and jobs are trained; thawed, it ends its work."""
    record, store = ground.home / "points", Store(ground.settings.database_url)
    config = str(ground.config("stub", 3, 1))
    client = ground.client("submit", config, "--id", "seen", points={"role": "client", "record": str(record)})
    assert client.wait() == 0
    points = record.read_text().splitlines()
    commit = next(point for point in points if " commit " in point)
    others = [point for point in points if " commit " not in point]
    chosen = [commit, *(others if ALL else random.Random(SEED).sample(others, SHARE))]
    dispatcher = ground.dispatcher()
    jobs = [Expected("seen", 3, 1)]
    for number, point in enumerate(chosen):
        reached = ground.home / f"reached-{number}"
        frozen = ground.client(
            *("submit", config, "--id", f"frozen-{number}"),
            points={"role": "client", "freeze": point, "reached": str(reached)},
        )
        until(lambda file=reached: file.exists(), f"the client to reach {point}")
        other = ("submit", config, "--id", f"other-{number}")
        if point == commit:
            assert ground.client(*other).wait() == 4  # SQLite lets one write at a time
            assert "locked" in ground.log("clients").read_text()
        else:
            assert ground.client(*other).wait() == 0, point
            until(lambda id=other[-1]: store.job(id).state.final, f"a job to end beside {point}")
        os.kill(frozen.pid, _CONT)
        assert frozen.wait() == 0, point
        assert ground.client(*other).wait() == 0
        jobs += [Expected(f"{who}-{number}", 3, 1) for who in ("frozen", "other")]
    until(lambda: all(store.job(job.id).state.final for job in jobs), "every job to end")
    ground.settle(store)
    end(dispatcher)
    assert problems(store, ground.settings, jobs) == []
    store.close()


def test_a_frozen_dispatcher_is_stood_in_for_and_does_no_harm_once_thawed(ground: Ground, redis: Redis):
    ground.attempt_order["pace"] = 0.05
    first = ground.dispatcher()
    assert ground.client("submit", str(ground.config("stub", 3, 3)), "--id", "one").wait() == 0
    store = Store(ground.settings.database_url)
    until(lambda: store.attempts(active=True), "an attempt")
    os.kill(first, _STOP)
    assert ground.client("submit", str(ground.config("stub", 4, 3)), "--id", "two").wait() == 0
    second = ground.dispatcher()
    until(lambda: all(store.job(id).state is JobState.SUCCEEDED for id in ("one", "two")), "both jobs to end")
    os.kill(first, _CONT)
    time.sleep(1)
    for pid in (first, second):
        end(pid)
    ground.settle(store)
    jobs = [Expected("one", 3, 3), Expected("two", 4, 3)]
    assert problems(store, ground.settings, jobs) == []
    assert [a.number for id in ("one", "two") for a in store.attempts(id)] == [1, 1]
    store.close()


def test_redis_frozen_for_longer_than_a_lease_stops_nothing(ground: Ground, redis: Redis):
    ground.attempt_order["pace"] = 0.1
    dispatcher = ground.dispatcher()
    assert ground.client("submit", str(ground.config("stub", 3, 3)), "--id", "job").wait() == 0
    store = Store(ground.settings.database_url)
    until(lambda: store.checkpoints("job"), "a checkpoint")
    os.kill(redis.pid, _STOP)
    time.sleep(3)  # twice as long as the lease lasts
    os.kill(redis.pid, _CONT)
    until(lambda: store.job("job").state.final, "the job to end", 60)
    assert holder(ground.home / "attempts" / "job-2") == 0
    ground.settle(store)
    end(dispatcher)
    assert problems(store, ground.settings, [Expected("job", 3, 3)]) == []
    assert [attempt.number for attempt in store.attempts("job")] == [1]
    store.close()
