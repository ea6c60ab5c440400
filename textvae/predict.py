"""A trained model and its vocabulary, from text to answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textvae import checkpoint
from textvae.batches import collate, framing
from textvae.config import Config
from textvae.model import TextVAE, line
from textvae.vocabulary import Vocabulary

BATCH_SIZE = 64  # reviews encoded or written at once

# How far transfer() goes: the log-odds at which the head is 95 % sure.
CONVINCED = 2.944


class NoLatent(ValueError):
    """A review cannot be read by a language model (model.latent: none): it can only write."""


class Predictor:
    """Answers of one model. Every method is deterministic, and safe to call from several threads at once.

    Texts longer than the model's max_length are cut as they were in training; `truncated` says which. An
    empty text is a ValueError that gives its position. A model without a latent has samples alone: what
    reads a review raises NoLatent.
    """

    def __init__(
        self, config: Config, vocabulary: Vocabulary, model: TextVAE, device: torch.device | str = "cpu"
    ):
        self.config = config
        self.vocabulary = vocabulary
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        self._framing = framing(config)

    @classmethod
    def load(
        cls, folder: Path | str, device: torch.device | str = "cpu", *, digest: str | None = None
    ) -> Predictor:
        """The Predictor of a checkpoint's folder.

        CheckpointError if it is torn, not that of `digest`, or its weights do not fit its config and
        vocabulary.
        """
        saved = checkpoint.load(folder, digest=digest, optimizer=False)
        model = TextVAE(saved.config, saved.vocabulary.size)
        saved.give_weights(model)
        return cls(saved.config, saved.vocabulary, model, device)

    @classmethod
    def from_parts(cls, config: Config, vocabulary: Vocabulary, model: TextVAE) -> Predictor:
        """The Predictor of a model in memory, on the device where it is. The model is put in eval mode."""
        return cls(config, vocabulary, model, model.embedding.weight.device)

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is longer than what the model reads of it."""
        room = self._framing.max_length - int(self._framing.start)
        return [len(ids) > room for ids in self._ids(texts)]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The posterior means, float32 (texts, latent)."""
        return self._means(texts).cpu().numpy()

    @torch.inference_mode()
    def sentiment(self, texts: Sequence[str]) -> list[float]:
        """The probability that each text is positive."""
        return self.model.predict_sentiment(self._means(texts)).tolist()

    @torch.inference_mode()
    def reconstruct(self, texts: Sequence[str]) -> list[str]:
        """Each text as the model writes it again from its mean, the likeliest token each time."""
        return self._write(self._means(texts))

    @torch.inference_mode()
    def sample(self, n: int, seed: int = 0, temperature: float = 1.0) -> list[str]:
        """`n` texts written from draws of the prior; the same ones for the same seed on the same device.

        Temperature 0, as any below 0.000001, writes the likeliest token each time. Raises ValueError if n < 1
        or temperature < 0.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        generator = torch.Generator(device=self.device).manual_seed(seed)
        return self._texts(self.model.sample(n, generator, temperature))

    @torch.inference_mode()
    def interpolate(self, a: str, b: str, steps: int = 5) -> list[str]:
        """`steps` texts written on the straight line from the mean of `a` to that of `b`, both included."""
        means = self._means([a, b])
        return self._write(line(means[0], means[1], steps))

    @torch.inference_mode()
    def transfer(self, text: str, steps: int = 5, *, positive: bool | None = None) -> list[str]:
        """`steps` texts from the review's own reconstruction to one of the other sentiment.

        The mean is pushed along the weights of the sentiment head, the shortest way to change its mind, in
        even steps up to where it is 95 % sure that the review is `positive` (by default: the opposite of what
        it is now). A review that is beyond that already stays where it is.
        """
        mean = self._means([text])[0]  # (latent,)
        weight, bias = self.model.sentiment_direction()
        now = float(mean @ weight + bias)
        towards = (now <= 0) if positive is None else positive
        goal = max(CONVINCED, now) if towards else min(-CONVINCED, now)
        pushed = mean + weight * ((goal - now) / weight.square().sum())
        return self._write(line(mean, pushed, steps))

    @torch.inference_mode()
    def _means(self, texts: Sequence[str]) -> Tensor:
        """(texts, latent), read in batches of similar length."""
        if self.config.model.latent == 0:
            raise NoLatent("this model is a language model without a latent (model.latent: none)")
        ids = self._ids(texts)
        means = torch.zeros(len(ids), self.config.model.latent, device=self.device)
        by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for some in _chunks(by_length):
            tokens, lengths = collate([ids[i] for i in some], self._framing)
            mean, _ = self.model.encode(tokens.to(self.device), lengths.to(self.device))
            means[some] = mean
        return means

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(texts, str):
            raise TypeError("texts must be a list of texts, not one text")
        for position, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"text {position} is empty: there is nothing to read in it")
        return self.vocabulary.encode(texts)

    def _write(self, z: Tensor) -> list[str]:
        rows = list(range(len(z)))
        return [text for some in _chunks(rows) for text in self._texts(self.model.generate(z[some]))]

    def _texts(self, tokens: Tensor) -> list[str]:
        return [self.vocabulary.decode(row) for row in tokens.tolist()]


def _chunks(items: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(items), BATCH_SIZE):
        yield items[start : start + BATCH_SIZE]
