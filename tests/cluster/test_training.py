"""Training on a real Ray: the same weights as without it, stops, resumes, failures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cluster import launching, training
from textvae import checkpoint
from textvae.artifacts import Artifacts

pytestmark = pytest.mark.ray


class Attempt:
    """One attempt that trains, seen through the file that it writes."""

    def __init__(self, name: str, folder: Path, arguments: dict[str, Any]):
        self.name, self.folder = name, folder
        folder.mkdir(parents=True)
        sys.path.insert(0, str(Path(__file__).parent))
        try:
            import attempt_training
        finally:
            sys.path.pop(0)
        environment = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
        assert launching.start(
            name, attempt_training.train, {"folder": str(folder), **arguments}, environment=environment
        )

    def said(self, kind: str | None = None) -> list[dict[str, Any]]:
        path = self.folder / "said.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [message for message in map(json.loads, lines) if kind in (None, message["kind"])]

    def await_said(self, kind: str, seconds: float = 240) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not (said := self.said(kind)):
            assert time.monotonic() < deadline, self.said()
            assert launching.state(self.name) != "dead" or self.said(kind), self.said()
            time.sleep(0.05)
        return said[-1]


def fit_arguments(config: dict[str, Any], folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "config": config,
        "ranks": 1,
        "cpus_per_rank": 1,
        "gpus_per_rank": 0,
        "data_folder": str(folder / "data"),
        "storage": str(folder / "storage"),
        "prefix": "jobs/abc/attempt-1",
        "resume": None,
        "ray_storage": str(folder / "ray"),
        **more,
    }


def test_stopped_and_resumed_on_ray_gives_the_weights_of_training_without_ray(
    local_ray, small_config, tmp_path
):
    stopped = Attempt(
        "same-1", tmp_path / "first", {"fit": fit_arguments(small_config, tmp_path), "stop": "epoch-01"}
    )

    # Meanwhile the same config without Ray, by the command line.
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**small_config, "name": "same", "resources": {"ranks": 1}}))
    command = [sys.executable, "-m", "textvae", str(config), "--output", "alone", "--data", "data-alone"]
    subprocess.run([*command, "--device", "cpu"], check=True, cwd=tmp_path, timeout=120, capture_output=True)

    result = stopped.await_said("result")
    assert (result["status"], result["step"]) == ("stopped", 8)
    (stop,) = stopped.said("checkpoint")  # that of the epoch is enough
    assert (stop["name"], stop["report"]["epoch"]) == ("jobs/abc/attempt-1/epoch-01", 1)
    assert stop["position"] == {"epoch": 1, "step": 8, "batch": 0, "ranks": 0}
    assert any("rank 0: " in each["text"] and "parameters" in each["text"] for each in stopped.said("log"))

    arguments = fit_arguments(
        small_config, tmp_path, prefix="jobs/abc/attempt-2", resume=(stop["name"], stop["digest"])
    )
    resumed = Attempt("same-2", tmp_path / "second", {"fit": arguments})
    result = resumed.await_said("result")
    assert (result["status"], result["step"]) == ("finished", 24)
    last = resumed.said("checkpoint")[-1]
    assert last["name"] == "jobs/abc/attempt-2/epoch-03"
    folder = Artifacts(tmp_path / "storage").fetch(last["name"], tmp_path / "cache")
    assert checkpoint.load(folder, digest=last["digest"]).position.step == 24
    ours = load_file(folder / "model.safetensors")
    alone = load_file(tmp_path / "alone/epoch-03/model.safetensors")
    assert ours.keys() == alone.keys()
    assert all(torch.equal(ours[name], alone[name]) for name in ours)


def test_errors_of_the_inbox_and_of_a_rank_come_out_of_fit(local_ray, small_config, tmp_path):
    wild = {**small_config["training"], "learning_rate": 1e30, "clip_norm": None}
    nan = Attempt(
        "nan-1",
        tmp_path / "nan",
        {"fit": fit_arguments({**small_config, "training": wild}, tmp_path, prefix="nan")},
    )
    fenced = Attempt(
        "fenced-1", tmp_path / "fenced", {"fit": fit_arguments(small_config, tmp_path), "refuse": "epoch-02"}
    )

    # A rank's error is named once, with its traceback in the log, and would come again.
    error = nan.await_said("error")
    assert error["type"] == "RankError"
    assert error["text"].startswith("rank 0: TrainingError: epoch 1")
    assert error["permanent"] is True
    assert nan.said("checkpoint") == []
    assert len([each for each in nan.said("log") if "Traceback" in each["text"]]) == 1

    # What the inbox raised comes out as it was, and no later checkpoint was offered.
    error = fenced.await_said("error")
    assert (error["type"], error["text"]) == ("PermissionError", "a newer attempt works on this job")
    assert len(fenced.said("checkpoint")) == 2


@pytest.fixture
def two_ranks(local_ray, small_config, tmp_path) -> Callable[..., tuple[Attempt, list[psutil.Process]]]:
    """Starts an attempt that trains for long; returns it with its ranks once there is a checkpoint."""

    def start(name: str, **more: Any) -> tuple[Attempt, list[psutil.Process]]:
        longer = {**small_config, "training": {**small_config["training"], "epochs": 5000}}
        fit = fit_arguments(longer, tmp_path, ranks=2, **more)
        attempt = Attempt(name, tmp_path / "attempt", {"fit": fit})
        attempt.await_said("checkpoint")
        raylet = psutil.Process(attempt.said("begin")[0]["pid"]).parent()
        ranks = [each for each in raylet.children() if "RayTrainWorker" in " ".join(each.cmdline())]
        assert len(ranks) == 2
        return attempt, ranks

    return start


def test_a_killed_rank_ends_training_with_an_error_that_names_it(two_ranks):
    attempt, ranks = two_ranks("killed-1")
    ranks[0].kill()
    error = attempt.await_said("error")
    assert error["type"] == "RankError"
    assert "died" in error["text"]
    assert (error["fault"], error["permanent"]) == ("rank-lost", False)


def test_a_frozen_rank_ends_training_and_is_not_left_behind(two_ranks):
    """Its process is there and says nothing: only the health check finds that out."""
    attempt, ranks = two_ranks("frozen-1", silence=5)
    frozen, _ = ranks
    frozen.suspend()
    began = time.monotonic()
    error = attempt.await_said("error", 60)
    print(f"training had ended {time.monotonic() - began:.1f} s after its rank was frozen")
    assert error["type"] == "RankError"
    assert "WorkerHealthCheckTimeoutError" in error["text"]
    assert (error["fault"], error["permanent"]) == ("rank-lost", False)
    with suppress(psutil.NoSuchProcess):  # Ray may have killed it by now, frozen as it is
        frozen.resume()
    assert psutil.wait_procs(ranks, timeout=10)[1] == []


def test_a_rank_without_memory_ends_training_with_that_as_the_fault(local_ray, small_config, tmp_path):
    huge = {**small_config, "model": {**small_config["model"], "embedding": 10**14}}  # more than any host has
    attempt = Attempt("memory-1", tmp_path / "attempt", {"fit": fit_arguments(huge, tmp_path)})
    error = attempt.await_said("error")
    assert error["type"] == "RankError"
    assert "can't allocate memory" in error["text"]
    assert (error["fault"], error["permanent"]) == ("out-of-memory", False)


def test_a_rank_that_gives_no_answer_is_a_lost_one_whatever_the_others_say():
    from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError

    silent = WorkerHealthCheckTimeoutError("A worker health check has been hanging for 61 seconds.")
    desk = training._Desk(lambda message: {})
    # The other ranks wait for it at their next exchange, and fail when their connection to it ends.
    desk.take({"kind": "failure", "rank": 0, "error": "RuntimeError: gloo", "secondary": True})
    error = desk.reason(SimpleNamespace(worker_failures={1: silent}))
    assert isinstance(error, training.RankError)
    assert str(error).startswith("rank 1 died: WorkerHealthCheckTimeoutError: A worker health check has been")
    assert (error.fault, error.permanent) == ("rank-lost", False)
