"""evaluate, of a checkpoint's folder and of a job."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from jobs.config import JobConfig
from jobs.service import Service
from jobs.settings import Settings
from jobs.store import Job, NewCheckpoint, NewReport, Store
from textvae import checkpoint, sources, vocabulary
from textvae.config import Config
from textvae.model import TextVAE
from textvae.parsing import parse

Run = Callable[..., Result]

FEW = (
    "--reviews",
    "30",
    "--samples",
    "3",
    "--weighted-reviews",
    "5",
    "--text-reviews",
    "4",
    "--device",
    "cpu",
)


def save(folder: Path, data: Path, latent: int = 3, seconds: float | None = None) -> str:
    reviews = folder.parent / "reviews.csv"
    reviews.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"film {n % 9} was {('awful', 'great')[n % 2]} in part {n},{n % 2}" for n in range(200)]
    reviews.write_text("\n".join(["text,label", *lines]))
    config = parse(
        Config,
        {
            "data": {"source": "files", "train": [str(reviews)]},
            "vocabulary": {"kind": "words", "size": 40, "max_length": 9},
            "model": {"embedding": 8, "encoder_hidden": 8, "latent": latent, "decoder_hidden": 8},
        },
    )
    corpus = sources.prepare(config.data, data, seed=config.seed)
    words = vocabulary.build(config.vocabulary, corpus.labelled.texts())
    torch.manual_seed(0)
    model = TextVAE(config, words.size)
    return checkpoint.save(
        folder,
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        config=config,
        vocabulary=words,
        position=checkpoint.Position(epoch=1, step=30),
        metrics={} if seconds is None else {"seconds": seconds},
    )


@pytest.fixture
def folder(settings: Settings, tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    save(tmp_path / "out" / "epoch-01", settings.data)
    return tmp_path / "out" / "epoch-01"


def test_a_checkpoint_in_a_table_and_in_json(offline: Run, folder: Path, tmp_path: Path) -> None:
    parts = ("--parts", "likelihood,latent,sentiment,text")
    result = offline("evaluate", str(folder), *FEW, *parts)
    assert result.exit_code == 0, result.output
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["GROUP", "METRIC", "VALUE", "REMARK"]
    assert any(line.startswith("latent") and "mutual information" in line for line in lines)
    assert "importance sampling: 5 of 5" in result.stderr
    file = tmp_path / "record.json"
    result = offline("evaluate", str(folder), *FEW, *parts, "--json", "--output", str(file))
    told = json.loads(result.stdout)
    assert told == json.loads(file.read_text()) and f"written to {file}" in result.stderr
    assert told["reviews"] == 20 and told["K"] == 3 and set(told["metrics"]) == set(parts[1].split(","))
    # All that is in the table is in the record.
    assert f"{told['metrics']['latent']['delta_reconstruction']:.4g}" in "\n".join(lines)


def test_a_record_for_the_results(offline: Run, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny-0.json"
    words = ("--parts", "likelihood", "--preset", "tiny", "--hardware", "an abacus", "--output", str(file))
    assert offline("evaluate", str(folder), *FEW, *words).exit_code == 0
    told = json.loads(file.read_text())
    assert (told["preset"], told["hardware"], told["seed"]) == ("tiny", "an abacus", 0)
    assert told["evaluation"]["part"] == "validation" and told["training_seconds"] is None


def test_a_job_is_its_best_checkpoint_and_its_digest_is_checked(
    offline: Run, settings: Settings, store: Store, service: Service, config: JobConfig, trained: Job
) -> None:
    job = service.submit(config, owner="ada", id="real1234").job
    location = f"jobs/{job.id}/attempt-1/epoch-01"
    folder = Path(settings.storage) / location
    digest = save(folder, settings.data)
    store.open_attempt(job.id, 1, "dispatcher")
    store.join_attempt(job.id, 1, host="somewhere", resumed_from=None)
    store.start_attempt(job.id, 1)
    made = NewCheckpoint(
        name="epoch-01",
        location=location,
        digest=digest,
        epoch=1,
        step=30,
        batch=0,
        value=0.5,
        metrics={"loss": 1.0},
    )
    store.record_checkpoint(job.id, 1, made, NewReport(1, 30, 61.5, 100.0, {"loss": 1.0}, {"loss": 1.0}))
    words = ("--parts", "likelihood", "--json")
    result = offline("evaluate", "real", *FEW, *words)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["checkpoint"]["digest"] == digest
    assert told["checkpoint"]["training_seconds"] == 61.5  # from the job's reports: the checkpoint has none

    # The same files where another digest was recorded: not what was trained there.
    elsewhere = Path(settings.storage) / f"jobs/{trained.id}/attempt-2/epoch-02"
    shutil.copytree(folder, elsewhere)
    result = offline("evaluate", trained.id, *FEW, *words)
    assert result.exit_code == 1 and "not the checkpoint that was recorded" in result.stderr


def test_a_language_model_tells_what_it_has_not(offline: Run, settings: Settings, tmp_path: Path) -> None:
    save(tmp_path / "lm" / "epoch-01", settings.data, latent=0)
    result = offline("evaluate", str(tmp_path / "lm" / "epoch-01"), *FEW)
    assert result.exit_code == 0, result.output
    assert "latent: not measured: a language model has no latent" in result.stderr
    assert {line.split()[0] for line in result.stdout.splitlines()[1:]} == {"likelihood"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--samples", "0"), 2, "samples must be at least 1, got 0"),
        (("--reviews", "-1"), 2, "reviews must be at least 1, got -1"),
        (("--parts", "latnet"), 2, "must be some of likelihood, latent, sentiment, text"),
        (("--parts", ","), 2, "not none"),
        (("--data", "test"), 2, "there are no test reviews to measure"),
        (("--data", "all"), 2, "is not one of 'train', 'validation', 'test'"),
        (("--threads", "0"), 2, "--threads"),
        (("--device", "foo"), 2, "there is no device 'foo'; it must be cpu, cuda or cuda:1"),
        (("--device", "cuda:99"), 2, "can use no such GPU here"),
    ],
)
def test_wrong_options_are_told(
    offline: Run, folder: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    result = offline("evaluate", str(folder), *words)
    assert result.exit_code == code and message in result.stderr, result.output


def test_what_is_no_checkpoint_is_told(
    offline: Run, folder: Path, settings: Settings, tmp_path: Path
) -> None:
    for what, code, message in (
        (str(tmp_path / "nowhere"), 2, "no such folder"),
        (str(folder.parent), 2, f"is not a checkpoint, but holds some: name {folder}"),
        ("zzz", 3, "no job"),
    ):
        result = offline("evaluate", what)
        assert result.exit_code == code and message in result.stderr, result.output
    # A vocabulary of another model, all hashes right.
    save(tmp_path / "other" / "epoch-01", settings.data)
    path = folder / checkpoint.VOCABULARY
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "size": 30}))
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    manifest["files"][checkpoint.VOCABULARY] = checkpoint.sha256(path)
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    result = offline("evaluate", str(folder), *FEW)
    assert result.exit_code == 1 and "vocabulary" in result.stderr, result.output
    (folder / checkpoint.MODEL).write_bytes(b"torn")
    result = offline("evaluate", str(folder), *FEW)
    assert result.exit_code == 1 and "torn or changed" in result.stderr


def test_a_terminal_gets_a_table(folder: Path, settings: Settings) -> None:
    mine, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "evaluate", str(folder), "--parts", "latent", *FEW],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=os.environ | {"TEXTVAE_HOME": str(settings.home), "OMP_NUM_THREADS": "1", "TERM": "xterm"},
        timeout=120,
    )
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    shown = os.read(mine, 1 << 16).decode()
    os.close(mine)
    assert "─" in shown and "mutual information" in shown
