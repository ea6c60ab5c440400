from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from textvae import plots, vocabulary
from textvae.batches import collate, framing
from textvae.config import Config
from textvae.model import TextVAE
from textvae.parsing import parse
from textvae.predict import Predictor
from textvae.sources.reviews import Slice

torch.set_num_threads(1)
TEXTS = [
    "a great film",
    "a terrible film and a terrible plot",
    "great",
    "the plot was a great mess " * 4,
] * 20


def reviews() -> Slice:
    labels = np.array([1, 0, 1, -1] * 20, dtype=np.int8)
    return Slice(TEXTS, labels, np.full(80, np.nan, dtype=np.float32))


def predictor(kind: str, **model: Any) -> Predictor:
    config = parse(
        Config,
        {
            "vocabulary": {"kind": "words", "size": 30, "max_length": 12},
            "model": {
                "embedding": 8,
                "encoder_hidden": 8,
                "latent": 4,
                "noise_std": 0.5,
                "decoder_hidden": 8,
                "decoder": "repeat" if kind == "seed" else "autoregressive",
            }
            | model,
            "objective": {"kind": kind},
        },
    )
    words = vocabulary.build(config.vocabulary, TEXTS)
    torch.manual_seed(0)
    return Predictor.from_parts(config, words, TextVAE(config, words.size))


@pytest.mark.parametrize("kind", ["elbo", "seed"])
def test_what_is_seen_is_what_the_model_says_of_each_review_alone(kind: str) -> None:
    model = predictor(kind)
    told: list[tuple[int, int | None]] = []
    seen = plots.see(model, reviews(), progress=lambda what, done, total: told.append((done, total)))
    assert told[-1] == (80, 80)
    assert len(seen) == 80 and seen.latent == 4
    np.testing.assert_allclose(seen.means, model.embed(TEXTS), atol=1e-5)
    odds = 1 / (1 + np.exp(-seen.log_odds))
    np.testing.assert_allclose(odds, model.sentiment(TEXTS), atol=1e-5)
    np.testing.assert_array_equal(seen.lengths, [len(text.split()) for text in TEXTS])
    assert seen.limit == (12 if kind == "elbo" else 11)  # START takes a place of the seed's
    np.testing.assert_array_equal(seen.tokens, np.minimum(seen.lengths, seen.limit) + (kind == "elbo"))
    assert np.isfinite(seen.losses).all() and (seen.losses > 0).all()

    tokens, lengths = collate(model.vocabulary.encode(TEXTS), framing(model.config))
    with torch.no_grad():
        mean, log_var = model.model.encode(tokens, lengths)
    kl = kl_divergence(Normal(mean, (log_var / 2).exp() * 0.5), Normal(0.0, 1.0)).mean(dim=0)
    np.testing.assert_allclose(seen.kl, kl.numpy(), rtol=1e-4)
    np.testing.assert_allclose(seen.variances, mean.numpy().var(axis=0), rtol=1e-3, atol=1e-9)
    np.testing.assert_array_equal(seen.active, seen.variances > 0.01)


def test_losses_are_of_one_draw_by_the_seed() -> None:
    model = predictor("elbo")
    first, again, other = (plots.see(model, reviews(), seed=seed).losses for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    # With hardly any noise the draw is the mean, and the loss the model's own log likelihood there.
    sure = predictor("elbo", noise_std=1e-6)
    tokens, lengths = collate(sure.vocabulary.encode(TEXTS[:1]), framing(sure.config))
    with torch.no_grad():
        expected = -sure.model.log_likelihood(sure.model.encode(tokens, lengths)[0], tokens)
    assert plots.see(sure, reviews()).losses[0] == pytest.approx(float(expected), rel=1e-4)
