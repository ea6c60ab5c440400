"""What surrounds the steps of training: a feature fitted before them, the latent's norm settled after
an epoch, and the metrics of reviews that were not trained on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from textvae import heap, objective
from textvae.batches import Batches
from textvae.config import Config
from textvae.evaluate import Meter
from textvae.model import TextVAE
from textvae.ranks import Ranks
from textvae.sources.permutation import key_of

ENOUGH = 100  # reviews whose means say how means vary
FITTED = 50_000  # labelled reviews that a naive Bayes feature is fitted to: more would only take memory


@contextmanager
def autocast(config: Config, device: torch.device) -> Iterator[None]:
    """The precision that the config trains with, if the device computes in it; else fp32."""
    wanted = config.training.precision == "bf16"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted and computes_bf16(device)):
        yield


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has units for bfloat16: what has none imitates it, many times more slowly than fp32.

    On a CPU that is what oneDNN says, whose LSTMs raise without them.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


def validate(
    config: Config,
    model: TextVAE,
    batches: Batches,
    ranks: Ranks,
    *,
    seed_parts: tuple[int | str, ...] = (),
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The metrics of all ranks' reviews, without gradients; the same noise is drawn each time.

    The KL term counts in full, whatever the warm-up: so epochs can be compared. `between` is called before
    each batch, equally often on all ranks; what it raises ends the validation.
    """
    meter = Meter(config, ranks.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(config, ranks.device):
            for number, batch in enumerate(batches.epoch(0)):
                between()
                torch.manual_seed(key_of(config.seed, "validation", *seed_parts, ranks.rank, number))
                losses = model(batch.to(ranks.device), kl_weight=objective.kl_weight(config, math.inf))
                meter.update(losses)
                if number % heap.TRIM_EVERY == 0:
                    heap.trim()
    finally:
        model.train(was_training)
    return meter.result(ranks.sum)


def calibrate(
    config: Config,
    model: TextVAE,
    batches: Batches,
    ranks: Ranks,
    *,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Norm posterior means by how those of all ranks' `batches` vary, once training is over.

    To be called with reviews that were not trained on; labels are not looked at. An encoder tells reviews
    that it has seen further apart than new ones, so by the figures of the training steps new ones would have
    means that vary too little, around another center. After "precise" batch norm (Wu & Johnson, "Rethinking
    'Batch' in BatchNorm", 2021). A model without a mean norm stays as it is, and so does one that has fewer
    than `ENOUGH` reviews to go by. `between` is as in `validate`.
    """
    norm = model.mean_norm
    if norm is None:
        return
    width = config.model.latent
    sums = torch.zeros(2 * width + 1, dtype=torch.float64, device=ranks.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(config, ranks.device):
            for each in batches.epoch(0):
                between()
                batch = each.to(ranks.device)
                raw = model.raw_means(batch.tokens, batch.lengths).double()  # (batch, latent)
                sums += torch.cat((raw.sum(dim=0), raw.square().sum(dim=0), raw.new_full((1,), len(raw))))
    finally:
        model.train(was_training)
    sums = ranks.sum(sums)
    if sums[-1] < ENOUGH:
        return
    mean, square = (sums[:-1] / sums[-1]).chunk(2)
    norm.settle(mean.float(), (square - mean.square()).clamp(min=0.0).float())


def fit_naive_bayes(model: TextVAE, batches: Callable[[], Batches], ranks: Ranks) -> None:
    """Before training: fit a model's naive Bayes feature, if it has one, to labelled training reviews.

    Rank 0 reads `batches` of all ranks' reviews until it has `FITTED` of them, and tells the others. Raises
    ValueError, on all ranks, if they do not have both labels.
    """
    feature = model.naive_bayes
    if feature is None:
        return

    def labelled() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        seen = 0
        for batch in batches().epoch(0):
            yield batch.tokens, batch.lengths, batch.labels
            seen += int((batch.labels >= 0).sum())
            if seen >= FITTED:
                return

    def fitted() -> str:
        apart = copy.deepcopy(feature).cpu()
        try:
            apart.fit(labelled())
        except ValueError as error:
            return str(error)
        feature.load_state_dict(apart.state_dict())
        return ""

    if wrong := ranks.text(fitted):
        raise ValueError(wrong)
    for buffer in feature.buffers():
        ranks.from_first(buffer)
