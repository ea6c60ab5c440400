"""A keyed permutation of range(n) that needs no array of n numbers.

A Feistel network permutes the smallest square power of two that holds n, and walking its cycles until the
value is below n makes it a permutation of range(n) (Black and Rogaway, "Ciphers with arbitrary finite
domains", CT-RSA 2002). Any slice of the shuffled order can be computed alone, so a rank that resumes in the
middle of an epoch, or reads one shard of billions of reviews, holds only the indices it is about to read.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Four rounds already make a pseudo-random permutation; very small domains profit from a few more.
_ROUNDS = 6


def key_of(*parts: int | str) -> int:
    """A 64-bit key from a seed and what it is for; equal parts give equal keys on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def permute(indices: ArrayLike, n: int, key: int) -> NDArray[np.int64]:
    """Where the permutation of range(n) that `key` names sends each of `indices`.

    indices: integers of any shape, each in range(n). Returns the same shape. ValueError for n < 1 and
    IndexError for an index outside range(n).
    """
    if n < 1:
        raise ValueError(f"a permutation needs at least one element, not {n}")
    given = np.asarray(indices, dtype=np.int64)
    if given.size and (given.min() < 0 or given.max() >= n):
        raise IndexError(f"indices must be in range({n})")
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = [key_of(key, i) for i in range(_ROUNDS)]
    values = _network(given.astype(np.uint64).reshape(-1), half, keys)
    # Each pass at least a quarter of the domain is below n, so few values walk further than a few steps.
    while (outside := np.flatnonzero(values >= n)).size:
        values[outside] = _network(values[outside], half, keys)
    return values.astype(np.int64).reshape(given.shape)


def _network(values: NDArray[np.uint64], half: int, keys: list[int]) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + np.uint64(key)) & mask)
    return (left << shift) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
