"""Looking around in a latent space: who is near whom, what lies between, what lies nowhere in particular.

Everything here is text and numbers; `textvae-jobs explore` prints it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from textvae.model import line
from textvae.predict import BATCH_SIZE, CONVINCED, Predictor
from textvae.sources.reviews import Slice


class NothingToExplore(ValueError):
    """The model has no latent: it can write samples, but there is no place in it to look at."""


@dataclass(frozen=True)
class Reading:
    """A review, what the head says of it, and what the decoder makes of its latent mean."""

    text: str
    positive: float  # the probability that it is positive, by the linear head on its mean
    cut: bool  # longer than the model reads
    written: str


@dataclass(frozen=True)
class Neighbour:
    """A known review near another one."""

    distance: float  # Euclidean, between the latent means
    label: int | None  # 1 positive, 0 negative
    rating: float | None
    text: str


@dataclass(frozen=True)
class Place:
    """A point of the latent space and the text written there."""

    positive: float | None  # the probability that it is positive, by the linear head at this point
    read_back: float | None  # the same of the written text, read again; None if nothing was written
    text: str


class Explorer:
    """Answers about one model; `known` are the reviews among which it looks for neighbours.

    Every method is deterministic. A text that is longer than the model reads is cut as in training. An empty
    text is a ValueError, and so is a number of steps below 2. Every method but `samples` raises
    NothingToExplore for a model without a latent.
    """

    def __init__(self, predictor: Predictor, known: Slice | None = None):
        self.predictor = predictor
        self.known = known
        self._known_means: np.ndarray | None = None

    @property
    def latent(self) -> int:
        """The dimensions of the latent vector; 0 for a language model."""
        return self.predictor.config.model.latent

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """Each text with its sentiment and its reconstruction, the likeliest token each time."""
        self._need_latent()
        return [
            Reading(text, positive, cut, written)
            for text, positive, cut, written in zip(
                texts,
                self.predictor.sentiment(texts),
                self.predictor.truncated(texts),
                self.predictor.reconstruct(texts),
                strict=True,
            )
        ]

    def neighbours(self, text: str, count: int = 5) -> list[Neighbour]:
        """The `count` known reviews nearest to a text, itself left out, the nearest first."""
        self._need_latent()
        known = self.known
        if known is None or len(known) == 0:
            raise ValueError("there are no known reviews to look for neighbours among")
        if self._known_means is None:
            self._known_means = self.predictor.embed(known.texts)
        distances = np.linalg.norm(self._known_means - self.predictor.embed([text]), axis=1)
        order = [row for row in np.argsort(distances, kind="stable").tolist() if known.texts[row] != text]
        return [
            Neighbour(
                distance=float(distances[row]),
                label=int(known.labels[row]) if known.labels[row] >= 0 else None,
                rating=float(known.ratings[row]) if math.isfinite(known.ratings[row]) else None,
                text=known.texts[row],
            )
            for row in order[:count]
        ]

    @torch.inference_mode()
    def between(self, a: str, b: str, steps: int = 5) -> list[Place]:
        """`steps` places on the straight line from the mean of `a` to that of `b`, both included."""
        self._need_latent()
        means = self._means([a, b])
        return self._places(line(means[0], means[1], steps))

    @torch.inference_mode()
    def push(self, text: str, steps: int = 5) -> list[Place]:
        """A review pushed from negative to positive, in steps that are even in log-odds.

        Its mean is moved along the weights of the linear head, which changes nothing but what the head sees,
        from where the head is 95 % sure of negative to where it is 95 % sure of positive, or as far as the
        review itself is if that is further. ValueError if the head has no direction.
        """
        self._need_latent()
        mean = self._means([text])[0]  # (latent,)
        weight, bias = self.predictor.model.sentiment_direction()
        square = float(weight.square().sum())
        if square == 0:
            raise ValueError("the sentiment head's weights are all 0: it has no direction to push along")
        now = float(mean @ weight + bias)
        ends = [
            mean + weight * ((goal - now) / square) for goal in (min(-CONVINCED, now), max(CONVINCED, now))
        ]
        return self._places(line(ends[0], ends[1], steps))

    @torch.inference_mode()
    def samples(self, count: int, seed: int = 0, temperature: float = 1.0) -> list[Place]:
        """`count` texts from draws of the prior N(0, 1): those of Predictor.sample, given the same."""
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        device = self.predictor.device
        generator = torch.Generator(device=device).manual_seed(seed)
        z = torch.randn(count, self.latent, generator=generator, device=device)
        return self._places(z, temperature=temperature, generator=generator)

    def _need_latent(self) -> None:
        if self.latent == 0:
            raise NothingToExplore(
                "this model is a language model without a latent: it has nothing but samples"
            )

    def _means(self, texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(self.predictor.embed(texts)).to(self.predictor.device)

    def _places(
        self, z: Tensor, *, temperature: float = 0.0, generator: torch.Generator | None = None
    ) -> list[Place]:
        """What is written at each z (places, latent), and what the head says of it."""
        model, vocabulary = self.predictor.model, self.predictor.vocabulary
        # Samples are drawn in one go: in pieces, the same seed would give others than Predictor.sample.
        pieces = z.split(BATCH_SIZE) if temperature == 0 else (z,)
        texts = [
            vocabulary.decode(row)
            for piece in pieces
            for row in model.generate(piece, temperature=temperature, generator=generator).tolist()
        ]
        if self.latent == 0:
            return [Place(None, None, text) for text in texts]
        written = [i for i, text in enumerate(texts) if text.strip()]
        back = dict(zip(written, self.predictor.sentiment([texts[i] for i in written]), strict=True))
        heads = model.predict_sentiment(z).tolist()
        return [Place(heads[i], back.get(i), text) for i, text in enumerate(texts)]


def draw(known: Slice, seed: int = 0) -> list[str]:
    """Two of the known reviews, drawn by `seed`: a negative one, then a positive one, where both exist.

    ValueError if there are fewer than two reviews with a text.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(known)).tolist()
    found: list[int] = []
    for wanted in (0, 1):
        found += [row for row in order if known.labels[row] == wanted and row not in found][:1]
    found += [row for row in order if row not in found][: 2 - len(found)]
    if len(found) < 2:
        raise ValueError("there are not two reviews to draw; give texts of your own")
    return [known.texts[row] for row in found]
