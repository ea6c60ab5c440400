from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from textvae import checkpoint, vocabulary
from textvae.batches import Batch, collate, framing
from textvae.checkpoint import CheckpointError, Position
from textvae.config import Config
from textvae.model import TextVAE
from textvae.parsing import parse
from textvae.predict import BATCH_SIZE, NoLatent, Predictor

torch.set_num_threads(1)
GOOD = ["a great film", "great acting and a great story", "i love this great film", "what a great story"]
BAD = ["a terrible film", "terrible acting and a terrible story", "i hate this terrible film", "what a mess"]


def build(kind: str = "elbo", tokens: str = "words") -> Predictor:
    """A model that has learned eight reviews by heart."""
    settings: dict[str, Any] = {
        "vocabulary": {"kind": tokens, "size": 300 if tokens == "bpe" else 40, "max_length": 9},
        "model": {
            "embedding": 16,
            "encoder_hidden": 16,
            "latent": 4,
            "noise_std": 0.1,
            "decoder_hidden": 32,
            "decoder": "repeat" if kind == "seed" else "autoregressive",
        },
        "objective": {"kind": kind},
    }
    config = parse(Config, settings)
    words = vocabulary.build(config.vocabulary, GOOD + BAD)
    torch.manual_seed(0)
    model = TextVAE(config, words.size)
    frame = framing(config)
    ids, lengths = collate(words.encode(GOOD + BAD), frame)
    batch = Batch(ids, lengths, torch.tensor([1] * 4 + [0] * 4), 8)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(400 if kind == "seed" else 200):
        optimizer.zero_grad()
        (model(batch, kl_weight=0.0).loss / 8).backward()
        optimizer.step()
    return Predictor.from_parts(config, words, model)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return build()


def test_sentiment_is_a_probability_for_each_text(predictor: Predictor) -> None:
    given = predictor.sentiment(GOOD + BAD)
    assert [p > 0.5 for p in given] == [True] * 4 + [False] * 4
    assert all(type(p) is float and 0 <= p <= 1 for p in given)
    assert predictor.sentiment([]) == []


def test_embed_gives_the_posterior_means_in_the_order_of_the_texts(predictor: Predictor) -> None:
    texts = (GOOD + BAD) * 20  # several batches, sorted by length inside
    assert len(texts) > 2 * BATCH_SIZE
    means = predictor.embed(texts)
    assert means.dtype == np.float32 and means.shape == (160, 4)
    for text, mean in zip(texts[:8], means[:8], strict=True):
        np.testing.assert_allclose(predictor.embed([text])[0], mean, atol=1e-5)
    np.testing.assert_allclose(means[:8], means[-8:], atol=1e-5)


@pytest.mark.parametrize(("kind", "tokens"), [("elbo", "words"), ("elbo", "bpe"), ("seed", "words")])
def test_what_was_learned_by_heart_is_written_again(kind: str, tokens: str) -> None:
    learned = build(kind, tokens)
    texts = GOOD + BAD
    if tokens == "bpe":  # of longer ones the model reads, and writes, the beginning
        texts = [text for text, cut in zip(texts, learned.truncated(texts), strict=True) if not cut]
        assert texts
    assert learned.reconstruct(texts) == texts
    assert len(learned.sample(3)) == len(learned.interpolate(GOOD[0], BAD[0], 3)) == 3
    assert learned.interpolate(texts[0], texts[-1], 2) == [texts[0], texts[-1]]


def test_samples_depend_on_the_seed_alone(predictor: Predictor) -> None:
    first = predictor.sample(5, seed=1)
    torch.manual_seed(99)
    assert predictor.sample(5, seed=1) == first
    assert predictor.sample(5, seed=2) != first
    assert all(text for text in first)
    with pytest.raises(ValueError, match="n must be at least 1"):
        predictor.sample(0)
    with pytest.raises(ValueError, match="temperature"):
        predictor.sample(1, temperature=-1)


def test_transfer_goes_over_to_the_other_sentiment(predictor: Predictor) -> None:
    texts = predictor.transfer(GOOD[0], 4)
    assert len(texts) == 4
    assert texts[0] == predictor.reconstruct([GOOD[0]])[0]
    assert predictor.sentiment([texts[-1]])[0] < 0.5
    # Towards where it is already, as far as can be: it stays.
    assert set(predictor.transfer(GOOD[0], 3, positive=True)) == {texts[0]}
    with pytest.raises(ValueError, match="steps"):
        predictor.transfer(GOOD[0], 1)


def test_a_language_model_writes_and_reads_nothing() -> None:
    config = parse(
        Config,
        {
            "vocabulary": {"kind": "words", "size": 40, "max_length": 9},
            "model": {"embedding": 4, "latent": "none", "decoder_hidden": 4},
        },
    )
    words = vocabulary.build(config.vocabulary, GOOD)
    predictor = Predictor.from_parts(config, words, TextVAE(config, words.size))
    assert len(predictor.sample(2)) == 2
    asked: list[Callable[[], object]] = [
        lambda: predictor.sentiment(GOOD),
        lambda: predictor.embed(GOOD),
        lambda: predictor.reconstruct(GOOD),
        lambda: predictor.interpolate(GOOD[0], GOOD[1]),
        lambda: predictor.transfer(GOOD[0]),
    ]
    for ask in asked:
        with pytest.raises(NoLatent, match="without a latent"):
            ask()


def test_long_texts_are_cut_and_reported(predictor: Predictor) -> None:
    nine = "a great film and a terrible story i hate"
    assert predictor.truncated([nine, nine + " this", "great"]) == [False, True, False]
    np.testing.assert_allclose(predictor.embed([nine]), predictor.embed([nine + " great" * 50]), atol=1e-6)
    seed = Predictor.from_parts(
        config := parse(
            Config,
            {
                "vocabulary": {"kind": "words", "size": 40, "max_length": 9, "truncation": "pre"},
                "model": {"decoder": "repeat"},
                "objective": "seed",
            },
        ),
        predictor.vocabulary,
        TextVAE(config),
    )
    assert seed.truncated([nine, nine.removesuffix(" hate")]) == [True, False]  # START takes a place


def test_empty_texts_are_refused(predictor: Predictor) -> None:
    for method in (predictor.sentiment, predictor.embed, predictor.reconstruct, predictor.truncated):
        with pytest.raises(ValueError, match="text 1 is empty"):
            method(["good", "  \n"])
    with pytest.raises(TypeError, match="list of texts"):
        predictor.sentiment("one text")
    assert len(predictor.sentiment(["!?", "\u2603"])) == 2  # nothing known, but not nothing


def test_it_loads_from_a_checkpoint(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "epoch-01"
    optimizer = torch.optim.Adam(predictor.model.parameters())
    digest = checkpoint.save(
        folder,
        model=predictor.model,
        optimizer=optimizer,
        config=predictor.config,
        vocabulary=predictor.vocabulary,
        position=Position(1, 2, 0),
        metrics={},
    )
    loaded = Predictor.load(folder, digest=digest)
    assert loaded.sentiment(GOOD) == predictor.sentiment(GOOD)
    assert loaded.sample(3, seed=5) == predictor.sample(3, seed=5)
    with pytest.raises(CheckpointError):
        Predictor.load(folder, digest="0" * 64)


def test_threads_may_ask_at_once(predictor: Predictor) -> None:
    expected = predictor.sentiment(GOOD), predictor.sample(3, seed=4), predictor.reconstruct(BAD)

    def ask(_: int) -> Any:
        return predictor.sentiment(GOOD), predictor.sample(3, seed=4), predictor.reconstruct(BAD)

    with ThreadPoolExecutor(4) as pool:
        assert all(answer == expected for answer in pool.map(ask, range(12)))


def test_weights_of_another_vocabulary_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    checkpoint.save(
        tmp_path / "epoch-01",
        model=predictor.model,
        optimizer=torch.optim.Adam(predictor.model.parameters()),
        config=predictor.config,
        vocabulary=vocabulary.Words(["film"], 12),
        position=Position(1, 2, 0),
        metrics={},
    )
    with pytest.raises(CheckpointError, match=r"do not fit its config and its vocabulary of 12 tokens"):
        Predictor.load(tmp_path / "epoch-01")
