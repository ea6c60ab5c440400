"""The model versions that one replica holds: loading, swapping, and answering in batches across requests."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.serving.batching import Batcher
from cluster.serving.schemas import MAX_TEXTS

if TYPE_CHECKING:
    from textvae.predict import Predictor

logger = logging.getLogger("textvae.serving")

Result = TypeVar("Result")

_RETRY = 30.0  # seconds until a version that could not be loaded is tried again


class Refused(Exception):
    """A request that cannot be answered: an HTTP status, a code for programs, a sentence, perhaps a field."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None):
        self.status, self.code, self.message, self.field = status, code, message, field
        super().__init__(message)


@dataclass(frozen=True)
class Wanted:
    """One model version to serve."""

    name: str
    version: int
    location: str
    digest: str


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model version in memory. A request is answered whole by the one that it met."""

    wanted: Wanted
    predictor: Predictor
    metrics: Mapping[str, float]


class Models:
    """The versions that are served; reads of it need no lock, since a change swaps the whole mapping.

    `load` turns a Wanted into a Loaded, in a thread; it raises if it cannot.
    """

    def __init__(self, load: Callable[[Wanted], Loaded] | None = None) -> None:
        self._load = load or read
        self._served: Mapping[str, Loaded] = {}
        self._desired: tuple[Sequence[Wanted], str | None] = (), None  # versions, and the default's name
        self.default: str | None = None
        self.problems: Mapping[str, tuple[Wanted, str]] = {}
        self._change = asyncio.Lock()
        self._retry: asyncio.Task[None] | None = None
        # One thread answers quick questions, the other writes texts, which takes long. More would only
        # take the CPUs from each other, and from training.
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="quick")
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="slow")
        # Batches count texts, not requests, so that one large request does not swell everyone's.
        self._sentiments = Batcher(_sentiments, limit=MAX_TEXTS, executor=self._quick)
        self._embeddings = Batcher(_embeddings, limit=MAX_TEXTS, executor=self._quick)

    async def serve(self, desired: Mapping[str, Mapping[str, Any]], default: str | None = None) -> None:
        """Serve exactly these versions; requests are answered by the earlier ones until the swap.

        A version that cannot be loaded is told in `problems` and tried again later; an earlier version of
        its name stays. Raising instead would make Serve restart the replica and drop what works.
        """
        self._desired = [Wanted(name, **version) for name, version in desired.items()], default
        await self._update()

    async def _update(self) -> None:
        async with self._change:
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
            # Whatever was asked for last: who has waited here, or is a retry, may know of something older.
            await self._serve(*self._desired)
            if self.problems:
                self._retry = asyncio.create_task(self._again())

    async def _serve(self, wanted: Sequence[Wanted], default: str | None) -> None:
        served: dict[str, Loaded] = {}
        problems: dict[str, tuple[Wanted, str]] = {}
        for version in wanted:
            before = self._served.get(version.name)
            if before is not None and before.wanted == version:
                served[version.name] = before
                continue
            try:
                served[version.name] = await asyncio.to_thread(self._load, version)
            except Exception as error:  # whatever is wrong with one version, the others must be served
                logger.exception("cannot load %s version %d", version.name, version.version)
                problems[version.name] = version, str(error) or type(error).__name__
                if before is not None:
                    served[version.name] = before
        self._served, self.problems, self.default = served, problems, default

    async def _again(self) -> None:
        await asyncio.sleep(_RETRY)
        self._retry = None  # so that the update does not cancel the task it runs in
        await self._update()

    def all(self) -> list[Loaded]:
        """The served versions, by name."""
        return [loaded for _, loaded in sorted(self._served.items())]

    def default_name(self) -> str | None:
        """The model that answers when a request names none; None if the request must name one."""
        served = self._served
        if self.default in served:
            return self.default
        return next(iter(served)) if len(served) == 1 else None

    def get(self, name: str | None) -> Loaded:
        """The served version of a model name, or of the default one. Raises Refused."""
        served = self._served
        if not served:
            raise Refused(503, "no_model", "no model is served yet; train one, or promote a version")
        known = ", ".join(sorted(served))
        name = name if name is not None else self.default_name()
        if name is None:
            raise Refused(422, "invalid", f"several models are served, name one of: {known}", "model")
        if name not in served:
            raise Refused(404, "unknown_model", f"no model is named {name!r}; served are: {known}", "model")
        return served[name]

    async def sentiment(self, loaded: Loaded, texts: list[str]) -> list[tuple[float, bool]]:
        """For each text the probability that it is positive, and whether it was cut."""
        return await self._sentiments(loaded, texts)

    async def embed(self, loaded: Loaded, texts: list[str]) -> list[list[float]]:
        """For each text its latent mean."""
        return await self._embeddings(loaded, texts)

    async def write(self, work: Callable[[], Result]) -> Result:
        """Do slow work of a predictor beside the quick questions."""
        return await asyncio.get_running_loop().run_in_executor(self._slow, work)


def _sentiments(loaded: Loaded, texts: list[str]) -> list[tuple[float, bool]]:
    predictor = loaded.predictor
    return list(zip(predictor.sentiment(texts), predictor.truncated(texts), strict=True))


def _embeddings(loaded: Loaded, texts: list[str]) -> list[list[float]]:
    return loaded.predictor.embed(texts).tolist()


def read(wanted: Wanted) -> Loaded:
    """Read a version from the artifact store, verifying it against its digest."""
    # They import torch, which takes seconds: a replica starts without it, and needs it for the first version.
    import torch

    from textvae import checkpoint
    from textvae.artifacts import fetch
    from textvae.model import TextVAE
    from textvae.predict import Predictor

    # Each of the two threads that use the models computes on one core: more would only take turns.
    torch.set_num_threads(1)
    folder = fetch(wanted.location, _cache())
    saved = checkpoint.load(folder, digest=wanted.digest, optimizer=False)
    model = TextVAE(saved.config, saved.vocabulary.size)
    saved.give_weights(model)
    predictor = Predictor.from_parts(saved.config, saved.vocabulary, model)
    metrics = {
        name: value for name, value in (saved.metrics.get("validation") or {}).items() if value is not None
    }
    if saved.config.model.latent:
        predictor.sentiment(["a first review warms the model up"])
    else:
        predictor.sample(1)
    return Loaded(wanted, predictor, metrics)


def _cache() -> Path:
    """Where copies of versions from an object store are kept."""
    home = os.environ.get("TEXTVAE_HOME")
    return Path(home) / "cache" if home else Path(tempfile.gettempdir()) / f"textvae-{os.getuid()}-cache"
