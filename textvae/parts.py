"""A sum over a batch's reviews, made and differentiated part by part: only one part's activations exist.

Decoder and softmax of 64 reviews of 1,025 tokens keep gigabytes for the backward pass. But a batch's loss is
a sum over its reviews, and what they share is the weights. So each part is differentiated as soon as it is
scored, what it says of z and of the weights is kept, and the backward pass only scales it, as in
`textvae.softmax`. Nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

# (the part of z, which reviews it is of) -> their loss (), and something without a gradient (n,)
Score = Callable[[Tensor, slice], tuple[Tensor, Tensor]]

# Tokens of a part, padding included. On a CPU a step of imdb-cpu is no slower for it; a GPU wants them wide.
_TOKENS_ON_CPU, _TOKENS_ELSEWHERE = 2**14, 2**17


def tokens_at_once(device: torch.device) -> int:
    """The tokens of the largest part that is worth its memory on a device."""
    return _TOKENS_ON_CPU if device.type == "cpu" else _TOKENS_ELSEWHERE


def scored(
    score: Score, z: Tensor, length: int, parameters: Sequence[Tensor], at_once: int
) -> tuple[Tensor, Tensor]:
    """What `score` says of all reviews, of `length` tokens each: the losses' sum (), the rest joined.

    z (batch, latent); `parameters` are all that `score` uses and training trains. The sum can be
    differentiated once, by z and by them. A part has at most `at_once` tokens, but never less than a review.
    """
    reviews = max(1, at_once // max(1, length))
    rows = [slice(first, min(first + reviews, len(z))) for first in range(0, len(z), reviews)]
    if len(rows) <= 1:
        return score(z, slice(0, len(z)))
    if not torch.is_grad_enabled():
        found = [score(z[each], each) for each in rows]
        return torch.stack([total for total, _ in found]).sum(), torch.cat([rest for _, rest in found])
    return cast("tuple[Tensor, Tensor]", _Parts.apply(score, rows, z, *parameters))


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, score: Score, rows: Sequence[slice], z: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), dtype=torch.float32, device=z.device)
        by_z = torch.empty_like(z)
        by_parameters: list[Tensor] = []
        rest = []
        for each in rows:
            part = z[each].detach().requires_grad_()
            with torch.enable_grad():
                loss, more = score(part, each)
            slopes = torch.autograd.grad(loss, (part, *parameters), materialize_grads=True)
            by_z[each] = slopes[0]
            if by_parameters:
                torch._foreach_add_(by_parameters, slopes[1:])
            else:
                by_parameters = [slope.contiguous() for slope in slopes[1:]]
            total = total + loss.detach()
            rest.append(more)
        ctx.save_for_backward(by_z, *by_parameters)
        joined = torch.cat(rest)
        ctx.mark_non_differentiable(joined)
        return total, joined

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        scale = gradients[0]
        return (None, None, *(slope * scale.to(slope.dtype) for slope in ctx.saved_tensors))
