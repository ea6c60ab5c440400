"""Training on a real Ray: the same weights as without it, stops, resumes, failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cluster import launching
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

    def await_said(self, kind: str, seconds: float = 90) -> dict[str, Any]:
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


def test_one_rank_on_ray_gives_the_weights_of_training_without_ray(local_ray, small_config, tmp_path):
    attempt = Attempt("same-1", tmp_path / "attempt", {"fit": fit_arguments(small_config, tmp_path)})

    # Meanwhile the same config without Ray, by the command line.
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**small_config, "name": "same", "resources": {"ranks": 1}}))
    subprocess.run(
        [sys.executable, "-m", "textvae", str(config), "--output", "alone", "--data", "alone-data", "--device", "cpu"],
        check=True,
        cwd=tmp_path,
        timeout=120,
        capture_output=True,
    )

    result = attempt.await_said("result")
    assert (result["status"], result["step"]) == ("finished", 24)
    checkpoints = attempt.said("checkpoint")
    assert [each["name"] for each in checkpoints] == [f"jobs/abc/attempt-1/epoch-0{n}" for n in (1, 2, 3)]
    assert [each["report"]["epoch"] for each in checkpoints] == [1, 2, 3]
    assert checkpoints[-1]["position"] == {"epoch": 3, "step": 24, "batch": 0}
    store = Artifacts(tmp_path / "storage")
    last = store.fetch(checkpoints[-1]["name"], tmp_path / "cache")
    assert checkpoint.load(last, digest=checkpoints[-1]["digest"]).position.step == 24
    ours, alone = load_file(last / "model.safetensors"), load_file(tmp_path / "alone/epoch-03/model.safetensors")
    assert ours.keys() == alone.keys()
    assert all(torch.equal(ours[name], alone[name]) for name in ours)
    assert any("rank 0: " in each["text"] and "parameters" in each["text"] for each in attempt.said("log"))


def test_two_ranks_stop_when_told_and_resume_to_the_same_weights(local_ray, small_config, tmp_path):
    whole = Attempt("whole-1", tmp_path / "whole", {"fit": fit_arguments(small_config, tmp_path, ranks=2)})
    assert whole.await_said("result")["status"] == "finished"

    stopped = Attempt(
        "stop-1",
        tmp_path / "stopped",
        {"fit": fit_arguments(small_config, tmp_path, ranks=2, prefix="stopped"), "stop": "epoch-01"},
    )
    assert stopped.await_said("result")["status"] == "stopped"
    at = stopped.said("checkpoint")[-1]
    assert at["report"] is None
    assert at["name"] == "stopped/step-000009"

    resumed = Attempt(
        "resume-1",
        tmp_path / "resumed",
        {
            "fit": fit_arguments(
                small_config, tmp_path, ranks=2, prefix="resumed", resume=(at["name"], at["digest"])
            )
        },
    )
    assert resumed.await_said("result")["status"] == "finished"
    store = Artifacts(tmp_path / "storage")
    a = load_file(store.fetch("jobs/abc/attempt-1/epoch-03", tmp_path) / "model.safetensors")
    b = load_file(store.fetch("resumed/epoch-03", tmp_path) / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
    # The epoch that was interrupted reports all of its reviews.
    reports = [attempt.said("checkpoint")[number]["report"] for attempt, number in ((whole, 1), (resumed, 0))]
    assert reports[0]["train"] == reports[1]["train"]
    assert reports[0]["validation"] == reports[1]["validation"]


def test_what_the_inbox_raises_ends_training_and_comes_out_of_fit(local_ray, small_config, tmp_path):
    attempt = Attempt(
        "fenced-1", tmp_path / "attempt", {"fit": fit_arguments(small_config, tmp_path), "refuse": "epoch-02"}
    )
    error = attempt.await_said("error")
    assert (error["type"], error["text"]) == ("PermissionError", "a newer attempt works on this job")
    assert len(attempt.said("checkpoint")) == 2


def test_a_killed_rank_ends_training_with_an_error_that_names_it(local_ray, small_config, tmp_path):
    import psutil

    longer = {**small_config, "training": {**small_config["training"], "epochs": 5000}}
    attempt = Attempt("killed-1", tmp_path / "attempt", {"fit": fit_arguments(longer, tmp_path, ranks=2)})
    attempt.await_said("checkpoint")
    raylet = psutil.Process(attempt.said("begin")[0]["pid"]).parent()
    ranks = [each for each in raylet.children() if "RayTrainWorker" in " ".join(each.cmdline())]
    assert len(ranks) == 2
    os.kill(ranks[0].pid, signal.SIGKILL)
    error = attempt.await_said("error")
    assert error["type"] == "RankError"
    assert "died" in error["text"]
    assert error["permanent"] is False


def test_a_rank_that_raises_is_named_once_with_its_traceback_in_the_log(local_ray, small_config, tmp_path):
    nan = {**small_config, "training": {**small_config["training"], "learning_rate": 1e30, "clip_norm": None}}
    attempt = Attempt("nan-1", tmp_path / "attempt", {"fit": fit_arguments(nan, tmp_path)})
    error = attempt.await_said("error")
    assert error["type"] == "RankError"
    assert error["text"].startswith("rank 0: TrainingError: epoch 1")
    assert error["permanent"] is True
    assert attempt.said("checkpoint") == []
    assert [each for each in attempt.said("log") if "Traceback" in each["text"]]
