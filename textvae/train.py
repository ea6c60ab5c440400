"""The training loop. Rank and world size are arguments; torch.distributed is used where there is more than
one rank.

Everything random in step s on rank r is drawn from a seed made of (config.seed, r, s), and the order of the
reviews depends on nothing but seed, epoch and world size. So a checkpoint needs to remember no random
state, and training that was stopped anywhere and resumed ends with the weights of training that was not,
bit for bit on CPU.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from textvae import checkpoint, heap, objective, optimizer, vocabulary
from textvae.averaging import Average
from textvae.batches import Batch, Batches, framing
from textvae.checkpoint import Checkpoint, Position
from textvae.config import Config
from textvae.evaluate import Meter
from textvae.hooks import Hooks, Outcome, Pace, Progress, Report, TrainingError, where
from textvae.model import TextVAE
from textvae.ranks import Ranks, distributed
from textvae.sources import Corpus, prepare
from textvae.sources.permutation import key_of
from textvae.validation import autocast, calibrate, computes_bf16, fit_naive_bayes, validate
from textvae.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

__all__ = ["Hooks", "Outcome", "Progress", "Report", "TrainingError", "run"]


def run(
    config: Config,
    *,
    data_folder: Path,
    scratch: Path,
    hooks: Hooks,
    rank: int = 0,
    world_size: int = 1,
    max_ranks: int | None = None,
    device: torch.device | str = "cpu",
    resume: Path | None = None,
    digest: str | None = None,
    group: dist.ProcessGroup | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Train as `config` says, on this rank of `world_size`.

    With more than one rank the caller has initialised torch.distributed (or gives a `group`) and calls this
    on every rank. Checkpoints are written below `scratch` by rank 0: `epoch-01` after each epoch,
    `step-000123` on a stop, unless that comes right after an epoch. `resume` is a checkpoint to go on from
    (of `digest`, if given). The caller decides on the number of threads; PyTorch's global random state is
    left as it was found.

    Training may be resumed with another number of ranks, in the middle of an epoch too: each of its reviews
    is still read once, and a step still has batch_size of them. With very few reviews a rank and step that
    may be impossible, and a TrainingError, unless all parts of the training are given the same `max_ranks`,
    the most that any of them has. (A checkpoint of a version that did not note its ranks is resumed as if
    their number had not changed.)

    Raises TrainingError when the loss or the weights are not finite, `resume` is of another config, or there
    are too few reviews for so many ranks;
    SourceError for bad data; CheckpointError for a checkpoint that is not whole.
    """
    device = torch.device(device)
    ranks = Ranks(rank, world_size, device, group)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        saved = _saved(config, resume, digest)
        loop = _Loop(config, ranks, hooks, data_folder, scratch, saved, clock, max_ranks)
        return loop.run()


class _Loop:
    """One call of `run`: what it holds between steps."""

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        hooks: Hooks,
        data_folder: Path,
        scratch: Path,
        saved: Checkpoint | None,
        clock: Callable[[], float],
        max_ranks: int | None = None,
    ):
        self.config, self.ranks, self.hooks, self.scratch, self.clock = config, ranks, hooks, scratch, clock
        self.epochs = config.training.epochs
        # A stop is agreed on by all ranks, which on a GPU waits for the device: there not at every step.
        self.poll_every = 1 if ranks.device.type == "cpu" else 8
        corpus = prepare(config.data, data_folder, seed=config.seed, progress=_log_stages())
        self.vocabulary = saved.vocabulary if saved else _vocabulary(config, corpus, ranks)
        try:
            self.train_batches = self._batches(corpus, "train", max_ranks)
            self.validation_batches = self._batches(corpus, "validation", max_ranks)
        except ValueError as error:  # too few reviews for so many ranks
            raise TrainingError(str(error)) from error

        torch.manual_seed(key_of(config.seed, "weights"))
        self.model = TextVAE(config, self.vocabulary.size).to(ranks.device)
        self.optimizer = optimizer.build(config, self.model)
        self.position = Position()
        self.sums: Mapping[str, Any] = {}
        self.seconds = 0.0  # of all epochs completed
        self.under_way = False
        if saved:
            saved.give_weights(self.model)
            self.optimizer.load_state_dict(saved.optimizer_state)
            self.position, self.sums = saved.position, saved.sums
            self.seconds = saved.metrics.get("seconds", 0.0)
        else:
            try:
                fit_naive_bayes(self.model, partial(self._batches, corpus, "train", None, alone=True), ranks)
            except ValueError as error:
                raise TrainingError(str(error)) from error
        averaging = config.training.averaging
        self.average = Average(self.model, averaging) if averaging is not None else None
        if saved and self.average:
            self.average.restore(saved.training_weights)
        self.forward: nn.Module = distributed(self.model, ranks)
        if ranks.rank == 0:
            count = sum(p.numel() for p in self.model.parameters())
            logger.info(
                "%d training, %d validation reviews, %d token ids, %d parameters, %d rank(s) on %s, step %d",
                len(corpus.train), len(corpus.validation), self.vocabulary.size, count,
                ranks.world_size, ranks.device, self.position.step,
            )  # fmt: skip
            if config.training.precision == "bf16" and not computes_bf16(ranks.device):
                logger.warning("training.precision bf16: %s has no units for it, fp32 is used", ranks.device)

    def _batches(self, corpus: Corpus, part: str, max_ranks: int | None, alone: bool = False) -> Batches:
        """This rank's batches of a part of the corpus; `alone`: everybody's."""
        training = part == "train"
        return Batches(
            corpus.train if training else corpus.validation,
            self.vocabulary,
            framing(self.config),
            batch_size=self.config.training.batch_size,
            seed=self.config.seed,
            rank=0 if alone else self.ranks.rank,
            world_size=1 if alone else self.ranks.world_size,
            max_ranks=max_ranks,
            shuffle=training,
            ahead=self.ranks.device.type != "cpu",
        )

    def run(self) -> Outcome:
        reports: list[Report] = []
        while self.position.epoch < self.epochs:
            report = self._epoch()
            if report is None:
                return Outcome(False, reports, self.position)
            reports.append(report)
            if self.position.epoch < self.epochs and self._told_to_stop():
                return Outcome(False, reports, self.position)
        return Outcome(True, reports, self.position)

    def _epoch(self) -> Report | None:
        """Train what is left of the epoch, validate, write the checkpoint; None if it was stopped before."""
        epoch, first = self.position.epoch, self.position.batch
        meter = Meter(self.config, self.ranks.device)
        tokens, seconds = 0, 0.0  # of this rank, of the whole epoch so far
        if self.sums:
            seconds = self.sums["seconds"]
            if self.ranks.rank == 0:  # they are sums over all ranks
                meter.restore(self.sums["meter"])
                tokens = self.sums["tokens"]
        self.sums = {}
        began = self.clock()
        pace = Pace(
            self.hooks, self.clock, self.ranks, self.epochs, self.epochs * len(self.train_batches), began
        )
        if first == 0 and objective.begins_stage(self.config, epoch):
            # Adam divides by the size of the gradients of some thousand steps, and another loss has others.
            self.optimizer.state.clear()
            if objective.reset_decoder(self.config, epoch):
                self._reset_decoder()
        self.model.train()
        try:
            batches = self.train_batches.epoch(epoch, start=first, begun=self.position.ranks)
        except ValueError as error:
            raise TrainingError(str(error)) from error
        for batch in batches:
            loss = self._step(batch, meter)
            first_step, self.under_way = not self.under_way, True
            if first_step and self.ranks.rank == 0:
                logger.info("the first step is done")  # the log tells how long it took to get here
            read = int(batch.lengths.sum())
            tokens += read
            layout = self.train_batches.layout(self.position.batch, self.position.ranks)
            self.position = Position(epoch, self.position.step + 1, self.position.batch + 1, layout)
            if self.ranks.rank == 0:
                pace.add(self.position, loss, batch.total, read, at_once=first_step)
            if self.position.step % heap.TRIM_EVERY == 0:
                heap.trim()
            if self._stopped():
                sums = self._sums(meter, tokens, seconds + self.clock() - began)
                with self._averaged():
                    self._save(f"step-{self.position.step:06d}", {"seconds": self.seconds}, sums, None)
                return None
        trained = seconds + self.clock() - began
        sums = self._sums(meter, tokens, trained)
        train = meter.result(self.ranks.sum)
        with self._averaged():
            try:
                report = self._judge(train, sums["tokens"] / max(trained, 1e-9), seconds - began, pace)
            except _StoppedInValidation:
                # All steps of the epoch are taken: what goes on from here begins with this validation.
                self._save(f"step-{self.position.step:06d}", {"seconds": self.seconds}, sums, None)
                return None
        self.hooks.epoch(report)
        return report

    def _averaged(self) -> AbstractContextManager[None]:
        """While it lasts the model holds what is validated and kept."""
        return self.average.shown() if self.average else nullcontext()

    def _judge(self, train: dict[str, float], tokens_per_second: float, since: float, pace: Pace) -> Report:
        """Validate, and write the checkpoint of an epoch that is trained; it began `since` before 0."""
        epoch, looks = self.position.epoch, 0

        def between() -> None:
            nonlocal looks
            looks += 1
            if self.ranks.rank == 0:
                pace.wait(self.position, train["loss"])
            if looks % self.poll_every == 0 and self._told_to_stop():
                raise _StoppedInValidation

        self._check("training", train)
        calibrate(self.config, self.model, self.validation_batches, self.ranks, between=between)
        validation = validate(self.config, self.model, self.validation_batches, self.ranks, between=between)
        self._check("validation", validation)
        self.position = Position(epoch + 1, self.position.step, 0)
        report = Report(
            epoch=epoch + 1,
            step=self.position.step,
            seconds=since + self.clock(),
            tokens_per_second=tokens_per_second,
            train=train,
            validation=validation,
        )
        width = max(2, len(str(self.epochs)))
        self.seconds += report.seconds
        strict = {"train": _plain(train), "validation": _plain(validation), "seconds": self.seconds}
        self._save(f"epoch-{report.epoch:0{width}d}", strict, {}, report)
        return report

    def _check(self, kind: str, metrics: dict[str, float]) -> None:
        if not math.isfinite(metrics["loss"]):
            at = where(self.position.epoch, self.position.step)
            raise TrainingError(f"{at}: the {kind} loss is {metrics['loss']}")

    def _step(self, batch: Batch, meter: Meter) -> Tensor:
        """One optimizer step; this rank's loss, summed over its reviews and divided by its reviews."""
        number = self.position.step
        torch.manual_seed(key_of(self.config.seed, "step", self.ranks.rank, number))
        passed = self.position.epoch + self.position.batch / len(self.train_batches)
        with autocast(self.config, self.ranks.device):
            losses = self.forward(
                batch.to(self.ranks.device),
                kl_weight=objective.kl_weight(self.config, passed),
                pretraining=objective.pretraining(self.config, self.position.epoch),
                sentiment_counts=objective.sentiment_counts(self.config, self.position.epoch),
                over_ranks=self.ranks.sum,
            )
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages gradients over ranks. So this gives the gradient of the mean over all reviews of the
        # step, even when the ranks have unequal numbers of them.
        (losses.loss * (self.ranks.world_size / batch.total)).backward()
        if self.config.training.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.clip_norm)
        optimizer.set_rate(self.optimizer, self.config, passed)
        self.optimizer.step()
        if self.average:
            self.average.update(number + 1)
        meter.update(losses)
        return losses.loss.detach() / max(len(batch), 1)

    def _reset_decoder(self) -> None:
        """Give the decoder new weights.

        Li et al., "A Surprisingly Effective Fix for Deep Latent Variable Modeling of Text" (EMNLP 2019): an
        encoder that has learned to tell reviews apart, and a decoder that has yet to learn to do without it.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key_of(self.config.seed, "decoder anew"))
            fresh = TextVAE(self.config, self.vocabulary.size)
        for ours, new in ((self.model.decoder, fresh.decoder), (self.model.output, fresh.output)):
            for parameter, value in zip(ours.parameters(), new.parameters(), strict=True):
                with torch.no_grad():
                    parameter.copy_(value)
                if self.average:
                    self.average.restart(parameter)

    def _stopped(self) -> bool:
        return self.position.step % self.poll_every == 0 and self._told_to_stop()

    def _told_to_stop(self) -> bool:
        """Asked by all ranks at the same time."""
        return self.ranks.any(self.ranks.rank == 0 and self.hooks.stop())

    def _sums(self, meter: Meter, tokens: int, seconds: float) -> dict[str, Any]:
        """What the epoch added up on all ranks, for a checkpoint in its middle."""
        sums = torch.tensor([*meter.state()["sums"], tokens], dtype=torch.float64, device=self.ranks.device)
        *metered, total = self.ranks.sum(sums).tolist()
        return {"meter": {"sums": metered}, "tokens": int(total), "seconds": seconds}

    def _save(self, name: str, metrics: dict[str, Any], sums: dict[str, Any], report: Report | None) -> None:
        if sums and not math.isfinite(sums["meter"]["sums"][0]):
            raise TrainingError(
                f"{where(self.position.epoch, self.position.step)}: the training loss is not finite"
            )
        for parameter_name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise TrainingError(
                    f"{where(self.position.epoch, self.position.step)}: "
                    f"the weights {parameter_name} are not finite; no checkpoint is written of them"
                )
        if self.ranks.rank != 0:
            return
        folder = self.scratch / name
        digest = checkpoint.save(
            folder,
            model=self.model,
            optimizer=self.optimizer,
            config=self.config,
            vocabulary=self.vocabulary,
            position=self.position,
            metrics=metrics,
            sums=sums,
            training_weights=self.average.apart() if self.average else None,
        )
        self.hooks.checkpoint(folder, digest, self.position, report)


class _StoppedInValidation(Exception):
    """On all ranks alike."""


def _saved(config: Config, resume: Path | None, digest: str | None) -> Checkpoint | None:
    if resume is None:
        return None
    saved = checkpoint.load(resume, digest=digest)
    differing = [
        name for name in Config.model_fields if _settled(saved.config, name) != _settled(config, name)
    ]
    if differing:
        raise TrainingError(
            f"{resume}: is of another config: {', '.join(differing)} differ(s). Only training.epochs, "
            "training.keep_last and data.folder may change when training is resumed"
        )
    return saved


def _settled(config: Config, section: str) -> Any:
    """A section without what may differ between two parts of one training."""
    value = getattr(config, section)
    if section == "training":
        return value.model_copy(update={"epochs": 1, "keep_last": 1})
    if section == "data":
        return value.model_copy(update={"folder": None})
    return value


def _vocabulary(config: Config, corpus: Corpus, ranks: Ranks) -> Vocabulary:
    """Built by rank 0 from the training texts, the same on all ranks."""
    text = ranks.text(lambda: vocabulary.build(config.vocabulary, corpus.train.texts()).to_json())
    return Vocabulary.from_json(text)


def _plain(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as strict JSON has them: it knows no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _log_stages() -> Callable[[str, int, int | None], None]:
    """Says in the log what is being prepared, once each."""
    said: set[str] = set()

    def progress(what: str, done: int, total: int | None) -> None:
        if what not in said:
            said.add(what)
            logger.info("%s", what)

    return progress
