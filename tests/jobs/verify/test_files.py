"""The artifact store: every disagreement is named, what can be repaired is, and nothing good is lost."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from sqlalchemy import event, update

from jobs.settings import Settings
from jobs.store import AttemptState, EventKind, NewCheckpoint, Store
from jobs.store.tables import CheckpointRow
from jobs.verify import Disagreement, Kind, Parts, verify
from textvae import checkpoint
from textvae.artifacts import Artifacts

from ..trained import promote
from .conftest import Cluster, kinds, refuse, repaired

DATABASES = ("sqlite", "postgresql")


class Bucket:
    """The artifact store as an object store, whose network is away."""

    def __init__(self, folder: str):
        self._folder = fs.SubTreeFileSystem(folder, fs.LocalFileSystem())

    def open_input_stream(self, path: str) -> Any:
        raise OSError("AWS Error NETWORK_CONNECTION during HeadObject operation")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._folder, name)


def test_a_copy_that_was_damaged_says_nothing_of_the_files(
    parts: Parts, store: Store, settings: Settings, train: Any, cluster: Cluster
):
    """Whoever cleans temporary folders may have been at it."""
    newest, oldest = train("first")
    cluster.alive.add("first-1")
    bucket = Artifacts("", fs.SubTreeFileSystem(settings.storage, fs.LocalFileSystem()))
    parts = replace(parts, artifacts=bucket)
    assert verify(parts) == []
    copies = [path for path in settings.cache.rglob("*") if path.is_file()]
    assert copies
    for path in copies:
        path.unlink()
    assert verify(parts, repair=True) == []
    assert [c.location for c in store.checkpoints("first")] == [newest, oldest]


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


@pytest.fixture
def location(parts: Parts, store: Store, settings: Settings, train: Any, cluster: Cluster) -> str:
    """Where the served version of `first`, which trains on, has its files."""
    train("first")
    cluster.alive.add("first-1")
    location = promote(store, settings, "first")
    verify(parts, repair=True)
    return location


def test_a_version_whose_files_are_gone_is_copied_again(parts: Parts, settings: Settings, location: str):
    shutil.rmtree(Path(settings.storage) / location)
    repaired(parts, Kind.VERSION)


def test_a_version_that_cannot_be_copied_again_is_named(
    parts: Parts, store: Store, settings: Settings, location: str
):
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


def test_files_of_which_nothing_of_ours_has_the_name_are_only_named(
    parts: Parts, store: Store, settings: Settings, train: Any
):
    newest, _ = train("first")
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    storage, strange = Path(settings.storage), ["elsewhere/copies/of-first/epoch-02", "jobs/copy"]
    for name in strange:
        shutil.copytree(storage / newest, storage / name)
    found = verify(parts, repair=True)
    assert [(one.kind, one.what, one.repaired) for one in found] == [
        (Kind.UNRECORDED, name, False) for name in strange
    ]
    assert all((storage / name).exists() for name in (newest, *strange))


def test_what_a_kill_has_left_in_an_object_store(
    parts: Parts, store: Store, settings: Settings, train: Any, cluster: Cluster
):
    """Nothing is renamed there: a checkpoint whose manifest is not there yet, or no more, is none."""
    newest, _ = train("first")
    cluster.alive.add("first-1")
    storage = Path(settings.storage)
    parts = replace(parts, artifacts=Artifacts("", fs.SubTreeFileSystem(str(storage), fs.LocalFileSystem())))
    torn = [f"jobs/first/attempt-{number}/epoch-09" for number in (1, 2)]
    torn += ["jobs/first/attempt-3/epoch-09", "jobs/stranger/attempt-1/epoch-09"]
    for name in torn:
        shutil.copytree(storage / newest, storage / name)
        (storage / name / checkpoint.MANIFEST).unlink()
        for file in (storage / name).iterdir():
            os.utime(file, None if "attempt-3" in name else (1, 1))
    found = verify(parts, repair=True)
    assert [(one.kind, one.what, one.repaired) for one in found] == [
        (Kind.HALF_WRITTEN, "jobs/first/attempt-2/epoch-09", True),  # of the first an attempt is active
        (Kind.HALF_WRITTEN, "jobs/stranger/attempt-1/epoch-09", False),
    ]
    assert [(storage / name).exists() for name in torn] == [True, False, True, True]
    assert kinds(verify(parts)) == [Kind.HALF_WRITTEN]


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
