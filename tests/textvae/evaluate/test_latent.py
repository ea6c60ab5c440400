from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import integrate, stats

from textvae.evaluate.latent import active_units, delta_reconstruction, derangement, mutual_information
from textvae.evaluate.likelihood import Posterior, explain, kl
from textvae.evaluate.meter import ACTIVE_VARIANCE
from textvae.evaluate.reading import Texts
from textvae.predict import Predictor

from .by_hand import nats

Make = Callable[..., Predictor]
TextsOf = Callable[..., Texts]


def gaussian_channel(n: int, latent: int, signal: float, noise: float) -> Posterior:
    """Means from N(0, signal), posteriors of variance `noise`; I is latent / 2 ln(1 + signal / noise)."""
    random = np.random.default_rng(0)
    return Posterior(random.normal(size=(n, latent)) * math.sqrt(signal), np.full((n, latent), noise))


def test_mutual_information_of_a_gaussian_channel() -> None:
    q = gaussian_channel(6000, 2, 0.75, 0.25)
    found = mutual_information(q)
    assert found.mutual_information == pytest.approx(math.log(1 + 3), abs=0.05)
    assert found.reviews == 6000 and found.bound == math.log(6000)
    # q(z) is N(0, 1) then, and so the prior.
    assert found.marginal_kl == pytest.approx(0, abs=0.05)


def test_mutual_information_and_marginal_kl_against_an_integral() -> None:
    means, deviations = np.array([-2.0, 0.5, 1.0]), np.array([0.3, 1.0, 0.5])

    def marginal(z: float) -> float:
        return float(stats.norm.pdf(z, means, deviations).mean())

    marginal_kl = integrate.quad(
        lambda z: marginal(z) * math.log(marginal(z) / stats.norm.pdf(z)), -7, 7, limit=200
    )[0]
    q = Posterior(np.tile(means, 2000)[:, None], np.tile(deviations**2, 2000)[:, None])
    found = mutual_information(q)  # 2,000 copies of three reviews: the same q(z), many draws of it
    assert found.marginal_kl == pytest.approx(marginal_kl, abs=0.03)
    assert found.mutual_information == pytest.approx(kl(q).mean() - marginal_kl, abs=0.03)


def test_mutual_information_is_the_formula_however_it_is_cut() -> None:
    q = gaussian_channel(50, 3, 1.0, 0.1)
    z = q.sample(2, "mutual information")
    density = np.array(
        [
            [
                stats.multivariate_normal(m, np.diag(v)).logpdf(draw)
                for m, v in zip(q.mean, q.variance, strict=True)
            ]
            for draw in z
        ]
    )
    expected = np.mean(np.diag(density) - np.logaddexp.reduce(density, axis=1) + math.log(50))
    for rows in (7, 50, 256):
        found = mutual_information(q, seed=2, rows=rows)
        assert found.mutual_information == pytest.approx(expected, rel=1e-9)
        assert found.mutual_information + found.marginal_kl == pytest.approx(kl(q).mean(), rel=1e-9)


def test_the_estimate_never_exceeds_the_logarithm_of_n() -> None:
    # Tiny variances, far apart (the seed's noise): everything is told, and the expanded square must hold.
    random = np.random.default_rng(1)
    q = Posterior(random.normal(size=(64, 20)) * 3, np.full((64, 20), 1e-5))
    assert mutual_information(q).mutual_information == pytest.approx(math.log(64), abs=1e-9)
    assert mutual_information(
        Posterior(np.zeros((64, 20)), np.ones((64, 20)))
    ).mutual_information == pytest.approx(0, abs=1e-9)
    assert mutual_information(Posterior(np.zeros((5, 0)), np.ones((5, 0)))).mutual_information == 0
    with pytest.raises(ValueError, match="no reviews"):
        mutual_information(Posterior(np.zeros((0, 2)), np.ones((0, 2))))


def test_active_units_vary() -> None:
    means = np.array([[0.0, 5.0, 1.0], [0.3, 5.0, 1.1], [0.0, 5.0, 1.2]])
    assert np.var(means, axis=0)[2] < ACTIVE_VARIANCE < np.var(means, axis=0)[0]
    assert active_units(means) == 1
    assert active_units(means, 0.001) == 2
    assert active_units(np.zeros((0, 3))) == 0


@pytest.mark.parametrize("n", [2, 3, 10, 101])
def test_a_derangement_moves_everything(n: int) -> None:
    order = derangement(n, seed=4)
    assert sorted(order) == list(range(n)) and (order != np.arange(n)).all()
    np.testing.assert_array_equal(order, derangement(n, seed=4))
    with pytest.raises(ValueError, match="at least 2"):
        derangement(1)


# Whose z each of eight reviews is given with seed 0. Records go by it: it may not change.
SHUFFLED = [6, 4, 1, 0, 7, 3, 2, 5]


def test_delta_reconstruction_is_the_cost_of_another_z(make: Make, texts_of: TextsOf) -> None:
    predictor = make()
    texts = texts_of(predictor)
    z = np.random.default_rng(1).normal(size=(8, 3)) * 3
    right = [nats(predictor, text, z[row]) for row, text in enumerate(texts.texts)]
    wrong = [nats(predictor, text, z[SHUFFLED[row]]) for row, text in enumerate(texts.texts)]
    expected = (sum(wrong) - sum(right)) / 8
    assert abs(expected) > 0.1
    assert delta_reconstruction(predictor.model, texts, z) == pytest.approx(expected, rel=1e-4)
    told = explain(predictor.model, texts, z)
    assert delta_reconstruction(predictor.model, texts, z, told) == pytest.approx(expected, rel=1e-4)
    # Where every z is the same, shuffling changes nothing.
    assert delta_reconstruction(predictor.model, texts, np.ones((8, 3))) == 0


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_two_reviews_can_only_change_places(make: Make, texts_of: TextsOf, seed: int) -> None:
    predictor = make()
    first, second = "What a great, great story", "I hate this terrible film"
    z = np.array([[2.0, -1.0, 0.5], [-3.0, 1.0, 4.0]])
    right = nats(predictor, first, z[0]) + nats(predictor, second, z[1])
    wrong = nats(predictor, first, z[1]) + nats(predictor, second, z[0])
    found = delta_reconstruction(predictor.model, texts_of(predictor, [first, second]), z, seed=seed)
    assert abs(wrong - right) > 0.1
    assert found == pytest.approx((wrong - right) / 2, rel=1e-4)
