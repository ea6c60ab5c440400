"""Sharded, resumable, length-bucketed batches, encoded as they are read.

No encoded copy of the reviews exists, nor an array of their order: of an epoch's shuffled order a rank
computes the part that it is about to read. The order is cut into windows of about fifty steps. Each rank
takes an equal share of a window, encodes it, sorts it by length and cuts it into one batch a step; as shares
are random samples, all ranks find similar lengths at the same step. Then the window's steps are shuffled.

So which reviews a window has does not depend on the number of ranks, only which of its steps each is in:
the window's layout. If that number changes in the middle of a window, the rest of it is read in the layout
that it was begun in, each rank taking a part of every step; the next window has the new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textvae.ahead import ahead
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


@dataclass(frozen=True)
class _Share:
    """A rank's part of a window: framed ids and labels, and their order by length."""

    rows: list[NDArray[np.int32]]
    labels: NDArray[np.int8]
    by_length: list[int]

    def piece(self, step: int, steps: int) -> tuple[list[NDArray[np.int32]], NDArray[np.int8]]:
        """What it gives to one of the window's steps."""
        taken = self.by_length[step * len(self.rows) // steps : (step + 1) * len(self.rows) // steps]
        return [self.rows[i] for i in taken], self.labels[taken]


class Batches:
    """The batches of one rank, epoch after epoch.

    reviews: all of them, not the rank's shard. batch_size: reviews a step over all ranks together. Within an
    epoch every review is read by exactly one rank, all ranks have equally many steps, and no rank's step is
    empty. The order depends on seed, epoch, world_size and batch_size alone.

    max_ranks: how many ranks there may be at most if their number changes during the training; the number of
    steps is the same for any up to that. ValueError if there are fewer reviews than ranks, or if batch_size
    is below world_size; with max_ranks, if there are less than twice as many of either.

    ahead: whether a thread encodes the next window while the batches of this one are used, which pays where
    a device computes meanwhile.
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
        max_ranks: int | None = None,
        shuffle: bool = True,
        ahead: bool = False,
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
        if max_ranks is not None:
            _check_elastic(len(reviews), batch_size, world_size, max_ranks)
        self._reviews = reviews
        self._vocabulary = vocabulary
        self._framing = framing
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world = world_size
        self._shuffle = shuffle
        self._ahead = ahead
        # The reviews are spread evenly over the steps, rather than the last one being a small rest; there are
        # few enough steps that each has a review for every rank. In a layout of W ranks a step has less than
        # W reviews below the average: with two for each of max_ranks on average, any number finds one each.
        self._elastic = max_ranks is not None
        self._steps = self._count(world_size if max_ranks is None else 2 * max_ranks)
        self._window = max(1, min(_WINDOW_STEPS, _WINDOW_REVIEWS // batch_size))

    def __len__(self) -> int:
        """Steps of an epoch: equal on all ranks."""
        return self._steps

    def layout(self, step: int, begun: int = 0) -> int:
        """The ranks in whose layout a step of an epoch is read, if the one before it was read in that of
        `begun` (0: nobody knows; then in this world's)."""
        return begun if begun and step % self._window else self._world

    def epoch(self, n: int, start: int = 0, begun: int = 0) -> Iterator[Batch]:
        """The batches of epoch `n` from step `start` on: what a full epoch would yield there.

        `begun` is the layout in which step `start` - 1 was read. Then every review of the epoch is read once
        whatever the number of ranks before and after. ValueError if these ranks cannot go on from there: not
        with max_ranks, nor with more than a few reviews a rank and step.
        """
        layout = self.layout(start, begun)
        if start and begun and not self._elastic and self._count(begun) != self._steps:
            raise ValueError(
                f"an epoch that {begun} ranks began in {self._count(begun)} steps cannot be ended by "
                f"{self._world}, for which it has {self._steps}: resume with {begun} ranks"
            )
        first = start - start % self._window
        totals = self._totals(first, min(first + self._window, self._steps), layout)
        if start < self._steps and layout != self._world and min(totals) < self._world:
            raise ValueError(
                f"a step that {layout} ranks laid out has {min(totals)} reviews, too few for {self._world} "
                f"ranks: resume with {layout} ranks"
            )
        windows = self._windows(n, start, layout)
        return ahead(windows, self._window) if self._ahead else windows

    def _windows(self, n: int, start: int, layout: int) -> Iterator[Batch]:
        for first in range(start - start % self._window, self._steps, self._window):
            last = min(first + self._window, self._steps)
            order: NDArray[np.int64] = np.arange(last - first)
            if self._shuffle:
                order = permute(order, last - first, key_of(self._seed, n, "steps", first))
            rest = order[max(0, start - first) :].tolist()
            if first < start and layout != self._world:
                yield from self._in_layout(n, first, last, rest, layout)
            else:
                yield from self._batches(n, first, last, rest)

    def _batches(self, n: int, first: int, last: int, order: list[int]) -> Iterator[Batch]:
        """The steps `first` to `last` of epoch n, those of `order` in that order."""
        share = self._share(n, first, last, self._rank, self._world)
        totals = self._totals(first, last, self._world)
        for step in order:
            rows, labels = share.piece(step, last - first)
            yield self._batch(rows, labels, totals[step])

    def _in_layout(self, n: int, first: int, last: int, order: list[int], layout: int) -> Iterator[Batch]:
        """The same where another number of ranks has begun: each encodes all shares, and takes its part."""
        shares = [self._share(n, first, last, rank, layout) for rank in range(layout)]
        for step in order:
            pieces = [share.piece(step, last - first) for share in shares]
            rows = [row for piece, _ in pieces for row in piece]
            labels = np.concatenate([piece for _, piece in pieces])
            mine = slice(self._rank * len(rows) // self._world, (self._rank + 1) * len(rows) // self._world)
            yield self._batch(rows[mine], labels[mine], len(rows))

    def _batch(self, rows: list[NDArray[np.int32]], labels: NDArray[np.int8], total: int) -> Batch:
        tokens, lengths = _pad(rows, self._framing)
        return Batch(tokens, lengths, torch.from_numpy(labels.astype(np.int64)), total)

    def _share(self, n: int, first: int, last: int, rank: int, world: int) -> _Share:
        """What `rank` of `world` has of the window of these steps, encoded."""
        reviews = len(self._reviews)
        begin, edges = self._edges(first, last, world)
        positions = np.arange(begin + edges[rank], begin + edges[rank + 1])
        if self._shuffle:
            positions = permute(positions, reviews, key_of(self._seed, n, "reviews"))
        rows, labels = self._encode(positions)
        if self._framing.fixed:  # all rows are equally long
            return _Share(rows, labels, list(range(len(rows))))
        return _Share(rows, labels, sorted(range(len(rows)), key=lambda i: len(rows[i])))

    def _totals(self, first: int, last: int, world: int) -> list[int]:
        """Reviews of each step of a window over all ranks of a layout."""
        steps, (_, edges) = last - first, self._edges(first, last, world)
        shares = [edges[rank + 1] - edges[rank] for rank in range(world)]
        return [sum((step + 1) * m // steps - step * m // steps for m in shares) for step in range(steps)]

    def _edges(self, first: int, last: int, world: int) -> tuple[int, list[int]]:
        """Where a window begins, and where each rank's share of it ends, counted from there."""
        reviews = len(self._reviews)
        begin, end = first * reviews // self._steps, last * reviews // self._steps
        return begin, [rank * (end - begin) // world for rank in range(world + 1)]

    def _count(self, least: int) -> int:
        """Steps of an epoch if each has `least` reviews or more on average."""
        return min(-(-len(self._reviews) // self._batch_size), len(self._reviews) // least)

    def _encode(self, positions: NDArray[np.int64]) -> tuple[list[NDArray[np.int32]], NDArray[np.int8]]:
        """Framed ids and labels of the reviews at these positions; texts are dropped once encoded."""
        rows: list[NDArray[np.int32]] = []
        labels = []
        for start in range(0, len(positions), _ENCODE_REVIEWS):
            got = self._reviews.read(positions[start : start + _ENCODE_REVIEWS])
            rows += [_frame(ids, self._framing) for ids in self._vocabulary.encode(got.texts)]
            labels.append(got.labels)
        return rows, np.concatenate(labels)


def _check_elastic(reviews: int, batch_size: int, world_size: int, max_ranks: int) -> None:
    """Raises ValueError where not every number of ranks up to max_ranks could go on from any step."""
    if world_size > max_ranks:
        raise ValueError(f"{world_size} ranks are more than max_ranks ({max_ranks})")
    for what, number in (("batch_size", batch_size), ("the number of reviews", reviews)):
        if number < 2 * max_ranks:
            raise ValueError(
                f"{what} ({number}) must be at least {2 * max_ranks}, two for each of up to {max_ranks} "
                "ranks, where their number may change"
            )
