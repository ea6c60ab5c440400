from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from textvae.evaluate.sentiment import calibration_error, log_odds, probability, probe, scores

RANDOM = np.random.default_rng(0)
ODDS = np.round(RANDOM.normal(size=200) * 2, 1)
LABELS = (RANDOM.random(200) < 1 / (1 + np.exp(-ODDS / 2))).astype(np.int8)


def test_scores_are_what_counting_gives() -> None:
    found = scores(ODDS, LABELS)
    right = sum((odds > 0) == (label == 1) for odds, label in zip(ODDS, LABELS, strict=True))
    assert found.accuracy == right / 200 and found.labelled == 200
    assert found.standard_error == pytest.approx(math.sqrt(right / 200 * (200 - right) / 200 / 200))
    pairs = [
        1.0 if up > down else 0.5 if up == down else 0.0
        for up in ODDS[LABELS == 1]
        for down in ODDS[LABELS == 0]
    ]
    assert found.roc_auc == pytest.approx(sum(pairs) / len(pairs))


def test_calibration_error_is_the_gap_in_each_bin() -> None:
    p = 1 / (1 + np.exp(-ODDS))
    expected = 0.0
    for b in range(15):
        within = [
            (max(q, 1 - q), (q > 0.5) == bool(t))
            for q, t in zip(p, LABELS, strict=True)
            if b / 15 < max(q, 1 - q) <= (b + 1) / 15
        ]
        if within:
            confidence, right = np.mean([c for c, _ in within]), np.mean([r for _, r in within])
            expected += len(within) / 200 * abs(right - confidence)
    assert scores(ODDS, LABELS).calibration_error == pytest.approx(expected)
    # Sure and right is calibrated; sure and wrong as far off as can be.
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0
    assert calibration_error(np.array([1.0, 0.0]), np.array([False, True])) == 1
    assert calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == 0


def test_reviews_without_a_label_do_not_count() -> None:
    labels = LABELS.copy()
    labels[50:] = -1
    assert scores(ODDS, labels) == scores(ODDS[:50], LABELS[:50])
    assert math.isnan(scores(np.array([1.0, 2.0]), np.array([1, 1], dtype=np.int8)).roc_auc)
    with pytest.raises(ValueError, match="no review has a label"):
        scores(ODDS, np.full(200, -1, dtype=np.int8))


def test_probabilities_do_not_overflow() -> None:
    assert probability(np.array([-1e4, 0.0, 1e4])).tolist() == [0, 0.5, 1]
    np.testing.assert_allclose(probability(ODDS), 1 / (1 + np.exp(-ODDS)))


def test_the_probe_is_a_linear_map_of_the_mean() -> None:
    means = RANDOM.normal(size=(200, 3)) * [1, 30, 0.01] + [0, 5, 7]
    means = np.concatenate((means, np.full((200, 1), 3.0)), axis=1)  # a collapsed unit
    labels = (means @ [1, 0.05, 10, 0] + RANDOM.normal(size=200) > 70).astype(np.int8)
    labels[:20] = -1
    weight, bias = probe(means, labels)
    expected = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(means[20:], labels[20:])
    np.testing.assert_allclose(
        log_odds(means, weight, bias), expected.decision_function(means), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match="both labels"):
        probe(means, np.ones(200, dtype=np.int8))
