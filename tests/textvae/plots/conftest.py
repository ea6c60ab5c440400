"""Latent spaces of known shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from textvae.plots import Seen


def _cloud(
    reviews: int = 300, *, latent: int = 6, apart: float = 3.0, rated: bool = True, **changes: Any
) -> Seen:
    """Both labels, `apart` standard deviations along the first dimension; the second hardly varies."""
    random = np.random.default_rng(0)
    labels = np.arange(reviews) % 2
    means = random.normal(size=(reviews, latent))
    direction = np.zeros(latent)
    if latent:
        means[:, 0] += apart * (labels - 0.5)
        direction[0] = 2.0
    if latent > 1:
        means[:, 1] *= 0.05  # a variance of 0.0025: inactive
    ratings = np.where(labels == 1, 7.0, 1.0) + random.integers(0, 4, size=reviews)
    lengths = random.integers(5, 60, size=reviews)
    values: dict[str, Any] = {
        "labels": labels.astype(np.int8),
        "ratings": (ratings if rated else np.full(reviews, np.nan)).astype(np.float32),
        "means": means,
        "kl": np.linspace(0.1, 2.0, latent),
        "losses": 5.0 * np.minimum(lengths, 50),
        "tokens": np.minimum(lengths, 50),
        "lengths": lengths,
        "limit": 50,
        "direction": direction,
        "bias": 0.5,
    }
    return Seen(**values | changes)


@pytest.fixture(scope="session")
def cloud() -> Callable[..., Seen]:
    """cloud(reviews=300, latent=6, apart=3.0, rated=True, **fields of Seen) -> two classes of reviews."""
    return _cloud
