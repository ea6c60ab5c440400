"""h_t = decay_t * h_(t-1) + added_t: a linear recurrence, without a loop where a device is fast at that."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def scan(decay: Tensor, added: Tensor, initial: Tensor) -> Tensor:
    """All states h (batch, length, width) of the recurrence, from decay and added of that shape.

    initial (batch, width) is the state before the first position. On a CPU it walks along the sequence, one
    fused operation a position; elsewhere it doubles what is known at each of log2(length) passes. The
    backward pass is such a recurrence too, from the last position to the first, so it keeps nothing but
    decay and states.
    """
    return cast(Tensor, _Scan.apply(decay, added, initial, decay.device.type == "cpu"))


def doubling(decay: Tensor, added: Tensor, initial: Tensor) -> Tensor:
    """`scan` in log2(length) passes over whole tensors (Hillis and Steele, "Data parallel algorithms", 1986).

    PyTorch can differentiate it, but would keep every pass.
    """
    length = decay.shape[1]
    added = torch.cat((added[:, :1] + decay[:, :1] * initial[:, None], added[:, 1:]), dim=1)
    reach = 1
    while reach < length:
        # A state reaches `reach` positions back; joined with the state there, twice as far.
        added = torch.cat((added[:, :reach], added[:, reach:] + decay[:, reach:] * added[:, :-reach]), dim=1)
        decay = torch.cat((decay[:, :reach], decay[:, reach:] * decay[:, :-reach]), dim=1)
        reach *= 2
    return added


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, added: Tensor, initial: Tensor, walks: bool) -> Tensor:
        states = _walked(decay, added, initial) if walks else doubling(decay, added, initial)
        ctx.save_for_backward(decay, states, initial)
        ctx.walks = walks
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        decay, states, initial = ctx.saved_tensors
        (given,) = gradients
        # The gradient by each state, later positions' share included.
        if ctx.walks:
            total = _walked_back(decay, given)
        else:
            following = torch.cat((decay[:, :1], decay[:, 1:].flip(1)), dim=1)  # the first meets a zero
            total = doubling(following, given.flip(1), torch.zeros_like(initial)).flip(1)
        before = torch.cat((initial[:, None], states[:, :-1]), dim=1)
        return total * before, total, total[:, 0] * decay[:, 0], None


def _walked(decay: Tensor, added: Tensor, initial: Tensor) -> Tensor:
    states = torch.empty_like(added)
    state = initial
    for position in range(added.shape[1]):
        state = torch.addcmul(added[:, position], decay[:, position], state, out=states[:, position])
    return states


def _walked_back(decay: Tensor, given: Tensor) -> Tensor:
    total = torch.empty_like(given)
    last = given.shape[1] - 1
    total[:, last] = given[:, last]
    for position in range(last, 0, -1):
        torch.addcmul(
            given[:, position - 1], decay[:, position], total[:, position], out=total[:, position - 1]
        )
    return total
