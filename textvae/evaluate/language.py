"""Forward and reverse perplexity of samples, by small language models of our own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from textvae.config import Config
from textvae.evaluate.likelihood import explain, per_unit, posterior
from textvae.evaluate.reading import encode
from textvae.parsing import parse
from textvae.predict import Predictor

# The judge is small, so that it learns from a few thousand texts in minutes on a CPU.
_JUDGE: dict[str, Any] = {
    "vocabulary": {"kind": "bpe", "size": 2000, "max_length": 512},
    "model": {"latent": 0, "embedding": 96, "decoder_hidden": 192, "dropout": 0.2},
    "objective": {"kind": "elbo", "kl_warmup_epochs": 0},
    "training": {"epochs": 16, "batch_size": 8, "learning_rate": 0.004, "clip_norm": 5.0},
}
_HELD_OUT = 0.05  # training needs validation reviews; these choose the epoch


class TooFew(ValueError):
    """There are not texts enough to train a language model on."""


@dataclass(frozen=True)
class Perplexities:
    """Perplexities per white-space word; see `perplexities`."""

    forward: float
    reverse: float
    real: float
    texts: int  # each language model was trained on so many


def perplexities(
    written: Sequence[str],
    real: Sequence[str],
    held_out: Sequence[str],
    folder: Path,
    *,
    seed: int = 0,
    epochs: int | None = None,
    device: torch.device | str = "cpu",
) -> Perplexities:
    """Forward, reverse and real perplexity, per white-space word (END's cost included).

    forward: of the `written` texts, by a language model trained on `real` ones: low if they are fluent.
    reverse: of `held_out` real texts, by a language model trained on the `written` ones: low only if these
    are fluent and as varied as real ones (Zhao et al., ARAE, ICML 2018, section 6). real: of `held_out`, by
    the model trained on `real`: what both are held against. Both language models are the same (`latent:
    none`), are trained alike by textvae.train, on equally many texts, below `folder`. Their vocabularies are
    byte-level and so spell every text. Empty texts are left out. TooFew for fewer than 20 texts.
    """
    written, real, held_out = ([t for t in texts if t.split()] for texts in (written, real, held_out))
    n = min(len(written), len(real))
    if n < 20 or not held_out:
        raise TooFew(
            f"perplexities need at least 20 written and 20 real texts and one held out, "
            f"got {len(written)}, {len(real)} and {len(held_out)}"
        )
    of_real = language_model(real[:n], folder / "real", seed=seed, epochs=epochs, device=device)
    of_written = language_model(written[:n], folder / "written", seed=seed, epochs=epochs, device=device)
    return Perplexities(
        forward=word_perplexity(of_real, written),
        reverse=word_perplexity(of_written, held_out),
        real=word_perplexity(of_real, held_out),
        texts=n,
    )


def word_perplexity(model: Predictor, texts: Sequence[str]) -> float:
    """exp(nats per white-space word) of texts, by a language model; what is cut off is not counted."""
    from textvae.batches import framing

    got = encode(texts, model.vocabulary, framing(model.config))
    explained = explain(model.model, got, posterior(model.model, got).mean)
    return per_unit(explained.loss, got, explained.tokens)["word_perplexity"]


def language_model(
    texts: Sequence[str],
    folder: Path,
    *,
    seed: int = 0,
    epochs: int | None = None,
    device: torch.device | str = "cpu",
) -> Predictor:
    """A small language model of the texts, trained below `folder`: the epoch of lowest validation loss."""
    # Only here: training imports the epoch's metrics from this very package.
    from textvae import train

    folder.mkdir(parents=True, exist_ok=True)
    held_out = max(1, round(len(texts) * _HELD_OUT))
    parts = {"validation": texts[:held_out], "train": texts[held_out:]}
    for name, some in parts.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": t, "label": -1}) + "\n" for t in some), encoding="utf-8")
    config = parse(
        Config,
        {
            **_JUDGE,
            "seed": seed,
            "data": {
                "source": "files",
                "train": [str(folder / "train.jsonl")],
                "validation": [str(folder / "validation.jsonl")],
                "min_characters": 1,
            },
            "training": {**_JUDGE["training"], **({"epochs": epochs} if epochs else {})},
        },
    )
    kept = _Best(folder)
    train.run(config, data_folder=folder / "data", scratch=folder / "checkpoints", hooks=kept, device=device)
    assert kept.best is not None  # at least one epoch was trained
    return Predictor.load(kept.best, device)


class _Best:
    """Hooks that remember the checkpoint of the lowest validation loss."""

    def __init__(self, folder: Path):
        self.best: Path | None = None
        self.loss = float("inf")

    def progress(self, progress: Any) -> None:
        pass

    def stop(self) -> bool:
        return False

    def checkpoint(self, folder: Path, digest: str, position: Any, report: Any) -> None:
        if report is not None and report.validation["loss"] < self.loss:
            self.best, self.loss = folder, report.validation["loss"]

    def epoch(self, report: Any) -> None:
        pass
