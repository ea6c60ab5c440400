"""Reviews: random access to text and labels in Arrow IPC files, at a memory cost that does not grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from textvae.sources.errors import SourceError
from textvae.sources.permutation import permute

SCHEMA = pa.schema([("text", pa.string()), ("label", pa.int8()), ("rating", pa.float32())])
# Every record batch but a file's last holds this many rows, so that row // ROWS is the batch of a row.
ROWS = 1024
# The map is closed after this many rows: until then what was read of it, and what the system read around it,
# counts as resident.
_STRIDE = 128


@dataclass(frozen=True)
class Slice:
    """Some reviews: texts, labels (int8; 1 positive, 0 negative, -1 none), ratings (float32; nan none)."""

    texts: list[str]
    labels: NDArray[np.int8]
    ratings: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Part:
    """Rows of one Arrow IPC file: all of them, or `size` drawn without replacement by `key`."""

    path: Path
    rows: int
    size: int
    key: int | None = None

    def locate(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row in the file of each position in this part."""
        return positions if self.key is None else permute(positions, self.rows, self.key)


@dataclass(frozen=True)
class Reviews:
    """A sequence of reviews, read from its files when asked.

    Nothing is kept open or cached between two reads, so it can be pickled, shared by threads, and read from
    end to end without the resident memory growing.
    """

    parts: tuple[Part, ...]

    @classmethod
    def open(cls, paths: Sequence[Path]) -> Reviews:
        """All rows of these Arrow IPC files, in order."""
        return cls(tuple(Part(path, rows, rows) for path in paths for rows in [count(path)]))

    def __len__(self) -> int:
        return sum(part.size for part in self.parts)

    def read(self, rows: ArrayLike) -> Slice:
        """The reviews at these positions (each in range(len(self))), in the order given.

        Raises IndexError for a position outside, SourceError for a file that is gone or damaged.
        """
        rows = np.asarray(rows, dtype=np.int64).reshape(-1)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows must be in range({len(self)})")
        texts: list[str] = [""] * rows.size
        labels = np.full(rows.size, -1, dtype=np.int8)
        ratings = np.full(rows.size, np.nan, dtype=np.float32)
        first = 0
        for part in self.parts:
            where = np.flatnonzero((rows >= first) & (rows < first + part.size))
            located = part.locate(rows[where] - first) if where.size else where
            first += part.size
            order = np.argsort(located, kind="stable")
            where, located = where[order], located[order]
            for start in range(0, where.size, _STRIDE):
                to = where[start : start + _STRIDE]
                got = _read(part.path, located[start : start + _STRIDE])
                for position, text in zip(to.tolist(), got.texts, strict=True):
                    texts[position] = text
                labels[to], ratings[to] = got.labels, got.ratings
        return Slice(texts, labels, ratings)

    def slices(self, size: int = ROWS) -> Iterator[Slice]:
        """All reviews in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.read(np.arange(start, min(start + size, len(self))))

    def texts(self) -> Iterator[str]:
        """All texts in order, streamed."""
        for part in self.slices():
            yield from part.texts


def count(path: Path) -> int:
    """Rows of an Arrow IPC file written by this package."""
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            batches = reader.num_record_batches
            return (batches - 1) * ROWS + reader.get_batch(batches - 1).num_rows if batches else 0
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(
            f"{path}: not a readable Arrow file ({error}); delete its folder to prepare it anew"
        ) from error


def _read(path: Path, rows: NDArray[np.int64]) -> Slice:
    """The rows of one file, `rows` ascending."""
    batches = rows // ROWS
    edges = [0, *(np.flatnonzero(np.diff(batches)) + 1).tolist(), rows.size]
    columns: list[list[pa.Array]] = [[], [], []]
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            for start, end in pairwise(edges):
                batch = reader.get_batch(int(batches[start]))
                within = pa.array(rows[start:end] % ROWS)
                for i, column in enumerate(columns):
                    column.append(batch.column(i).take(within))  # a copy: nothing points into the map
            del batch, reader
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(
            f"{path}: cannot be read ({error}); delete its folder to prepare it anew"
        ) from error
    text, label, rating = (pa.concat_arrays(column) for column in columns)
    return Slice(
        text.to_pylist(),
        label.fill_null(-1).to_numpy(zero_copy_only=False),
        rating.fill_null(float("nan")).to_numpy(zero_copy_only=False),
    )
