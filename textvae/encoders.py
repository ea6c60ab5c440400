"""Encoders: the tokens of a review -> one vector of features, which the posterior is read off.

An encoder has a `width` and is called with tokens (batch, length), their embeddings (batch, length,
embedding) and lengths (batch,), or None where padding counts. `features` are (batch, width); `read` tells
beside them what the sentiment of a training step is read off.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from textvae.config import Model
from textvae.mingru import MinGRU
from textvae.ngrams import Ngrams
from textvae.normal import Affine
from textvae.recurrent import LSTM, reversal

States = tuple[Tensor, Tensor]  # of the way ahead and of the way back, (batch, length, hidden) each


class Read(NamedTuple):
    """What an encoder makes of a batch."""

    features: Tensor  # (batch, width)
    told: Tensor  # (batch, width), which the sentiment is read off; often the same
    inputs: Tensor  # (batch, ..., units), where a review can be perturbed
    onward: Callable[[Tensor], Tensor]  # from there to `told`, with the same draws
    states: States | None = None  # where the encoder walks both ways: what each knew at each of its positions


class Posterior(NamedTuple):
    """What the encoder says of a batch: (batch, latent) each, and how the means came about."""

    mean: Tensor
    log_var: Tensor
    told: Tensor  # the mean that the sentiment is read off
    norm: Affine | None = None
    read: Read | None = None


def build(sizes: Model, vocabulary_size: int) -> LSTMEncoder | MinGRUEncoder | NgramEncoder | None:
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
    if sizes.encoder == "mingru":
        locked, everything = sizes.dropout_mask == "review", sizes.pooling == "all"
        widths = (sizes.embedding, sizes.encoder_hidden, sizes.encoder_layers)
        return MinGRUEncoder(*widths, sizes.dropout, locked, everything)
    encoder = LSTMEncoder(sizes.embedding, sizes.encoder_hidden, sizes.encoder_layers, bidirectional=True)
    encoder.pooled = sizes.pooling == "all"
    encoder.weight_drop = sizes.weight_drop
    return encoder


class LSTMEncoder(LSTM):
    """The last states of both directions of a bidirectional LSTM, and with `pooled` more of them."""

    pooled = False

    @property
    def width(self) -> int:
        """Features a review."""
        return (6 if self.pooled else 2) * self.hidden_size

    def features(self, tokens: Tensor, embedded: Tensor, lengths: Tensor | None) -> Tensor:
        """(batch, width), of embedded (batch, length, embedding)."""
        return self._features(embedded, lengths, None)[0]

    def read(self, tokens: Tensor, embedded: Tensor, lengths: Tensor | None) -> Read:
        """Perturbed at the embeddings."""
        weights = self.drawn_weights() if lengths is not None else None
        features, states = self._features(embedded, lengths, weights)
        onward = partial(self._onward, lengths, weights)
        return Read(features, features, embedded, onward, states)

    def _onward(self, lengths: Tensor | None, weights: list[Tensor] | None, embedded: Tensor) -> Tensor:
        return self._features(embedded, lengths, weights)[0]

    def _features(
        self, embedded: Tensor, lengths: Tensor | None, weights: list[Tensor] | None
    ) -> tuple[Tensor, States | None]:
        if lengths is None:
            return self.final_states(embedded, None, weights), None
        states = self.directions(embedded, lengths, weights)
        return pooled(*states, lengths, everything=self.pooled), states


class MinGRUEncoder(nn.Module):
    """Minimal GRUs once ahead and once back, each with layers of its own, so that neither sees the other.

    What is passed on is the same of their states as of an LSTMEncoder's.
    """

    def __init__(self, embedding: int, hidden: int, layers: int, share: float, locked: bool, pooled: bool):
        super().__init__()
        self.pooled = pooled
        self.width = (6 if pooled else 2) * hidden
        self.ahead = MinGRU(embedding, 0, hidden, layers, share, locked)
        self.behind = MinGRU(embedding, 0, hidden, layers, share, locked)

    def begin(self) -> None:
        """Set the weights that do not begin as any layer's do."""
        self.ahead.begin()
        self.behind.begin()

    def features(self, tokens: Tensor, embedded: Tensor, lengths: Tensor | None) -> Tensor:
        """(batch, width), of embedded (batch, length, embedding)."""
        return self.read(tokens, embedded, lengths).features

    def read(self, tokens: Tensor, embedded: Tensor, lengths: Tensor | None) -> Read:
        """Perturbed at the embeddings."""
        assert lengths is not None
        states = self.directions(embedded, lengths)
        features = pooled(*states, lengths, everything=self.pooled)

        def onward(inputs: Tensor) -> Tensor:
            return pooled(*self.directions(inputs, lengths), lengths, everything=self.pooled)

        return Read(features, features, embedded, onward, states)

    def directions(self, embedded: Tensor, lengths: Tensor) -> States:
        """The states of the way ahead and of the way back, (batch, length, hidden) each, as LSTM's."""
        nothing = embedded.new_zeros(len(embedded), 0)
        back = embedded[
            torch.arange(len(embedded), device=embedded.device)[:, None],
            reversal(lengths, embedded.shape[1]),
        ]
        ways = ((self.ahead, embedded), (self.behind, back))
        ahead, behind = (way.advance(inputs, nothing, way.start(nothing))[0] for way, inputs in ways)
        return ahead, behind


def pooled(ahead: Tensor, behind: Tensor, lengths: Tensor, *, everything: bool) -> Tensor:
    """Both ways' last states, concatenated: (batch, 2 * hidden) of two (batch, length, hidden).

    `everything`: beside them, the largest and the mean of each unit over a review's tokens (Howard & Ruder,
    "Universal Language Model Fine-tuning for Text Classification", ACL 2018: what decides a review may stand
    anywhere in it), (batch, 6 * hidden).
    """
    rows, last = torch.arange(len(lengths), device=lengths.device), lengths - 1
    if not everything:
        return torch.cat((ahead[rows, last], behind[rows, last]), dim=-1)
    states = torch.cat((ahead, behind), dim=-1)  # (batch, length, 2 * hidden)
    padding = torch.arange(states.shape[1], device=states.device) >= lengths[:, None]
    largest = states.masked_fill(padding[..., None], -torch.inf).amax(dim=1)
    mean = states.masked_fill(padding[..., None], 0.0).sum(dim=1) / lengths[:, None]
    return torch.cat((states[rows, last], largest, mean), dim=-1)


class NgramEncoder(nn.Module):
    """The vectors of a review's n-grams, added up and divided by the root of their number.

    What a linear classifier on n-grams knows (Wang & Manning, "Baselines and Bigrams", ACL 2012; fastText:
    Joulin et al., EACL 2017), as the first layer of an encoder that a CPU is fast at. `dropped` leaves each
    n-gram out with probability `dropout`: what a classifier in training should see, and a decoder should not.
    """

    def __init__(self, vocabulary_size: int, *, width: int, order: int, buckets: int, dropout: float):
        super().__init__()
        self.width = width
        self.dropout = dropout
        self.ngrams = Ngrams(vocabulary_size, order, buckets)
        self.table = nn.Embedding.from_pretrained(torch.empty(self.ngrams.rows, width), freeze=False)
        if not self.table.weight.is_meta:
            nn.init.normal_(self.table.weight, std=0.02)

    def features(self, tokens: Tensor, embedded: Tensor, lengths: Tensor | None) -> Tensor:
        """(batch, width), of tokens (batch, length), padded behind; END is a token, too."""
        assert lengths is not None
        return self.ngrams.summed(self.table.weight, tokens, lengths)

    def read(self, tokens: Tensor, embedded: Tensor, lengths: Tensor | None) -> Read:
        """Perturbed at the features: steps of n-grams' vectors arrive there as their sum."""
        features = self.features(tokens, embedded, lengths)
        told = self.dropped(tokens, lengths) if self.training and self.dropout else features
        return Read(features, told, told, lambda inputs: inputs)

    def dropped(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """An estimate of `features` from the n-grams that a draw leaves: (batch, width)."""
        assert lengths is not None
        return self.ngrams.summed(self.table.weight, tokens, lengths, dropout=self.dropout)
