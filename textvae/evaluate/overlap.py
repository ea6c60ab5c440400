"""Reviews that were trained on: some IMDB reviews stand word for word both in a part and in training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from textvae.sources.reviews import Reviews


def fingerprint(text: str) -> bytes:
    """Equal for texts that differ in white space alone."""
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "replace"), digest_size=16).digest()


def trained_on(texts: Sequence[str], training: Reviews) -> NDArray[np.bool_]:
    """Which of the texts occur word for word among the training reviews, white space aside.

    The training reviews are streamed once; only the fingerprints of `texts` are in memory.
    """
    where: dict[bytes, list[int]] = {}
    for i, text in enumerate(texts):
        where.setdefault(fingerprint(text), []).append(i)
    found = np.zeros(len(texts), dtype=np.bool_)
    for text in training.texts():
        for i in where.get(fingerprint(text), ()):
            found[i] = True
    return found
