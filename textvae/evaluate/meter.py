"""The metrics of an epoch, from sums that batches and ranks add up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from textvae.config import METRICS, Config
from textvae.objective import Losses

# A latent unit is active if its posterior mean varies by more than this over the reviews: Burda, Grosse &
# Salakhutdinov, Importance Weighted Autoencoders (ICLR 2016), section 5.2.
ACTIVE_VARIANCE = 0.01

_COUNTS = (
    "loss",
    "reconstruction",
    "kl",
    "sentiment",
    "labelled",
    "sentiment_correct",
    "tokens",
    "tokens_correct",
    "positions",
    "positions_correct",
)


class Meter:
    """Adds up `Losses` in float64 on `device`, without ever waiting for it, until the result is asked for."""

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        latent = config.model.latent
        # One vector, so that ranks need one exchange: the sums of _COUNTS, the reviews, then the sum and the
        # sum of squares of each latent mean.
        self._sums = torch.zeros(len(_COUNTS) + 1 + 2 * latent, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, losses: Losses) -> None:
        """Add one batch."""
        means = losses.means.double()  # (batch, latent)
        counts = torch.stack([getattr(losses, name).detach().double() for name in _COUNTS])
        reviews = torch.full_like(counts[:1], losses.reviews)
        self._sums += torch.cat((counts, reviews, means.sum(dim=0), means.square().sum(dim=0)))

    def result(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Each of config.METRICS; NaN where there was nothing to average (no labelled review, say).

        `reduce` sums a float64 vector over all ranks and returns it; this meter itself stays as it is.

        loss, reconstruction, kl: nats per review, in the form of the objective (the seed's reconstruction is
        max_length times a mean over positions and words, its kl a mean over the latent).
        sentiment_loss: nats per labelled review.
        sentiment_accuracy: share of the labelled reviews.
        token_accuracy: share of the real tokens, START and END counted, that are the likeliest at their
        position, the decoder being fed the true tokens before it where it is fed any.
        all_positions_accuracy: right positions over reviews times length, padding counted: for objective seed
        as the original counted; for elbo, where nothing is predicted past END, padding counts as right where
        END was.
        active_units: latent dimensions whose posterior mean has a variance over 0.01.
        """
        sums = self._sums.clone()
        sums = (sums if reduce is None else reduce(sums)).cpu()
        count = dict(zip(_COUNTS, sums.tolist(), strict=False))
        reviews = float(sums[len(_COUNTS)])
        first, second = sums[len(_COUNTS) + 1 :].chunk(2)
        variance = second / reviews - (first / reviews).square()
        values = {
            "loss": _share(count["loss"], reviews),
            "reconstruction": _share(count["reconstruction"], reviews),
            "kl": _share(count["kl"], reviews),
            "sentiment_loss": _share(count["sentiment"], count["labelled"]),
            "sentiment_accuracy": _share(count["sentiment_correct"], count["labelled"]),
            "token_accuracy": _share(count["tokens_correct"], count["tokens"]),
            "all_positions_accuracy": _share(count["positions_correct"], count["positions"]),
            "active_units": float((variance > ACTIVE_VARIANCE).sum()) if reviews else float("nan"),
        }
        return {name: values[name] for name in METRICS}

    def state(self) -> dict[str, Sequence[float]]:
        """What was added up so far, as JSON can hold it without loss."""
        return {"sums": self._sums.tolist()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from a `state`; ValueError if it is of a model with another latent size."""
        sums = torch.tensor(state["sums"], dtype=torch.float64, device=self._sums.device)
        if sums.shape != self._sums.shape:
            raise ValueError(f"a meter of {len(self._sums)} sums cannot go on from one of {len(sums)}")
        self._sums = sums


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
