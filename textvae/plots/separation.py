"""Do two regions of the latent space separate by sentiment? In numbers, then in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textvae.plots.maps import discriminant_analysis, principal_plane

_FOLDS = 5
_NEIGHBOURS = 10
# Two normal distributions of equal spread have two peaks together if their centres are more than two standard
# deviations apart: Schilling, Watkins & Watkins, Is Human Height Bimodal? (The American Statistician, 2002).
TWO_PEAKS = 2.0
# An accuracy is above chance if it is by so many standard errors.
_ERRORS = 3.0


@dataclass(frozen=True)
class Separation:
    """How far labelled reviews are apart by sentiment. Every share is of `reviews`."""

    reviews: int
    chance: float  # share of the more frequent class
    head_accuracy: float  # of the model's own linear head, on the latent means
    lda_accuracy: float  # of linear discriminant analysis, each fifth told by one fitted on the others
    plane_accuracy: float  # the same on the two principal components alone: what the picture can show
    neighbour_accuracy: float  # of a vote among the ten nearest other reviews (ties count half)
    gap: float  # between the classes' centres along LDA's axis, in standard deviations within a class
    overlap: (
        float  # share of both classes along that axis that no threshold tells apart (1 - Kolmogorov-Smirnov)
    )
    silhouette: float  # -1 to 1: 0 no clusters, 1 far apart (Rousseeuw 1987), in the whole latent space

    @property
    def verdict(self) -> Literal["yes", "partly", "no"]:
        """yes: two peaks; partly: above chance, but one cloud; no: not above chance."""
        error = math.sqrt(self.chance * (1.0 - self.chance) / self.reviews)
        if self.lda_accuracy < self.chance + _ERRORS * error:
            return "no"
        return "yes" if self.gap > TWO_PEAKS else "partly"

    @property
    def answer(self) -> str:
        """A paragraph that answers the question."""
        found = {
            "yes": "Yes: two regions.",
            "partly": "Partly: one cloud with two sides.",
            "no": "No: the cloud is mixed, no axis tells the sentiment better than chance.",
        }[self.verdict]
        return (
            f"Do two regions separate by sentiment? {found} Of {self.reviews:,} labelled reviews the linear "
            f"head tells {self.head_accuracy:.1%} right, the best axis (LDA, cross-validated) "
            f"{self.lda_accuracy:.1%}, the ten nearest neighbours {self.neighbour_accuracy:.1%}, the two "
            f"principal components alone {self.plane_accuracy:.1%}; chance is "
            f"{self.chance:.1%}. Along the best axis the centres are {self.gap:.1f} standard deviations "
            f"apart (more than {TWO_PEAKS:g} make two peaks) and {self.overlap:.0%} overlap. "
            f"Silhouette {self.silhouette:.2f} (0: no clusters, 1: far apart)."
        )


def separation(
    means: ArrayLike, labels: ArrayLike, *, direction: ArrayLike, bias: float, seed: int = 0
) -> Separation | None:
    """The Separation of posterior means (reviews, latent) by their labels; None with too few of a class.

    labels (reviews,): 1 positive, 0 negative, -1 none, which are left out. direction (latent,), bias: the
    linear head. seed: draws the folds. At least five labelled reviews of each class are needed.
    """
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    classes = np.asarray(labels).astype(np.int64)
    known = classes >= 0
    points, classes = np.asarray(means, dtype=np.float64)[known], classes[known]
    counts = np.bincount(classes, minlength=2)
    if counts.min() < _FOLDS or points.shape[1] == 0:
        return None
    scores = _held_out_scores(points, classes, seed)
    flat = principal_plane(points).points
    nearby = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(points) - 1)).fit(points)
    votes = classes[nearby.kneighbors(return_distance=False)].mean(axis=1)
    negative, positive = scores[classes == 0], scores[classes == 1]
    within = math.sqrt((negative.var() * counts[0] + positive.var() * counts[1]) / len(points))
    return Separation(
        reviews=len(points),
        chance=float(counts.max() / len(points)),
        head_accuracy=_accuracy(points @ np.asarray(direction, dtype=np.float64) + bias, classes),
        lda_accuracy=_accuracy(scores, classes),
        plane_accuracy=_accuracy(_held_out_scores(flat, classes, seed), classes),
        neighbour_accuracy=_accuracy(votes - 0.5, classes),
        gap=float(positive.mean() - negative.mean()) / within if within > 0 else 0.0,
        overlap=1.0 - _kolmogorov_smirnov(negative, positive),
        silhouette=float(silhouette_score(points, classes)) if np.ptp(points, axis=0).any() else 0.0,
    )


def _held_out_scores(
    points: NDArray[np.float64], classes: NDArray[np.integer], seed: int
) -> NDArray[np.float64]:
    """LDA's log-odds (reviews,) of each review, by a fit on the other folds."""
    from sklearn.model_selection import StratifiedKFold

    scores = np.zeros(len(points))
    for fitted, held in StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(points, classes):
        weights, bias = discriminant_analysis(points[fitted], classes[fitted])
        scores[held] = points[held] @ weights + bias
    return scores


def _accuracy(scores: NDArray[np.float64], classes: NDArray[np.integer]) -> float:
    """The share of scores on the right side of 0; one of exactly 0 is half right."""
    right = np.sign(scores) * np.where(classes > 0, 1.0, -1.0)
    return float((right + 1.0).mean() / 2.0)


def _kolmogorov_smirnov(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The largest distance between the cumulative distributions of two samples."""
    at = np.concatenate((a, b))
    below_a = np.searchsorted(np.sort(a), at, side="right") / len(a)
    below_b = np.searchsorted(np.sort(b), at, side="right") / len(b)
    return float(np.abs(below_a - below_b).max())
