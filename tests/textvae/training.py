"""Small trainings, as the tests of textvae.train do them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

from textvae import checkpoint, train
from textvae.checkpoint import Position
from textvae.config import Config
from textvae.parsing import parse
from textvae.train import Outcome, Progress, Report

STEPS = 8  # of an epoch: 144 training reviews, 20 a step


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 reviews that show their label, of which 16 are for validation; every tenth has none."""
    folder = tmp_path_factory.mktemp("train")
    draw = random.Random(0)
    words = (["bad", "awful", "poor", "dull"], ["good", "great", "lovely", "fine"])
    neutral = ["the", "a", "film", "plot", "actor", "scene", "it", "was"]
    labels = [None if number % 10 == 9 else number % 2 for number in range(160)]
    texts = [
        " ".join(
            draw.choice(words[label or 0] if draw.random() < 0.3 else neutral)
            for _ in range(draw.randint(3, 20))
        )
        for label in labels
    ]
    parquet.write_table(pa.table({"text": texts, "label": labels}), folder / "reviews.parquet")
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def elbo(folder: Path, **changes: dict[str, Any]) -> Config:
    """Everything random switched on: dropout of units and words, noise, shuffling."""
    sections: dict[str, Any] = {
        "data": {"source": "files", "train": [str(folder / "reviews.parquet")]},
        "vocabulary": {"kind": "words", "size": 40, "max_length": 16},
        "model": {"embedding": 8, "encoder_hidden": 8, "latent": 4, "decoder_hidden": 8, "dropout": 0.2},
        "objective": {"kind": "elbo", "word_dropout": 0.3},
        "training": {"epochs": 3, "batch_size": 20, "clip_norm": 1.0, "learning_rate": 0.01},
    }
    for name, values in changes.items():
        sections[name] = {**sections[name], **values}
    return parse(Config, {"seed": 3, **sections})


def seed(folder: Path) -> Config:
    mapping = elbo(folder, training={"epochs": 2}).model_dump(mode="json")
    mapping["model"] |= {"decoder": "repeat", "sentiment_hidden": 4, "dense": 6, "noise_std": 0.01}
    return parse(Config, {**mapping, "objective": "seed"})


class Hooks:
    """Remembers everything, and stops after a step, before a batch of validation, or after an epoch.

    Each is counted from 1, over all epochs.
    """

    def __init__(
        self, stop_after: int | None = None, *, in_validation: int | None = None, at_epoch: int | None = None
    ):
        self.stop_after, self.in_validation, self.at_epoch = stop_after, in_validation, at_epoch
        self.steps = self.validated = 0
        self.between = False  # an epoch is over, the next one has not begun
        self.progressed: list[Progress] = []
        self.checkpoints: list[tuple[Path, str, Position, Report | None]] = []
        self.epochs: list[Report] = []

    def progress(self, progress: Progress) -> None:
        self.progressed.append(progress)

    def stop(self) -> bool:
        if not torch.is_grad_enabled():  # as it is in a validation alone
            self.validated += 1
            return self.validated == self.in_validation
        if self.between:
            self.between = False
            return len(self.epochs) == self.at_epoch
        self.steps += 1
        return self.steps == self.stop_after

    def checkpoint(self, folder: Path, digest: str, position: Position, report: Report | None) -> None:
        self.checkpoints.append((folder, digest, position, report))

    def epoch(self, report: Report) -> None:
        self.epochs.append(report)
        self.between = True


def run(config: Config, folder: Path, scratch: Path, hooks: Hooks, **more: Any) -> Outcome:
    return train.run(config, data_folder=folder / "data", scratch=scratch, hooks=hooks, **more)


def same_checkpoint(a: Path, b: Path) -> bool:
    """Whether weights and optimizer are equal, bit for bit."""
    equal = []
    for file in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        x, y = load_file(a / file), load_file(b / file)
        equal += [x.keys() == y.keys(), *(torch.equal(x[name], y[name]) for name in x)]
    return all(equal)


def rewritten(saved: Path, to: Path, file: str, text: str) -> Path:
    """A copy of a checkpoint at `to` in which `file` reads otherwise, and the manifest agrees."""
    copy = Path(shutil.copytree(saved, to))
    (copy / file).write_text(text)
    manifest = json.loads((copy / checkpoint.MANIFEST).read_text())
    manifest["files"][file] = checkpoint.sha256(copy / file)
    (copy / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    return copy


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[Hooks, Outcome]:
    """Training that nothing interrupted."""
    hooks = Hooks()
    return hooks, run(elbo(folder), folder, folder / "whole", hooks)


def modern(folder: Path) -> Config:
    """The other encoder and decoder, and everything else that draws or changes with the steps."""
    model = {"encoder": "ngrams", "ngram_buckets": 64, "decoder": "mingru", "decoder_layers": 2, "tied": True}
    model |= {"mean_scale": 0.5, "variance": "fixed"}
    objective = {"free_bits": 0.1, "scored_share": 0.5, "kl_warmup_epochs": 1, "decorrelation_weight": 2.0}
    return elbo(folder, model=model, objective=objective, training={"epochs": 2, "schedule": "linear"})


def staged(folder: Path) -> Config:
    """A denoising autoencoder, then a VAE without sentiment, then all together: an epoch each."""
    objective = {"pretraining": "autoencoder", "pretraining_epochs": 1, "pretraining_token_drop": 0.3}
    objective |= {"sentiment_after_epochs": 1, "kl_warmup_epochs": 0}
    objective |= {"sentiment_weight": 3.0, "entropy_weight": 2.0, "adversarial_weight": 2.0}
    return elbo(folder, objective=objective)
