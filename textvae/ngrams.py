"""N-grams of tokens: which they are, sums of what is known of each, and what their labels say of them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
        dropout: float = 0.0,
    ) -> Tensor:
        """Rows of table (rows, width) of each review's n-grams, summed, over the root of their number.

        (batch, width). `dropout` is the share of n-grams that a draw leaves out, for which the others then
        stand in.
        """
        grams, kept, root = self._drawn(tokens, lengths, dropout)
        rows = grams[kept]
        offsets = F.pad(kept.sum(dim=1).cumsum(dim=0)[:-1], (1, 0))
        return F.embedding_bag(rows, table, offsets, mode="sum") / root

    def shares(self, tokens: Tensor, lengths: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """The row of each n-gram and what it counts in the sum of `summed`: (batch, n-grams) each."""
        grams, kept, root = self._drawn(tokens, lengths, dropout)
        return grams, kept / root

    def _drawn(self, tokens: Tensor, lengths: Tensor, dropout: float) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and whether they count (batch, n-grams), and what sums are divided by (batch, 1)."""
        grams, real = self.of(tokens, lengths)
        root = real.sum(dim=1).sqrt()[:, None]
        if dropout:
            real = real & (torch.rand(real.shape, device=real.device) >= dropout)
            # What is left stands in for what was dropped, or reviews would look longer without a draw.
            root = root * (1.0 - dropout)
        return grams, real, root


class NaiveBayes(nn.Module):
    """One feature of a review: the log-odds of a linear classifier of its n-grams, without the intercept.

    NB-SVM (Wang & Manning, "Baselines and Bigrams", ACL 2012), with a logistic regression for the SVM: each
    n-gram is scaled by its naive Bayes log-count ratio, so that a ridge penalty holds what is rare and what
    says little closer to 0. `fit` finds the coefficients before training, which leaves them as they are.

    The classifier knows the reviews that it was fitted to by heart, and whoever learns beside it from the
    same reviews finds nothing left to learn. With `folds` it therefore tells of a review, in training mode,
    what a classifier says that was fitted without the review's fold (Wolpert, "Stacked Generalization",
    Neural Networks 1992); the reviews of the same tokens are in the same fold.
    """

    SMOOTHING = 1.0  # added to each count, as in the paper
    C = 20.0  # what a review's loss weighs against the ridge penalty

    coefficients: Tensor  # (rows,)
    held_out: Tensor  # (folds, rows), half as precise: of those fitted without each fold

    def __init__(self, vocabulary_size: int, *, order: int, buckets: int, dropout: float, folds: int = 0):
        super().__init__()
        self.ngrams = Ngrams(vocabulary_size, order, buckets)
        self.dropout = dropout
        self.folds = folds
        self.register_buffer("coefficients", torch.zeros(self.ngrams.rows))
        if folds:
            self.register_buffer("held_out", torch.zeros(folds, self.ngrams.rows, dtype=torch.float16))

    def forward(self, tokens: Tensor, lengths: Tensor, dropout: float = 0.0) -> Tensor:
        """(batch, 1) of tokens (batch, length), padded behind lengths (batch,)."""
        if not (self.training and self.folds):
            return self.ngrams.summed(self.coefficients[:, None], tokens, lengths, dropout=dropout)
        grams, share = self.ngrams.shares(tokens, lengths, dropout)
        return (self.held_out[self._fold(tokens)[:, None], grams].float() * share).sum(dim=1, keepdim=True)

    def _fold(self, tokens: Tensor) -> Tensor:
        """Which fold each review is of: (batch,). Padding does not count."""
        return tokens.sum(dim=1) % self.folds

    def fit(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Find the coefficients from tokens, lengths and labels of batches; reviews of label -1 are left out.

        Raises ValueError if there are not reviews of both labels.
        """
        from scipy import sparse

        rows, counts, labels, folds = [], [], [], []
        for tokens, lengths, signs in batches:
            grams, real = self.ngrams.of(tokens, lengths)
            fold = self._fold(tokens) if self.folds else torch.zeros_like(lengths)
            for review in (signs >= 0).nonzero()[:, 0].tolist():
                rows.append(grams[review][real[review]].numpy().astype(np.int32))
                counts.append(len(rows[-1]))
                labels.append(int(signs[review]))
                folds.append(int(fold[review]))
        label, of_fold = np.array(labels), np.array(folds)
        if len(set(labels)) < 2:
            raise ValueError("model.naive_bayes_order needs training reviews of both labels")
        ends, values = np.cumsum([0, *counts]), np.ones(sum(counts), dtype=np.float32)
        found = sparse.csr_matrix((values, np.concatenate(rows), ends), shape=(len(labels), self.ngrams.rows))
        found.sum_duplicates()
        root = np.sqrt(counts)

        def fitted(fold: int | None) -> Tensor:
            others = of_fold != fold  # all, of none
            return torch.from_numpy(self._fitted(found[others], root[others], label[others]))

        with ThreadPoolExecutor() as pool:  # liblinear does not hold the interpreter's lock
            whole, *parts = pool.map(fitted, (None, *range(self.folds)))
        self.coefficients.copy_(whole)
        for held_out, part in zip(self.held_out if self.folds else (), parts, strict=True):
            held_out.copy_(part)

    def _fitted(self, found: Any, root: NDArray[np.float64], label: NDArray[np.int64]) -> NDArray[np.float64]:
        """Coefficients (rows,) by counts `found` (reviews, rows); 0 if all these few have one label."""
        from scipy import sparse
        from sklearn.linear_model import LogisticRegression

        if len(np.unique(label)) < 2:
            return np.zeros(self.ngrams.rows)
        ratios = _ratios(found, label, self.SMOOTHING)
        scaled = sparse.diags(1 / root) @ found @ sparse.diags(ratios)
        fit = LogisticRegression(C=self.C, solver="liblinear", random_state=0).fit(scaled.tocsr(), label)
        return np.asarray(fit.coef_[0] * ratios, dtype=np.float64)


def _ratios(found: Any, labels: NDArray[np.int64], smoothing: float) -> NDArray[np.float64]:
    """Of each column the log of the share of the ones of label 1 that are in it, over that of label 0's.

    `found` (reviews, columns) counts; what counts here is whether a review has it at all.
    """
    has = found.copy()
    has.data[:] = 1
    positive, negative = (
        np.asarray(has[labels == label].sum(axis=0))[0].astype(np.float64) + smoothing for label in (1, 0)
    )
    return np.log(positive / positive.sum()) - np.log(negative / negative.sum())
