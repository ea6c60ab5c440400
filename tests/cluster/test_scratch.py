"""What ranks leave in the temporary folder, and who removes it. No Ray is started."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from cluster import scratch, training

# A rank at work: it has written a part of a checkpoint, and goes on until it is killed.
RANK = """
import sys
from cluster import scratch
with scratch.folder() as folder:
    (folder / "epoch-01").mkdir()
    (folder / "epoch-01" / "model.safetensors").write_text("half of it")
    print(folder, flush=True)
    sys.stdin.read()
"""

Rank = tuple[subprocess.Popen[str], Path]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this process and of those that it starts."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def rank(place: Path) -> Iterator[Callable[[], Rank]]:
    """Starts a rank; returns its process and its folder."""
    started: list[subprocess.Popen[str]] = []

    def start() -> Rank:
        process = subprocess.Popen(
            [sys.executable, "-c", RANK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_a_killed_rank_left_goes_when_the_next_one_starts(place: Path, rank: Callable[[], Rank]) -> None:
    killed, its = rank()
    alive, theirs = rank()
    killed.kill()
    killed.wait()
    assert (its / "epoch-01" / "model.safetensors").exists()
    with scratch.folder() as ours:
        assert list(ours.iterdir()) == []
        assert set(place.iterdir()) == {theirs.parent, ours.parent}
    assert list(place.iterdir()) == [theirs.parent]
    assert (theirs / "epoch-01" / "model.safetensors").read_text() == "half of it"
    alive.communicate("")  # it ends by itself
    assert list(place.iterdir()) == []


def test_what_is_not_of_a_dead_rank_of_this_user_stays(
    place: Path, rank: Callable[[], Rank], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, its = rank()
    killed.kill()
    killed.wait()
    elsewhere = its.parent.rename(tmp_path / "elsewhere")
    (place / "textvae-rank-link").symlink_to(elsewhere)
    (place / "textvae-rank-file").write_text("a note")
    (place / "textvae-rank-other").mkdir()  # without a lock
    (place / "textvae-mine").mkdir()
    before = set(place.iterdir())
    with scratch.folder():
        pass
    assert set(place.iterdir()) == before
    assert (elsewhere / "work" / "epoch-01" / "model.safetensors").exists()

    elsewhere.rename(its.parent)
    monkeypatch.setattr("os.getuid", lambda: its.stat().st_uid + 1)
    with scratch.folder():
        pass
    assert its.exists()


def test_a_rank_works_in_such_a_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours: list[Path] = []

    def run(config: object, *, scratch: Path, **given: Any) -> None:
        ours.append(scratch)
        (scratch / "epoch-01").mkdir()
        raise RuntimeError("training fails")

    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr("ray.get_actor", lambda *name, **given: mock.MagicMock())
    monkeypatch.setattr("ray.get", lambda *asked, **given: {})
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(training, "_device", lambda *asked: ("cpu", None))
    monkeypatch.setattr(training, "run", run)
    arguments = {"attempt": "job-1", "threads": 1, "config": {}, "storage": str(place.parent / "storage")}
    arguments |= {"gpus": False, "resume": None, "data_folder": "data", "prefix": "jobs", "max_ranks": None}
    with pytest.raises(RuntimeError, match="training fails"):
        training._rank(arguments)
    assert ours[0].parent.parent == place and ours[0].parent.name.startswith("textvae-rank-")
    assert list(place.iterdir()) == []
