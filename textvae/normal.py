"""Batch norm of posterior means: a latent that cannot collapse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn


class MeanNorm(nn.Module):
    """Each latent dimension's means, over a step's reviews, brought to 0 and a standard deviation `scale`.

    Zhu et al., "A Batch Normalized Inference Network Keeps the KL Vanishing Away" (ACL 2020), without their
    shift. The KL then costs at least scale^2 / 2 nats a dimension on average, all of it for telling reviews
    apart, where free bits may be spent on an offset that is the same for all. Outside of training the
    posterior mean is a fixed, affine function of the features: by the running figures of the steps, until
    `settle` is told better ones.

    What is normed may be of any size: only the rounding of float32 lies below EPSILON. With the 1e-5 of
    PyTorch's batch norm an encoder whose means begin with not much more, as an LSTM's do, makes them vary
    by less still, and the KL and all that z says are gone.
    """

    EPSILON = 1e-12
    MOMENTUM = 0.05  # of the step in the running figures

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, scale: float):
        super().__init__()
        self.scale = scale
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, means: Tensor, over_ranks: Callable[[Tensor], Tensor] | None = None) -> Affine:
        """The map that norms `means` (reviews, width); `over_ranks` sums a tensor over a step's ranks."""
        if not self.training:
            return self._map(self.mean, self.variance)
        means = means.double()  # squares of what may lie far from 0
        sums = torch.cat((means.sum(dim=0), means.square().sum(dim=0), means.new_full((1,), len(means))))
        if over_ranks is not None:
            sums = cast(Tensor, _SumOverRanks.apply(sums, over_ranks))
        first, second = (sums[:-1] / sums[-1]).chunk(2)
        variance = (second - first.square()).clamp(min=0.0)
        first, variance = first.float(), variance.float()
        with torch.no_grad():
            self.mean.lerp_(first, self.MOMENTUM)
            self.variance.lerp_(variance, self.MOMENTUM)
        return self._map(first, variance)

    @torch.no_grad()
    def settle(self, mean: Tensor, variance: Tensor) -> None:
        """Take these (width,) as the figures of what is normed outside of training."""
        self.mean.copy_(mean)
        self.variance.copy_(variance)

    def _map(self, mean: Tensor, variance: Tensor) -> Affine:
        return Affine(mean, self.scale / (variance + self.EPSILON).sqrt())


class Affine(NamedTuple):
    """x -> (x - center) * factor, of (reviews, width), float32; center and factor (width,)."""

    center: Tensor
    factor: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x.float() - self.center) * self.factor


class _SumOverRanks(torch.autograd.Function):
    """A sum over ranks whose gradient is that of all ranks' losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, over_ranks: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.over_ranks = over_ranks
        return over_ranks(x.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.over_ranks(gradients[0].clone()), None
