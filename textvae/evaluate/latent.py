"""What the latent space holds: mutual information, marginal KL, active units, whether the decoder uses it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from textvae.evaluate.likelihood import Explained, Floats, Posterior, explain, kl
from textvae.evaluate.meter import ACTIVE_VARIANCE
from textvae.evaluate.reading import Progress, Texts
from textvae.model import TextVAE
from textvae.sources.permutation import key_of

_ROWS = 256  # rows of the (reviews, reviews) matrix of densities at once: 20 MB each at 10,000 reviews


@dataclass(frozen=True)
class Information:
    """What `mutual_information` found, in nats, over `reviews` reviews."""

    mutual_information: float
    marginal_kl: float
    reviews: int

    @property
    def bound(self) -> float:
        """ln N: no estimate over N reviews can say more."""
        return math.log(self.reviews)


def mutual_information(
    q: Posterior, *, seed: int = 0, rows: int = _ROWS, progress: Progress | None = None
) -> Information:
    """I_q(x, z) = E_x[KL(q(z | x) || p(z))] - KL(q(z) || p(z)), with q(z) = 1/N sum_n q(z | x_n).

    Hoffman & Johnson, ELBO surgery (2016); reported so by Dieng et al. (2019) and He et al. (2019). One draw
    z_n ~ q(z | x_n) a review, and log q(z_n) = logsumexp_m log q(z_n | x_m) - ln N, the review's own
    posterior being one of the N:

        I = 1/N sum_n [log q(z_n | x_n) - log q(z_n)],   marginal KL = mean KL (closed form) - I.

    I is at most ln N, and in expectation at most the true one (Poole et al., On Variational Bounds of Mutual
    Information, ICML 2019, eq. 12): N must be large, and is part of the result. Memory: `rows` times N.
    """
    n, latent = q.mean.shape
    if n == 0:
        raise ValueError("there are no reviews to measure")
    if latent == 0:
        return Information(0.0, 0.0, n)
    z = q.sample(seed, "mutual information")
    precision = 1.0 / q.variance  # (N, latent)
    weighted = q.mean * precision
    # log q(z | x_m) without -latent/2 ln 2 pi, which cancels; the square is expanded into three products.
    constant = -0.5 * (np.square(q.mean) * precision + np.log(q.variance)).sum(axis=1)  # (N,)
    total = 0.0
    for start in range(0, n, rows):
        some = z[start : start + rows]  # (rows, latent)
        density = some @ weighted.T - 0.5 * (np.square(some) @ precision.T) + constant  # (rows, N)
        own = density[np.arange(len(some)), np.arange(start, start + len(some))]
        largest = density.max(axis=1)
        density -= largest[:, None]
        np.exp(density, out=density)
        total += float((own - largest - np.log(density.sum(axis=1))).sum())
        if progress is not None:
            progress("mutual information", min(n, start + rows), n)
    information = total / n + math.log(n)
    return Information(information, float(kl(q).mean()) - information, n)


def active_units(means: Floats, threshold: float = ACTIVE_VARIANCE) -> int:
    """Latent dimensions whose posterior mean varies by more than `threshold` over the reviews.

    Cov_x(E_q[z_d | x]) > 0.01: Burda, Grosse & Salakhutdinov (ICLR 2016), section 5.2. `means` (reviews,
    latent).
    """
    return int((means.var(axis=0) > threshold).sum()) if len(means) else 0


def derangement(n: int, seed: int = 0) -> np.ndarray:
    """A random permutation of range(n) that leaves nothing in its place (one cycle: Sattolo 1986).

    ValueError if n < 2: there is none.
    """
    if n < 2:
        raise ValueError(f"a shuffle between reviews needs at least 2 of them, got {n}")
    random = np.random.default_rng(key_of(seed, "derangement"))
    order = np.arange(n)
    for i in range(n - 1, 0, -1):
        j = int(random.integers(i))
        order[i], order[j] = order[j], order[i]
    return order


def delta_reconstruction(
    model: TextVAE,
    texts: Texts,
    z: Floats,
    right: Explained | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> float:
    """How many nats a review more the reconstruction costs with another review's z: 0 if z is not used.

    mean_n [-log p(x_n | z_{s(n)})] - mean_n [-log p(x_n | z_n)], s a derangement of the reviews. That is the
    permutation importance (Breiman, Random Forests, 2001) of z to the decoder, as a difference of losses:
    the model reliance of Fisher, Rudin & Dominici (All Models are Wrong, but Many are Useful, JMLR 2019),
    whose mean over all pairs of observations one derangement estimates. `z`
    (reviews, latent) are theirs; `right` is what `explain` said of them, computed if it is not given.
    """
    right = explain(model, texts, z, progress, "decoding") if right is None else right
    wrong = explain(model, texts, z[derangement(len(texts), seed)], progress, "decoding with a shuffled z")
    return float((wrong.loss - right.loss).mean())
