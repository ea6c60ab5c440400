"""Our side: textvae.train's own loop, stepped from outside, and the reviews that are trained on."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textvae import heap, train
from textvae.batches import Batch, _pad, framing
from textvae.checkpoint import Position
from textvae.config import Config, without_service
from textvae.evaluate import Meter
from textvae.parsing import apply_override, read_yaml
from textvae.ranks import Ranks

CONFIGS = Path(__file__).parent.parent.parent / "configs"
_FEW = 4096  # reviews


@dataclass(frozen=True)
class Setting:
    """What all parts share."""

    scratch: Path  # ours to fill
    data: Path  # where prepared reviews are kept
    folder: Path | None  # IMDB as Parquet files; without it the reviews are made up
    quick: bool  # tiny models and few turns: shows that it works, measures nothing
    settled: bool = True  # the allocator is set as training sets it, for all sides; else left alone

    def settle(self, config: Config) -> None:
        """Set this process's allocator for what follows."""
        if self.settled:
            heap.settle(config)

    def config(self, preset: str, *changes: str, everything: bool = False, real: bool = False) -> Config:
        """A preset on this setting's reviews, with KEY=VALUE changes.

        `everything` takes all of IMDB that the preset does, not a few thousand reviews; `real` takes snippets
        rather than made-up reviews where IMDB is not at hand.
        """
        mapping = read_yaml(CONFIGS / f"{preset}.yaml")
        if self.folder is not None:
            if not everything:
                mapping["data"].setdefault("train_size", _FEW)
            mapping["data"]["folder"] = str(self.folder)
        elif real:
            mapping["data"] = {"source": "snippets"}
        else:
            mapping["data"] = {"source": "files", "train": [str(made_up(self.scratch))]}
        for change in (*(_TINY[preset] if self.quick else ()), *changes):
            apply_override(mapping, change)
        return without_service(mapping)


_TINY: dict[str, tuple[str, ...]] = {
    "seed": (
        "vocabulary.max_length=24",
        "vocabulary.size=100",
        "model.encoder_hidden=16",
        "model.decoder_hidden=16",
    ),
    "imdb-cpu": (
        "vocabulary.max_length=32",
        "vocabulary.size=400",
        "model.embedding=32",
        "model.decoder_hidden=32",
        "model.naive_bayes_buckets=1024",
        "training.batch_size=8",
    ),
    "imdb": (
        "vocabulary.max_length=32",
        "vocabulary.size=400",
        "model.encoder_hidden=16",
        "model.decoder_hidden=16",
        "training.batch_size=8",
    ),
}


def made_up(folder: Path, count: int = _FEW) -> Path:
    """A file of reviews of made-up words, about as long as IMDB's: half below 175 words, some above 600."""
    path = folder / f"made-up-{count}.jsonl"
    if path.exists():
        return path
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(8000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]  # as often as words of a language
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            length = min(1500, max(10, round(draw.lognormvariate(5.16, 0.65))))
            text = " ".join(draw.choices(words, weights, k=length))
            file.write(json.dumps({"text": text, "label": number % 2}) + "\n")
    return path


class _Silence:
    """Hooks that are not called."""

    def progress(self, progress: object) -> None:
        raise AssertionError("no turn reports progress")

    def stop(self) -> bool:
        return False

    def checkpoint(self, *_: object) -> None:
        raise AssertionError("no turn writes checkpoints")

    def epoch(self, report: object) -> None:
        raise AssertionError("no turn ends an epoch")


class Ours:
    """The loop that textvae.train.run runs, with its reviews, vocabulary, model, optimizer and meter.

    Its step is the one that trains, not a copy of it; only the order of batches is the benchmark's.
    """

    def __init__(self, config: Config, setting: Setting, device: torch.device):
        self.config, self.device = config, device
        self.loop = train._Loop(
            config,
            Ranks(0, 1, device),
            _Silence(),
            setting.data,
            setting.scratch,
            None,
            time.perf_counter,
        )
        self.loop.model.train()
        self.meter = Meter(config, device)

    @property
    def vocabulary(self) -> int:
        """Token ids there are."""
        return self.loop.vocabulary.size

    def step(self, batch: Batch) -> Tensor:
        """One optimizer step, with what training does between two; the loss."""
        loss = self.loop._step(batch, self.meter)
        at = self.loop.position
        self.loop.position = Position(at.epoch, at.step + 1, at.batch + 1)
        if self.loop.position.step % heap.TRIM_EVERY == 0:  # as the loop does between steps
            heap.trim()
        return loss

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def window(self, steps: int) -> list[Batch]:
        """The first so many batches of the epoch, as training sees them."""
        return list(islice(self.loop.train_batches.epoch(0), steps))


def portions(batches: Sequence[Batch], count: int, size: int) -> list[list[Batch]]:
    """`count` times `size` batches, each time of all lengths from the shortest batch to the longest."""
    ordered = sorted(batches, key=lambda batch: batch.tokens.shape[1])
    stride = len(ordered) // size
    if stride < 1:
        raise ValueError(f"{len(ordered)} batches are fewer than {size}")
    starts = [number * stride // count for number in range(count)]
    return [[ordered[start + i * stride] for i in range(size)] for start in starts]


def unsorted(portion: Sequence[Batch], config: Config, seed: int) -> list[Batch]:
    """The same reviews in equally many batches, in no order: what comes of not bucketing by length."""
    rows = [
        (batch.tokens[i, : int(batch.lengths[i])].numpy(), int(batch.labels[i]))
        for batch in portion
        for i in range(len(batch))
    ]
    random.Random(seed).shuffle(rows)
    batches, first = [], 0
    for batch in portion:
        taken = rows[first : first + len(batch)]
        first += len(batch)
        tokens, lengths = _pad([ids for ids, _ in taken], framing(config))
        labels = torch.tensor([label for _, label in taken])
        batches.append(replace(batch, tokens=tokens, lengths=lengths, labels=labels))
    return batches


Report = dict[str, Any]
Say = Callable[[str], None]
