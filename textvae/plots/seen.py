"""What a model sees in reviews: the numbers that pictures are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from textvae.batches import collate, framing
from textvae.evaluate import ACTIVE_VARIANCE
from textvae.predict import BATCH_SIZE, Predictor
from textvae.sources.reviews import Slice

_WHAT = "reading the reviews with the model"


@dataclass(frozen=True)
class Seen:
    """Some reviews as one model sees them; every array has a row a review but `kl` and `direction`."""

    labels: NDArray[np.int8]  # 1 positive, 0 negative, -1 none
    ratings: NDArray[np.float32]  # nan: none
    means: NDArray[np.float64]  # (reviews, latent), of the posterior
    kl: NDArray[np.float64]  # (latent,), nats, the mean over the reviews
    losses: NDArray[np.float64]  # nats: -log p(review | one draw of z), END counted and padding not
    tokens: NDArray[np.int64]  # tokens that each loss is a sum over
    lengths: NDArray[np.int64]  # tokens of the whole review, before the model cuts it
    limit: int  # tokens of a review that the model reads
    direction: NDArray[np.float64]  # (latent,), the weights of the linear head
    bias: float  # of the head: log-odds of positive = means @ direction + bias

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def latent(self) -> int:
        """The dimensions of the latent vector; 0 for a language model."""
        return self.means.shape[1]

    @property
    def variances(self) -> NDArray[np.float64]:
        """(latent,): how much each posterior mean varies over the reviews."""
        return self.means.var(axis=0)

    @property
    def active(self) -> NDArray[np.bool_]:
        """(latent,): which dimensions are active units."""
        return self.variances > ACTIVE_VARIANCE

    @property
    def log_odds(self) -> NDArray[np.float64]:
        """(reviews,): what the linear head says of each mean."""
        return self.means @ self.direction + self.bias


@torch.inference_mode()
def see(
    predictor: Predictor,
    reviews: Slice,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Seen:
    """Read `reviews` with a model; the same draws of z for the same seed on the same device.

    A review longer than the model reads is cut as in training. `progress` is called with what is being done,
    how many reviews are, and of how many.
    """
    model, frame = predictor.model, framing(predictor.config)
    ids = predictor.vocabulary.encode(reviews.texts)
    count, latent = len(ids), predictor.config.model.latent
    means, kl = np.zeros((count, latent)), np.zeros((count, latent))
    losses, tokens_read = np.zeros(count), np.zeros(count, dtype=np.int64)
    generator = torch.Generator(device=predictor.device).manual_seed(seed)
    by_length = sorted(range(count), key=lambda i: len(ids[i]))
    for start in range(0, count, BATCH_SIZE):
        some = by_length[start : start + BATCH_SIZE]
        tokens, lengths = (part.to(predictor.device) for part in collate([ids[i] for i in some], frame))
        mean, log_var = model.encode(tokens, lengths)  # (batch, latent)
        z = model.sample_posterior(mean, log_var, generator)
        loss, _, counted = model.token_losses(z, tokens)  # (batch, length)
        # KL(N(mean, noise_std^2 exp(log_var)) || N(0, 1)) of each dimension.
        variance = log_var.double().exp() * predictor.config.model.noise_std**2
        nats = 0.5 * (mean.double().square() + variance - 1.0 - variance.log())
        means[some], kl[some] = mean.cpu().numpy(), nats.cpu().numpy()
        losses[some], tokens_read[some] = loss.sum(dim=1).cpu().numpy(), counted.sum(dim=1).cpu().numpy()
        if progress is not None:
            progress(_WHAT, start + len(some), count)
    direction, bias = model.sentiment_direction() if latent else (torch.zeros(0), torch.zeros(()))
    return Seen(
        labels=reviews.labels,
        ratings=reviews.ratings,
        means=means,
        kl=kl.mean(axis=0) if count else np.zeros(latent),
        losses=losses,
        tokens=tokens_read,
        lengths=np.array([len(row) for row in ids], dtype=np.int64),
        limit=frame.max_length - int(frame.start),
        direction=direction.cpu().numpy().astype(np.float64),
        bias=float(bias),
    )
