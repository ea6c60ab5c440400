"""Sharded, resumable, length-bucketed batches, encoded as they are read.

No encoded copy of the reviews exists, nor an array of their order: of an epoch's shuffled order a rank
computes the part that it is about to read. The order is cut into windows of about fifty steps. Each rank
takes an equal share of a window, encodes it, sorts it by length and cuts it into one batch a step; as shares
are random samples, all ranks find similar lengths at the same step. Then the window's steps are shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textvae.config import Config
from textvae.sources.permutation import key_of, permute
from textvae.sources.reviews import Reviews
from textvae.vocabulary import END, PAD, START, Vocabulary

_WINDOW_STEPS = 50
# Reviews of a window over all ranks: what is encoded at a time, whatever the batch size.
_WINDOW_REVIEWS = 16_384
# Texts that are in memory at a time, beside the ids of a window.
_ENCODE_REVIEWS = 512


@dataclass(frozen=True)
class Framing:
    """How a review's ids become a row of a batch.

    start, end: whether START comes before and END after; pad, truncate: on which side; max_length: tokens
    kept of the content (with `start`: START included, as Keras counts); fixed: pad to max_length always,
    rather than to the longest row.
    """

    start: bool
    end: bool
    pad: Literal["pre", "post"]
    truncate: Literal["pre", "post", "middle"]
    max_length: int
    fixed: bool


def framing(config: Config) -> Framing:
    """The framing that a config's objective wants.

    seed: START + words, cut to max_length (pre-truncation takes START first), pre-padded to max_length.
    elbo: at most max_length tokens + END, post-padded to the longest of the batch.
    """
    seed = config.objective.kind == "seed"
    return Framing(
        start=seed,
        end=not seed,
        pad="pre" if seed else "post",
        truncate=config.vocabulary.truncation,
        max_length=config.vocabulary.max_length,
        fixed=seed,
    )


@dataclass
class Batch:
    """One rank's part of one step.

    tokens: int64 (batch, length); lengths: int64 (batch,), real tokens of each row, START and END included;
    labels: int64 (batch,), 1 positive, 0 negative, -1 none; total: reviews of this step over all ranks.
    """

    tokens: Tensor
    lengths: Tensor
    labels: Tensor
    total: int

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        tokens, lengths, labels = (
            tensor.to(device, non_blocking=True) for tensor in (self.tokens, self.lengths, self.labels)
        )
        return Batch(tokens, lengths, labels, self.total)


def collate(ids: Sequence[Sequence[int]], framing: Framing) -> tuple[Tensor, Tensor]:
    """Content ids -> tokens int64 (batch, length) and lengths int64 (batch,), as `framing` says."""
    return _pad([_frame(row, framing) for row in ids], framing)


def _frame(ids: Sequence[int], framing: Framing) -> NDArray[np.int32]:
    row = [START, *ids] if framing.start else list(ids)
    if len(row) > framing.max_length:
        # Kept of the beginning; of the end, the rest. A quarter: Sun et al., "How to Fine-Tune BERT" (2019).
        head = {"post": framing.max_length, "pre": 0, "middle": framing.max_length // 4}[framing.truncate]
        tail = framing.max_length - head
        row = row[:head] + row[len(row) - tail :]
    if framing.end:
        row.append(END)
    return np.array(row, dtype=np.int32)


def _pad(rows: Sequence[NDArray[np.int32]], framing: Framing) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    width = framing.max_length + framing.end if framing.fixed else max(map(len, rows), default=0)
    tokens = np.full((len(rows), width), PAD, dtype=np.int64)
    for row, padded in zip(rows, tokens, strict=True):
        if framing.pad == "post":
            padded[: len(row)] = row
        else:
            padded[width - len(row) :] = row
    return torch.from_numpy(tokens), lengths


class Batches:
    """The batches of one rank, epoch after epoch.

    reviews: all of them, not the rank's shard. batch_size: reviews a step over all ranks together. Within an
    epoch every review is read by exactly one rank, all ranks have equally many steps, and no rank's step is
    empty. The order depends on seed, epoch, world_size and batch_size alone. ValueError if there are fewer
    reviews than ranks, or if batch_size is below world_size.
    """

    def __init__(
        self,
        reviews: Reviews,
        vocabulary: Vocabulary,
        framing: Framing,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in range({world_size})")
        if batch_size < world_size:
            raise ValueError(
                f"batch_size ({batch_size}) counts the reviews of all {world_size} ranks: raise it"
            )
        if len(reviews) < world_size:
            raise ValueError(
                f"{len(reviews)} reviews cannot be shared by {world_size} ranks: ask for fewer ranks"
            )
        self._reviews = reviews
        self._vocabulary = vocabulary
        self._framing = framing
        self._seed = seed
        self._rank = rank
        self._world = world_size
        self._shuffle = shuffle
        # The reviews are spread evenly over the steps, rather than the last one being a small rest; there are
        # few enough steps that each has a review for every rank.
        self._steps = min(-(-len(reviews) // batch_size), len(reviews) // world_size)
        self._window = max(1, min(_WINDOW_STEPS, _WINDOW_REVIEWS // batch_size))

    def __len__(self) -> int:
        """Steps of an epoch: equal on all ranks."""
        return self._steps

    def epoch(self, n: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `n` from step `start` on: what a full epoch would yield there."""
        for first in range(start - start % self._window, self._steps, self._window):
            last = min(first + self._window, self._steps)
            order: NDArray[np.int64] = np.arange(last - first)
            if self._shuffle:
                order = permute(order, last - first, key_of(self._seed, n, "steps", first))
            yield from self._batches(n, first, last, order[max(0, start - first) :].tolist())

    def _batches(self, n: int, first: int, last: int, order: list[int]) -> Iterator[Batch]:
        """The steps `first` to `last` of epoch n, those of `order` in that order."""
        reviews, steps = len(self._reviews), last - first
        begin, end = first * reviews // self._steps, last * reviews // self._steps
        # Where each rank's share of the window ends, counted from the window's beginning.
        edges = [rank * (end - begin) // self._world for rank in range(self._world + 1)]
        shares = [edges[rank + 1] - edges[rank] for rank in range(self._world)]
        positions = np.arange(begin + edges[self._rank], begin + edges[self._rank + 1])
        if self._shuffle:
            positions = permute(positions, reviews, key_of(self._seed, n, "reviews"))
        rows, labels = self._encode(positions)
        if self._framing.fixed:  # all rows are equally long
            sorted_by_length = list(range(len(rows)))
        else:
            sorted_by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for step in order:
            share = len(rows)
            taken = sorted_by_length[step * share // steps : (step + 1) * share // steps]
            tokens, lengths = _pad([rows[i] for i in taken], self._framing)
            total = sum((step + 1) * m // steps - step * m // steps for m in shares)
            yield Batch(tokens, lengths, torch.from_numpy(labels[taken].astype(np.int64)), total)

    def _encode(self, positions: NDArray[np.int64]) -> tuple[list[NDArray[np.int32]], NDArray[np.int8]]:
        """Framed ids and labels of the reviews at these positions; texts are dropped once encoded."""
        rows: list[NDArray[np.int32]] = []
        labels = []
        for start in range(0, len(positions), _ENCODE_REVIEWS):
            got = self._reviews.read(positions[start : start + _ENCODE_REVIEWS])
            rows += [_frame(ids, self._framing) for ids in self._vocabulary.encode(got.texts)]
            labels.append(got.labels)
        return rows, np.concatenate(labels)
