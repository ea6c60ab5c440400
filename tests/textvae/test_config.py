from __future__ import annotations

from pathlib import Path

import pytest

from textvae.config import Config, load
from textvae.parsing import ConfigError, keys, parse


def problem(mapping: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(Config, mapping)
    return str(caught.value)


def test_defaults_are_valid_and_frozen():
    config = Config()
    assert config.objective.kind == "elbo"
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


FORESEEING = {"kind": "elbo", "encoder_lm_weight": 1, "pretraining_epochs": 1}
DENOISING = {"kind": "elbo", "pretraining": "autoencoder", "pretraining_epochs": 1}
DENOISING |= {"pretraining_token_drop": 0.3}


@pytest.mark.parametrize(
    ("mapping", "key", "nearest"),
    [
        ({"training": {"epoch": 3}}, "training.epoch", "training.epochs"),
        ({"traning": {}}, "traning", "training"),
        ({"latent": 3}, "latent", "model.latent"),
        ({"objective": {"kind": "elbo", "kl_wieght": 1}}, "objective.kl_wieght", "objective.kl_weight"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(mapping: dict, key: str, nearest: str):
    assert f"{key}: unknown key; the nearest known one is {nearest}" in problem(mapping)


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"training": {"epochs": 0}}, "training.epochs: input should be greater than or equal to 1 (got 0)"),
        ({"training": {"epochs": "many"}}, "got 'many'"),
        (
            {"training": {"learning_rate": float("inf")}},
            "training.learning_rate: input should be a finite number (got inf)",
        ),
        (
            {"training": {"epochs": float("inf")}},
            "training.epochs: input should be a finite number (got inf)",
        ),
        ({"objective": "seed"}, "model.decoder must be repeat with objective seed"),
        ({"objective": "vae"}, "objective"),
        ({"vocabulary": {"kind": "bpe", "size": 100}}, "vocabulary.size must be at least 260"),
        ({"data": {"source": "files"}}, "needs at least one path under data.train"),
        ({"data": {"source": "imdb", "train": ["x.csv"]}}, "go with source files, not imdb"),
        ({"data": {"source": "snippets", "folder": "x"}}, "data.folder goes with source imdb"),
        (
            {"model": {"pooling": "all", "encoder": "ngrams"}},
            "model.pooling all needs a latent and model.enc",
        ),
        ({"model": {"pooling": "all", "latent": "none"}}, "model.pooling all needs a latent"),
        ({"model": {"naive_bayes_order": 2, "latent": "none"}}, "model.naive_bayes_order needs a latent"),
        (
            {"objective": {"kind": "elbo", "encoder_lm_weight": 1}},
            "needs objective.pretraining_epochs above 0",
        ),
        (
            {"model": {"encoder": "ngrams"}, "objective": FORESEEING},
            "objective.encoder_lm_weight needs a latent and model.encoder lstm or mingru",
        ),
        ({"model": {"encoder_layers": 2}, "objective": FORESEEING}, "needs model.encoder_layers 1"),
        (
            {"model": {"encoder_hidden": 8}, "objective": FORESEEING},
            "needs model.encoder_hidden equal to model.decoder_hidden",
        ),
        (
            {"objective": {"kind": "elbo", "pretraining_token_drop": 0.3, "pretraining": "autoencoder"}},
            "objective.pretraining_token_drop needs objective.pretraining_epochs above 0",
        ),
        (
            {"objective": {"kind": "elbo", "pretraining_token_drop": 0.3, "pretraining_epochs": 1}},
            "needs objective.pretraining autoencoder or an objective.encoder_lm_weight",
        ),
        ({"model": {"latent": 0}, "objective": DENOISING}, "pretraining_token_drop needs a latent"),
        (
            {"objective": {**DENOISING, "pretraining_token_drop": 1.0}},
            "objective.pretraining_token_drop: input should be less than 1 (got 1.0)",
        ),
        (
            {"objective": {**DENOISING, "sentiment_after_epochs": 2}, "training": {"epochs": 3}},
            "objective.sentiment_after_epochs together must be below training.epochs",
        ),
        (
            {"model": {"latent": 0}, "objective": {"kind": "elbo", "sentiment_after_epochs": 1}},
            "objective.sentiment_after_epochs needs a latent",
        ),
        (
            {"model": {"weight_drop": 0.5, "encoder": "ngrams", "decoder": "mingru"}},
            "model.weight_drop needs model.encoder lstm or model.decoder autoregressive",
        ),
        ({"model": {"dropout_mask": "review"}}, "model.dropout_mask review needs a model.dropout above 0"),
        (
            {"model": {"decoder": "transformer", "decoder_hidden": 100, "decoder_heads": 8}},
            "model.decoder_hidden (100) must be a multiple of twice model.decoder_heads (8)",
        ),
        (
            {"model": {"latent": "none"}, "objective": {"kind": "elbo", "adversarial_weight": 1}},
            "objective.adversarial_weight needs a latent",
        ),
        (
            {"model": {"latent": 0}, "objective": {"kind": "elbo", "words_weight": 1}},
            "objective.words_weight needs a latent",
        ),
        (
            {"objective": {"kind": "elbo", "kl_cycle_epochs": 1}},
            "objective.kl_cycle_epochs (1.0) must be at least objective.kl_warmup_epochs (2.0)",
        ),
        ({"model": {"latent": 0}, "training": {"layer_decay": 0.4}}, "training.layer_decay needs a latent"),
        ({"training": {"averaging": 1.0}}, "training.averaging: input should be less than 1 (got 1.0)"),
        (
            {"vocabulary": {"kind": "words"}, "model": {"decoder": "repeat", "embedding_dropout": 0.1}}
            | {"objective": "seed"},
            "objective seed needs model.embedding_dropout 0.0",
        ),
    ],
)
def test_a_bad_value_says_which_and_why(mapping: dict, said: str):
    assert said in problem(mapping)


def test_what_masks_the_encoder_needs_something_that_asks_of_it():
    for objective in (DENOISING, {**FORESEEING, "pretraining_token_drop": 0.3}):
        kept = parse(Config, {"objective": {**objective, "sentiment_after_epochs": 8}})
        assert kept.training.epochs == 10


def test_every_problem_is_named_at_once():
    message = problem({"seed": -1, "training": {"epochs": 0, "batch_size": "x"}})
    assert all(key in message for key in ("seed:", "training.epochs:", "training.batch_size:"))


def test_objective_may_be_a_word():
    config = parse(Config, {"objective": "elbo"})
    assert config == parse(Config, {"objective": {"kind": "elbo"}})


def test_keys_are_dotted_and_cover_both_objectives():
    known = set(keys(Config))
    assert {"seed", "data.source", "objective.kind", "objective.word_dropout", "training.keep_last"} <= known


def test_load_passes_over_what_only_the_service_reads(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "name: a\nresources: {ranks: 2}\nselect: {metric: loss, mode: min}\nmax_attempts: 1\nseed: 7\n"
    )
    assert load(path).seed == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "line 1"),
        ("- 1\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("seed: 1\nname: 2024-13-45\n", r"line 2, column 7: not YAML: '2024-13-45' is no timestamp"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, said: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load(tmp_path / "nowhere.yaml")
