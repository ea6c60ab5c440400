"""Every kind of disagreement is named, and what can be repaired is."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from sqlalchemy import event, update

from jobs.queue import Entry, Queue
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import AttemptState, EventKind, Job, JobState, NewCheckpoint, Store
from jobs.store.tables import CheckpointRow, JobRow
from jobs.verify import Disagreement, Kind, Parts, verify
from textvae import checkpoint
from textvae.artifacts import ArtifactError, Artifacts
from textvae.checkpoint import CheckpointError, Position

from .attempt.conftest import write
from .conftest import Clock, RedisServer

DATABASES = ("sqlite", "postgresql")

AddJob = Callable[..., Job]


@dataclass
class Cluster:
    """A cluster on which attempts stand for themselves."""

    alive: set[str] = field(default_factory=set)

    def names(self) -> set[str]:
        return set(self.alive)

    def stop(self, name: str) -> None:
        self.alive.discard(name)


@dataclass
class Server:
    """Serves what it is told to."""

    serves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def apply(self, desired: Mapping[str, Mapping[str, Any]]) -> None:
        self.serves = desired

    def current(self) -> Mapping[str, Mapping[str, Any]]:
        return self.serves


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def parts(service: Service, settings: Settings, cluster: Cluster, server: Server) -> Parts:
    """Parts that agree: a dispatcher looks at the cluster."""
    service.queue.publish_cluster({"total_cpus": 4})
    return Parts(
        service=service,
        artifacts=Artifacts(settings.storage),
        check=checkpoint.verify,
        broken=(CheckpointError, ArtifactError),
        cache=settings.cache,
        cluster=cluster,
        server=server,
    )


@pytest.fixture
def train(store: Store, settings: Settings, add_job: AddJob, tmp_path: Path) -> Callable[..., list[str]]:
    """Records a job with an attempt of so many checkpoints, with their files; the attempt is active still."""

    def train(id: str, epochs: int = 2) -> list[str]:
        add_job(id)
        store.open_attempt(id, 1, "dispatcher")
        store.start_attempt(id, 1)
        for epoch in range(1, epochs + 1):
            location = f"jobs/{id}/attempt-1/epoch-{epoch:02}"
            digest = write(tmp_path / location, Position(epoch, epoch, 0), {})
            Artifacts(settings.storage).put(tmp_path / location, location)
            new = NewCheckpoint(
                f"epoch-{epoch:02}", location, digest, epoch, epoch, 0, epoch / 10, {"m": epoch}
            )
            store.record_checkpoint(id, 1, new)
        return [c.location for c in store.checkpoints(id)]

    return train


def promote(store: Store, settings: Settings, id: str) -> str:
    """Makes a version of the newest checkpoint of a job; its location."""
    best = store.checkpoints(id)[0]
    number = store.reserve_version(id, 1, "reviews")
    location = f"models/reviews/v{number}"
    Artifacts(settings.storage).put(Path(settings.storage) / best.location, location)
    assert store.record_version(
        id,
        1,
        model="reviews",
        version=number,
        checkpoint=best.id,
        location=location,
        metric="m",
        mode="max",
        reason="",
    )
    return location


def refuse(number: int, words: str) -> Callable[..., Any]:
    """Whatever it is asked to do, the disk refuses."""

    def refuses(*_: object) -> None:
        raise OSError(number, words)

    return refuses


def kinds(found: list[Disagreement]) -> list[Kind]:
    return [one.kind for one in found]


def repaired(parts: Parts, *expected: Kind) -> None:
    """Exactly these disagreements are found, repaired, and not found any more."""
    assert kinds(verify(parts)) == list(expected)
    found = verify(parts, repair=True)
    assert kinds(found) == list(expected)
    assert all(one.repaired for one in found), found
    assert verify(parts) == []


def test_parts_that_agree(parts: Parts, store: Store, settings: Settings, train: Any, server: Server):
    assert verify(parts) == []
    train("first")
    assert parts.cluster is not None
    parts.cluster.alive.add("first-1")  # type: ignore[attr-defined]
    promote(store, settings, "first")
    assert kinds(verify(parts, repair=True)) == [Kind.NOT_SERVED]
    assert server.serves["reviews"]["version"] == 1
    assert verify(parts) == []


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


def test_a_lease_of_an_attempt_that_has_ended(parts: Parts, store: Store, queue: Queue, train: Any):
    train("first")
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    queue.renew("first", 1, 60)
    repaired(parts, Kind.LEASE)


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


@pytest.mark.parametrize("harm", ["gone", "torn"])
def test_a_checkpoint_whose_files_are_not_what_was_recorded(
    parts: Parts, store: Store, settings: Settings, train: Any, cluster: Cluster, harm: str
):
    newest, oldest = train("first")
    cluster.alive.add("first-1")
    folder = Path(settings.storage) / newest
    if harm == "gone":
        shutil.rmtree(folder)
    else:
        (folder / checkpoint.MODEL).write_bytes(b"torn")
    assert kinds(verify(parts)) == [Kind.CHECKPOINT]
    assert verify(parts, repair=True)[0].repaired
    assert [c.location for c in store.checkpoints("first")] == [oldest]
    assert [e.detail["checkpoint"] for e in store.events("first") if e.kind is EventKind.REPAIRED] == [newest]
    # The torn files are named by no record now.
    cluster.alive.clear()
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    if harm == "torn":
        repaired(parts, Kind.UNRECORDED)
    assert verify(parts) == []


class Bucket:
    """The artifact store as an object store, whose network is away."""

    def __init__(self, folder: str):
        self._folder = fs.SubTreeFileSystem(folder, fs.LocalFileSystem())

    def open_input_stream(self, path: str) -> Any:
        raise OSError("AWS Error NETWORK_CONNECTION during HeadObject operation")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._folder, name)


@pytest.mark.parametrize("outage", ["network", "disk", "unmounted", "empty"])
def test_what_cannot_be_read_now_is_named_and_nothing_is_repaired_of_it(
    parts: Parts,
    store: Store,
    settings: Settings,
    train: Any,
    monkeypatch: pytest.MonkeyPatch,
    outage: str,
):
    train("first")
    promote(store, settings, "first")
    store.finish_attempt("first", 1, AttemptState.LOST, by="test")
    parts = replace(parts, redis=False, server=None)
    before, files = store.checkpoints("first"), parts.artifacts.list()
    storage, away = Path(settings.storage), Path(settings.storage + "-away")
    found: list[Disagreement] = []
    if outage == "network":
        remote = Artifacts("", Bucket(settings.storage))
        found = verify(replace(parts, artifacts=remote), repair=True)
    elif outage == "disk":
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, "sha256", refuse(5, "Input/output error"))
            found = verify(parts, repair=True)
    else:
        storage.rename(away)
        if outage == "empty":  # as a folder is on which nothing is mounted
            storage.mkdir()
        found = verify(parts, repair=True)
        shutil.rmtree(storage, ignore_errors=True)
        away.rename(storage)
    assert Kind.UNREACHABLE in kinds(found) and not any(one.repaired for one in found)
    assert store.checkpoints("first") == before and parts.artifacts.list() == files
    assert verify(parts) == []


def test_a_checkpoint_that_was_recorded_as_gone_and_is_there_is_taken_back(
    parts: Parts, store: Store, settings: Settings, train: Any, tmp_path: Path
):
    """Of several disks one was not mounted."""
    train("first")
    train("second")
    for id in ("first", "second"):
        store.finish_attempt(id, 1, AttemptState.LOST, by="test")
    parts = replace(parts, redis=False)
    before = store.checkpoints("first")
    folder = Path(settings.storage) / "jobs" / "first"
    folder.rename(tmp_path / "away")
    repaired(parts, Kind.CHECKPOINT, Kind.CHECKPOINT)
    assert store.checkpoints("first") == []
    (tmp_path / "away").rename(folder)
    repaired(parts, Kind.UNRECORDED, Kind.UNRECORDED)
    assert store.checkpoints("first") == before
    told = [e.detail["reason"] for e in store.events("first") if e.kind is EventKind.REPAIRED]
    assert told[2:] == ["its files are there again"] * 2


def test_a_version_whose_files_are_gone_is_copied_again(
    parts: Parts, store: Store, settings: Settings, train: Any, cluster: Cluster
):
    train("first")
    cluster.alive.add("first-1")
    location = promote(store, settings, "first")
    verify(parts, repair=True)
    shutil.rmtree(Path(settings.storage) / location)
    repaired(parts, Kind.VERSION)


def test_a_version_that_cannot_be_copied_again_is_named(
    parts: Parts, store: Store, settings: Settings, train: Any, cluster: Cluster
):
    train("first")
    cluster.alive.add("first-1")
    location = promote(store, settings, "first")
    verify(parts, repair=True)
    for name in (location, store.checkpoints("first")[0].location):
        shutil.rmtree(Path(settings.storage) / name)
    found = verify(parts, repair=True)
    assert [(one.kind, one.repaired) for one in found] == [(Kind.CHECKPOINT, True), (Kind.VERSION, False)]
    assert "roll back" in found[1].detail


def test_files_that_nothing_names(parts: Parts, store: Store, settings: Settings, train: Any, tmp_path: Path):
    train("first")
    promote(store, settings, "first")
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    verify(parts, repair=True)
    storage = Path(settings.storage)
    source = storage / store.checkpoints("first")[0].location
    for orphan in ("jobs/first/attempt-1/epoch-09", "models/reviews/v9", "jobs/stranger/attempt-1/epoch-01"):
        shutil.copytree(source, storage / orphan)
    for half in ("jobs/first/attempt-1/.epoch-03.0123abcd.partial", "models/reviews/.v1.0123abcd.old"):
        (storage / half).mkdir()
        os.utime(storage / half, (1, 1))
    found = verify(parts, repair=True)
    assert [(one.kind, Path(one.what).name, one.repaired) for one in found] == [
        (Kind.UNRECORDED, "epoch-09", True),
        (Kind.UNRECORDED, "epoch-01", False),  # of another database, perhaps: nobody else may delete it
        (Kind.UNRECORDED, "v9", True),
        (Kind.HALF_WRITTEN, ".epoch-03.0123abcd.partial", True),
        (Kind.HALF_WRITTEN, ".v1.0123abcd.old", True),
    ]
    assert kinds(verify(parts)) == [Kind.UNRECORDED]


def test_what_an_active_attempt_writes_is_left_alone(
    parts: Parts, settings: Settings, train: Any, cluster: Cluster
):
    (newest, _) = train("first")
    cluster.alive.add("first-1")
    storage = Path(settings.storage)
    shutil.copytree(storage / newest, storage / "jobs/first/attempt-1/epoch-03")
    shutil.copytree(storage / newest, storage / "models/reviews/v1")
    (storage / "jobs/first/attempt-1/.epoch-04.0123abcd.partial").mkdir()
    assert verify(parts, repair=True) == []


def test_what_somebody_may_be_writing_is_left_alone(parts: Parts):
    """No attempt is active: it may be a command that fetches a checkpoint."""
    half = parts.cache / ".jobs--first--attempt-1--epoch-01-0123abcd.0123abcd.partial"
    half.mkdir(parents=True)
    assert verify(parts, repair=True) == []
    (half / checkpoint.MODEL).write_bytes(b"more and more")
    os.utime(half, (1, 1))
    assert verify(parts, repair=True) == []
    os.utime(half / checkpoint.MODEL, (1, 1))
    repaired(parts, Kind.HALF_WRITTEN)


def test_what_an_attempt_records_before_it_ends_is_left_alone_whenever_that_is(
    parts: Parts,
    store: Store,
    settings: Settings,
    database_url: str,
    train: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """It has put a checkpoint and a version in place; it records both, and ends, between any two reads."""
    parts = replace(parts, redis=False, cluster=None, server=None)
    storage, other = Artifacts(settings.storage), Store(database_url)
    listed, left = parts.artifacts.list, 0

    def begin(prefix: str = "") -> list[str]:
        nonlocal left
        found = listed(prefix)
        left = moment
        return found

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            end()

    def end() -> None:
        other.record_checkpoint(id, 1, new)
        best = other.checkpoints(id)[-1].id
        made = {"model": "reviews", "version": number, "location": version, "checkpoint": best}
        assert other.record_version(id, 1, **made, metric=id, mode="max", reason="")
        other.finish_attempt(id, 1, AttemptState.SUCCEEDED, by="attempt")

    monkeypatch.setattr(parts.artifacts, "list", begin)
    event.listen(store._engine, "before_cursor_execute", count)
    moment = 0
    while left <= 0:  # until it would be after the last read
        moment += 1
        id = f"job-{moment}"
        (first,) = train(id, 1)
        last = f"jobs/{id}/attempt-1/epoch-02"
        storage.put(tmp_path / first, last)
        new = NewCheckpoint("epoch-02", last, store.checkpoints(id)[0].digest, 2, 2, 0, 0.1, {"m": 1})
        number = store.reserve_version(id, 1, "reviews")
        version = f"models/reviews/v{number}"
        storage.put(tmp_path / first, version)
        assert verify(parts, repair=True) == []
        if left > 0:
            end()
        assert storage.exists(last) and storage.exists(version)
    assert moment > 3
    other.close()


def test_a_checkpoint_that_was_to_be_deleted(parts: Parts, store: Store, settings: Settings, train: Any):
    newest, _ = train("first")
    store.prune("first", 1, keep_last=1, mode="max")
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    repaired(parts, Kind.LEFT_OVER)
    assert Artifacts(settings.storage).list("jobs") == [newest]


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


def test_a_repair_that_fails_says_why(
    parts: Parts, settings: Settings, train: Any, store: Store, monkeypatch: pytest.MonkeyPatch
):
    newest, _ = train("first")
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    shutil.copytree(Path(settings.storage) / newest, Path(settings.storage) / "jobs/first/attempt-1/epoch-09")

    monkeypatch.setattr(parts.artifacts, "delete", refuse(30, "Read-only file system"))
    (found,) = verify(parts, repair=True)
    assert not found.repaired
    assert "Read-only file system" in found.detail


def test_a_checkpoint_that_is_pruned_meanwhile_is_no_disagreement(
    parts: Parts, store: Store, settings: Settings, train: Any, cluster: Cluster
):
    _, oldest = train("first")
    cluster.alive.add("first-1")

    def check(folder: Path, *, digest: str) -> str:
        if folder.name == Path(oldest).name:  # it goes while we look at it
            with store.writing() as connection:
                connection.execute(
                    update(CheckpointRow)
                    .where(CheckpointRow.location == oldest)
                    .values(deleted=store.clock())
                )
            shutil.rmtree(folder)
        return checkpoint.verify(folder, digest=digest)

    assert verify(replace(parts, check=check)) == []
