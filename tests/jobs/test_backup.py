from __future__ import annotations

import json
import resource
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.backup import CONTENTS, DATABASE, BackupError, Tools, backup, restore
from jobs.settings import Settings, sqlite_url
from jobs.store import AttemptState, Job, JobState, NewCheckpoint, Store
from textvae import checkpoint
from textvae.artifacts import ArtifactError, Artifacts
from textvae.checkpoint import CheckpointError

from .trained import promote, train

__all__ = ["train"]

AddJob = Callable[..., Job]

TOOLS = Tools(open=Artifacts, check=checkpoint.verify, broken=(ArtifactError, CheckpointError))


@pytest.fixture
def elsewhere(settings: Settings, tmp_path: Path) -> Settings:
    """A home that is not there yet."""
    home = tmp_path / "another"
    return replace(
        settings, home=home, database_url=f"sqlite:///{home / 'textvae.db'}", storage=str(home / "storage")
    )


def test_a_backup_is_restored_to_an_empty_home(
    store: Store, settings: Settings, elsewhere: Settings, train: Any, tmp_path: Path
):
    train("first")
    promote(store, settings, "first")
    train("second")
    store.finish_attempt("first", 1, AttemptState.SUCCEEDED, by="attempt")
    made = backup(store, settings, tmp_path / "copy", TOOLS)
    assert (made.artifacts, made.missing) == (5, ())
    shutil.rmtree(settings.home)
    done = restore(tmp_path / "copy", elsewhere, TOOLS)
    assert (done.created, done.artifacts) == (made.created, 5)
    restored = Store(elsewhere.database_url)
    assert [(job.id, job.state) for job in restored.jobs()] == [
        ("second", JobState.RUNNING),
        ("first", JobState.SUCCEEDED),
    ]
    for recorded in [
        *restored.checkpoints("first"),
        *restored.checkpoints("second"),
        restored.version("reviews"),
    ]:
        checkpoint.verify(Path(elsewhere.storage) / recorded.location, digest=recorded.digest)
    assert elsewhere.home.stat().st_mode & 0o077 == 0
    # It can be written to: what was under way is ended and tried again.
    assert restored.finish_attempt("second", 1, AttemptState.LOST, by="test").state is JobState.QUEUED
    restored.close()


def test_names_of_any_characters_and_a_store_elsewhere_in_the_home(
    store: Store, settings: Settings, train: Any, tmp_path: Path
):
    train("first")
    made = backup(store, settings, tmp_path / "b?1%20", TOOLS)
    assert (made.artifacts, made.missing) == (2, ())
    home = tmp_path / "home %3F"
    other = replace(
        settings, home=home, database_url=sqlite_url(home / DATABASE), storage=str(home / "kept" / "files")
    )
    assert restore(tmp_path / "b?1%20", other, TOOLS).artifacts == 2
    restored = Store(other.database_url)
    for recorded in restored.checkpoints("first"):
        checkpoint.verify(home / "kept" / "files" / recorded.location, digest=recorded.digest)
    restored.close()
    assert {each.name for each in home.iterdir()} >= {DATABASE, "kept"}


def test_a_folder_that_cannot_be_is_named(store: Store, settings: Settings, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BackupError, match=r"cannot be written: .*file"):
        backup(store, settings, tmp_path / "file" / "copy", TOOLS)


def test_a_backup_of_a_service_at_work_is_whole(
    store: Store, settings: Settings, elsewhere: Settings, train: Any, tmp_path: Path
):
    """Jobs are submitted, and checkpoints written and pruned, while it is taken."""
    train("first", 1)
    done, storage, root = threading.Event(), Artifacts(settings.storage), Path(settings.storage)

    def work() -> None:
        other = Store(settings.database_url)
        source = root / "jobs/first/attempt-1/epoch-01"
        digest = checkpoint.verify(source)
        copy = tmp_path / "source"
        shutil.copytree(source, copy)
        number = 1
        while not done.is_set():
            number += 1
            location = f"jobs/first/attempt-1/epoch-{number:02}"
            storage.put(copy, location)
            new = NewCheckpoint(f"epoch-{number:02}", location, digest, number, number, 0, 0.5, {})
            other.record_checkpoint("first", 1, new)
            for doomed in other.prune("first", 1, keep_last=1, mode="max"):
                storage.delete(doomed.location)
                other.purged(doomed.id)
        other.close()

    working = threading.Thread(target=work)
    working.start()
    try:
        made = [backup(store, settings, tmp_path / f"copy-{number}", TOOLS) for number in range(5)]
    finally:
        done.set()
        working.join()
    assert all(one.missing == () for one in made)
    for number in range(5):
        home = tmp_path / f"home-{number}"
        target = replace(
            elsewhere, home=home, database_url=f"sqlite:///{home / DATABASE}", storage=str(home / "storage")
        )
        restore(tmp_path / f"copy-{number}", target, TOOLS)
        restored = Store(target.database_url)
        for recorded in restored.checkpoints("first"):
            checkpoint.verify(home / "storage" / recorded.location, digest=recorded.digest)
        restored.close()


def test_what_is_recorded_and_cannot_be_read_is_told(
    store: Store, settings: Settings, elsewhere: Settings, train: Any, tmp_path: Path
):
    newest, oldest = train("first")
    (Path(settings.storage) / newest / checkpoint.MODEL).write_bytes(b"torn")
    made = backup(store, settings, tmp_path / "copy", TOOLS)
    assert made.missing == (newest,)
    restore(tmp_path / "copy", elsewhere, TOOLS)
    restored = Store(elsewhere.database_url)
    assert [c.location for c in restored.checkpoints("first")] == [oldest]
    restored.close()
    assert [c.location for c in store.checkpoints("first")] == [newest, oldest]


def test_what_cannot_be_read_now_is_not_recorded_as_gone(
    store: Store, settings: Settings, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    newest, oldest = train("first")
    original = checkpoint.sha256

    def sha256(path: Path) -> str:
        if newest in str(path):
            raise OSError(5, "Input/output error")
        return original(path)

    monkeypatch.setattr(checkpoint, "sha256", sha256)
    assert backup(store, settings, tmp_path / "copy", TOOLS).missing == (newest,)
    copy = Store(f"sqlite:///{tmp_path / 'copy' / DATABASE}")
    assert [c.location for c in copy.checkpoints("first")] == [newest, oldest]
    copy.close()


def test_a_backup_that_fails_leaves_nothing(store: Store, settings: Settings, train: Any, tmp_path: Path):
    train("first")

    class Full(Artifacts):
        def put(self, folder: Path, name: str) -> None:
            raise OSError(28, "No space left on device")

    tools = replace(TOOLS, open=lambda root: (Full if "partial" in root else Artifacts)(root))
    with pytest.raises(BackupError, match="No space left on device"):
        backup(store, settings, tmp_path / "copies" / "copy", tools)
    assert list((tmp_path / "copies").iterdir()) == []
    with pytest.raises(BackupError, match="exists"):
        backup(store, settings, tmp_path, TOOLS)


def test_a_disk_that_fills_up_under_the_database_is_told(store: Store, settings: Settings, tmp_path: Path):
    config = {"text": "x" * 3_000_000}
    store.add_job("large", config=config, name="m", owner="ada", priority=0, ranks=1, cpus=1, gpus=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # no file of this process may be larger
    try:
        with pytest.raises(BackupError, match=r"cannot be written: .*textvae\.db"):
            backup(store, settings, tmp_path / "copies" / "copy", TOOLS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "copies").iterdir()) == []


def test_a_restore_refuses_what_it_must(
    store: Store, settings: Settings, elsewhere: Settings, train: Any, tmp_path: Path
):
    train("first")
    copy = tmp_path / "copy"
    backup(store, settings, copy, TOOLS)
    with pytest.raises(BackupError, match="not empty"):
        restore(copy, settings, TOOLS)
    with pytest.raises(BackupError, match="no backup"):
        restore(settings.home, elsewhere, TOOLS)
    with pytest.raises(BackupError, match="TEXTVAE_DATABASE_URL"):
        restore(copy, replace(elsewhere, database_url="sqlite:////tmp/other.db"), TOOLS)
    victim = next((copy / "storage").rglob(checkpoint.MODEL))
    whole = victim.read_bytes()
    victim.write_bytes(b"torn")
    with pytest.raises(BackupError, match="torn"):
        restore(copy, elsewhere, TOOLS)
    victim.write_bytes(whole)
    with (copy / DATABASE).open("r+b") as file:
        file.seek(5000)
        file.write(b"changed")
    with pytest.raises(BackupError, match="damaged"):
        restore(copy, elsewhere, TOOLS)
    (copy / CONTENTS).write_text(json.dumps({"format": 99}))
    with pytest.raises(BackupError, match="format 99"):
        restore(copy, elsewhere, TOOLS)
    assert not elsewhere.home.exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_of_postgresql_the_artifacts_alone_are_copied(
    database: str, store: Store, settings: Settings, elsewhere: Settings, train: Any, tmp_path: Path
):
    train("first")
    with pytest.raises(BackupError, match="pg_dump"):
        backup(store, settings, tmp_path / "copy", TOOLS)
    made = backup(store, settings, tmp_path / "copy", TOOLS, artifacts_only=True)
    assert (made.database, made.artifacts) == (False, 2)
    shutil.rmtree(settings.storage)
    restore(tmp_path / "copy", settings, TOOLS)
    for recorded in store.checkpoints("first"):
        checkpoint.verify(Path(settings.storage) / recorded.location, digest=recorded.digest)
