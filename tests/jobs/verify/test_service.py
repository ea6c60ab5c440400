"""Database, queue, cluster and served models: every disagreement is named, and what can be repaired is."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from jobs.queue import Entry, Queue
from jobs.service import CLAIM_LEASE, Service
from jobs.settings import Settings
from jobs.store import AttemptState, Job, JobState, Store
from jobs.store.tables import AttemptRow, DependencyRow, JobRow, ModelRow, PromotionRow, TrialRow, VersionRow
from jobs.verify import Kind, Parts, verify
from jobs.verify import service as verify_service

from ..conftest import Clock, RedisServer
from ..trained import promote
from .conftest import Cluster, Server, kinds, repaired

DATABASES = ("sqlite", "postgresql")

AddJob = Callable[..., Job]


def test_parts_that_agree(parts: Parts, store: Store, settings: Settings, train: Any, server: Server):
    assert verify(parts) == []
    train("first")
    assert parts.cluster is not None
    parts.cluster.alive.add("first-1")  # type: ignore[attr-defined]
    promote(store, settings, "first")
    assert kinds(verify(parts, repair=True)) == [Kind.NOT_SERVED]
    assert server.serves["reviews"]["version"] == 1
    assert verify(parts) == []


def test_a_served_version_of_the_promoted_number_with_other_files(
    parts: Parts, store: Store, settings: Settings, train: Any, server: Server, cluster: Cluster
):
    """As after the restore of an older copy: its numbers are given out a second time."""
    train("first")
    cluster.alive.add("first-1")
    promote(store, settings, "first")
    verify(parts, repair=True)
    version = store.version("reviews")
    server.serves = {"reviews": {**server.serves["reviews"], "digest": "d" * 64}}
    (found,) = verify(parts)
    told = f"are reviews v1 (dddddddddddd), promoted are reviews v1 ({version.digest[:12]})"
    assert (found.kind, found.detail) == (Kind.NOT_SERVED, told)
    repaired(parts, Kind.NOT_SERVED)
    assert server.serves["reviews"]["digest"] == version.digest


def test_what_is_served_while_nothing_is_promoted_is_only_named(parts: Parts, server: Server):
    """It may be of another database: this one may be the wrong one."""
    server.serves = {"reviews": {"version": 3, "digest": "d" * 64}}
    (found,) = verify(parts, repair=True)
    assert (found.kind, found.repair, found.repaired) == (Kind.NOT_SERVED, None, False)
    assert "are reviews v3 (dddddddddddd), promoted are none" in found.detail
    assert server.serves


def test_a_job_that_is_not_queued_and_one_that_should_not_be(
    parts: Parts, queue: Queue, add_job: AddJob, service: Service
):
    add_job("missing")
    queue.push([Entry("foreign", number=1, priority=0, sequence=1)])
    repaired(parts, Kind.NOT_QUEUED, Kind.FOREIGN)
    assert queue.entries() == {"missing": 1}


def test_a_queue_in_another_order(parts: Parts, queue: Queue, add_job: AddJob, service: Service):
    for id in ("one", "two"):
        add_job(id)
    queue.push([Entry("one", 1, 0, 900), Entry("two", 1, 0, 2)])
    repaired(parts, Kind.NOT_QUEUED)
    assert list(queue.entries()) == ["one", "two"]
    queue.push([Entry("one", 1, 0, 900)])
    add_job("three")
    repaired(parts, Kind.NOT_QUEUED, Kind.NOT_QUEUED)
    assert list(queue.entries()) == ["one", "two", "three"]


def test_a_lease_of_an_attempt_that_has_ended(parts: Parts, store: Store, queue: Queue, train: Any):
    train("first")
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    queue.renew("first", 1, 60)
    repaired(parts, Kind.LEASE)


@pytest.mark.parametrize(
    ("job", "number", "told"),
    [
        ("nobody", 1, "holds a lease; there is no such job"),
        ("fresh", 1, "holds a lease; its job has had 0"),
        ("busy", 1, "has ended and holds a lease"),
        ("busy", 7, "holds a lease; its job has had 2"),
    ],
)
def test_a_lease_that_no_active_attempt_holds(
    parts: Parts, service: Service, add_job: AddJob, job: str, number: int, told: str
):
    """As after the restore of an older copy, while what it replaces is at work still."""
    for id in ("busy", "fresh"):
        add_job(id)
    service.store.open_attempt("busy", 1, "dispatcher")
    service.finish("busy", 1, AttemptState.LOST, by="dispatcher")
    service.store.open_attempt("busy", 2, "dispatcher")
    service.reconcile_queue()
    assert verify(parts) == []
    service.queue.renew(job, number, 60)
    (found,) = verify(parts)
    assert (found.kind, found.what, found.detail) == (Kind.LEASE, f"job {job}", f"attempt {number} {told}")
    repaired(parts, Kind.LEASE)
    assert service.queue.leases([job]) == {}


@dataclass
class Time:
    """The time of whoever looks twice: it passes when he waits, and something happens."""

    happens: Callable[[], object]
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.happens()


def test_a_claim_whose_attempt_is_recorded_a_moment_later(
    parts: Parts, store: Store, queue: Queue, service: Service, add_job: AddJob, monkeypatch: Any
):
    add_job("first")
    service.reconcile_queue()
    queue.take({"first": 1}, CLAIM_LEASE)
    looks = 0

    def third_time() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            assert store.open_attempt("first", 1, "dispatcher")

    monkeypatch.setattr(verify_service, "time", Time(third_time))
    assert verify(replace(parts, cluster=None), repair=True) == []
    assert looks == 3 and queue.entries() == {}


def test_a_claim_that_was_given_up_ends_by_itself(
    parts: Parts, queue: Queue, service: Service, add_job: AddJob
):
    """A dispatcher has died before it recorded an attempt."""
    add_job("first")
    service.reconcile_queue()
    queue.take({"first": 1}, 1.2)
    repaired(parts, Kind.NOT_QUEUED)
    assert (queue.leases(["first"]), queue.entries()) == ({}, {"first": 1})


def test_what_looks_like_a_claim_for_longer_than_one_holds_is_none(
    parts: Parts, queue: Queue, service: Service, add_job: AddJob, monkeypatch: Any
):
    add_job("first")
    service.reconcile_queue()
    queue.renew("first", 1, 10)
    monkeypatch.setattr(verify_service, "time", Time(lambda: queue.renew("first", 1, 10)))
    assert kinds(verify(parts)) == [Kind.LEASE]


@pytest.mark.parametrize("read", ["jobs", "attempts"])
def test_a_lease_of_an_attempt_that_is_opened_meanwhile(
    parts: Parts,
    store: Store,
    queue: Queue,
    service: Service,
    add_job: AddJob,
    monkeypatch: pytest.MonkeyPatch,
    read: str,
):
    add_job("first")
    service.reconcile_queue()
    original, opened = getattr(store, read), []

    def meanwhile(*arguments: Any, **more: Any) -> Any:
        if not opened:
            opened.append(queue.take({"first": 1}, 60))
            assert store.open_attempt("first", 1, "dispatcher")
        return original(*arguments, **more)

    monkeypatch.setattr(store, read, meanwhile)
    assert verify(replace(parts, cluster=None), repair=True) == []
    assert opened and queue.leases(["first"]) == {"first": 1}


def test_an_attempt_without_a_process(
    parts: Parts, store: Store, queue: Queue, train: Any, cluster: Cluster, clock: Clock
):
    train("first")
    cluster.alive.add("first-1")
    assert verify(parts) == []
    cluster.alive.clear()
    queue.renew("first", 1, 60)
    assert verify(parts) == []  # it holds its lease: it may be there after all
    queue.release("first", 1)
    repaired(parts, Kind.DEAD)
    assert store.job("first").state is JobState.QUEUED
    assert queue.entries() == {"first": 2}


def test_an_attempt_that_runs_and_gives_no_sign_of_life(
    parts: Parts,
    queue: Queue,
    train: Any,
    cluster: Cluster,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
):
    train("first")
    cluster.alive.add("first-1")
    clock.forward(59)
    assert verify(parts) == []
    clock.forward(2)
    monkeypatch.setattr(verify_service, "time", Time(lambda: None))
    (found,) = verify(parts, repair=True)  # a dispatcher ends it
    assert (found.kind, found.what, found.repaired) == (Kind.SILENT, "first-1", False)
    assert "written nothing for 61 s" in found.detail
    # Redis has come up empty a moment ago.
    monkeypatch.setattr(verify_service, "time", Time(lambda: queue.renew("first", 1, 60)))
    assert verify(parts) == []


def test_an_attempt_that_comes_up_while_a_dead_one_is_recorded_as_lost(
    parts: Parts,
    store: Store,
    train: Any,
    add_job: AddJob,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
):
    train("first")
    add_job("second")
    original, looks = store.attempts, []

    def meanwhile(*arguments: Any, **more: Any) -> Any:
        looks.append(more)
        if looks.count({"active": True}) == 2 and not cluster.alive:  # the repair's
            assert store.open_attempt("second", 1, "dispatcher")
            cluster.alive.add("second-1")
            store.join_attempt("second", 1, host="here")
            parts.service.cancel("second", by="ada")
        return original(*arguments, **more)

    monkeypatch.setattr(store, "attempts", meanwhile)
    assert kinds(verify(parts, repair=True)) == [Kind.DEAD]
    assert cluster.alive == {"second-1"}
    assert store.job("second").state is JobState.RUNNING


def test_one_that_is_being_launched_is_not_dead(parts: Parts, store: Store, add_job: AddJob, clock: Clock):
    add_job("first")
    store.open_attempt("first", 1, "dispatcher")
    assert verify(parts) == []
    clock.forward(60)
    assert kinds(verify(parts)) == [Kind.DEAD]


def test_a_process_of_an_attempt_that_has_ended(
    parts: Parts, store: Store, train: Any, cluster: Cluster, clock: Clock
):
    train("first")
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    cluster.alive.add("first-1")
    assert verify(parts, repair=True) == []  # it is on its way out
    clock.forward(100)
    cluster.alive.add("somebody-else")
    found = verify(parts, repair=True)
    assert [(one.kind, one.what, one.repaired) for one in found] == [
        (Kind.ZOMBIE, "first-1", True),
        (Kind.ZOMBIE, "somebody-else", False),
    ]
    assert cluster.alive == {"somebody-else"}


def test_what_attempts_that_are_gone_have_left_on_the_cluster(
    parts: Parts, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    cluster.left = {"placement group a1": True, "actor b2 (Rank)": False}
    monkeypatch.setattr(verify_service, "time", Time(lambda: None))
    found = verify(parts, repair=True)
    assert [(one.kind, one.what, one.repaired) for one in found] == [
        (Kind.ABANDONED, "actor b2 (Rank)", False),
        (Kind.ABANDONED, "placement group a1", True),
    ]
    assert cluster.left == {"actor b2 (Rank)": False}


def test_what_goes_a_moment_after_its_attempt_is_not_left_over(
    parts: Parts, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    cluster.left = {"placement group a1": True}

    def passes() -> None:
        """The dispatcher gives back what there is, and another attempt goes."""
        cluster.left = {f"placement group {len(left)}": True}
        left.append(1)

    left: list[int] = []
    monkeypatch.setattr(verify_service, "time", Time(passes))
    assert verify(parts, repair=True) == []
    assert len(left) == 1


def test_what_is_found_is_named_whatever_does_not_answer_after_it(
    parts: Parts,
    store: Store,
    redis_server: RedisServer,
    settings: Settings,
    train: Any,
    cluster: Cluster,
    clock: Clock,
):
    for id in ("first", "second"):
        train(id, 1)
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    cluster.alive |= {"first-1", "second-1"}
    clock.forward(100)
    redis_server.stop()
    shutil.rmtree(Path(settings.storage) / "jobs/first/attempt-1/epoch-01")
    found = kinds(verify(parts, repair=True))
    assert found[0] is Kind.ZOMBIE and cluster.alive == {"second-1"}
    assert {Kind.UNREACHABLE, Kind.CHECKPOINT} <= set(found)


def test_records_that_contradict_one_another_are_named(
    parts: Parts, store: Store, train: Any, cluster: Cluster
):
    train("first")
    cluster.alive.add("first-1")
    with store.writing() as connection:
        connection.execute(update(JobRow).values(state=JobState.SUCCEEDED))
    found = verify(parts, repair=True)
    assert [(one.kind, one.what, one.repaired) for one in found] == [
        (Kind.CONTRADICTION, "attempt 1 of first", False)
    ]


FIRST, SECOND = JobRow.id == "first", JobRow.id == "second"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (update(JobRow).where(SECOND).values(state="running"), "job second is running, but its attempt 0"),
        (update(JobRow).where(SECOND).values(attempt=1), "job second has had 1 attempts, but 0 are recorded"),
        (update(AttemptRow).values(state="lost"), "job first has succeeded, but its attempt 1 has not"),
        (update(JobRow).where(FIRST).values(state="failed"), "has succeeded, but its job is failed"),
        (update(AttemptRow).values(finished=None), "attempt 1 of first is succeeded, but when it ended"),
        (update(AttemptRow).values(resumed_from=99), "attempt 1 of first went on from checkpoint 99"),
        (
            insert(DependencyRow).values(job="second", on_job="third", any=False),
            "job second waits for the success of job third, which is cancelled",
        ),
        (update(JobRow).where(SECOND).values(parent="first"), "job second is a child of first by its own"),
        (
            insert(TrialRow).values(sweep="second", number=2, job="third", parameters={}),
            "sweep second has 1 children, not numbers 1 to",
        ),
        (update(ModelRow).values(current=7), "model reviews serves version 7, which is not recorded"),
        (delete(PromotionRow), "model reviews serves version 1, but promoted last was None"),
        (update(ModelRow).values(last_version=0), "has a version 1, but gave out 0 numbers"),
        (
            update(VersionRow).values(digest="d" * 64),
            "version 1 of reviews is said to be made of jobs/first/attempt-1/epoch-02, which has another",
        ),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_each_contradiction_has_its_words(
    parts: Parts, store: Store, settings: Settings, train: Any, add_job: AddJob, change: Any, told: str
):
    train("first")
    promote(store, settings, "first")
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    add_job("second")
    add_job("third")
    store.request_cancel("third", by="ada")
    assert list(verify_service.database(parts)) == []
    with store.writing() as connection:
        connection.execute(change)
    found = [disagreement for disagreement, _ in verify_service.database(parts)]
    assert {one.kind for one in found} == {Kind.CONTRADICTION}
    assert any(told in f"{one.what} {one.detail}" for one in found), found


@pytest.mark.sqlite_only
def test_a_damaged_database_is_named(
    parts: Parts, store: Store, settings: Settings, train: Any, cluster: Cluster
):
    train("first")
    cluster.alive.add("first-1")
    path = Path(settings.database_url.removeprefix("sqlite:///"))
    # A checkpoint of an attempt that is not there: a connection that does not look at keys can write that.
    raw = sqlite3.connect(path)
    raw.execute("UPDATE checkpoints SET job = 'nobody' WHERE id = 1")
    raw.commit()
    raw.close()
    found = [one for one in verify(parts) if one.kind is Kind.DAMAGE]
    assert len(found) == 1 and "not there" in found[0].detail


def test_without_a_dispatcher_or_redis(parts: Parts, redis_server: RedisServer, service: Service):
    redis_server.flush()
    assert kinds(verify(parts)) == [Kind.NO_DISPATCHER]
    redis_server.stop()
    found = verify(parts)
    assert set(kinds(found)) == {Kind.UNREACHABLE}
    assert "Redis does not answer" in found[0].detail
    assert verify(replace(parts, redis=False)) == []
