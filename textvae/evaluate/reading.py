"""Reviews as they are measured: encoded, cut as in training, with the words and bytes that are scored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textvae.batches import Framing, collate
from textvae.sources.permutation import key_of, permute
from textvae.sources.reviews import Reviews
from textvae.vocabulary import END, OOV, PAD, START, Vocabulary

# Called with what is being measured, how much is done, and of how much.
Progress = Callable[[str, int, int | None], None]

# Positions of a batch: reviews times the tokens of the longest. Bounds the memory of every measurement.
POSITIONS = 32_768

_SPECIAL = (PAD, START, OOV, END)
# A word as the words vocabulary cuts it: what stands between spaces and Keras' filters. Lower-casing neither
# makes nor removes one of these, so the cut can be found in the text as it was written.
_KERAS_WORD = re.compile(r'[^ !"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~\t\n]+')


@dataclass(frozen=True)
class Texts:
    """Reviews in memory, ready to be measured.

    ids: content ids of each, uncut. texts: as they were read. labels: int8, 1 positive, 0 negative, -1 none.
    words, bytes: int64, of the part of each text that the model reads. cut: whether that is not all of it.
    """

    framing: Framing
    vocabulary: Vocabulary
    texts: list[str]
    labels: NDArray[np.int8]
    ids: list[NDArray[np.int32]]
    words: NDArray[np.int64]
    bytes: NDArray[np.int64]
    cut: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, n: int) -> Texts:
        """The first `n` of them, or all there are."""
        return self.only(np.arange(min(n, len(self))))

    def only(self, rows: NDArray[np.int64]) -> Texts:
        """Those at `rows`."""
        return Texts(
            self.framing,
            self.vocabulary,
            [self.texts[i] for i in rows],
            self.labels[rows],
            [self.ids[i] for i in rows],
            self.words[rows],
            self.bytes[rows],
            self.cut[rows],
        )

    def batches(
        self, device: torch.device | str = "cpu", positions: int = POSITIONS
    ) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        """(rows, tokens, lengths) of reviews of similar length, as many as fit into `positions`."""
        kept = [min(len(row) + 1, self.framing.max_length + 1) for row in self.ids]
        order = sorted(range(len(self)), key=kept.__getitem__)
        batch: list[int] = []
        for i in order:  # ascending, so that the last one of a batch is the longest
            width = self.framing.max_length if self.framing.fixed else kept[i]
            if batch and (len(batch) + 1) * width > positions:
                yield self._batch(batch, device)
                batch = []
            batch.append(i)
        if batch:
            yield self._batch(batch, device)

    def _batch(self, rows: list[int], device: torch.device | str) -> tuple[NDArray[np.int64], Tensor, Tensor]:
        tokens, lengths = collate([self.ids[i].tolist() for i in rows], self.framing)
        return np.array(rows), tokens.to(device), lengths.to(device)

    def kept(self, row: int) -> list[int]:
        """The content ids of a review that the model reads."""
        return [int(self.ids[row][i]) for i in kept_positions(len(self.ids[row]), self.framing)]

    def readable(self, row: int) -> str:
        """What the model reads of a review, unknown words left out, as its vocabulary writes it."""
        return self.vocabulary.decode(i for i in self.kept(row) if i != OOV)


def read(
    reviews: Reviews, vocabulary: Vocabulary, framing: Framing, n: int | None = None, *, seed: int = 0
) -> Texts:
    """`n` of the reviews in an order that depends on `seed` and their number alone; by default all.

    A smaller n gives the beginning of what a larger one gives, for any model: figures of two models over the
    same n are over the same reviews. Raises ValueError if there is no review or n < 1.
    """
    if len(reviews) == 0:
        raise ValueError("there are no reviews to measure")
    if n is not None and n < 1:
        raise ValueError(f"the number of reviews must be at least 1, got {n}")
    size = min(len(reviews), n or len(reviews))
    order = permute(np.arange(size), len(reviews), key_of(seed, "evaluate"))
    got = reviews.read(order)
    return encode(got.texts, vocabulary, framing, got.labels)


def encode(
    texts: Sequence[str],
    vocabulary: Vocabulary,
    framing: Framing,
    labels: NDArray[np.int8] | None = None,
) -> Texts:
    """Texts in memory as `Texts`; without labels, none has one."""
    ids = [np.array(row, dtype=np.int32) for row in vocabulary.encode(texts)]
    sizes = _Sizes(vocabulary)
    counts = [sizes.of(text, row, framing) for text, row in zip(texts, ids, strict=True)]
    words, lengths, cut = zip(*counts, strict=True) if counts else ((), (), ())
    return Texts(
        framing,
        vocabulary,
        list(texts),
        np.full(len(texts), -1, dtype=np.int8) if labels is None else labels,
        ids,
        np.array(words, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        np.array(cut, dtype=np.bool_),
    )


def kept_positions(length: int, framing: Framing) -> list[int]:
    """Which of a review's `length` content ids stay once it is framed."""
    if length + framing.start <= framing.max_length:
        return list(range(length))
    # The framing itself says, asked with numbers in the place of ids.
    first = max(_SPECIAL) + 1
    tokens, _ = collate([list(range(first, first + length))], framing)
    return [i - first for i in tokens[0].tolist() if i >= first]


class _Sizes:
    """Counts the words and bytes of what a model reads of a text.

    Words are what str.split() finds: cut at white space, whatever the vocabulary. A cut text is counted up to
    the cut: for byte-level BPE the bytes of the kept tokens and the words of their text (a word that is cut
    in two counts), for a vocabulary of words the stretch of the text from the first kept word to the last.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        # Each character of a byte-level token stands for one byte.
        tokens = json.loads(vocabulary.to_json()).get("tokens", []) if vocabulary.kind == "bpe" else []
        self.bytes = np.array([len(token) for token in tokens], dtype=np.int64)

    def of(self, text: str, ids: NDArray[np.int32], framing: Framing) -> tuple[int, int, bool]:
        """Words, bytes, and whether the text is cut."""
        kept = kept_positions(len(ids), framing)
        if len(kept) == len(ids):
            return len(text.split()), len(text.encode("utf-8", "replace")), False
        words = size = 0
        stretches = np.split(np.array(kept), np.flatnonzero(np.diff(kept) > 1) + 1)
        spans = None if self.vocabulary.kind == "bpe" else [m.span() for m in _KERAS_WORD.finditer(text)]
        for stretch in stretches:
            if len(stretch) == 0:
                continue
            if spans is None:
                size += int(self.bytes[ids[stretch]].sum())
                words += len(self.vocabulary.decode(ids[stretch].tolist()).split())
            else:
                part = text[spans[stretch[0]][0] : spans[stretch[-1]][1]]
                size += len(part.encode("utf-8", "replace"))
                words += len(part.split())
        return words, size, True
