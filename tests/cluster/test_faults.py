"""Whose fault a failure of the ranks is. No Ray is started."""

from __future__ import annotations

import pytest
import ray
import torch

from cluster import training


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
