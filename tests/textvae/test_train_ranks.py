"""Several ranks train together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from textvae import checkpoint, train
from textvae.checkpoint import Position

from .gloo_ranks import noting
from .training import STEPS, Hooks, elbo, folder, modern, one_thread, run, same_checkpoint, staged, whole

__all__ = ["folder", "one_thread", "whole"]


def run_ranks(world_size: int, jobs: list[dict[str, Any]]) -> None:
    """Train on several ranks, each a process, over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("gloo_ranks.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(world_size), str(port), json.dumps(jobs)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * world_size, "\n".join(errors)


def test_several_ranks_take_the_exact_step_of_one_and_resume_bit_for_bit(folder, tmp_path):
    # One step of all reviews, which three ranks share unequally, and without anything random in it. Adam's
    # epsilon makes the step proportional to the gradient, so that it shows.
    step = elbo(
        folder,
        data={"train_size": 100},
        model={"dropout": 0.0, "noise_std": 1e-6},
        objective={"word_dropout": 0.0, "kl_warmup_epochs": 0},
        training={
            "epochs": 1,
            "batch_size": 1000,
            "clip_norm": None,
            "learning_rate": 1.0,
            "adam_epsilon": 1.0,
        },
    )
    still = {"dropout": 0.0, "noise_std": 1e-6, "ngram_dropout": 0.0, "naive_bayes_order": 2}
    quiet = {**modern(folder).model_dump()["objective"], "scored_share": 1.0, "free_bits": 30.0}
    quiet |= {"word_dropout": 0.0, "kl_warmup_epochs": 0, "adversarial_weight": 20.0, "words_weight": 0.2}
    once = {"schedule": "constant", **step.model_dump()["training"]}
    modern_step = elbo(
        folder,
        data={"train_size": 100},
        model={**modern(folder).model_dump()["model"], **still},
        objective=quiet,
        training=once,
    )
    objective = {"adversarial_weight": 2.0, "words_weight": 0.1}
    config = elbo(folder, objective=objective, training={"averaging": 0.9, "layer_decay": 0.5})
    data = str(folder / "data")
    job = {"config": config.model_dump(mode="json"), "data": data}
    in_stages = {"config": staged(folder).model_dump(mode="json"), "data": data}
    stop_at = STEPS + 3
    run_ranks(
        3,
        [
            {"config": step.model_dump(mode="json"), "data": data, "scratch": str(tmp_path / "step")},
            {
                "config": modern_step.model_dump(mode="json"),
                "data": data,
                "scratch": str(tmp_path / "modern-step"),
            },
            {**job, "scratch": str(tmp_path / "whole")},
            {**job, "scratch": str(tmp_path / "stopped"), "stop_at": stop_at},
            {
                **job,
                "scratch": str(tmp_path / "resumed"),
                "resume": str(tmp_path / f"stopped/step-{stop_at:06d}"),
            },
            {**job, "scratch": str(tmp_path / "in-validation"), "in_validation": 2},
            {
                **job,
                "scratch": str(tmp_path / "judged-again"),
                "resume": str(tmp_path / f"in-validation/step-{2 * STEPS:06d}"),
            },
            {**in_stages, "scratch": str(tmp_path / "staged")},
            {**in_stages, "scratch": str(tmp_path / "staged-stopped"), "stop_at": stop_at},
            {
                **in_stages,
                "scratch": str(tmp_path / "staged-resumed"),
                "resume": str(tmp_path / f"staged-stopped/step-{stop_at:06d}"),
            },
        ],
    )
    for config, name in ((step, "step"), (modern_step, "modern-step")):
        run(config, folder, tmp_path / f"{name}-alone", Hooks())
        places = [tmp_path / f"{name}-alone/epoch-01", tmp_path / f"{name}/epoch-01"]
        a, b = (load_file(place / "model.safetensors") for place in places)
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=2e-5)
        mine, theirs = (checkpoint.load(place).metrics["train"] for place in places)
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert same_checkpoint(tmp_path / "whole/epoch-03", tmp_path / "resumed/epoch-03")
    assert same_checkpoint(tmp_path / "whole/epoch-03", tmp_path / "judged-again/epoch-03")
    assert same_checkpoint(tmp_path / "staged/epoch-03", tmp_path / "staged-resumed/epoch-03")


def test_an_epoch_in_which_ranks_come_and_go_reads_every_review_once(folder, tmp_path, monkeypatch):
    config = elbo(folder, vocabulary={"size": 200}, training={"epochs": 2})
    job = {"config": config.model_dump(mode="json"), "data": str(folder / "data"), "max_ranks": 3}
    job |= {"scratch": str(tmp_path), "read": str(tmp_path / "parts")}
    run_ranks(2, [{**job, "stop_at": 3}])
    run_ranks(3, [{**job, "stop_at": 2, "resume": str(tmp_path / "step-000003")}])
    at = tmp_path / "step-000005"
    assert checkpoint.load(at).position == Position(0, 5, 5, ranks=2)  # the window that two ranks began
    step = train._Loop._step
    monkeypatch.setattr(train._Loop, "_step", noting(tmp_path / "parts-alone", step))
    resumed = run(config, folder, tmp_path, Hooks(), resume=at, max_ranks=3)
    monkeypatch.setattr(train._Loop, "_step", noting(tmp_path / "whole", step))
    whole = run(config, folder, tmp_path / "straight", Hooks(), max_ranks=3)

    expected = (tmp_path / "whole").read_text().splitlines()
    read = [line for file in tmp_path.glob("parts-*") for line in file.read_text().splitlines()]
    assert len(set(expected)) > 2 * 100  # of 2 * 144: most can be told from one another
    assert sorted(read) == sorted(expected)
    assert resumed.position == whole.position == Position(2, 2 * STEPS, 0)
    # Other ranks draw other noise. What is measured is of all reviews, those before the stops included.
    for a, b in zip(resumed.reports, whole.reports, strict=True):
        assert a.train["loss"] == pytest.approx(b.train["loss"], rel=0.1)
