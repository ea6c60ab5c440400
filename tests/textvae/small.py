"""A small model's config, and a batch of reviews for it."""

from __future__ import annotations

from typing import Any

import torch

from textvae.batches import Batch
from textvae.config import Config
from textvae.parsing import parse


def config(kind: str = "elbo", model: dict[str, Any] | None = None, **settings: Any) -> Config:
    """`settings` are the objective's."""
    sizes = {
        "embedding": 5,
        "encoder_hidden": 6,
        "latent": 4,
        "decoder_hidden": 8,
        "decoder": "repeat" if kind == "seed" else "autoregressive",
    }
    return parse(
        Config,
        {
            "vocabulary": {"kind": "words", "size": 13, "max_length": 9},
            "model": {**sizes, **(model or {})},
            "objective": {"kind": kind, **settings},
        },
    )


def elbo_batch() -> Batch:
    """Four reviews of 10, 4, 1 and 7 tokens, END counted; the second and the last have no label."""
    lengths = torch.tensor([10, 4, 1, 7])
    tokens = torch.randint(4, 13, (4, 10), generator=torch.Generator().manual_seed(1))
    tokens[torch.arange(10) >= lengths[:, None]] = 0
    tokens[torch.arange(4), lengths - 1] = 3
    return Batch(tokens, lengths, torch.tensor([1, -1, 0, -1]), 4)
