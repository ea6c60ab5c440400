"""N-grams of tokens: which they are, sums of what is known of each, and what their labels say of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Ngrams:
    """The n-grams of up to `order` tokens, as rows of a table.

    Tokens have a row each, their ids; longer n-grams share `buckets` rows behind them by a hash.
    """

    def __init__(self, vocabulary_size: int, order: int, buckets: int):
        self.vocabulary_size = vocabulary_size
        self.order = order
        self.buckets = buckets

    @property
    def rows(self) -> int:
        """Rows that the table needs."""
        return self.vocabulary_size + (self.buckets if self.order > 1 else 0)

    def ids(self, tokens: Tensor, order: int) -> Tensor:
        """The row of each n-gram of `order` tokens: (batch, length - order + 1)."""
        if order == 1:
            return tokens
        length = tokens.shape[1]
        key = torch.zeros_like(tokens[:, : length - order + 1])
        for offset in range(order):
            # Sums and products wrap around, alike on every device; the multiplier is SplitMix64's.
            key = (key + tokens[:, offset : length - order + 1 + offset] + offset) * -7046029254386353131
            key = key ^ (key >> 29)
        return self.vocabulary_size + (key & (2**62 - 1)) % self.buckets

    def of(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The row of each n-gram, and whether it is one of the review: (batch, n-grams) each.

        tokens (batch, length) are padded behind lengths (batch,).
        """
        length = tokens.shape[1]
        reaches = lengths[:, None]  # (batch, 1)
        ids, kept = [], []
        for order in range(1, min(self.order, length) + 1):
            ids.append(self.ids(tokens, order))
            # The n-gram that begins at a position must end within the review.
            positions = torch.arange(length - order + 1, device=tokens.device)
            kept.append(positions + order <= reaches)
        return torch.cat(ids, dim=1), torch.cat(kept, dim=1)

    def summed(
        self,
        table: Tensor,
        tokens: Tensor,
        lengths: Tensor,
        *,
        weights: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """Rows of table (rows, width) of each review's n-grams, summed, over the root of their number.

        (batch, width). `weights` (rows,) multiply the rows; `dropout` is the share of n-grams that a draw
        leaves out, for which the others then stand in.
        """
        grams, real = self.of(tokens, lengths)
        root = real.sum(dim=1).sqrt()[:, None]
        if dropout:
            real = real & (torch.rand(real.shape, device=real.device) >= dropout)
            # What is left stands in for what was dropped, or reviews would look longer without a draw.
            root = root * (1.0 - dropout)
        rows = grams[real]
        offsets = F.pad(real.sum(dim=1).cumsum(dim=0)[:-1], (1, 0))
        weighed = None if weights is None else weights[rows]
        return F.embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weighed) / root


class NaiveBayes(nn.Module):
    """One feature of a review: its n-grams' naive Bayes log-count ratios, each times a weight, summed.

    NB-SVM (Wang & Manning, "Baselines and Bigrams", ACL 2012): a linear classifier of n-grams that learns how
    far to trust each one's ratio overfits less than one that learns a coefficient for each. All weights begin
    as 0. The ratios are no parameters: `fit` takes them from counts of labelled reviews, once.
    """

    SMOOTHING = 1.0  # added to each count, as in the paper

    ratios: Tensor

    def __init__(self, vocabulary_size: int, *, order: int, buckets: int, dropout: float):
        super().__init__()
        self.ngrams = Ngrams(vocabulary_size, order, buckets)
        self.dropout = dropout
        self.weights = nn.Embedding.from_pretrained(torch.zeros(self.ngrams.rows, 1), freeze=False)
        self.register_buffer("ratios", torch.zeros(self.ngrams.rows))

    def forward(self, tokens: Tensor, lengths: Tensor, dropout: float = 0.0) -> Tensor:
        """(batch, 1) of tokens (batch, length), padded behind lengths (batch,)."""
        weights, table = self.ratios, self.weights.weight
        return self.ngrams.summed(table, tokens, lengths, weights=weights, dropout=dropout)

    def counts(self, tokens: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        """The reviews of label 0 and of label 1 that have each n-gram: (2, rows), int64."""
        grams, real = self.ngrams.of(tokens, lengths)
        rows = self.ngrams.rows
        keyed = grams + labels[:, None] * rows  # n-grams of positive reviews behind those of negative ones
        review = torch.arange(len(tokens), device=tokens.device)[:, None]
        # An n-gram counts once a review, however often it stands there.
        once = torch.unique((keyed + review * 2 * rows)[real & (labels >= 0)[:, None]])
        return torch.bincount(once % (2 * rows), minlength=2 * rows).view(2, rows)

    @torch.no_grad()
    def fit(self, counts: Tensor) -> None:
        """Take log(p / |p|) - log(q / |q|) as ratios, p and q the smoothed `counts` of label 1 and 0."""
        smoothed = counts.double() + self.SMOOTHING
        negative, positive = (smoothed / smoothed.sum(dim=1, keepdim=True)).log()
        self.ratios.copy_(positive - negative)
