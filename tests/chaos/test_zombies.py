"""Attempts that are frozen, replaced, and thawed: whatever they were about to write changes nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from jobs.attempt import Timings
from jobs.queue import Queue
from jobs.service import Service
from jobs.store import AttemptState, Cause, JobState, Store

from .crashes import Haunting, Road, dump
from .forking import Nursery, gone
from .ground import Ground, Redis, end, until, writable
from .launcher import holder, kill
from .oracle import Expected, problems

SEED = int(os.environ.get("TEXTVAE_CHAOS_SEED", "1"))
ALL = os.environ.get("TEXTVAE_CHAOS") == "all"
SHARE = 4
TURNS = 10  # at a point at which no haunting counts
_STOP, _CONT = signal.SIGSTOP, signal.SIGCONT


def haunted(
    points: list[str], folder: Path, make: Callable[[Path], Road], counts: Callable[[Haunting], bool]
) -> list[Haunting]:
    """Haunt the road at each of these points, again until it is a haunting that counts; those.

    Two threads take turns as they like: a point is not always reached, and the other thread may end a thawed
    attempt before it comes to write at all. A late write that was not refused never passes.
    """
    found: list[Haunting] = []
    wrong, missed, tries = [], [], 0
    for number, point in enumerate(points):
        for turn in range(TURNS):
            home, tries = folder / f"{number}-{turn}", tries + 1
            one = make(home).haunt(point)
            harm = [*one.problems, *(["what it wrote once thawed was not refused"] if one.written else [])]
            if harm:
                wrong += [f"{point}: {each}" for each in harm]
                break
            shutil.rmtree(home)
            if counts(one):
                found.append(one)
                break
        else:
            missed.append(point)
    assert not wrong, "\n".join(wrong)
    assert not missed, f"no haunting that counts in {TURNS} turns at {missed}"
    assert max(one.lived for one in found) < 5.0
    print(
        f"{len(found)} zombies in {tries} tries: {sum(one.refused for one in found)} late writes refused;"
        f" they lived for {max(one.lived for one in found):.1f} s at most once thawed"
    )
    return found


def frozen_between_writes(ground: Ground, attempt: str) -> bool:
    """Freeze it, unless it holds SQLite's lock: then nobody could go on."""
    path = ground.home / "attempts" / attempt
    assert kill(path, _STOP)
    if writable(ground.settings.home / "textvae.db"):
        return True
    kill(path, _CONT)
    return False


@pytest.fixture
def make(tmp_path: Path, nursery: Nursery, redis: Redis) -> Callable[[Path], Road]:
    """Makes a road below the folder that it is given."""
    template = tmp_path / "template"
    Road("straight", template, nursery, redis.url, None)

    def make(home: Path) -> Road:
        redis.flush()
        return Road("straight", home, nursery, redis.url, template)

    return make


@pytest.mark.timeout(3600)
def test_what_a_thawed_attempt_writes_changes_nothing(tmp_path: Path, make: Callable[[Path], Road]):
    """Frozen before each of its calls but commits: an open transaction of SQLite keeps all others out."""
    points = make(tmp_path / "whole").points()
    points = [p for p in points if p.startswith("attempt ") and " commit " not in p and " watch " not in p]
    chosen = points if ALL else random.Random(SEED).sample(points, SHARE)
    haunted(chosen, tmp_path, make, lambda one: one.reached)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("write", ["record_checkpoint", "finish_attempt", "record_version"])
def test_a_late_write_is_refused(tmp_path: Path, make: Callable[[Path], Road], write: str):
    """Frozen right before it begins: a report with its checkpoint, a completion, a promotion."""
    points = [p for p in make(tmp_path / "whole").points() if p.startswith(f"attempt begin {write} ")]
    times = 100 if ALL else 2
    found = haunted((points * times)[:times], tmp_path, make, lambda one: one.refused)
    assert sum(one.refused for one in found) == times


@pytest.mark.parametrize("turn", range(20 if ALL else 1))
def test_an_attempt_that_was_replaced_is_gone_within_five_seconds(ground: Ground, redis: Redis, turn: int):
    """With the timings of production, and nobody who would kill it."""
    ground.attempt_order |= {"pace": 0.1, "timings": asdict(Timings())}
    assert ground.client("submit", str(ground.config("stub", 3, 20)), "--id", "job").wait() == 0
    pid = ground.dispatcher(passes=1)
    until(lambda: gone(pid), "the dispatcher to end")
    store, queue = Store(ground.settings.database_url), Queue(ground.settings.redis_url)
    until(lambda: store.checkpoints("job"), "a checkpoint")
    time.sleep(random.Random(SEED + turn).random())
    Service(store, queue).finish("job", 1, AttemptState.LOST, by="test", cause=Cause.DIED)
    began = time.monotonic()
    until(lambda: not ground.processes.living(), "the attempt and its rank to end")
    took = time.monotonic() - began
    print(f"they were gone {took:.2f} s after the lease was lost")
    assert took < 5.0
    queue.close()
    store.close()


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


def test_an_attempt_that_is_frozen_in_the_middle_of_a_commit_is_killed_and_others_write_again(
    ground: Ground, redis: Redis
):
    """It keeps SQLite's lock: another attempt waits with its checkpoint, a dispatcher with the next job."""
    ground.attempt_order["pace"] = 0.1
    jobs = [Expected("other", 3, 10), Expected("frozen", 4, 2), Expected("late", 5, 2)]
    for job in jobs:
        config = str(ground.config("stub", job.seed, job.epochs))
        assert ground.client("submit", config, "--id", job.id).wait() == 0
    store, reached = Store(ground.settings.database_url), ground.home / "reached"
    points = {"role": "attempt", "freeze": "attempt commit record_checkpoint #1", "reached": str(reached)}
    ground.cpus = 1
    ground.dispatcher(passes=1)
    until(lambda: store.checkpoints("other"), "a checkpoint of the other one")
    ground.cpus = 2
    ground.dispatcher(passes=1, attempt=ground.attempt_order | {"points_of": {"attempt": points}})
    until(reached.exists, "the attempt to freeze")
    assert not writable(ground.home / "textvae.db")
    ground.cpus = 3
    dispatcher = ground.dispatcher(busy=1)
    assert not store.job("other").state.final
    until(lambda: all(store.job(job.id).state.final for job in jobs), "all jobs to end")
    ground.settle(store)
    end(dispatcher)
    assert problems(store, ground.settings, jobs) == []
    ends = {job.id: [each.cause for each in store.attempts(job.id)] for job in jobs}
    assert ends == {"other": [None], "frozen": [Cause.LEASE_LOST, None], "late": [None]}
    store.close()


def test_an_attempt_out_of_sight_is_cancelled_and_tried_again(ground: Ground, redis: Redis):
    """The cluster says that it is gone while it trains on: with the next one beside it, it does no harm."""
    ground.attempt_order["pace"] = 0.1
    dispatcher = ground.dispatcher()
    assert ground.client("submit", str(ground.config("stub", 3, 4)), "--id", "job").wait() == 0
    store, queue = Store(ground.settings.database_url), Queue(ground.settings.redis_url)
    service = Service(store, queue)
    until(lambda: store.checkpoints("job"), "a checkpoint")
    until(lambda: frozen_between_writes(ground, "job-1"), "the attempt to be frozen")
    ground.processes.lose("job-1")
    service.cancel("job", by="ada")
    until(lambda: store.job("job").state is JobState.CANCELLED, "the job to end", 10)
    service.retry("job", by="ada")
    until(lambda: len(store.attempts("job")) == 2, "the next attempt")
    assert kill(ground.home / "attempts" / "job-1", _CONT)
    until(lambda: not holder(ground.home / "attempts" / "job-1"), "the first one to end", 5)
    until(lambda: store.job("job").state.final, "the job to end")
    ground.settle(store)
    end(dispatcher)
    assert problems(store, ground.settings, [Expected("job", 3, 4)]) == []
    queue.close()
    store.close()


def test_a_frozen_client_holds_up_nobody(ground: Ground, redis: Redis):
    """Frozen before each of its calls while others submit and jobs are trained; thawed, it ends its work."""
    record, store = ground.home / "points", Store(ground.settings.database_url)
    config = str(ground.config("stub", 3, 1))
    client = ground.client("submit", config, "--id", "seen", points={"role": "client", "record": str(record)})
    assert client.wait() == 0
    points = record.read_text().splitlines()
    commit = next(point for point in points if " commit " in point)
    # The file with a client's answer is the test's own, and named otherwise for each.
    others = [point for point in points if " commit " not in point and "home/client-" not in point]
    assert others
    chosen = [commit, *(others if ALL else random.Random(SEED).sample(others, min(SHARE, len(others))))]
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
    # A client that thaws after its job has ended queues it again, until the dispatcher compares.
    queue = Queue(redis.url)
    until(lambda: queue.entries() == {}, "the queue to be put right")
    queue.close()
    end(dispatcher)
    assert problems(store, ground.settings, jobs) == []
    store.close()


def test_a_frozen_dispatcher_is_stood_in_for_and_does_no_harm_once_thawed(ground: Ground, redis: Redis):
    ground.attempt_order["pace"] = 0.05
    first = ground.dispatcher()
    assert ground.client("submit", str(ground.config("stub", 3, 3)), "--id", "one").wait() == 0
    store = Store(ground.settings.database_url)
    until(lambda: ground.processes.names(), "an attempt")  # one that is open may not be launched yet
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


@pytest.mark.parametrize("thawed", ["beside the next attempt", "after it"])
@pytest.mark.parametrize("before", ["begin open_attempts", "launcher start"])
def test_a_dispatcher_that_is_frozen_between_claim_and_launch_changes_nothing_once_thawed(
    ground: Ground, redis: Redis, before: str, thawed: str
):
    """Another one does the work once its claim has ended: opens the attempt, or the next one."""
    # The attempt that counts must be seen to keep its lease; it is not what is slow here.
    ground.attempt_order |= {"pace": 0.1, "timings": {"lease": 20}}
    reached = ground.home / "reached"
    points = {"role": "dispatcher", "freeze": f"dispatcher {before} #1", "reached": str(reached)}
    assert ground.client("submit", str(ground.config("stub", 3, 10)), "--id", "job").wait() == 0
    store, queue = Store(ground.settings.database_url), Queue(redis.url)
    first = ground.dispatcher(points=points)
    until(reached.exists, "the dispatcher to freeze")
    assert queue.leases(["job"]) == {"job": 1}  # its claim
    opened = len(store.attempts("job"))
    assert opened == (before == "launcher start")
    until(lambda: not queue.leases(["job"]), "the claim to end")
    second = ground.dispatcher()
    until(lambda: store.checkpoints("job"), "the next attempt to train")
    if thawed == "after it":
        until(lambda: store.job("job").state.final, "the job to end")
        ground.settle(store)
    else:
        assert queue.leases(["job"]) == {"job": opened + 1}
    end(second)
    seen = rows_of(store, "job")
    os.kill(first, _CONT)

    def ended() -> bool:
        leases, job = queue.leases(["job"]), store.job("job")
        assert job.state.final or leases == {"job": opened + 1}, "the attempt that counts has lost its lease"
        return job.state.final

    until(ended, "the job to end")
    # The thawed one has done what it was about to do once it does something else.
    assert ground.client("submit", str(ground.config("stub", 4, 1)), "--id", "next").wait() == 0
    until(lambda: store.job("next").state.final, "the next job to end")
    ground.settle(store)
    end(first)
    assert thawed != "after it" or rows_of(store, "job") == seen
    ends = [(each.state, each.cause) for each in store.attempts("job")]
    assert ends == [(AttemptState.LOST, Cause.NEVER_STARTED)] * opened + [(AttemptState.SUCCEEDED, None)]
    assert {each.attempt for each in store.checkpoints("job", deleted=True)} == {opened + 1}
    assert problems(store, ground.settings, [Expected("job", 3, 10), Expected("next", 4, 1)]) == []
    queue.close()
    store.close()


def rows_of(store: Store, job: str) -> set[str]:
    """What the database says of one job."""
    return {row for row in dump(store) if f"'{job}'" in row}


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
