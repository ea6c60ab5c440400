"""Virtual adversarial training: what hardly changes a review should hardly change its sentiment.

Miyato et al., "Adversarial Training Methods for Semi-Supervised Text Classification" (ICLR 2017). It asks for
no label, so reviews without one take part. A review is perturbed where a step can be taken: at its embedded
tokens, or at the sum of its n-grams' vectors, where the worst step of all vectors together, which is the same
for each, arrives as one of the same norm.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from textvae.encoders import Read


def loss(
    read: Read,
    alone: Callable[[Tensor], Tensor],
    together: Callable[[Tensor], Tensor],
    lengths: Tensor,
    norm: float,
    over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """What the worst step of a review's inputs does to its sentiment, in nats: (batch,).

    Both functions are the log-odds (batch,) of features (batch, width). `alone` gives each of its own
    review's alone, which the search for the worst step needs; `together` has the same values, but may give
    them by what all reviews have in common, and is what is trained. `norm` is as in `worst_step`, counted in
    the `spread` of the step's inputs, over whose ranks `over_ranks` sums.
    """
    real = None
    if read.inputs.dim() > 2:
        real = torch.arange(read.inputs.shape[1], device=lengths.device) < lengths[:, None]  # (batch, length)
    clean = alone(read.told)
    step = worst_step(clean, read.inputs, spread(read.inputs, real, over_ranks), norm)
    return divergence(clean, together(read.onward(read.inputs + step)))


def spread(
    inputs: Tensor, real: Tensor | None, over_ranks: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The standard deviation of each unit of `inputs` (..., width) over a step, a constant: (width,).

    Only where `real` (...) says so, if it is given; `over_ranks` sums a tensor over the step's ranks. The
    norm of a step is measured in it, or the embeddings would simply grow away from all steps: this is what
    the paper normalizes them for, each token weighing as often as it occurs.
    """
    inputs = inputs.detach() if real is None else inputs.detach()[real]
    rows = inputs.flatten(0, -2).double()  # (rows, width)
    sums = torch.cat((rows.sum(dim=0), rows.square().sum(dim=0), rows.new_full((1,), len(rows))))
    if over_ranks is not None:
        sums = over_ranks(sums)
    first, second = (sums[:-1] / sums[-1]).chunk(2)
    return (second - first.square()).clamp(min=0.0).sqrt().float()


def worst_step(log_odds: Tensor, inputs: Tensor, scale: Tensor, norm: float) -> Tensor:
    """The step of each review that changes its sentiment most, a constant of the shape of `inputs`.

    log_odds (batch,), each of its own review's inputs (batch, ..., width) alone; scale (width,). The step has
    the given norm, over all of a review's inputs, counted in `scale`.

    The paper finds it by power iteration, from a random start, as the first eigenvector of the Hessian of
    KL(p(inputs) || p(inputs + step)). With a single log-odds that Hessian is p (1 - p) times the outer
    product of its gradient with itself: the gradient is the eigenvector, and nothing is left to iterate. Of
    its two signs the worse one, by the third derivative p (1 - p) (1 - 2p), is the one toward even odds.
    """
    (slope,) = torch.autograd.grad(log_odds.sum(), inputs, retain_graph=True)
    slope = slope.float() * scale
    length = slope.flatten(1).norm(dim=1)  # (batch,)
    toward = torch.where(log_odds > 0, -norm, norm) / length.clamp(min=1e-20)
    return (slope * scale * toward.view(-1, *(1 for _ in slope.shape[1:]))).detach().to(inputs.dtype)


def divergence(clean: Tensor, perturbed: Tensor) -> Tensor:
    """KL(p || q) in nats of two sentiments by their log-odds, p a constant: (batch,), of two (batch,)."""
    clean, perturbed = clean.detach().float(), perturbed.float()
    p = clean.sigmoid()
    return (F.softplus(perturbed) - p * perturbed) - (F.softplus(clean) - p * clean)
