"""Small models and texts that the metrics are tested on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from textvae import checkpoint, vocabulary
from textvae.batches import framing
from textvae.config import Config, Data
from textvae.evaluate.reading import Texts, encode
from textvae.parsing import parse
from textvae.predict import Predictor

torch.set_num_threads(1)

GOOD = [
    "A great film!",
    "Great acting, and a great story.",
    "I love this great film",
    "What a great, great story",
]
BAD = [
    "A terrible film...",
    "Terrible acting and a terrible story",
    "I hate this terrible film",
    "What a terrible mess",
]
LABELS = np.array([1] * 4 + [0] * 4, dtype=np.int8)


@pytest.fixture
def make() -> Callable[..., Predictor]:
    """make(kind="elbo", tokens="words", max_length=9, **model) -> a Predictor of random weights."""

    def build(
        kind: str = "elbo", tokens: str = "words", max_length: int = 9, seed: int = 0, **sizes: Any
    ) -> Predictor:
        from textvae.model import TextVAE

        settings: dict[str, Any] = {
            "vocabulary": {"kind": tokens, "size": 300 if tokens == "bpe" else 16, "max_length": max_length},
            "model": {
                "embedding": 8,
                "encoder_hidden": 8,
                "latent": 3,
                "decoder_hidden": 8,
                "decoder": "repeat" if kind == "seed" else "autoregressive",
                **sizes,
            },
            "objective": {"kind": kind},
        }
        if kind == "seed":
            settings["vocabulary"]["truncation"] = "pre"
        config = parse(Config, settings)
        words = vocabulary.build(config.vocabulary, GOOD + BAD)
        torch.manual_seed(seed)
        model = TextVAE(config, words.size)
        with torch.no_grad():  # initial weights are so small that every z would say much the same
            for parameter in model.parameters():
                parameter.mul_(3)
        return Predictor.from_parts(config, words, model)

    return build


@pytest.fixture
def texts_of() -> Callable[..., Texts]:
    """texts_of(predictor, texts=GOOD + BAD) -> them, with labels where they are the eight."""

    def build(predictor: Predictor, texts: list[str] | None = None) -> Texts:
        labels = LABELS if texts is None else None
        return encode(
            GOOD + BAD if texts is None else texts, predictor.vocabulary, framing(predictor.config), labels
        )

    return build


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """save(predictor, data=None, seconds=None) -> its checkpoint, the config naming that data."""

    def write(predictor: Predictor, data: Data | None = None, seconds: float | None = None) -> Path:
        config = predictor.config if data is None else predictor.config.model_copy(update={"data": data})
        checkpoint.save(
            tmp_path / "epoch-01",
            model=predictor.model,
            optimizer=torch.optim.Adam(predictor.model.parameters()),
            config=config,
            vocabulary=predictor.vocabulary,
            position=checkpoint.Position(1, 7, 0),
            metrics={} if seconds is None else {"seconds": seconds},
        )
        return tmp_path / "epoch-01"

    return write
