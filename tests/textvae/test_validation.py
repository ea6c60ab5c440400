from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from textvae import validation
from textvae.batches import Batches, framing
from textvae.config import Config
from textvae.model import TextVAE
from textvae.parsing import parse
from textvae.ranks import Ranks
from textvae.sources import Corpus, prepare
from textvae.sources.permutation import key_of
from textvae.validation import ENOUGH, autocast, calibrate, computes_bf16, validate
from textvae.vocabulary import Vocabulary, build

torch.set_num_threads(1)

Parts = tuple[Config, Corpus, Vocabulary, TextVAE]


def parts(folder: Path, reviews: int, **model: Any) -> Parts:
    draw = random.Random(0)
    words = [f"word{n}" for n in range(30)]
    texts = [" ".join(draw.choices(words, k=draw.randint(3, 12))) for _ in range(reviews)]
    table = pa.table({"text": texts, "label": [n % 2 for n in range(reviews)]})
    for name in ("train", "validation"):
        parquet.write_table(table, folder / f"{name}.parquet")
    place = {name: [str(folder / f"{name}.parquet")] for name in ("train", "validation")}
    sizes = {"embedding": 8, "encoder": "ngrams", "ngram_buckets": 64, "encoder_hidden": 6, "latent": 4}
    config = parse(
        Config,
        {
            "data": {"source": "files", **place},
            "vocabulary": {"kind": "words", "size": 40, "max_length": 8},
            "model": {**sizes, "decoder_hidden": 8, "mean_scale": 0.6, "variance": "fixed", **model},
        },
    )
    corpus = prepare(config.data, folder / "data")
    vocabulary = build(config.vocabulary, corpus.train.texts())
    torch.manual_seed(0)
    made = TextVAE(config, vocabulary.size)
    assert made.encoder is not None
    torch.nn.init.normal_(made.encoder.table.weight, std=1.0)
    return config, corpus, vocabulary, made


def batches(of: Parts, rank: int = 0, world_size: int = 1) -> Batches:
    config, corpus, vocabulary, _ = of
    return Batches(
        corpus.validation,
        vocabulary,
        framing(config),
        batch_size=20,
        seed=key_of(0, "test"),
        rank=rank,
        world_size=world_size,
        shuffle=False,
    )


def encoded(of: Parts) -> torch.Tensor:
    model = of[3].eval()
    with torch.no_grad():
        return torch.cat([model.encode(each.tokens, each.lengths)[0] for each in batches(of).epoch(0)])


def test_means_of_the_reviews_it_is_shown_vary_by_the_scale_and_cost_what_follows(tmp_path: Path) -> None:
    of = parts(tmp_path, 150)
    config, _, _, model = of
    assert encoded(of).std(dim=0).max() != pytest.approx(0.6, rel=0.05)
    model.train()
    alone = Ranks(0, 1, torch.device("cpu"))
    calibrate(config, model, batches(of), alone)
    assert model.training
    means = encoded(of)
    assert means.mean(dim=0).abs().max() < 1e-4
    assert means.std(dim=0, correction=0).tolist() == pytest.approx([0.6] * 4, rel=1e-3)
    metrics = validate(config, model, batches(of), alone)
    assert metrics["kl"] == pytest.approx(-0.5 * 4 * math.log(1 - 0.6**2), rel=1e-3)


def test_ranks_settle_on_the_figures_of_all_their_reviews(tmp_path: Path) -> None:
    of = parts(tmp_path, 150)
    config, _, _, model = of

    class Sums(Ranks):
        """Two ranks one after the other: the first leaves its sum, the second adds to it."""

        def sum(self, tensor: torch.Tensor) -> torch.Tensor:
            left.append(tensor.clone())
            return torch.stack(left).sum(dim=0)

    left: list[torch.Tensor] = []
    for rank in range(2):
        calibrate(config, model, batches(of, rank, 2), Sums(rank, 1, torch.device("cpu")))
    assert encoded(of).std(dim=0, correction=0).tolist() == pytest.approx([0.6] * 4, rel=1e-3)


def test_too_few_reviews_and_a_model_without_a_norm_change_nothing(tmp_path: Path) -> None:
    alone = Ranks(0, 1, torch.device("cpu"))
    for reviews, changes in ((ENOUGH - 1, {}), (150, {"mean_scale": None, "variance": "learned"})):
        place = tmp_path / str(reviews)
        place.mkdir()
        of = parts(place, reviews, **changes)
        before = {name: value.clone() for name, value in of[3].state_dict().items()}
        calibrate(of[0], of[3], batches(of), alone)
        assert all(torch.equal(value, before[name]) for name, value in of[3].state_dict().items())


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bfloat16_is_computed_where_there_are_units_for_it(
    monkeypatch: pytest.MonkeyPatch, precision: str, units: bool
) -> None:
    monkeypatch.setattr(validation, "computes_bf16", lambda device: units)
    config = Config.model_validate({"training": {"precision": precision}})
    with autocast(config, torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if units and precision == "bf16" else torch.float32)


def test_what_a_cpu_is_said_to_compute_it_computes() -> None:
    if computes_bf16(torch.device("cpu")):
        lstm = torch.nn.LSTM(3, 4)
        with torch.autocast("cpu", torch.bfloat16):
            assert lstm(torch.ones(2, 1, 3))[0].dtype == torch.bfloat16
    assert not computes_bf16(torch.device("cuda")) or torch.cuda.is_available()
