"""Whose fault a failure of the ranks is. No Ray is started."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import torch
from safetensors import SafetensorError

from cluster import faults, launching, training
from textvae.sources import SourceError
from textvae.train import TrainingError


def test_a_host_without_memory_is_not_the_fault_of_training():
    """Whether a rank is told so or is killed for it."""
    with pytest.raises(RuntimeError) as allocating:
        torch.empty(2**60, dtype=torch.uint8)  # more than any host has
    with pytest.raises(MemoryError) as python:
        bytearray(2**60)
    for error in (allocating.value, python.value):
        assert faults.of_host(error) == "out-of-memory"
    for error in (RuntimeError("a bug"), torch.OutOfMemoryError("CUDA out of memory")):
        assert faults.of_host(error) is None
    reason = told_by_a_rank(allocating.value)
    assert (reason.fault, reason.permanent) == ("out-of-memory", False)
    killed = [ray.exceptions.OutOfMemoryError("task was killed due to the node running low on memory")]
    assert training._fault(killed) == "out-of-memory"


def test_a_disk_that_takes_nothing_is_not_the_fault_of_training():
    """Whoever writes, and in whatever words they say it."""
    with pytest.raises(OSError, match="No space left") as plain, Path("/dev/full").open("wb", 0) as full:
        full.write(b"a checkpoint")
    tensors = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    refusals = [OSError(number, os.strerror(number)) for number in (errno.EDQUOT, errno.EROFS, errno.EIO)]
    for error in (plain.value, tensors, *refusals):
        assert faults.of_host(error) == "disk"
    assert training._fault([ray.exceptions.OutOfDiskError("no room to spill objects")]) == "disk"
    for error in (FileNotFoundError(errno.ENOENT, "no such file"), RuntimeError("a disk")):
        assert faults.of_host(error) is None
    # Reviews that cannot be used fail a job for good; not those that a full disk could not take.
    unprepared = SourceError("prepared: cannot be written: no space")
    assert told_by_a_rank(unprepared).permanent
    unprepared.__cause__ = plain.value
    reason = told_by_a_rank(unprepared)
    assert (reason.fault, reason.permanent) == ("disk", False)


def told_by_a_rank(error: BaseException) -> training.RankError:
    """What an attempt makes of the farewell of a rank that failed with this error."""
    desk = training._Desk(lambda message: {})
    desk.take(training._farewell(0, error))
    reason = desk.reason(RuntimeError("training failed"))
    assert isinstance(reason, training.RankError)
    return reason


def test_reviews_that_name_gloo_are_not_another_rank():
    for error in (SourceError("/data/igloo/a.csv: is empty"), TrainingError("gloo: the loss is nan")):
        reason = told_by_a_rank(error)
        assert (reason.fault, reason.permanent) == (None, True)
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242")
    assert told_by_a_rank(lost).fault == "rank-lost"
    assert told_by_a_rank(OSError("/data/igloo: Connection reset by peer")).fault is None


def test_a_rank_that_is_killed_as_it_starts_is_not_the_fault_of_training():
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

    killed = WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize.")
    reason = training._Desk(lambda message: {}).reason(killed)
    assert isinstance(reason, training.RankError)
    assert (reason.fault, reason.permanent) == ("rank-lost", False)


# A head that does not answer does not take the ranks' places back; a controller may be killed.
@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ray.train.TrainingFailedError("timeout in removing the placement group"), None),
        (ray.exceptions.ActorDiedError(), "rank-lost"),
    ],
)
@pytest.mark.parametrize("ended", [True, False])
def test_a_training_that_has_ended_is_not_failed_by_what_ray_cannot_clear_away(
    ended: bool, error: Exception, fault: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    said: list[dict[str, Any]] = []

    class Trainer:
        def __init__(self, *_: Any, **__: Any):
            pass

        def fit(self) -> None:
            if ended:
                end = {"kind": "end", "status": "finished", "position": {"epoch": 2, "step": 20}}
                assert launching._handler is not None
                launching._handler(end)
            raise error

    monkeypatch.setattr("cluster.trainer.Trainer", Trainer)
    monkeypatch.setattr(launching, "_own_name", "job-1")

    def fit() -> training.FitResult:
        return training.fit(
            {},
            ranks=1,
            cpus_per_rank=1,
            gpus_per_rank=0,
            data_folder=tmp_path,
            storage=str(tmp_path),
            prefix="jobs/job/attempt-1",
            resume=None,
            ray_storage=str(tmp_path),
            name="job-1",
            on_message=lambda message: said.append(message) or {},
        )

    if ended:
        assert (fit().status, fit().position.step) == ("finished", 20)
        assert str(error) in said[0]["text"]
    else:
        with pytest.raises(training.RankError, match=re.escape(str(error))) as raised:
            fit()
        assert raised.value.fault == fault
