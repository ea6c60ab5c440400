"""Softmax cross-entropy straight from hidden states: the logits of a batch never exist all at once.

The loss of a linear layer and a softmax has a closed-form gradient, so each block of rows is multiplied,
scored and differentiated in the forward pass, and its logits are forgotten; the backward pass only scales.
Memory does not grow with rows * vocabulary, and nothing is computed twice. The idea is that of Liger Kernel
(Hsu et al. 2024) and Cut Cross-Entropy (Wijmans et al. 2025).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

# Logits of a block of the two matrix products, and of the part of it that is exponentiated at a time: the
# latter is what stays in a CPU's cache.
BLOCK_LOGITS = 2**24
_CACHED_LOGITS = 2**19


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over rows of -log softmax(hidden @ weight.T + bias)[target], with what each row adds to it.

    hidden (rows, width), weight (vocabulary, width), bias (vocabulary,), targets int64 (rows,). Returns the
    sum (), which can be differentiated once, by hidden, weight and bias; each row's loss (rows,), float32 and
    without a gradient; and whether each row's target is its likeliest token (rows,). Under autocast the
    matrix products are in its type; losses are added up in float32.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, weight, bias))
    with torch.autocast(kind, enabled=False):
        return cast(
            "tuple[Tensor, Tensor, Tensor]",
            _LinearCrossEntropy.apply(hidden.to(dtype), weight, bias, targets, wanted),
        )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, wanted: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        vocabulary = len(weight)
        typed, typed_bias = weight.to(hidden.dtype), bias.to(hidden.dtype)
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        by_hidden = torch.empty_like(hidden) if wanted else None
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted else None
        by_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted else None
        rows = max(1, BLOCK_LOGITS // vocabulary)
        cached = max(1, _CACHED_LOGITS // vocabulary) if hidden.device.type == "cpu" else rows
        for start in range(0, len(hidden), rows):
            block = hidden[start : start + rows]
            logits = torch.addmm(typed_bias, block, typed.T)  # (rows, vocabulary)
            for first in range(0, len(block), cached):
                part = slice(first, first + cached)
                where = slice(start + first, start + min(first + cached, len(block)))
                target = targets[where, None]  # (rows, 1)
                p = logits[part].float()
                likeliest = p.max(dim=1, keepdim=True)
                correct[where] = (likeliest.indices == target)[:, 0]
                right = p.gather(1, target) - likeliest.values
                p = p.sub_(likeliest.values).exp_()
                total = p.sum(dim=1, keepdim=True)
                losses[where] = (total.log() - right)[:, 0]
                if wanted:
                    p.div_(total).scatter_add_(1, target, torch.full_like(right, -1.0))
                    logits[part] = p  # from here on the gradient by the logits
                    assert by_bias is not None
                    by_bias += p.sum(dim=0)
            if wanted:
                assert by_hidden is not None and by_weight is not None
                torch.mm(logits, typed, out=by_hidden[start : start + rows])
                by_weight += torch.mm(logits.T, block)
        ctx.save_for_backward(by_hidden, by_weight, by_bias)
        ctx.mark_non_differentiable(losses, correct)
        ctx.dtypes = (weight.dtype, bias.dtype)
        return losses.sum(), losses, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight, by_bias = ctx.saved_tensors
        scale = gradients[0]
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            by_hidden * scale.to(by_hidden.dtype),
            (by_weight * scale).to(weight_dtype),
            (by_bias * scale).to(bias_dtype),
            None,
            None,
        )
