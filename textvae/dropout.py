"""Ways to leave something out in training, after Merity et al., "Regularizing and Optimizing LSTM Language
Models" (ICLR 2018). Each keeps the mean of what it thins out; none does anything outside of training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dropout(x: Tensor, share: float, training: bool, *, locked: bool = False) -> Tensor:
    """x (batch, ..., width) without a share of its numbers; `locked`: of its units, alike at all positions.

    One mask a review is what Gal & Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent
    Neural Networks" (2016), call variational.
    """
    if not locked or not training or share == 0 or x.dim() < 3:
        return F.dropout(x, share, training)
    mask = torch.ones(len(x), *(1 for _ in x.shape[1:-1]), x.shape[-1], dtype=x.dtype, device=x.device)
    return x * F.dropout(mask, share)


def without_tokens(embedded: Tensor, tokens: Tensor, share: float, vocabulary_size: int) -> Tensor:
    """The embeddings (batch, length, width) of tokens (batch, length), a share of all token ids left out.

    A token id that is left out is so wherever it stands in the batch.
    """
    mask = F.dropout(torch.ones(vocabulary_size, dtype=embedded.dtype, device=embedded.device), share)
    return embedded * mask[tokens][..., None]
