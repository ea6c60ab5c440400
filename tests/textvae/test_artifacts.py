"""The artifact store: whole checkpoints by name, in a folder and in an object store."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from textvae import artifacts
from textvae.artifacts import ArtifactError, Artifacts, ArtifactUnavailable
from textvae.checkpoint import FILES, CheckpointError, verify


def make(folder: Path, content: str = "content") -> Path:
    """A folder that has a manifest and its files, as far as the store looks."""
    folder.mkdir(parents=True)
    hashes = {}
    for name in FILES:
        (folder / name).write_text(f"{content} of {name}")
        hashes[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": hashes}))
    return folder


@pytest.fixture(params=["folder", "file URI", "object store"])
def store(request, tmp_path) -> Artifacts:
    if request.param == "folder":
        return Artifacts(tmp_path / "root")
    if request.param == "file URI":
        return Artifacts((tmp_path / "a root").as_uri())
    # What is not local goes through pyarrow's file systems: here one that happens to be on this disk.
    (tmp_path / "bucket").mkdir()
    return Artifacts("", fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem()))


def test_what_is_put_is_fetched(store, tmp_path):
    folder = make(tmp_path / "epoch-01")
    assert not store.exists("jobs/abc/attempt-1/epoch-01")
    store.put(folder, "jobs/abc/attempt-1/epoch-01")
    assert store.exists("jobs/abc/attempt-1/epoch-01")
    fetched = store.fetch("jobs/abc/attempt-1/epoch-01", tmp_path / "cache")
    assert verify(fetched) == verify(folder)
    assert store.fetch("jobs/abc/attempt-1/epoch-01", tmp_path / "cache") == fetched


@pytest.mark.parametrize("content", [None, b"torn"], ids=["gone", "torn"])
def test_a_copy_that_was_damaged_since_is_fetched_anew(tmp_path, content):
    (tmp_path / "bucket").mkdir()
    store = Artifacts("", fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem()))
    folder = make(tmp_path / "a")
    store.put(folder, "m/1")
    path = store.fetch("m/1", tmp_path / "cache") / "model.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    assert verify(store.fetch("m/1", tmp_path / "cache")) == verify(folder)
    assert [each.name for each in (tmp_path / "cache").iterdir()] == [path.parent.name]


def test_what_is_deleted_while_it_is_put_is_put_whole_or_not_at_all(store, tmp_path, monkeypatch):
    """A backup copies what a service prunes."""
    folder, last = make(tmp_path / "epoch-01"), FILES[-1]
    opened = artifacts._open

    def deleted_behind(path: Path):
        file = opened(path)
        if path.name == last:
            for each in folder.iterdir():
                each.unlink()
        return file

    monkeypatch.setattr(artifacts, "_open", deleted_behind)
    store.put(folder, "jobs/a/attempt-1/epoch-01")
    verify(store.fetch("jobs/a/attempt-1/epoch-01", tmp_path / "cache"))
    with pytest.raises(CheckpointError, match="No such file"):
        store.put(folder, "jobs/a/attempt-1/epoch-02")
    assert not store.exists("jobs/a/attempt-1/epoch-02")


def test_names_are_listed_and_deleted(store, tmp_path):
    folder = make(tmp_path / "c")
    for name in ("jobs/a/1/epoch-02", "jobs/a/1/epoch-01", "models/m/1"):
        store.put(folder, name)
    assert store.list() == ["jobs/a/1/epoch-01", "jobs/a/1/epoch-02", "models/m/1"]
    assert store.list("jobs/a") == ["jobs/a/1/epoch-01", "jobs/a/1/epoch-02"]
    assert store.list("nobody") == []
    store.delete("jobs/a/1/epoch-02")
    store.delete("jobs/a/1/epoch-02")
    assert store.list("jobs") == ["jobs/a/1/epoch-01"]
    assert not store.exists("jobs/a/1/epoch-02")


def test_a_name_belongs_to_one_checkpoint(store, tmp_path):
    store.put(make(tmp_path / "a"), "m/1")
    store.put(tmp_path / "a", "m/1")
    with pytest.raises(ArtifactError, match="m/1: another checkpoint has this name already"):
        store.put(make(tmp_path / "b", "other"), "m/1")
    assert verify(store.fetch("m/1", tmp_path / "cache")) == verify(tmp_path / "a")


def test_a_torn_folder_is_not_put(store, tmp_path):
    folder = make(tmp_path / "a")
    (folder / FILES[-1]).write_text("changed")
    with pytest.raises(CheckpointError, match=FILES[-1]):
        store.put(folder, "m/1")
    assert not store.exists("m/1")
    assert store.list() == []
    (folder / FILES[0]).unlink()
    with pytest.raises(CheckpointError, match=FILES[0]):
        store.put(folder, "m/2")
    with pytest.raises(CheckpointError, match="manifest"):
        store.put(tmp_path / "nothing", "m/3")


def test_what_is_not_there_is_an_error(store, tmp_path):
    with pytest.raises(ArtifactError, match="m/1: no such checkpoint"):
        store.fetch("m/1", tmp_path / "cache")


def test_a_store_that_does_not_answer_is_not_one_without_the_checkpoint(tmp_path):
    class Away:
        def open_input_stream(self, path: str) -> None:
            raise OSError("AWS Error NETWORK_CONNECTION")

    for ask in (Artifacts("", Away()).exists, lambda name: Artifacts("", Away()).fetch(name, tmp_path)):
        with pytest.raises(ArtifactUnavailable, match="m/1: cannot be read: AWS Error") as raised:
            ask("m/1")
        assert isinstance(raised.value, ArtifactError) and isinstance(raised.value, OSError)


def test_a_root_that_is_no_uri_is_named():
    with pytest.raises(ArtifactError, match=r"artifact store s3://\[x: not a URI"):
        Artifacts("s3://[x")


@pytest.mark.parametrize("name", ["", "/etc", "a/../b", "a//b", ".hidden", "a\\b"])
def test_a_name_stays_below_the_root(store, name, tmp_path):
    with pytest.raises(ArtifactError, match="not an artifact's name"):
        store.put(make(tmp_path / "a"), name)


def test_half_a_checkpoint_in_an_object_store_does_not_exist(tmp_path):
    (tmp_path / "bucket").mkdir()

    bucket = fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem())
    store = Artifacts("", bucket)
    folder = make(tmp_path / "a")
    for name in FILES[:2]:  # as a process that was killed leaves it
        (tmp_path / "bucket/m/1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "bucket/m/1" / name).write_text("half")
    assert not store.exists("m/1")
    assert store.list() == []
    os.utime(tmp_path / "bucket/m/1" / FILES[0], (1, 1))
    os.utime(tmp_path / "bucket/m/1" / FILES[1], (7, 7))
    assert store.torn("m") == {"m/1": 7} and store.torn("elsewhere") == {}
    store.put(folder, "m/1")
    assert verify(store.fetch("m/1", tmp_path / "cache")) == verify(folder)
    assert store.torn("m") == {}


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_object_is_named_and_not_cached(tmp_path, damage):
    (tmp_path / "bucket").mkdir()
    store = Artifacts("", fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem()))
    store.put(make(tmp_path / "a"), "m/1")
    victim = tmp_path / "bucket/m/1" / FILES[0]
    if damage == "changed":
        victim.write_text("changed")
    else:
        victim.unlink()
    with pytest.raises(CheckpointError, match=FILES[0]):
        store.fetch("m/1", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_location_leads_back_to_the_checkpoint(tmp_path):
    for root in (tmp_path / "one", (tmp_path / "two").as_uri()):
        store = Artifacts(root)
        store.put(make(tmp_path / f"made-{len(str(root))}"), "m/1")
        assert artifacts.fetch(store.location("m/1"), tmp_path / "cache") == Path(store.location("m/1"))
    remote: Any = Artifacts("prefix", fs.LocalFileSystem())
    assert remote.location("m/1") == "prefix/m/1"


def test_a_uri_keeps_its_query_behind_the_name():
    store = Artifacts("s3://bucket/some/prefix?region=us-east-1&endpoint_override=127.0.0.1:1&scheme=http")
    assert store.location("m/1").startswith("s3://bucket/some/prefix/m/1?region=us-east-1")


def test_a_root_that_cannot_be_opened_is_an_error():
    with pytest.raises(ArtifactError, match="gopher://x"):
        Artifacts("gopher://x")
