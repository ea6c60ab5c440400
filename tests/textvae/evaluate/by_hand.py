"""What the metrics are held against: each token scored by a decoding of its own."""

from __future__ import annotations

import numpy as np
import torch

from textvae.predict import Predictor
from textvae.vocabulary import END


def ids(predictor: Predictor, text: str) -> list[int]:
    """The tokens of a text that is cut at its end, and END."""
    return [*predictor.vocabulary.encode([text])[0][: predictor.config.vocabulary.max_length], END]


def scored(predictor: Predictor, ids: list[int], z: np.ndarray) -> tuple[float, int]:
    """-log p(x | z) of ids x in nats, and how many of them are the likeliest at their place."""
    nats, hits = 0.0, 0
    with torch.no_grad():
        for position, token in enumerate(ids):
            tokens = torch.tensor([[*ids[:position], END]])
            logits = predictor.model.decode(torch.tensor(z[None], dtype=torch.float32), tokens)[0, position]
            nats -= float(logits.double().log_softmax(-1)[token])
            hits += int(logits.argmax()) == token
    return nats, hits


def nats(predictor: Predictor, text: str, z: np.ndarray) -> float:
    """-log p(x | z) of a text x in nats."""
    return scored(predictor, ids(predictor, text), z)[0]
