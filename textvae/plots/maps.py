"""From many dimensions to two: principal components, t-SNE, linear discriminant analysis.

scikit-learn is imported where it is called: it takes seconds, and learning curves need none of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_PERPLEXITY = 30.0  # van der Maaten & Hinton 2008 call 5 to 50 usual


@dataclass(frozen=True)
class Plane:
    """A plane through the centre of a cloud, and the cloud's projection onto it."""

    points: Floats  # (reviews, 2)
    axes: Floats  # (2, latent), orthonormal; a latent of one dimension has a second axis of zeros
    center: Floats  # (latent,)
    explained: Floats  # (2,), the share of the cloud's variance along each axis

    def linear(self, direction: Floats, bias: float) -> tuple[Floats, float]:
        """A linear map of the latent (latent,), bias, on the plane: weights (2,) and bias of `points`.

        Exact for what lies in the plane; what lies beside it is taken to be where the plane is nearest.
        """
        return self.axes @ direction, float(self.center @ direction + bias)


def explained_variance(means: Floats) -> Floats:
    """The share of the variance of means (reviews, latent) on each principal component, largest first."""
    scales = np.square(np.linalg.svd(means - means.mean(axis=0), compute_uv=False))
    return scales / (scales.sum() or 1.0)


def principal_plane(means: Floats, direction: Floats | None = None) -> Plane:
    """The plane of the two principal components of means (reviews, latent).

    The signs of the axes are such that `direction` (latent,), the sentiment head, points up and right.
    """
    centered = means - means.mean(axis=0)
    return _plane(means, np.linalg.svd(centered, full_matrices=False)[2][:2], direction)


def along(means: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """A map of means (reviews, latent) by `scores` (reviews,): points (reviews, 2), what each axis explains.

    The first axis is the scores themselves, the second the main component of what the means are beside them:
    of the rest of a regression on the scores, so that the two are uncorrelated. (The direction of a linear
    discriminant's weights would not do: it may have nearly none of the variance.)
    """
    centered, given = means - means.mean(axis=0), scores - scores.mean()
    total, spread = float(np.square(centered).sum()) or 1.0, float(given @ given)
    fitted = np.outer(given, given @ centered) / (spread or 1.0)
    rest = _plane(centered - fitted, np.linalg.svd(centered - fitted, full_matrices=False)[2][:1], None)
    second = rest.points[:, 0]
    shares = np.array([np.square(fitted).sum(), np.square(second).sum()]) / total
    return np.stack((scores, second), axis=1), shares


def discriminant_analysis(means: Floats, labels: NDArray[np.integer]) -> tuple[Floats, float]:
    """Fisher's linear discriminant between labels 1 and 0: log-odds = means @ weights (latent,) + bias.

    The covariance is shrunk by Ledoit & Wolf's rule, so that few reviews of many dimensions are no trouble.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    if not np.ptp(means, axis=0).any():  # a collapsed latent
        share = float(np.clip((labels > 0).mean(), 1e-12, 1 - 1e-12))
        return np.zeros(means.shape[1]), float(np.log(share / (1 - share)))
    fit = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(means, labels)
    return np.asarray(fit.coef_[0], dtype=np.float64), float(fit.intercept_[0])


def tsne(means: Floats, seed: int = 0) -> Floats:
    """t-SNE (van der Maaten & Hinton 2008): points (reviews, 2), near where means (reviews, latent) are near.

    Only who is near whom means something: distances and directions across the map do not.
    """
    from sklearn.manifold import TSNE

    if not np.ptp(means, axis=0).any():
        return np.zeros((len(means), 2))
    fit = TSNE(
        perplexity=min(_PERPLEXITY, (len(means) - 1) / 3),
        init="pca" if min(means.shape) >= 2 else "random",
        random_state=seed,
    )
    return np.asarray(fit.fit_transform(means), dtype=np.float64)


def _plane(means: Floats, rows: Floats, direction: Floats | None) -> Plane:
    """The plane that `rows` (at most 2, latent) span, turned towards `direction`."""
    center = means.mean(axis=0)
    axes = np.zeros((2, means.shape[1]))
    axes[: len(rows)] = rows
    for axis in axes:
        towards = axis @ direction if direction is not None else axis[np.abs(axis).argmax()]
        if towards < 0:
            axis *= -1.0
    points = (means - center) @ axes.T
    total = float(np.square(means - center).sum()) or 1.0
    return Plane(points, axes, center, np.square(points).sum(axis=0) / total)
