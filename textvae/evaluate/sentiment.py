"""How well sentiment can be read off the latent: the model's own linear head, and a probe fitted after it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textvae.evaluate.likelihood import Floats

BINS = 15  # Guo et al. (2017) take so many

Labels = NDArray[np.int8]


@dataclass(frozen=True)
class Scores:
    """How well log-odds tell positive reviews (label 1) from negative ones (0).

    accuracy and its standard error sqrt(a (1 - a) / n); roc_auc: NaN with labels of one kind alone;
    calibration_error: of the probabilities, NaN for scores that are none; labelled: reviews with a label.
    """

    accuracy: float
    standard_error: float
    roc_auc: float
    calibration_error: float
    labelled: int


def log_odds(means: Floats, weight: Floats, bias: float) -> Floats:
    """The linear head on the posterior means, nothing sampled: mean @ weight + bias, (reviews,)."""
    return means @ weight + bias


def scores(odds: Floats, labels: Labels) -> Scores:
    """Accuracy, ROC-AUC and calibration error of log-odds over the labelled reviews.

    A review is called positive if its log-odds are above 0. ROC-AUC: the probability that a positive review
    scores above a negative one, ties half (Fawcett, 2006; scikit-learn's). ValueError without any label.
    """
    from sklearn.metrics import roc_auc_score

    known = labels >= 0
    if not known.any():
        raise ValueError("no review has a label to compare its sentiment with")
    odds, truth = odds[known], labels[known] > 0
    n = len(truth)
    accuracy = float(((odds > 0) == truth).mean())
    both = 0 < truth.sum() < n
    return Scores(
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / n),
        roc_auc=float(roc_auc_score(truth, odds)) if both else math.nan,
        calibration_error=calibration_error(probability(odds), truth),
        labelled=n,
    )


def probability(odds: Floats) -> Floats:
    """1 / (1 + exp(-odds)), without overflow."""
    return 0.5 * (1 + np.tanh(odds / 2))


def calibration_error(positive: Floats, truth: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error: sum_b |B_b| / n * |accuracy(B_b) - confidence(B_b)|.

    Guo et al., On Calibration of Modern Neural Networks (ICML 2017), eq. 3. A review's confidence is the
    probability of the answer it is given, max(p, 1 - p); bins are equally wide over [0, 1] (15 of them: those
    below a half stay empty), open below. `positive` (n,) are probabilities of being positive.
    """
    confidence = np.maximum(positive, 1 - positive)
    right = (positive > 0.5) == truth
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    size = np.bincount(place, minlength=bins)
    gap = np.abs(np.bincount(place, right, bins) - np.bincount(place, confidence, bins))  # times size
    return float(gap[size > 0].sum() / len(positive)) if len(positive) else math.nan


def probe(means: Floats, labels: Labels) -> tuple[Floats, float]:
    """A linear probe: logistic regression on frozen posterior means; weight (latent,) and bias.

    Alain & Bengio, Understanding intermediate layers using linear classifier probes (2016). scikit-learn's,
    L2 penalty of C = 1 on standardized means, fitted on the labelled ones of these (training) reviews; the
    standardization is folded into weight and bias, so the probe is a linear map of the mean itself.
    ValueError unless both labels occur.
    """
    from sklearn.linear_model import LogisticRegression

    known = labels >= 0
    if len(np.unique(labels[known])) < 2:
        raise ValueError("a probe needs training reviews of both labels")
    x, y = means[known], labels[known] > 0
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale < 1e-9] = 1.0  # a unit that never moves tells nothing, and must not be blown up
    fitted = LogisticRegression(max_iter=2000).fit((x - centre) / scale, y)
    weight = fitted.coef_[0] / scale
    return weight, float(fitted.intercept_[0] - weight @ centre)
