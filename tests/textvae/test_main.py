"""python -m textvae, as a person starts it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from textvae import __main__ as command
from textvae import checkpoint

REVIEWS = "".join(
    f"{word} film and a {word} plot number {number}\t{label}\n"
    for number in range(40)
    for word, label in (("good", 1), ("bad", 0))
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "reviews.tsv").write_text("text\tlabel\n" + REVIEWS)
    path = tmp_path / "small.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "small",  # the service's sections are passed over, but for what decides the same here
                "resources": {"ranks": 1, "cpus_per_rank": 1},
                "select": {"metric": "loss", "mode": "min"},
                "data": {"source": "files", "train": [str(tmp_path / "reviews.tsv")]},
                "vocabulary": {"kind": "words", "size": 60, "max_length": 10},
                "model": {"embedding": 4, "encoder_hidden": 4, "latent": 2, "decoder_hidden": 4},
                "training": {"epochs": 4, "batch_size": 24, "keep_last": 1},
            }
        )
    )
    return path


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "textvae", str(config), "--output", "out", "--data", "data", *arguments],
        cwd=config.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_trains_says_each_epoch_and_keeps_the_best_and_the_last(config):
    out, err = (process := start(config, "--set", "training.epochs=3")).communicate(timeout=120)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["epoch", f"{n}/3"] for n in (1, 2, 3)]
    assert "validation: loss " in lines[0]
    assert "sentiment_accuracy" in lines[0]
    assert lines[3] == "finished: out/epoch-03"
    output = config.parent / "out"
    reports = [json.loads(line) for line in (output / "reports.jsonl").read_text().splitlines()]
    losses = {f"epoch-0{each['epoch']}": each["validation"]["loss"] for each in reports}
    kept = {path.name for path in output.iterdir() if path.is_dir()}
    assert kept == {"epoch-03", min(losses, key=losses.__getitem__)}


def test_ctrl_c_stops_with_a_checkpoint_and_resume_goes_on(config):
    process = start(config, "--set", "training.epochs=100000")
    output = config.parent / "out"
    deadline = time.monotonic() + 60
    while not (output / "reports.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == command.STOPPED, err
    stopped = checkpoint.saved_in(output)[-1]
    assert f"stopped at step {stopped.step}; --resume goes on from out/{stopped.name}" in out
    epoch = checkpoint.load(output / stopped.name).position.epoch

    refused = start(config)
    assert "holds checkpoints already" in refused.communicate(timeout=60)[1]
    assert refused.returncode == command.USAGE

    # Damaged newest checkpoints are named, and the one before them serves.
    shutil.copytree(output / stopped.name, output / "step-unknown")
    (output / "step-unknown" / "state.json").write_bytes(b"torn")
    (output / stopped.name / "model.safetensors").write_bytes(b"torn")
    resumed = start(config, "--resume", "--set", f"training.epochs={epoch + 1}")
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert f"passed over: out/{stopped.name}/model.safetensors: its SHA-256 is" in err
    assert "passed over: out/step-unknown/state.json: its SHA-256 is" in err
    assert f"epoch {epoch + 1}/{epoch + 1} " in out or "finished" in out
    # They count for nothing: what was written since is kept, though it may have come less far.
    assert f"finished: out/epoch-{epoch + 1:02}" in out
    assert {"step-unknown", stopped.name} <= {each.name for each in output.iterdir()}


def test_a_wrong_config_is_an_error_before_anything_starts(config, capsys):
    assert command.main([str(config), "--set", "model.latnt=3"]) == command.USAGE
    assert "model.latnt: unknown key; the nearest known one is model.latent" in capsys.readouterr().err
    assert command.main([str(config), "--set", "select.metric=luck"]) == command.USAGE
    assert "select.metric: must be one of loss, " in capsys.readouterr().err
    assert command.main([str(config), "--set", "select.mode=most"]) == command.USAGE
    assert command.main([str(config), "--set", "resources.cpus_per_rank=none"]) == command.USAGE
    assert command.main([str(config.parent / "none.yaml")]) == command.USAGE
    assert "no such file" in capsys.readouterr().err


def test_bad_data_is_an_error_that_names_the_file(config, capsys, tmp_path):
    (config.parent / "reviews.tsv").write_text("text\tlabel\n")
    arguments = [str(config), "--output", str(tmp_path / "out"), "--data", str(tmp_path / "data")]
    assert command.main([*arguments, "--device", "cpu"]) == command.FAILED
    assert "reviews.tsv" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "two", "1.5"])
def test_threads_are_counted(count, config, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([str(config), "--threads", count])
    assert ended.value.code == command.USAGE
    assert f"--threads: must be a whole number of at least 1, got '{count}'" in capsys.readouterr().err


def test_an_output_that_cannot_be_a_folder_is_an_error(config, capsys, tmp_path):
    (tmp_path / "out").write_text("a file")
    for output in ("out", "out/below"):
        assert command.main([str(config), "--output", str(tmp_path / output)]) == command.USAGE
        assert f"error: --output {tmp_path / output}: " in capsys.readouterr().err


def test_a_device_that_is_not_there_is_an_error_before_anything_is_written(config, capsys, tmp_path):
    arguments = [str(config), "--output", str(tmp_path / "out"), "--device", "foo"]
    assert command.main(arguments) == command.USAGE
    assert "there is no device 'foo'; it must be cpu, cuda or cuda:1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
