from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal

from textvae.batches import Batch, collate, framing
from textvae.evaluate.likelihood import (
    Posterior,
    explain,
    importance_weighted,
    kl,
    kl_per_dimension,
    negative_elbo,
    per_unit,
    posterior,
)
from textvae.evaluate.reading import Texts
from textvae.predict import Predictor
from textvae.sources.permutation import key_of
from textvae.vocabulary import END, START

from .by_hand import ids, nats, scored

Make = Callable[..., Predictor]
TextsOf = Callable[..., Texts]


def test_the_posterior_is_that_of_each_review_alone(make: Make, texts_of: TextsOf) -> None:
    predictor = make(noise_std=0.5)
    texts = texts_of(predictor)
    q = posterior(predictor.model, texts)
    np.testing.assert_allclose(q.mean, predictor.embed(texts.texts), atol=1e-5)
    for row, text in enumerate(texts.texts):
        tokens, lengths = collate(predictor.vocabulary.encode([text]), framing(predictor.config))
        with torch.no_grad():
            log_var = predictor.model.encode(tokens, lengths)[1][0].numpy()
        np.testing.assert_allclose(q.variance[row], (np.exp(log_var / 2) * 0.5) ** 2, rtol=1e-4)


def test_a_draw_of_the_posterior_has_its_moments() -> None:
    q = Posterior(np.tile([1.0, -2.0], (20_000, 1)), np.tile([4.0, 0.25], (20_000, 1)))
    z = q.sample(3)
    np.testing.assert_allclose(z.mean(axis=0), [1, -2], atol=0.05)
    np.testing.assert_allclose(z.std(axis=0), [2, 0.5], rtol=0.03)
    np.testing.assert_array_equal(z, q.sample(3))
    assert not np.array_equal(z, q.sample(4))


@pytest.mark.parametrize("tokens", ["words", "bpe"])
def test_reconstruction_counts_real_tokens_and_end_alone(make: Make, texts_of: TextsOf, tokens: str) -> None:
    predictor = make(tokens=tokens)
    with torch.no_grad():
        predictor.model.output.bias[END] += 1.0  # untrained, it would be right by chance alone
    texts = texts_of(predictor)
    z = posterior(predictor.model, texts).sample(0)
    found = explain(predictor.model, texts, z)
    right = counted = 0
    for row in range(len(texts)):
        kept = ids(predictor, texts.texts[row])
        expected, hits = scored(predictor, kept, z[row])
        assert found.tokens[row] == len(kept)
        assert found.loss[row] == pytest.approx(expected, rel=1e-4)
        assert found.correct[row] == hits
        right, counted = right + hits, counted + len(kept)
    assert 0 < right < counted
    assert found.accuracy == right / counted


def test_reconstruction_of_the_seed_is_the_softmax_over_real_words(make: Make, texts_of: TextsOf) -> None:
    predictor = make("seed", max_length=7)
    texts = texts_of(predictor)
    z = posterior(predictor.model, texts).mean
    found = explain(predictor.model, texts, z)
    with torch.no_grad():
        p = predictor.model.decode(torch.tensor(z, dtype=torch.float32)).double().softmax(-1)  # (8, 7, words)
    for row in range(len(texts)):
        kept = texts.kept(row)
        places = p[row, -len(kept) :]  # padding comes first
        assert found.tokens[row] == len(kept)
        expected = -sum(math.log(float(places[i, token])) for i, token in enumerate(kept))
        assert found.loss[row] == pytest.approx(expected, rel=1e-5)
        assert found.correct[row] == sum(int(places[i].argmax()) == t for i, t in enumerate(kept))


def test_kl_is_that_of_two_gaussians() -> None:
    random = np.random.default_rng(0)
    q = Posterior(random.normal(size=(3, 4)), random.uniform(0.1, 2, size=(3, 4)))
    for row in range(3):
        ours = torch.distributions.MultivariateNormal(
            torch.tensor(q.mean[row]), torch.diag(torch.tensor(q.variance[row]))
        )
        prior = torch.distributions.MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
        assert kl(q)[row] == pytest.approx(float(torch.distributions.kl_divergence(ours, prior)), rel=1e-12)
    assert kl_per_dimension(q).shape == (3, 4)
    assert kl(Posterior(np.zeros((2, 3)), np.ones((2, 3)))).tolist() == [0, 0]


def gaussians(predictor: Predictor, text: str) -> tuple[Normal, Normal]:
    """q(z | x) of a text, encoded by itself, and p(z)."""
    with torch.no_grad():
        mean, log_var = predictor.model.encode(torch.tensor([ids(predictor, text)]))
    deviation = (log_var[0].double() / 2).exp() * predictor.config.model.noise_std
    prior = Normal(torch.zeros_like(deviation), torch.ones_like(deviation))
    return Normal(mean[0].double(), deviation), prior


def test_the_elbo_is_reconstruction_and_kl_by_hand(make: Make, texts_of: TextsOf) -> None:
    predictor = make(noise_std=0.7)
    texts = texts_of(predictor)
    q = posterior(predictor.model, texts)
    z = np.random.default_rng(0).normal(size=(8, 3))
    found = negative_elbo(explain(predictor.model, texts, z), q)
    for row, text in enumerate(texts.texts):
        kl_of_two = torch.distributions.kl_divergence(*gaussians(predictor, text)).sum()
        assert found[row] == pytest.approx(nats(predictor, text, z[row]) + float(kl_of_two), rel=1e-5)


def test_training_reports_the_elbo_of_the_same_noise(make: Make, texts_of: TextsOf) -> None:
    predictor = make(noise_std=0.7)
    texts = texts_of(predictor)
    tokens, lengths = collate([row.tolist() for row in texts.ids], framing(predictor.config))
    with torch.no_grad():
        losses = predictor.model(
            Batch(tokens, lengths, torch.full((8,), -1), 8), generator=torch.Generator().manual_seed(4)
        )
    noise = torch.randn(8, 3, generator=torch.Generator().manual_seed(4)).numpy()
    q = posterior(predictor.model, texts)
    z = q.mean + np.sqrt(q.variance) * noise
    reconstruction = sum(nats(predictor, text, z[row]) for row, text in enumerate(texts.texts))
    assert float(losses.reconstruction) == pytest.approx(reconstruction, rel=1e-5)
    assert float(losses.kl) == pytest.approx(kl(q).sum(), rel=1e-5)
    bound = negative_elbo(explain(predictor.model, texts, z), q)
    assert float(losses.loss) == pytest.approx(bound.sum(), rel=1e-5)


def test_importance_weighting_finds_the_integral_over_the_prior(make: Make, texts_of: TextsOf) -> None:
    predictor = make(latent=1)
    texts = texts_of(predictor, ["a great film", "i hate this"])
    q = posterior(predictor.model, texts)
    grid = np.linspace(-8, 8, 1601)
    for row in range(2):
        tokens = torch.tensor([[*texts.kept(row), END]]).expand(1601, -1)
        with torch.no_grad():
            likelihood = predictor.model.log_likelihood(
                torch.tensor(grid[:, None], dtype=torch.float32), tokens
            ).double()
        exact = -math.log(np.trapezoid(np.exp(likelihood.numpy()) * stats.norm.pdf(grid), grid))
        found = importance_weighted(predictor.model, texts, q, 4000)[row]
        assert found == pytest.approx(exact, abs=0.05)
        elbo = (
            np.mean([explain(predictor.model, texts, q.sample(seed)).loss[row] for seed in range(200)])
            + kl(q)[row]
        )
        assert elbo > exact - 0.05
        # A worse proposal, with the tails of a better one, finds the same.
        wide = Posterior(q.mean + 0.3, np.maximum(q.variance, 1.0) * 1.5)
        assert importance_weighted(predictor.model, texts, wide, 4000)[row] == pytest.approx(exact, abs=0.1)


def test_importance_weighting_is_the_sum_over_the_same_draws_by_hand(make: Make, texts_of: TextsOf) -> None:
    predictor = make(latent=2, noise_std=0.8)
    texts = texts_of(predictor, ["A great film!", "I hate this terrible film", "what a mess"])
    samples, seed = 6, 11
    found = importance_weighted(predictor.model, texts, posterior(predictor.model, texts), samples, seed=seed)
    for row, text in enumerate(texts.texts):
        key = key_of(seed, "importance", row) % 2**63  # a review's own noise
        noise = torch.randn(samples * 2, generator=torch.Generator().manual_seed(key), dtype=torch.float64)
        q, p = gaussians(predictor, text)
        weights = []
        for draw in noise.reshape(samples, 2):
            z = q.mean + q.stddev * draw
            log_weight = -nats(predictor, text, z.numpy()) + float((p.log_prob(z) - q.log_prob(z)).sum())
            weights.append(math.exp(log_weight))
        assert found[row] == pytest.approx(-math.log(sum(weights) / samples), rel=1e-5)
        assert max(weights) < 0.99 * sum(weights)  # more than one draw has a say


def test_importance_weighting_ignores_how_it_is_cut(make: Make, texts_of: TextsOf) -> None:
    predictor = make()
    texts = texts_of(predictor)
    q = posterior(predictor.model, texts)
    whole = importance_weighted(predictor.model, texts, q, 20, seed=5)
    np.testing.assert_allclose(
        importance_weighted(predictor.model, texts, q, 20, seed=5, positions=1), whole, rtol=1e-6
    )
    assert not np.allclose(importance_weighted(predictor.model, texts, q, 20, seed=6), whole, rtol=1e-9)
    one = importance_weighted(predictor.model, texts.first(3), q.first(3), 20, seed=5)
    np.testing.assert_allclose(one, whole[:3], rtol=1e-6)
    many = np.mean([importance_weighted(predictor.model, texts, q, 1, seed=s).mean() for s in range(60)])
    assert many > importance_weighted(predictor.model, texts, q, 200).mean() - 0.05  # K lowers the bound
    with pytest.raises(ValueError, match="at least 1"):
        importance_weighted(predictor.model, texts, q, 0)


def test_rates_are_totals_over_totals(make: Make, texts_of: TextsOf) -> None:
    texts = texts_of(make(), ["A great film!", "great"])
    rates = per_unit(np.array([10.0, 4.0]), texts, np.array([4, 2]))
    assert rates["review"] == 7 and rates["token"] == 14 / 6
    assert rates["word"] == 14 / 4 and rates["word_perplexity"] == pytest.approx(math.exp(3.5))
    assert rates["bits_per_byte"] == pytest.approx(14 / math.log(2) / (13 + 5))
    assert rates["standard_error"] == pytest.approx(stats.sem([10, 4]))


def test_start_never_counts(make: Make, texts_of: TextsOf) -> None:
    predictor = make("seed", max_length=9)
    texts = texts_of(predictor)
    _, tokens, _ = next(texts.batches())
    assert (tokens == START).any()
    assert explain(predictor.model, texts, posterior(predictor.model, texts).mean).tokens.tolist() == [
        len(row) for row in texts.ids
    ]
