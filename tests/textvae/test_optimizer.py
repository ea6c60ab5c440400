from __future__ import annotations

from typing import Any

import pytest

from textvae import optimizer
from textvae.config import Config
from textvae.model import TextVAE
from textvae.parsing import parse


def made(encoder: str, layer_decay: float, tied: bool = False, **objective: Any) -> tuple[Config, TextVAE]:
    sizes = {"embedding": 4, "encoder_layers": 2, "encoder_hidden": 3, "latent": 2, "decoder_hidden": 4}
    config = parse(
        Config,
        {
            "vocabulary": {"kind": "words", "size": 9},
            "model": {**sizes, "encoder": encoder, "ngram_buckets": 5, "tied": tied},
            "objective": {"kind": "elbo", **objective},
            "training": {"layer_decay": layer_decay, "learning_rate": 0.8, "epochs": 4},
        },
    )
    return config, TextVAE(config, 9)


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (
            "lstm",
            {"embedding.weight": 0.1, "encoder.weight_hh_l0": 0.2, "encoder.bias_ih_l1_reverse": 0.4}
            | {"mean.weight": 0.8, "decoder.weight_ih_l0": 0.8, "sentiment_output.bias": 0.8},
        ),
        (
            "mingru",
            {"embedding.weight": 0.1, "encoder.ahead.enter.weight": 0.2, "encoder.behind.norm.bias": 0.4}
            | {"encoder.ahead.layers.0.inner.weight": 0.2, "encoder.behind.layers.1.outer.bias": 0.4},
        ),
        ("ngrams", {"embedding.weight": 0.8, "encoder.table.weight": 0.4, "mean.weight": 0.8}),
    ],
)
def test_each_layer_below_the_latent_takes_smaller_steps(encoder: str, expected: dict[str, float]) -> None:
    config, model = made(encoder, 0.5)
    adam = optimizer.build(config, model)
    optimizer.set_rate(adam, config, 1.0)
    rates = {id(value): group["lr"] for group in adam.param_groups for value in group["params"]}
    names = dict(model.named_parameters())
    assert len(rates) == len(names)
    assert {name: rates[id(names[name])] for name in expected} == pytest.approx(expected)


def test_a_tied_embedding_is_the_decoders() -> None:
    config, model = made("lstm", 0.5, tied=True)
    assert {optimizer.depth(name, config) for name, _ in model.named_parameters()} == {0, 1, 2}
    assert optimizer.depth("embedding.weight", config) == 0


def test_pretraining_and_a_decay_of_1_know_no_layers() -> None:
    config, model = made("lstm", 0.5, pretraining_epochs=2)
    adam = optimizer.build(config, model)
    optimizer.set_rate(adam, config, 1.9)
    assert {group["lr"] for group in adam.param_groups} == {0.8}
    optimizer.set_rate(adam, config, 2.0)
    assert sorted(group["lr"] for group in adam.param_groups) == pytest.approx([0.1, 0.2, 0.4, 0.8])
    plain, model = made("lstm", 1.0)
    assert len(optimizer.build(plain, model).param_groups) == 1
