from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from textvae.batches import framing
from textvae.checkpoint import CheckpointError
from textvae.config import Data
from textvae.evaluate import PARTS, EvaluationError, Options, evaluate, likelihood, sentiment
from textvae.evaluate.__main__ import main
from textvae.evaluate.arguments import OPTIONS
from textvae.evaluate.reading import read
from textvae.evaluate.records import of_checkpoint, revision, this_machine, with_provenance, write
from textvae.evaluate.showing import left_out, rows
from textvae.predict import Predictor
from textvae.sources import Corpus, Reviews, prepare
from textvae.vocabulary import PAD, START

Make = Callable[..., Predictor]
Save = Callable[..., Path]

SMALL = Options(
    reviews=60,
    samples=4,
    weighted_reviews=10,
    information_reviews=80,
    text_reviews=10,
    written=40,
    transfer_reviews=6,
    probe_reviews=200,
)


@pytest.fixture
def data(write_reviews: Callable[..., Path]) -> Data:
    return Data(
        source="files", train=(str(write_reviews(300, 60)),), test=(str(write_reviews(40, name="t.jsonl")),)
    )


def finite(value: Any) -> bool:
    json.dumps(value, allow_nan=False)
    return True


def test_a_record_holds_every_group(make: Make, save: Save, data: Data, tmp_path: Path) -> None:
    predictor = make(tokens="bpe", max_length=30)
    folder = save(predictor, data, 12.5)
    told: list[str] = []
    record = of_checkpoint(
        folder,
        data_folder=tmp_path / "data",
        options=dataclasses.replace(SMALL, reviews=None),
        progress=lambda what, done, total: told.append(what),
    )
    assert finite(record) and set(record["metrics"]) == set(PARTS) and record["left_out"] == {}
    corpus = prepare(data, tmp_path / "data")
    assert record["reviews"] == len(corpus.validation) == record["reviews_of_part"] == 30
    assert record["part"] == "validation" and record["K"] == 4 and record["N"] == 30
    assert record["checkpoint"]["training_seconds"] == 12.5 and record["checkpoint"]["step"] == 7
    assert {"encoding", "importance sampling", "sampling"} <= set(told)

    # Its figures are those of the functions, one by one.
    texts = read(corpus.validation, predictor.vocabulary, framing(predictor.config))
    q = likelihood.posterior(predictor.model, texts)
    found = record["metrics"]["likelihood"]
    assert found["kl"] == pytest.approx(likelihood.kl(q).mean())
    explained = likelihood.explain(predictor.model, texts, q.sample(0))
    assert found["elbo"] == pytest.approx(-likelihood.negative_elbo(explained, q).mean())
    assert found["negative_elbo"]["review"] == pytest.approx(-found["elbo"])
    assert found["teacher_forced_token_accuracy"] == explained.accuracy
    weighted = likelihood.importance_weighted(predictor.model, texts.first(10), q.first(10), 4)
    assert found["importance_weighted"]["review"] == pytest.approx(weighted.mean())
    head = record["metrics"]["sentiment"]["head"]
    assert head["accuracy"] == np.mean(
        [
            (p > 0.5) == (label > 0)
            for p, label in zip(predictor.sentiment(texts.texts), texts.labels, strict=True)
        ]
    )
    # 30 are fewer than the 80 asked for: the training reviews say it once more.
    assert record["metrics"]["latent"]["training"]["mutual_information_reviews"] == 80
    assert record["metrics"]["sentiment"]["probe"] is not None
    assert record["metrics"]["transfer"]["judge_accuracy"] > 0.6
    assert record["metrics"]["samples"]["perplexity"]["texts"] == 40
    assert len(rows(record)) > 35 and left_out(record) == []
    pushed = [remark for _, name, _, remark in rows(record) if name.endswith(": flipped")]
    assert len(pushed) == 5 and all("with the review)" in remark for remark in pushed)
    assert {group for group, *_ in rows(record)} == set(PARTS)


def test_the_same_seed_gives_the_same_record(make: Make, corpus: Corpus) -> None:
    predictor = make()
    options = dataclasses.replace(SMALL, parts=("likelihood", "latent", "text"))

    def metrics(**changes: Any) -> Any:
        torch.manual_seed(len(changes))
        record = evaluate(predictor, corpus.validation, options=dataclasses.replace(options, **changes))
        return record["metrics"]

    assert metrics() == metrics()
    assert metrics() != metrics(seed=1)
    # The reviews of a part do not depend on which other parts are measured.
    assert metrics(parts=("latent",))["latent"] == metrics()["latent"]


def test_reviews_that_were_trained_on_are_told_apart(make: Make, corpus: Corpus) -> None:
    predictor = make()
    options = dataclasses.replace(SMALL, parts=("sentiment",), reviews=None)
    # Measured on reviews half of which are the training ones.
    both = Reviews((*corpus.test.parts, dataclasses.replace(corpus.labelled.parts[0], size=40)))
    record = evaluate(predictor, both, part="test", training=corpus.train, options=options)
    found = record["metrics"]["sentiment"]
    assert found["reviews_in_training"] == 40
    assert found["head"]["labelled"] == 80 and found["head"]["unseen"]["labelled"] == 40
    assert found["probe"]["unseen"]["labelled"] == 40
    texts = list(corpus.test.texts())
    labels = corpus.test.read(np.arange(40)).labels
    direction, bias = predictor.model.sentiment_direction()
    odds = predictor.embed(texts).astype(float) @ direction.double().numpy() + float(bias)
    assert found["head"]["unseen"]["accuracy"] == sentiment.scores(odds, labels).accuracy
    without = evaluate(predictor, corpus.test, options=options)["metrics"]["sentiment"]
    assert without["reviews_in_training"] is None and without["probe"] is None


def test_the_seed_is_measured_like_any_other(make: Make, corpus: Corpus) -> None:
    predictor = make("seed", max_length=12, noise_std=0.01)
    options = dataclasses.replace(SMALL, parts=tuple(p for p in PARTS if p != "samples"))
    record = evaluate(predictor, corpus.test, part="test", training=corpus.train, options=options)
    assert finite(record) and record["left_out"] == {}
    assert 0 <= record["metrics"]["likelihood"]["all_positions_accuracy"] <= 1


def test_all_positions_count_the_padding_as_the_original_did(make: Make, corpus: Corpus) -> None:
    predictor = make("seed", max_length=12, noise_std=1e-9)
    with torch.no_grad():
        predictor.model.output.bias[PAD] += 0.5  # so that it foresees some padding, and not that alone
    options = dataclasses.replace(SMALL, parts=("likelihood",), reviews=None)
    record = evaluate(predictor, corpus.test, part="test", options=options)
    right = foreseen = 0
    for text in corpus.test.texts():
        words = [START, *predictor.vocabulary.encode([text])[0]][-12:]
        tokens = torch.tensor([[PAD] * (12 - len(words)) + words])
        with torch.no_grad():
            likeliest = predictor.model.decode(predictor.model.encode(tokens)[0]).argmax(dim=-1)
        right += int((likeliest == tokens).sum())
        foreseen += int(((likeliest == tokens) & (tokens == PAD)).sum())
    assert 0 < foreseen < right < 40 * 12
    assert record["metrics"]["likelihood"]["all_positions_accuracy"] == right / (40 * 12)


def test_a_language_model_has_its_likelihood_alone(make: Make, corpus: Corpus) -> None:
    predictor = make(latent=0)
    record = evaluate(predictor, corpus.validation, training=corpus.train, options=SMALL)
    assert set(record["metrics"]) == {"likelihood"} and set(record["left_out"]) == set(PARTS) - {"likelihood"}
    found = record["metrics"]["likelihood"]
    assert found["kl"] == 0 and found["importance_weighted"]["exact"] is True
    # Exact, and over the very reviews that importance weighting would take: the yardstick of a VAE.
    assert found["importance_weighted"]["review"] == pytest.approx(
        found["importance_weighted"]["negative_elbo_of_these"]
    )
    assert found["negative_elbo"]["review"] == pytest.approx(found["reconstruction"])
    assert len(left_out(record)) == 5 and all(value is not None for _, _, value, _ in rows(record))


def test_what_cannot_be_measured_is_told(
    make: Make, save: Save, corpus: Corpus, data: Data, tmp_path: Path
) -> None:
    predictor = make()
    with pytest.raises(EvaluationError, match="no test reviews"):
        evaluate(predictor, Reviews(()), part="test")
    unlabelled = Reviews(corpus.train.parts[1:])
    record = evaluate(
        predictor,
        unlabelled,
        part="train",
        options=dataclasses.replace(SMALL, parts=("sentiment", "transfer")),
    )
    assert record["left_out"]["sentiment"] == "no train review has a label"
    assert record["metrics"]["transfer"]["judge_accuracy"] is None
    one = evaluate(
        predictor, corpus.test, options=dataclasses.replace(SMALL, reviews=1, parts=("likelihood", "latent"))
    )
    assert (
        "latent" in one["left_out"]
        and one["metrics"]["likelihood"]["importance_weighted"]["standard_error"] is None
    )
    with pytest.raises(CheckpointError, match="not whole"):
        evaluate(tmp_path, corpus.test)
    folder = save(predictor, data)
    with pytest.raises(CheckpointError, match="the record says"):
        evaluate(folder, corpus.test, digest="0" * 64)
    with pytest.raises(EvaluationError, match="train, validation, test, not all"):
        of_checkpoint(folder, data_folder=tmp_path, part="all")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"reviews": 0}, "reviews must be at least 1"),
        ({"written": 1}, "written must be at least 2"),
        ({"information_reviews": 1}, "information reviews must be at least 2"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": math.inf}, "temperature must be above 0, and finite"),
        ({"samples": 10**30}, "samples must be at most 2147483647"),
        ({"seed": 10**30}, "seed must be at most 2147483647"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"parts": ("latent", "latnet")}, "not latnet"),
        ({"parts": ()}, "not none"),
    ],
)
def test_options_that_make_no_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        Options(**wrong)


def test_the_command_lines_know_every_option_with_its_default() -> None:
    given = {field.name: field.default for field in dataclasses.fields(Options) if field.name != "parts"}
    assert given == {name: default for name, default, _ in OPTIONS}


def test_without_the_service(
    make: Make, save: Save, data: Data, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TEXTVAE_HOME", str(tmp_path / "home"))
    folder = save(make(), data)
    few = ["--parts", "latent,sentiment", "--reviews", "20", "--device", "cpu"]
    file = tmp_path / "results" / "small.json"
    assert (
        main([str(folder), *few, "--output", str(file), "--preset", "small", "--hardware", "an abacus"]) == 0
    )
    out, err = capsys.readouterr()
    assert "mutual information" in out and "encoding" in err
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["preset"] == "small" and record["hardware"] == "an abacus" and record["seed"] == 0
    assert record["evaluation"]["metrics"]["latent"]["dimensions"] == 3
    assert [path.name for path in file.parent.iterdir()] == ["small.json"]
    assert main([str(folder), *few, "--json"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["metrics"]["latent"] == record["evaluation"]["metrics"]["latent"]
    )
    assert main([str(folder), "--samples", "0"]) == 2
    assert main([str(folder), "--device", "foo"]) == 2
    assert "error: samples must be at least 1" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "missing; the checkpoint is not whole" in capsys.readouterr().err
    assert main([str(folder), "--parts", "everything"]) == 2


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; from textvae.evaluate import __main__ as m; m._parser(); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"


def test_a_record_says_where_it_comes_from(make: Make, corpus: Corpus, tmp_path: Path) -> None:
    options = dataclasses.replace(SMALL, parts=("likelihood",), reviews=3)
    record = evaluate(make(), corpus.test, part="test", options=options)
    record["config"]["data"]["folder"] = "/home/ada/reviews"
    told = with_provenance(record, "small")
    assert told["evaluation"]["config"]["data"].pop("folder") is None
    assert record["config"]["data"].pop("folder") == "/home/ada/reviews"
    assert told["hardware"] == this_machine() and "core" in told["hardware"]
    assert told["evaluation"] == record and told["training_seconds"] is None
    other_seed = {**record, "config": {**record["config"], "seed": 5}}
    assert with_provenance(other_seed, "small")["config_key"] == told["config_key"]
    other = {**record, "config": {**record["config"], "model": {**record["config"]["model"], "latent": 9}}}
    assert with_provenance(other, "small")["config_key"] != told["config_key"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path / "x.json", {"value": float("nan")})
    assert list(tmp_path.glob("*x.json*")) == []


def test_the_revision_says_whether_the_code_was_changed(tmp_path: Path) -> None:
    assert revision(tmp_path) is None

    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True
        )

    git("init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git("add", ".")
    git("commit", "-qm", "one")
    clean = revision(tmp_path)
    assert clean is not None and len(clean) == 12
    (tmp_path / "code.py").write_text("2\n")
    assert revision(tmp_path) == clean + "+"
