"""Whose fault a failure of the ranks is. No Ray is started."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import torch

from cluster import launching, training


def test_a_host_without_memory_is_not_the_fault_of_training():
    """Whether a rank is told so or is killed for it."""
    with pytest.raises(RuntimeError) as allocating:
        torch.empty(2**60, dtype=torch.uint8)  # more than any host has
    with pytest.raises(MemoryError) as python:
        bytearray(2**60)
    for error in (allocating.value, python.value):
        assert training.no_memory(error)
    for error in (RuntimeError("a bug"), torch.OutOfMemoryError("CUDA out of memory")):
        assert not training.no_memory(error)
    desk = training._Desk(lambda message: {})
    desk.take(
        {
            "kind": "failure",
            "rank": 0,
            "error": "MemoryError: ",
            "traceback": "",
            "memory": True,
            "permanent": False,
            "secondary": False,
        }
    )
    reason = desk.reason(RuntimeError("training failed"))
    assert isinstance(reason, training.RankError)
    assert (reason.fault, reason.permanent) == ("out-of-memory", False)
    killed = [ray.exceptions.OutOfMemoryError("task was killed due to the node running low on memory")]
    assert training._fault(killed) == "out-of-memory"


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
