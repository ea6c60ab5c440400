"""Model versions of random weights, and a client of the application that serves them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cluster.serving.models import Models

TEXTS = ["a lovely film", "a dull plot and a bad actor", "the actor was fine"]


@dataclass(frozen=True)
class Version:
    """A checkpoint of random weights, as the store records a model version."""

    number: int
    folder: Path
    digest: str

    def desired(self) -> dict[str, Any]:
        return {"version": self.number, "location": str(self.folder), "digest": self.digest}


def save(folder: Path, number: int, *, latent: int = 4) -> Version:
    import torch

    from textvae import checkpoint, vocabulary
    from textvae.config import Config
    from textvae.model import TextVAE
    from textvae.parsing import parse

    config = parse(
        Config,
        {
            "vocabulary": {"kind": "words", "size": 60, "max_length": 12},
            "model": {"embedding": 8, "encoder_hidden": 8, "latent": latent, "decoder_hidden": 8},
        },
    )
    torch.manual_seed(number)
    words = vocabulary.build(config.vocabulary, TEXTS)
    model = TextVAE(config, words.size)
    digest = checkpoint.save(
        folder,
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        config=config,
        vocabulary=words,
        position=checkpoint.Position(1, 10, 0),
        metrics={"validation": {"sentiment_accuracy": 0.5 + number / 10, "kl": None}},
    )
    return Version(number, folder, digest)


@asynccontextmanager
async def client(models: Models) -> AsyncIterator[httpx.AsyncClient]:
    from cluster.serving.app import create

    transport = httpx.ASGITransport(create(models), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as asked:
        yield asked
