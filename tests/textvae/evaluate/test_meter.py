from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from textvae.config import METRICS, Config
from textvae.evaluate import Meter
from textvae.objective import Losses
from textvae.parsing import parse

CONFIG = parse(Config, {"model": {"latent": 3}})


def losses(reviews: int, seed: int, labelled: int | None = None) -> Losses:
    random = np.random.default_rng(seed)
    labelled = reviews - 1 if labelled is None else labelled

    def count(n: int) -> Tensor:
        return torch.tensor(n)

    means = random.normal(size=(reviews, 3)) * [1.0, 0.05, 0.2] + [5.0, 100.0, 0.0]
    reconstruction, kl, sentiment = random.uniform(1, 50, size=3).tolist()
    return Losses(
        loss=torch.tensor(reconstruction + kl, requires_grad=True),
        reconstruction=torch.tensor(reconstruction),
        kl=torch.tensor(kl),
        sentiment=torch.tensor(sentiment if labelled else 0.0),
        labelled=count(labelled),
        sentiment_correct=count(labelled // 2),
        tokens=count(10 * reviews),
        tokens_correct=count(3 * reviews),
        positions=count(20 * reviews),
        positions_correct=count(13 * reviews),
        means=torch.tensor(means, dtype=torch.float32),
        reviews=reviews,
    )


def test_it_averages_over_reviews_labels_and_tokens() -> None:
    parts = [losses(400, 1), losses(7, 2), losses(90, 3, labelled=0)]
    meter = Meter(CONFIG)
    for part in parts:
        meter.update(part)
    result = meter.result()
    assert tuple(result) == METRICS
    assert all(type(value) is float for value in result.values())

    def total(name: str) -> float:
        return sum(float(getattr(part, name).detach()) for part in parts)

    assert result["loss"] == pytest.approx(total("loss") / 497, rel=1e-6)
    assert result["reconstruction"] == pytest.approx(total("reconstruction") / 497, rel=1e-6)
    assert result["kl"] == pytest.approx(total("kl") / 497, rel=1e-6)
    assert result["sentiment_loss"] == pytest.approx(total("sentiment") / 405, rel=1e-6)
    assert result["sentiment_accuracy"] == (199 + 3) / 405
    assert result["token_accuracy"] == 0.3
    assert result["all_positions_accuracy"] == 0.65
    # Standard deviations 1, 0.05 and 0.2; the second one is below 0.1, however large its mean.
    variance = torch.cat([part.means for part in parts]).double().var(dim=0, correction=0)
    assert result["active_units"] == int((variance > 0.01).sum()) == 2


def test_ranks_add_up_to_what_one_rank_would_say() -> None:
    parts = [losses(50, 1), losses(7, 2), losses(90, 3)]
    alone, first, second = Meter(CONFIG), Meter(CONFIG), Meter(CONFIG)
    for part in parts:
        alone.update(part)
    first.update(parts[0])
    second.update(parts[1])
    second.update(parts[2])
    seen: list[Tensor] = []

    def keep(sums: Tensor) -> Tensor:
        seen.append(sums)
        return sums

    second.result(keep)
    assert seen[0].dtype == torch.float64
    together = first.result(lambda sums: sums + seen[0])
    assert together == pytest.approx(alone.result(), rel=1e-12)
    # Reducing changed nothing: a later result is the rank's own again.
    assert first.result()["loss"] == pytest.approx(float(parts[0].loss.detach()) / 50, rel=1e-6)


def test_without_labels_the_sentiment_is_not_a_number() -> None:
    meter = Meter(CONFIG)
    meter.update(losses(5, 1, labelled=0))
    result = meter.result()
    assert math.isnan(result["sentiment_loss"]) and math.isnan(result["sentiment_accuracy"])
    assert math.isfinite(result["loss"])
    assert all(math.isnan(value) for value in Meter(CONFIG).result().values())


def test_a_batch_of_no_reviews_changes_nothing() -> None:
    meter = Meter(CONFIG)
    meter.update(losses(5, 1))
    before = meter.result()
    zero = {f.name: torch.tensor(0) for f in dataclasses.fields(Losses)}
    meter.update(Losses(**{**zero, "means": torch.zeros(0, 3), "reviews": 0}))  # type: ignore[arg-type]
    assert meter.result() == before


def test_it_goes_on_where_it_was() -> None:
    whole, begun = Meter(CONFIG), Meter(CONFIG)
    for meter in (whole, begun):
        meter.update(losses(50, 1))
    resumed = Meter(CONFIG)
    resumed.restore(json.loads(json.dumps(begun.state())))
    for meter in (whole, resumed):
        meter.update(losses(7, 2))
    assert resumed.result() == whole.result()
    with pytest.raises(ValueError, match="sums"):
        Meter(parse(Config, {"model": {"latent": 4}})).restore(begun.state())
