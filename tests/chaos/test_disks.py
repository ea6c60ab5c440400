"""A full disk, a home that cannot be written, a database that is damaged or locked, a clock that jumps."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from jobs.config import from_mapping
from jobs.queue import Queue
from jobs.store import Attempt, AttemptState, Cause, JobState, Store, StoreError, StoreUnavailable

from .crashes import JOB, Road
from .forking import Nursery
from .ground import Ground, Redis, end, until
from .launcher import kill
from .oracle import Expected, one_attempt, problems

CONFIG = from_mapping({"name": "reviews"})
FULL = "[Errno 28] No space left on device"
# How an attempt ends whose disk hangs: by itself, or by a dispatcher.
GIVEN_UP = AttemptState.FAILED, Cause.RANK_LOST, "they hang"
SILENT = AttemptState.LOST, Cause.LEASE_LOST, "no sign of life"
HANGS = {
    "rank fsync .epoch-02.*.partial/manifest.json #1": GIVEN_UP,
    "rank rename attempt-1/.epoch-02.*.partial #1": GIVEN_UP,
    "attempt rename attempt-1/epoch-01 #1": GIVEN_UP,
    "attempt fsync .v2.*.partial/model.safetensors #1": GIVEN_UP,
    "attempt begin join_attempt #1": SILENT,
    "attempt begin finish_attempt #1": SILENT,
}


def add(store: Store, id: str) -> None:
    values = {"name": "reviews", "owner": "ada", "priority": 0, "ranks": 1, "cpus": 1.0, "gpus": 0.0}
    store.add_job(id, config=CONFIG.model_dump(mode="json"), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "point",
    [
        "rank fsync .epoch-02.*.partial/manifest.json #1",
        "rank rename attempt-1/.epoch-02.*.partial #1",
        "attempt fsync .v2.*.partial/model.safetensors #1",
    ],
)
def test_a_full_disk_fails_the_attempt_and_the_next_one_goes_on(
    point: str, tmp_path: Path, nursery: Nursery, redis: Redis
):
    """While a checkpoint is written, put into its place, or made a version; it says what the disk said."""
    road = Road("straight", tmp_path / "home", nursery, redis.url, None)
    redis.flush()
    assert road.refuse(point)
    first = first_attempt(road)
    assert (first.state, first.cause) == (AttemptState.FAILED, Cause.DISK)
    assert first.error is not None and FULL in first.error
    log = road.ground.settings.attempt_log(JOB, 1).read_text()
    assert f"OSError: {FULL}" in log and "Traceback" in log
    assert road.recover() == []


@pytest.mark.parametrize("point", HANGS)
def test_a_disk_that_hangs_ends_the_attempt_and_the_next_one_goes_on(
    point: str, tmp_path: Path, nursery: Nursery, redis: Redis
):
    """While a rank writes a checkpoint or puts it into its place, and while the attempt deletes one or makes
    one a version, it gives training up by itself; with its first and last records it goes silent.
    """
    road = Road("straight", tmp_path / "home", nursery, redis.url, None)
    redis.flush()
    state, cause, words = HANGS[point]
    # Longer than a busy machine takes for a step; and where silence is what ends it, longer than that.
    assert road.hang(point, stall=5.0 if cause is Cause.RANK_LOST else 60.0)
    assert road.recover() == []
    first = first_attempt(road)
    assert (first.state, first.cause) == (state, cause)
    assert first.error is not None and words in first.error


def first_attempt(road: Road) -> Attempt:
    store = Store(road.ground.settings.database_url)
    first, *_ = store.attempts(JOB)
    store.close()
    return first


def test_a_full_database_is_an_error_and_loses_nothing(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'textvae.db'}"
    store = Store(url)
    add(store, "first")
    pages = store_pages(store)
    store.close()

    def limit(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(Engine, "connect", limit)
    try:
        full = Store(url)
        with pytest.raises(StoreUnavailable, match="full"):
            for number in range(1000):
                add(full, f"job-{number}")
        recorded = [job.id for job in full.jobs()]
        full.close()
    finally:
        event.remove(Engine, "connect", limit)
    store = Store(url)
    assert [job.id for job in store.jobs()] == recorded
    add(store, "after")
    assert [e.job for e in store.events()] == [*reversed(recorded), "after"]
    store.close()


def store_pages(store: Store) -> int:
    with store.reading() as connection:
        return int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())


def test_a_home_that_cannot_be_written_is_told_in_one_line(ground: Ground):
    """As another user than root, who may write anywhere."""
    assert ground.client("list").wait() == 0
    for path in (ground.home, *ground.home.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in ground.home.parents:
        if path.owner() == ground.home.owner() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    answers = ground.home.parent / "answers"
    answers.mkdir(mode=0o777)
    answers.chmod(0o777)
    config = str(ground.home / "config.yaml")
    (ground.home / "logs").chmod(0o777)
    (ground.home / "config.yaml").write_text("name: reviews\n")
    (ground.home / "config.yaml").chmod(0o444)
    client = ground.client("submit", config, user="nobody", answer=str(answers / "code"))
    until(lambda: client.done, "the client to end")
    said = ground.log("clients").read_text()
    assert (answers / "code").read_text() in ("1", "4"), said
    assert "Traceback" not in said
    assert "error: " in said and ("readonly" in said or "cannot be" in said or "unable to open" in said)
    for path in (ground.home, *ground.home.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert ground.client("submit", config, "--id", "job").wait() == 0


@pytest.mark.parametrize("harm", ["not a database", "torn"])
def test_a_damaged_database_is_named_and_left_as_it_is(tmp_path: Path, harm: str):
    path = tmp_path / "textvae.db"
    store = Store(f"sqlite:///{path}")
    for number in range(200):
        add(store, f"job-{number}")
    store.close()
    content = bytearray(path.read_bytes())
    if harm == "torn":
        content[4096 * 2 :] = os.urandom(len(content) - 4096 * 2)
    else:
        content[:100] = os.urandom(100)
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"malformed|not a database"):
        broken = Store(f"sqlite:///{path}")
        broken.jobs()
        add(broken, "another")
    assert path.read_bytes() == bytes(content)


def test_a_database_that_is_locked_is_waited_for(ground: Ground, redis: Redis):
    """By a backup that copies badly, say: as long as a command waits, shorter than an attempt does."""
    with one_attempt(ground):
        locking = sqlite3.connect(ground.home / "textvae.db", isolation_level=None)
        locking.execute("BEGIN IMMEDIATE")
        assert ground.client("cancel", "job").wait() == 4
        locking.execute("ROLLBACK")
        locking.close()


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_jumps_loses_nothing(ground: Ground, redis: Redis, hours: int):
    """In the middle of a job that may train for ten minutes; the next dispatcher has the wrong clock too."""
    jump = ground.home / "jump"
    ground.attempt_order |= {"pace": 0.2, "jump": str(jump)}
    # The wrong hour is far longer than these, and a moment without a processor far shorter.
    patient: dict[str, Any] = {"jump": str(jump), "grace": 30.0, "timings": {"silence": 30.0}}
    first = ground.dispatcher(**patient)
    config = str(ground.config("stub", 3, 5))
    assert ground.client("submit", config, "--id", "one", "--time-limit", "10m").wait() == 0
    store = Store(ground.settings.database_url)
    until(lambda: store.checkpoints("one"), "a checkpoint")
    (ground.home / "set").write_text(str(hours * 3600))
    (ground.home / "set").rename(jump)  # in one step: all of them read it
    redis.set_clock(hours * 3600)  # every lease is gone, or there for an hour more
    # By the clock that jumped the one that stops has had an hour for it, or has not been asked yet.
    assert ground.client("submit", str(ground.config("stub", 4, 50)), "--id", "two").wait() == 0
    until(lambda: store.checkpoints("two"), "a checkpoint of the second")
    assert ground.client("cancel", "two").wait() == 0
    end(first)
    second = ground.dispatcher(**patient)
    until(lambda: all(store.job(id).state.final for id in ("one", "two")), "both to end")
    ground.settle(store)
    end(second)
    cancelled = frozenset({JobState.CANCELLED})
    jobs = [Expected("one", 3, 5), Expected("two", 4, 50, may_be=cancelled)]
    assert problems(store, ground.settings, jobs) == []
    ends = [(each.job, each.state, each.cause) for each in store.attempts()]
    assert ends == [  # neither was killed
        ("one", AttemptState.SUCCEEDED, None),
        ("two", AttemptState.CANCELLED, Cause.CANCELLED),
    ]
    store.close()


@pytest.mark.parametrize("what", ["claimed", "killed", "frozen"])
def test_a_clock_that_was_set_back_makes_no_lease_last_longer(ground: Ground, redis: Redis, what: str):
    """Its dispatcher died after a claim, or its attempt in the middle of training, or that hangs."""
    lease = 5.0
    ground.attempt_order |= {"pace": 0.1, "timings": {"lease": lease}}
    store, queue = Store(ground.settings.database_url), Queue(redis.url)
    assert ground.client("submit", str(ground.config("stub", 3, 3)), "--id", "job").wait() == 0
    if what == "claimed":
        assert queue.take({"job": 1}, lease)
    else:
        first = ground.dispatcher()
        until(lambda: store.checkpoints("job"), "a checkpoint")
        end(first)
        number = signal.SIGKILL if what == "killed" else signal.SIGSTOP
        assert kill(ground.home / "attempts" / "job-1", number)
    assert queue.leases(["job"]) == {"job": 1}
    redis.set_clock(-3600)
    dispatcher = ground.dispatcher()
    until(lambda: store.job("job").state.final, "the job to end")
    ground.settle(store)
    end(dispatcher)
    assert problems(store, ground.settings, [Expected("job", 3, 3)]) == []
    causes = {"claimed": [], "killed": [Cause.DIED], "frozen": [Cause.LEASE_LOST]}[what]
    assert [attempt.cause for attempt in store.attempts("job")] == [*causes, None]
    queue.close()
    store.close()
