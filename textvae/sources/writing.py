"""Turns a stream of rows into a folder of shuffled Arrow IPC files and their description."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import pyarrow as pa

from textvae.sources.errors import SourceError
from textvae.sources.permutation import permute
from textvae.sources.reviews import ROWS, SCHEMA, Reviews

# A text with its label (1, 0 or None) and its rating (any scale, or None).
Row = tuple[str, int | None, float | None]
Split = Literal["train", "validation", "test"]
# What is being done, how much of it is done, and of how much (None: not known).
Progress = Callable[[str, int, int | None], None]

# The files of a prepared folder. Training reviews are kept apart by whether they have a label, so that
# either kind can be read, counted and drawn from alone.
FILES = ("labelled", "unlabelled", "validation", "test")
DESCRIPTION = "description.json"
# Decides the order of rows in the files and which are held out. Changing it changes every split ever made.
# (With this one the two snippets that occur twice do not straddle two splits; a test looks.)
_ORDER_SEED = 3

# Given the number of labelled training reviews: how many to hold out for "validation" and for "test".
HoldOut = Callable[[int], Mapping[str, int]]


@dataclass(frozen=True)
class Counts:
    """How many reviews a file holds, by label."""

    positive: int = 0
    negative: int = 0
    unlabelled: int = 0

    @property
    def reviews(self) -> int:
        """All of them."""
        return self.positive + self.negative + self.unlabelled


@dataclass(frozen=True)
class Example:
    """One review, shown."""

    text: str
    label: int | None
    rating: float | None


@dataclass(frozen=True)
class Description:
    """What a prepared source holds.

    counts: by file (labelled and unlabelled training reviews, validation, test); dropped: reviews shorter
    than data.min_characters; words, characters: quantiles of a review's length, named 0 %, 5 %, ... 100 %.
    """

    source: str
    counts: dict[str, Counts]
    dropped: int
    words: dict[str, int]
    characters: dict[str, int]
    examples: tuple[Example, ...]

    @classmethod
    def load(cls, folder: Path) -> Description:
        """The description in a prepared folder; FileNotFoundError if nothing is prepared there."""
        value = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        return cls(
            value["source"],
            {name: Counts(**counts) for name, counts in value["counts"].items()},
            value["dropped"],
            value["words"],
            value["characters"],
            tuple(Example(**example) for example in value["examples"]),
        )


def build(
    folder: Path,
    source: str,
    rows: Iterable[tuple[Split, Row]],
    *,
    hold_out: HoldOut,
    min_characters: int,
    progress: Progress,
    total: int | None = None,
) -> Description:
    """Write `rows` as a prepared folder, whole or not at all.

    The folder is built beside its place, flushed to the disk and renamed. The order of the rows is a fixed
    shuffle; the first labelled training reviews of that order are those held out. The caller holds the
    folder's lock. Memory does not grow with the number of rows. Raises SourceError.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        # One that is there already was left by a process that was killed: the lock says nobody uses it.
        shutil.rmtree(partial, ignore_errors=True)
        spools = partial / "spool"
        spools.mkdir(parents=True)
        dropped = _spool(spools, rows, min_characters, source, progress, total)
        description = _finish(partial, source, spools, dropped, hold_out, progress)
        shutil.rmtree(spools)
        _flush(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        raise SourceError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return description


def _spool(
    folder: Path,
    rows: Iterable[tuple[Split, Row]],
    min_characters: int,
    source: str,
    progress: Progress,
    total: int | None,
) -> int:
    """Write the rows that are long enough to one file a kind, in the order they come; how many were not."""
    dropped = seen = 0
    with ExitStack() as stack:
        writers = {name: stack.enter_context(_Writer(folder / f"{name}.arrow")) for name in FILES}
        for seen, (split, (text, label, rating)) in enumerate(rows, 1):
            if seen % ROWS == 0:
                progress(f"reading {source}", seen, total)
            if len(text.strip()) < min_characters:
                dropped += 1
            elif split == "train":
                writers["unlabelled" if label is None else "labelled"].append(text, label, rating)
            else:
                writers[split].append(text, label, rating)
    progress(f"reading {source}", seen, seen)
    if not any(writers[name].rows for name in ("labelled", "unlabelled")):
        found = f"all {dropped} reviews are" if dropped else "there is no training review, or each is"
        raise SourceError(f"{source}: {found} shorter than data.min_characters ({min_characters})")
    return dropped


def _finish(
    folder: Path, source: str, spools: Path, dropped: int, hold_out: HoldOut, progress: Progress
) -> Description:
    spooled = {name: Reviews.open([spools / f"{name}.arrow"]) for name in FILES}
    everything = sum(len(reviews) for reviews in spooled.values())
    held = dict(hold_out(len(spooled["labelled"])))
    words: Counter[int] = Counter()
    characters: Counter[int] = Counter()
    counts = {}
    examples: list[Example] = []
    done = 0
    for name in FILES:
        with _Writer(folder / f"{name}.arrow") as writer:
            for text, label, rating in _shuffled(name, spooled, held):
                writer.append(text, label, rating)
                words[len(text.split())] += 1
                characters[len(text)] += 1
                if len(examples) < 3 and name in ("labelled", "unlabelled"):
                    examples.append(Example(text, label, rating))
                done += 1
                if done % ROWS == 0:
                    progress(f"writing {source}", done, everything)
        counts[name] = writer.counts()
    progress(f"writing {source}", done, everything)
    description = Description(
        source, counts, dropped, _quantiles(words), _quantiles(characters), tuple(examples)
    )
    text = json.dumps(asdict(description), ensure_ascii=False, indent=1)
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    return description


def _shuffled(name: str, spooled: Mapping[str, Reviews], held: Mapping[str, int]) -> Iterator[Row]:
    """The rows of one final file: its part of the shuffled labelled reviews, then its own, shuffled."""
    begin = 0
    for taker in ("validation", "test", "labelled"):
        size = held.get(taker, 0) if taker != "labelled" else len(spooled["labelled"]) - begin
        if taker == name:
            yield from _in_shuffled_order(spooled["labelled"], begin, begin + size)
        begin += size
    if name != "labelled":
        yield from _in_shuffled_order(spooled[name], 0, len(spooled[name]))


def _in_shuffled_order(reviews: Reviews, begin: int, end: int) -> Iterator[Row]:
    for start in range(begin, end, ROWS):
        got = reviews.read(permute(np.arange(start, min(start + ROWS, end)), len(reviews), _ORDER_SEED))
        for text, label, rating in zip(got.texts, got.labels.tolist(), got.ratings.tolist(), strict=True):
            yield text, None if label < 0 else label, None if rating != rating else rating


@dataclass
class _Writer:
    """Writes rows to an Arrow IPC file in record batches of ROWS."""

    path: Path
    rows: int = 0
    _labels: Counter[int | None] = field(default_factory=Counter)
    _pending: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._file = self.path.open("wb")
        self._stream = pa.ipc.new_file(self._file, SCHEMA)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, text: str, label: int | None, rating: float | None) -> None:
        self.rows += 1
        self._labels[label] += 1
        self._pending.append((text, label, rating))
        if len(self._pending) == ROWS:
            self._write()

    def counts(self) -> Counts:
        return Counts(self._labels[1], self._labels[0], self._labels[None])

    def close(self) -> None:
        try:
            if self._pending:
                self._write()
            self._stream.close()
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def _write(self) -> None:
        columns = zip(*self._pending, strict=True)
        arrays = [pa.array(column, type=kind.type) for column, kind in zip(columns, SCHEMA, strict=True)]
        self._pending.clear()
        self._stream.write_batch(pa.record_batch(arrays, schema=SCHEMA))


def _quantiles(histogram: Counter[int]) -> dict[str, int]:
    """Exact quantiles of a histogram: {"0 %": smallest, ..., "50 %": median, ..., "100 %": largest}."""
    values = sorted(histogram)
    reached = np.cumsum([histogram[value] for value in values])
    found = {}
    for percent in (0, 5, 25, 50, 75, 95, 100):
        rank = max(1, int(np.ceil(percent / 100 * reached[-1])))
        found[f"{percent} %"] = int(values[int(np.searchsorted(reached, rank))])
    return found


def _flush(folder: Path) -> None:
    """Make the names in a folder, and the files themselves, survive a power cut."""
    for path in [*folder.iterdir(), folder]:
        if path.suffix not in (".arrow", ".json") and path != folder:
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
