from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import ks_2samp, norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier

from textvae.plots import Seen, Separation, separation

Cloud = Callable[..., Seen]


def of(seen: Seen) -> Separation:
    found = separation(seen.means, seen.labels, direction=seen.direction, bias=seen.bias)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("apart", "verdict", "words"),
    [(6.0, "yes", "Yes: two regions"), (1.0, "partly", "Partly: one cloud"), (0.0, "no", "No: the cloud")],
)
def test_the_answer_is_that_of_normal_distributions(
    cloud: Cloud, apart: float, verdict: str, words: str
) -> None:
    found = of(cloud(2000, apart=apart))
    # Two normal classes `apart` standard deviations: no axis does better than this, nor overlaps less.
    best = float(norm.cdf(apart / 2))
    assert found.lda_accuracy == pytest.approx(best, abs=0.03)
    assert found.gap == pytest.approx(apart, abs=0.15)
    assert found.overlap == pytest.approx(2 * (1 - best), abs=0.05)
    assert found.verdict == verdict
    assert found.answer.startswith(f"Do two regions separate by sentiment? {words}")
    assert f"{found.head_accuracy:.1%}" in found.answer and "2,000 labelled reviews" in found.answer


def test_the_numbers_are_those_of_scikit_learn(cloud: Cloud) -> None:
    seen = cloud(400, apart=2.0)
    found = of(seen)
    assert found.chance == 0.5 and found.reviews == 400
    assert found.silhouette == pytest.approx(silhouette_score(seen.means, seen.labels))
    head = (2.0 * seen.means[:, 0] + 0.5 > 0) == (seen.labels == 1)
    assert found.head_accuracy == pytest.approx(head.mean())
    # Nine neighbours never tie; ten do, and half of those ties are right.
    nine, eleven = (
        np.mean(
            [
                KNeighborsClassifier(n)
                .fit(np.delete(seen.means, i, 0), np.delete(seen.labels, i))
                .predict(seen.means[i : i + 1])
                == seen.labels[i]
                for i in range(400)
            ]
        )
        for n in (9, 11)
    )
    assert min(nine, eleven) - 0.03 <= found.neighbour_accuracy <= max(nine, eleven) + 0.03


def test_held_out_scores_do_not_know_their_own_review() -> None:
    random = np.random.default_rng(1)
    means, labels = random.normal(size=(60, 40)), np.arange(60) % 2
    fitted = LinearDiscriminantAnalysis().fit(means, labels).score(means, labels)
    found = separation(means, labels, direction=np.ones(40), bias=0.0)
    assert found is not None
    assert fitted > 0.85  # noise learned by heart
    assert found.lda_accuracy < 0.7 and found.verdict == "no"


def test_overlap_is_of_the_scores_of_both_classes() -> None:
    from textvae.plots.separation import _kolmogorov_smirnov

    random = np.random.default_rng(2)
    a, b = random.normal(size=50), random.normal(0.7, 1.0, size=80)
    assert _kolmogorov_smirnov(a, b) == pytest.approx(ks_2samp(a, b).statistic)


def test_unlabelled_reviews_do_not_count(cloud: Cloud) -> None:
    seen = cloud(200)
    labels = seen.labels.copy()
    labels[:50] = -1
    found = separation(seen.means, labels, direction=seen.direction, bias=seen.bias)
    assert found == separation(seen.means[50:], labels[50:], direction=seen.direction, bias=seen.bias)


def test_too_few_of_a_class_give_no_answer(cloud: Cloud) -> None:
    seen = cloud(8)  # four of each
    assert separation(seen.means, seen.labels, direction=seen.direction, bias=0.0) is None
    assert separation(seen.means, np.ones(8), direction=seen.direction, bias=0.0) is None
    assert separation(np.zeros((40, 0)), np.arange(40) % 2, direction=np.zeros(0), bias=0.0) is None


def test_a_collapsed_latent_separates_nothing() -> None:
    found = separation(np.zeros((40, 3)), np.arange(40) % 2, direction=np.zeros(3), bias=0.0)
    assert found is not None
    assert (found.verdict, found.gap, found.silhouette) == ("no", 0.0, 0.0)
    assert found.overlap == pytest.approx(1.0)
    assert found.head_accuracy == found.lda_accuracy == 0.5
