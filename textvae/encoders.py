"""Encoders: the tokens of a review -> one vector of features, which the posterior is read off.

An encoder has a `width` and is called with tokens (batch, length), their embeddings (batch, length,
embedding) and lengths (batch,), or None where padding counts. `features` are (batch, width); `read` tells
beside them what the sentiment of a training step is read off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textvae.config import Model
from textvae.normal import Affine
from textvae.recurrent import LSTM


class Read(NamedTuple):
    """What an encoder makes of a batch."""

    features: Tensor  # (batch, width)
    told: Tensor  # (batch, width), which the sentiment is read off; often the same
    inputs: Tensor  # (batch, ..., units), where a review can be perturbed
    onward: Callable[[Tensor], Tensor]  # from there to `told`, with the same draws


class Posterior(NamedTuple):
    """What the encoder says of a batch: (batch, latent) each, and how the means came about."""

    mean: Tensor
    log_var: Tensor
    told: Tensor  # the mean that the sentiment is read off
    norm: Affine | None = None
    read: Read | None = None


def build(sizes: Model, vocabulary_size: int) -> LSTMEncoder | NgramEncoder | None:
    """The encoder that a config's model section names; none for a language model."""
    if sizes.latent == 0:
        return None
    if sizes.encoder == "ngrams":
        return NgramEncoder(
            vocabulary_size,
            width=sizes.encoder_hidden,
            order=sizes.ngram_order,
            buckets=sizes.ngram_buckets,
            dropout=sizes.ngram_dropout,
        )
    encoder = LSTMEncoder(sizes.embedding, sizes.encoder_hidden, sizes.encoder_layers, bidirectional=True)
    encoder.pooled = sizes.pooling == "all"
    encoder.weight_drop = sizes.weight_drop
    return encoder


class LSTMEncoder(LSTM):
    """The last states of both directions of a bidirectional LSTM.

    `pooled`: beside them, the largest and the mean of each unit over a review's tokens (Howard & Ruder,
    "Universal Language Model Fine-tuning for Text Classification", ACL 2018: what decides a review may stand
    anywhere in it).
    """

    pooled = False

    @property
    def width(self) -> int:
        """Features a review."""
        return (6 if self.pooled else 2) * self.hidden_size

    def features(self, tokens: Tensor, embedded: Tensor, lengths: Tensor | None) -> Tensor:
        """(batch, width), of embedded (batch, length, embedding)."""
        return self._features(embedded, lengths, None)

    def read(self, tokens: Tensor, embedded: Tensor, lengths: Tensor | None) -> Read:
        """Perturbed at the embeddings."""
        weights = self.drawn_weights() if lengths is not None else None
        features = self._features(embedded, lengths, weights)
        return Read(features, features, embedded, lambda inputs: self._features(inputs, lengths, weights))

    def _features(self, embedded: Tensor, lengths: Tensor | None, weights: list[Tensor] | None) -> Tensor:
        if not self.pooled:
            return self.final_states(embedded, lengths, weights)
        assert lengths is not None
        ahead, behind = self.directions(embedded, lengths, weights)
        states = torch.cat((ahead, behind), dim=-1)  # (batch, length, 2 * hidden)
        padding = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
        rows, last = torch.arange(len(states), device=states.device), lengths - 1
        largest = states.masked_fill(padding[..., None], -torch.inf).amax(dim=1)
        mean = states.masked_fill(padding[..., None], 0.0).sum(dim=1) / lengths[:, None]
        return torch.cat((states[rows, last], largest, mean), dim=-1)


class NgramEncoder(nn.Module):
    """The vectors of a review's n-grams, added up and divided by the root of their number.

    What a linear classifier on n-grams knows (Wang & Manning, "Baselines and Bigrams", ACL 2012; fastText:
    Joulin et al., EACL 2017), as the first layer of an encoder that a CPU is fast at. Tokens have a vector
    each; longer n-grams share `buckets` vectors by a hash. `dropped` leaves each n-gram out with probability
    `dropout`: what a classifier in training should see, and a decoder should not.
    """

    def __init__(self, vocabulary_size: int, *, width: int, order: int, buckets: int, dropout: float):
        super().__init__()
        self.width = width
        self.order = order
        self.dropout = dropout
        self.vocabulary_size = vocabulary_size
        self.table = nn.Embedding.from_pretrained(
            torch.empty(vocabulary_size + (buckets if order > 1 else 0), width), freeze=False
        )
        self.buckets = buckets
        if not self.table.weight.is_meta:
            nn.init.normal_(self.table.weight, std=0.02)

    def features(self, tokens: Tensor, embedded: Tensor, lengths: Tensor | None) -> Tensor:
        """(batch, width), of tokens (batch, length), padded behind; END is a token, too."""
        grams, real = self._grams(tokens, lengths)
        return self._bag(grams, real) / real.sum(dim=1).sqrt()[:, None]

    def read(self, tokens: Tensor, embedded: Tensor, lengths: Tensor | None) -> Read:
        """Perturbed at the features: steps of n-grams' vectors arrive there as their sum."""
        features = self.features(tokens, embedded, lengths)
        told = self.dropped(tokens, lengths) if self.training and self.dropout else features
        return Read(features, told, told, lambda inputs: inputs)

    def dropped(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """An estimate of `features` from the n-grams that a draw leaves: (batch, width)."""
        grams, real = self._grams(tokens, lengths)
        left = real & (torch.rand(real.shape, device=real.device) >= self.dropout)
        # What is left stands in for what was dropped, or reviews would look longer once nothing is dropped.
        return self._bag(grams, left) / (real.sum(dim=1).sqrt() * (1.0 - self.dropout))[:, None]

    def _grams(self, tokens: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """The table's row of each n-gram, and whether it is one of the review: (batch, n-grams) each."""
        assert lengths is not None
        length = tokens.shape[1]
        reaches = lengths[:, None]  # (batch, 1)
        ids, kept = [], []
        for order in range(1, min(self.order, length) + 1):
            ids.append(self.ids(tokens, order))
            # The n-gram that begins at a position must end within the review.
            positions = torch.arange(length - order + 1, device=tokens.device)
            kept.append(positions + order <= reaches)
        return torch.cat(ids, dim=1), torch.cat(kept, dim=1)

    def _bag(self, grams: Tensor, real: Tensor) -> Tensor:
        offsets = F.pad(real.sum(dim=1).cumsum(dim=0)[:-1], (1, 0))
        return F.embedding_bag(grams[real], self.table.weight, offsets, mode="sum")  # (batch, width)

    def ids(self, tokens: Tensor, order: int) -> Tensor:
        """The row of the table of each n-gram of `order` tokens: (batch, length - order + 1)."""
        if order == 1:
            return tokens
        length = tokens.shape[1]
        key = torch.zeros_like(tokens[:, : length - order + 1])
        for offset in range(order):
            # Sums and products wrap around, alike on every device; the multiplier is SplitMix64's.
            key = (key + tokens[:, offset : length - order + 1 + offset] + offset) * -7046029254386353131
            key = key ^ (key >> 29)
        return self.vocabulary_size + (key & (2**62 - 1)) % self.buckets
