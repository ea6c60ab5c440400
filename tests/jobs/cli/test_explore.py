"""explore, and plot of a checkpoint."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from jobs.cli import checkpoints
from jobs.settings import Settings
from jobs.store import Job
from textvae import checkpoint, sources, vocabulary
from textvae.batches import Batch, collate, framing
from textvae.config import METRICS, Config
from textvae.model import TextVAE
from textvae.parsing import parse

Run = Callable[..., Result]

PICTURES = ("curves", "latent", "tsne", "lda", "kl", "histograms")
GOOD, BAD = ["great", "lovely", "superb", "warm"], ["awful", "boring", "a mess", "dull"]


def review(n: int) -> str:
    return f"film {n % 9} was {(BAD, GOOD)[n % 2][n // 2 % 4]} and its plot {(BAD, GOOD)[n % 2][n % 4]}"


def write(folder: Path, data: Path, **model: Any) -> Path:
    """A checkpoint that has looked at the reviews a little; with latent 0, a language model."""
    reviews = folder.parent / "reviews.csv"
    reviews.parent.mkdir(parents=True, exist_ok=True)
    reviews.write_text("\n".join(["text,label", *[f"{review(n)},{n % 2}" for n in range(400)]]))
    config = parse(
        Config,
        {
            "data": {"source": "files", "train": [str(reviews)]},
            "vocabulary": {"kind": "words", "size": 40, "max_length": 9},
            "model": {"embedding": 8, "encoder_hidden": 8, "latent": 3, "decoder_hidden": 8} | model,
        },
    )
    corpus = sources.prepare(config.data, data, seed=config.seed)
    words = vocabulary.build(config.vocabulary, corpus.labelled.texts())
    torch.manual_seed(0)
    network = TextVAE(config, words.size)
    ids, lengths = collate(words.encode([review(n) for n in range(64)]), framing(config))
    batch = Batch(ids, lengths, torch.tensor([n % 2 for n in range(64)]), 64)
    optimizer = torch.optim.Adam(network.parameters(), 0.03)
    for _ in range(30):
        optimizer.zero_grad()
        (network(batch, kl_weight=0.01).loss / 64).backward()
        optimizer.step()
    checkpoint.save(
        folder,
        model=network,
        optimizer=optimizer,
        config=config,
        vocabulary=words,
        position=checkpoint.Position(epoch=1, step=30),
        metrics={},
    )
    return folder


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m textvae` leaves: checkpoints and their reports."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    write(folder / "epoch-01", folder / "data")
    metrics = dict.fromkeys(METRICS, 0.5)
    report = {"epoch": 1, "step": 30, "seconds": 1.0, "train": metrics, "validation": metrics}
    (folder / "reports.jsonl").write_text(json.dumps(report) + "\n")
    return folder


@pytest.fixture
def folder(trained_folder: Path, settings: Settings, tmp_path: Path) -> Path:
    """A copy of the checkpoint, which a test may break; its reviews are prepared in the home already."""
    shutil.copytree(trained_folder / "data", settings.data)
    shutil.copytree(trained_folder / "epoch-01", tmp_path / "out" / "epoch-01")
    shutil.copy(trained_folder / "reports.jsonl", tmp_path / "out")
    return tmp_path / "out" / "epoch-01"


@pytest.fixture
def language_model(tmp_path: Path, settings: Settings) -> Path:
    return write(tmp_path / "lm" / "epoch-01", settings.data, latent=0)


def test_explore_tells_all_of_it_in_json(offline: Run, folder: Path) -> None:
    result = offline("explore", str(folder), "--steps", "3", "--samples", "2", "--neighbours", "4", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["checkpoint"], told["job"], told["latent"]) == (str(folder), None, 3)
    negative, positive = told["reconstructions"]  # drawn, one of each
    assert re.search("|".join(BAD), negative["text"]) and re.search("|".join(GOOD), positive["text"])
    assert negative["positive"] < 0.5 < positive["positive"] and negative["written"]
    for near in told["neighbours"]:
        distances = [each["distance"] for each in near["neighbours"]]
        assert len(distances) == 4 and distances == sorted(distances)
        assert {each["label"] for each in near["neighbours"]} <= {0, 1}
    way = told["interpolation"]
    assert (way["from"], way["to"]) == (negative["text"], positive["text"])
    assert way["places"][0]["positive"] == pytest.approx(negative["positive"], abs=1e-4)
    assert way["places"][0]["text"] == negative["written"]
    pushed = [place["positive"] for place in told["transfer"]["places"]]
    assert len(pushed) == 3 and pushed == sorted(pushed) and pushed[0] < 0.06 and pushed[-1] > 0.94
    assert len(told["samples"]) == 2
    again = offline("explore", str(folder), "--steps", "3", "--samples", "2", "--neighbours", "4", "--json")
    assert again.stdout == result.stdout
    other = offline("explore", str(folder), "--seed", "7", "--json")
    assert json.loads(other.stdout)["samples"] != told["samples"]


def test_explore_is_plain_in_a_pipe(offline: Run, folder: Path) -> None:
    text, other = "film 3 was great and its plot superb", "film 4 was dull and its plot awful"
    result = offline("explore", str(folder), "--text", text, "--other", other, "--neighbours", "2")
    assert result.exit_code == 0 and result.stderr == ""
    assert "\x1b" not in result.stdout and "━" not in result.stdout
    titles = [line for line in result.stdout.splitlines() if re.match(r"(review|nearest|on|samples) ", line)]
    assert titles == [
        "review 1",
        "review 2",
        "nearest to review 1",
        "nearest to review 2",
        "on the way from review 1 to review 2",
        "review 1, pushed from negative to positive",
        "samples from the prior",
    ]
    assert f"text:          {text}" in result.stdout
    assert re.search(r"^DISTANCE  LABEL     TEXT\n +\d\.\d\d  positive  film", result.stdout, re.MULTILINE)
    assert re.search(r"^POSITIVE  READ BACK  TEXT\n +[\d.]+%  +[\d.]+%  \S", result.stdout, re.MULTILINE)


def test_explore_has_bars_on_a_terminal(folder: Path, settings: Settings) -> None:
    leader, follower = pty.openpty()
    environment = os.environ | {
        "TERM": "xterm-256color",
        "COLUMNS": "100",
        "TEXTVAE_HOME": str(settings.home),
    }
    environment.pop("NO_COLOR", None)
    words = ["explore", str(folder), "--neighbours", "0", "--samples", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *words], stdout=follower, stderr=subprocess.PIPE, env=environment
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # the program has ended
            break
        if not piece:
            break
        seen += piece
    os.close(leader)
    assert process.wait() == 0, process.stderr.read() if process.stderr else ""
    if process.stderr:
        process.stderr.close()
    assert "━" in seen.decode() and "\x1b[" in seen.decode() and "95.0%" in seen.decode()


def test_explore_with_two_texts_needs_no_data(offline: Run, folder: Path, settings: Settings) -> None:
    shutil.rmtree(settings.data)
    (train,) = checkpoint.load(folder, optimizer=False).config.data.train
    gone = Path(train).with_suffix(".gone")
    Path(train).rename(gone)
    try:
        texts = ["--text", "film 1 was great", "--other", "film 2 was dull"]
        alone = offline("explore", str(folder), *texts, "--neighbours", "0", "--json")
        assert alone.exit_code == 0 and alone.stderr == ""
        assert json.loads(alone.stdout)["neighbours"] is None
        warned = offline("explore", str(folder), *texts, "--json")
        assert warned.exit_code == 0 and warned.stderr.startswith("warning: no neighbours: ")
        refused = offline("explore", str(folder), "--text", "film 1 was great")
        assert refused.exit_code == 2
        assert "no reviews can be drawn" in refused.stderr and "give --text and --other" in refused.stderr
    finally:
        gone.rename(train)


def test_explore_with_one_text_draws_one_of_the_other_sentiment(offline: Run, folder: Path) -> None:
    for text, wanted in (("film 1 was great", BAD), ("film 2 was dull", GOOD)):
        told = json.loads(offline("explore", str(folder), "--text", text, "--json").stdout)
        assert told["interpolation"]["from"] == text
        assert re.search("|".join(wanted), told["interpolation"]["to"])


def test_explore_warns_of_a_text_that_is_cut(offline: Run, folder: Path) -> None:
    result = offline("explore", str(folder), "--text", "great " * 10, "--other", "dull")
    assert result.exit_code == 0
    assert result.stderr == "warning: review 1 is longer than the 9 tokens that the model reads: it is cut\n"


@pytest.mark.parametrize("words", [["--text", " "], ["--text", "good", "--other", ""]])
def test_explore_refuses_an_empty_review(offline: Run, folder: Path, words: list[str]) -> None:
    result = offline("explore", str(folder), *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: a review is empty: there is nothing to read in it\n"


def test_explore_of_a_language_model_has_samples_alone(offline: Run, language_model: Path) -> None:
    result = offline("explore", str(language_model), "--samples", "2", "--json")
    assert result.exit_code == 0, result.output
    assert "nothing to explore in it but samples" in result.stderr
    told = json.loads(result.stdout)
    assert told["latent"] == 0 and len(told["samples"]) == 2
    assert {told[key] for key in ("reconstructions", "neighbours", "interpolation", "transfer")} == {None}
    plain = offline("explore", str(language_model), "--samples", "2")
    assert plain.stdout.splitlines()[1:3] == ["samples from the prior", "TEXT"]


@pytest.mark.parametrize("command", ["explore", "plot"])
def test_what_is_no_checkpoint_is_said(offline: Run, folder: Path, tmp_path: Path, command: str) -> None:
    def refused(what: Path | str, code: int) -> str:
        result = offline(command, str(what))
        assert (result.exit_code, result.stdout) == (code, "")
        assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
        return result.stderr

    assert f"{tmp_path / 'nothing'}: no such folder" in refused(tmp_path / "nothing", 2)
    assert f"holds some: name {folder}" in refused(folder.parent, 2)
    (tmp_path / "empty").mkdir()
    assert "is not a checkpoint: it has no manifest.json" in refused(tmp_path / "empty", 2)
    assert "nothere" in refused("nothere", 3)
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    assert "format 99; this version reads format" in refused(folder, 1)
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    # Another vocabulary: first torn, then with a manifest that was made to fit.
    (folder / checkpoint.VOCABULARY).write_text(vocabulary.Words(["film"], 12).to_json())
    assert "vocabulary.json" in refused(folder, 1)
    manifest["files"][checkpoint.VOCABULARY] = checkpoint.sha256(folder / checkpoint.VOCABULARY)
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    assert "do not fit its config and its vocabulary of 12 tokens" in refused(folder, 1)


def test_the_manifests_name_is_the_checkpoints_own() -> None:
    assert checkpoints._MANIFEST == checkpoint.MANIFEST


def test_plot_of_a_checkpoint_draws_everything(offline: Run, folder: Path, tmp_path: Path) -> None:
    result = offline("plot", str(folder), "--output", str(tmp_path / "p"), "--reviews", "40", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["job"], told["checkpoint"]) == (None, str(folder))
    for name in PICTURES:
        assert Path(told[name]) == tmp_path / "p" / f"{name}.png"
        assert Path(told[name]).read_bytes().startswith(b"\x89PNG")
    numbers = told["numbers"]
    assert numbers["reviews"] == 40 and numbers["kl"] > 0 and 0 <= numbers["active_units"] <= 3
    assert numbers["separation"]["reviews"] == 40 and numbers["separation"]["head_accuracy"] > 0.9
    assert numbers["separation"]["answer"].startswith("Do two regions separate by sentiment? Yes")
    assert numbers["separation"]["verdict"] == "yes"


def test_plot_prints_paths_on_stdout_and_the_answer_on_stderr(
    offline: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder.parent / "reports.jsonl").unlink()
    result = offline("plot", str(folder))
    assert result.exit_code == 0, result.output
    assert sorted(result.stdout.split()) == sorted(f"plots/epoch-01/{name}.png" for name in PICTURES[1:])
    assert "no curves: there is no reports.jsonl beside" in result.stderr
    assert "Do two regions separate by sentiment?" in result.stderr


def test_plot_of_broken_reports_says_so_and_writes_nothing(
    offline: Run, folder: Path, tmp_path: Path
) -> None:
    (folder.parent / "reports.jsonl").write_text("{}\n")
    result = offline("plot", str(folder), "--output", str(tmp_path / "p"))
    assert result.exit_code == 2 and "reports.jsonl: not the reports of a training" in result.stderr
    assert not (tmp_path / "p").exists()


def test_plot_of_a_language_model_draws_what_it_has(
    offline: Run, language_model: Path, tmp_path: Path
) -> None:
    result = offline("plot", str(language_model), "--output", str(tmp_path / "p"), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [name for name in PICTURES if told[name]] == ["histograms"]
    assert told["numbers"]["separation"] is None and told["numbers"]["reviews"] == 40
    assert "there is no latent space to draw" in result.stderr


def test_explore_of_a_job_without_a_checkpoint_says_so(offline: Run, add_job: Callable[..., Job]) -> None:
    add_job("job-a")
    result = offline("explore", "job-a")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "job job-a is queued and has recorded no checkpoint yet" in result.stderr
