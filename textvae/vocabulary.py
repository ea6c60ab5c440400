"""Text <-> token ids: the Keras IMDB convention, and byte-level BPE.

Both kinds share four special ids. Keras numbers words from 4 on, for `index_from` is 3 and ranks begin at 1,
and leaves 3 unused; here it is the end of a review.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from textvae import config

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, START, OOV, END = range(4)
_INDEX_FROM = 3
_OOV_SHOWN = "<oov>"

# What Keras' Tokenizer calls its filters: each becomes a space; the apostrophe is not among them.
_FILTERS = b'!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'
_TO_SPACE = bytes.maketrans(_FILTERS, b" " * len(_FILTERS))

# White space as Unicode defines it; Python's \s has four control characters more.
_SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
# Byte-level BPE first cuts a text into letters, digits and other signs, each with the space before it, and
# the space that is left. This cuts only at space: each piece is a whole number of those, and so encodes as it
# would in place.
_PIECE = re.compile(f" ?[^{_SPACE}]+|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+")
# Pieces whose ids are remembered, and the longest one: a few tens of megabytes at most.
_REMEMBERED = 1 << 17
_REMEMBERED_LENGTH = 32

# A space never occurs in a byte-level token, so no text and no merge can make one of these.
_SPECIAL = ["[pad ]", "[start ]", "[oov ]", "[end ]"]


class Vocabulary(ABC):
    """A fixed mapping between text and the ids 0 .. size - 1."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of ids, special ones included: every id is smaller."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text's content, without START, END or padding."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; PAD, START and END vanish, OOV shows as <oov>. ValueError for an id outside."""

    @abstractmethod
    def to_json(self) -> str:
        """All of it, as one line of JSON; equal vocabularies give equal lines."""

    @staticmethod
    def from_json(text: str) -> Vocabulary:
        """The vocabulary that to_json wrote; ValueError for anything else."""
        value = json.loads(text)
        kind = value.get("kind") if isinstance(value, dict) else None
        if kind == Words.kind:
            return Words(value["words"], value["size"])
        if kind == BytePairs.kind:
            return BytePairs(value["tokens"], [(left, right) for left, right in value["merges"]])
        raise ValueError(f"not a vocabulary: its kind is {kind!r} instead of 'words' or 'bpe'")

    def _content(self, ids: Iterable[int]) -> list[int]:
        kept = [int(i) for i in ids if i not in (PAD, START, END)]
        if wrong := [i for i in kept if not 0 <= i < self.size]:
            raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {self.size}")
        return kept


def build(section: config.Vocabulary, texts: Iterable[str]) -> Vocabulary:
    """The vocabulary of `section`, learned from training texts; the same texts give the same one."""
    if section.kind == "words":
        return Words.learn(texts, section.size)
    return BytePairs.learn(texts, section.size)


def split_words(text: str) -> list[str]:
    """The words of a text as Keras' Tokenizer has them: lower-case, no punctuation but the apostrophe."""
    return [word.decode() for word in _split(text) if word]


def _split(text: str) -> list[bytes]:
    # Bytes, because translating them is a table look-up; a filter is one byte, part of no other character.
    # split(b" "), not split(): Keras keeps other white space, such as a carriage return, inside words.
    return text.lower().encode("utf-8", "replace").translate(_TO_SPACE).split(b" ")


class Words(Vocabulary):
    """Whole words, numbered by how often they occur, from 4 on: the Keras IMDB convention.

    words: from the most frequent one. size: Keras' num_words; words whose id would not be below it are OOV.
    It counts as the size even if there are fewer words.
    """

    kind = "words"

    def __init__(self, words: Sequence[str], size: int):
        self._size = size
        self._words = list(words[: max(0, size - _INDEX_FROM - 1)])
        self._ids = {word.encode(): rank + _INDEX_FROM for rank, word in enumerate(self._words, 1)}

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> Words:
        """Count the words of texts; ties go to the word that came first."""
        counts: Counter[bytes] = Counter()
        for text in texts:
            counts.update(_split(text))
        del counts[b""]
        # most_common sorts stably, and a Counter keeps the order in which its keys came.
        return cls([word.decode() for word, _ in counts.most_common(max(0, size - _INDEX_FROM - 1))], size)

    @property
    def size(self) -> int:
        return self._size

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        get = self._ids.get
        return [[get(word, OOV) for word in _split(text) if word] for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        first = _INDEX_FROM + 1
        known = len(self._words)
        return " ".join(
            self._words[i - first] if 0 <= i - first < known else _OOV_SHOWN for i in self._content(ids)
        )

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind, "size": self._size, "words": self._words}, ensure_ascii=False)


class BytePairs(Vocabulary):
    """Byte-level byte pair encoding (Sennrich et al., 2016; Radford et al., 2019): lossless for any text.

    tokens: in the order of their ids, the four special ones first. merges: pairs of tokens, the earliest
    first.
    """

    kind = "bpe"

    def __init__(self, tokens: Sequence[str], merges: Sequence[tuple[str, str]]):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        self._tokens = list(tokens)
        self._merges = list(merges)
        ids = {token: i for i, token in enumerate(self._tokens)}
        # The special tokens are not announced to the tokenizer as such: it would find them in reviews.
        self._tokenizer: Tokenizer = Tokenizer(models.BPE(vocab=ids, merges=self._merges))
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = decoders.ByteLevel()
        self._pieces = _Pieces(self._tokenizer)

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> BytePairs:
        """Learn merges until there are `size` tokens, or no pair occurs twice."""
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
        ids: dict[str, int] = model["vocab"]
        # Older versions of tokenizers write a merge as one string.
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        merges = [(left, right) for left, right in pairs]
        return cls(sorted(ids, key=ids.__getitem__), merges)

    @property
    def size(self) -> int:
        return len(self._tokens)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids = self._pieces.__getitem__
        return [list(chain.from_iterable(map(ids, _PIECE.findall(text)))) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        runs: list[list[int]] = [[]]
        for i in self._content(ids):
            if i == OOV:
                runs.append([])
            else:
                runs[-1].append(i)
        return _OOV_SHOWN.join(self._tokenizer.decode(run) for run in runs)

    def to_json(self) -> str:
        value = {"kind": self.kind, "tokens": self._tokens, "merges": self._merges}
        return json.dumps(value, ensure_ascii=False)


class _Pieces(dict[str, tuple[int, ...]]):
    """The ids of pieces of text: found at once if met before, which nearly all were, else encoded."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, piece: str) -> tuple[int, ...]:
        # Half a surrogate pair, which JSON can express, is no character: it becomes a question mark.
        ids = tuple(self._tokenizer.encode(piece.encode("utf-8", "replace").decode()).ids)
        if len(self) < _REMEMBERED and len(piece) <= _REMEMBERED_LENGTH:
            self[piece] = ids
        return ids
