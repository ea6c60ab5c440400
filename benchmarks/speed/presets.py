"""Parts `plain` and `modern`: our loop against a plain PyTorch loop of the same model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from speed import peak, plain
from speed.ours import Ours, Say, Setting, portions, unsorted
from speed.turns import Portion, Side, Turn, ratio, take_turns
from textvae.validation import computes_bf16


def seed(setting: Setting, device: torch.device, rounds: int, say: Say) -> dict[str, Any]:
    """The seed's model: fp32 of ours, and bf16 where the device computes in it, against a plain loop in fp32.

    The reference is the plain loop that never makes the one-hot targets: the tutorial's own loss is timed
    beside it. All sides take the same batches: padded, as this model wants them.
    """
    say(f"seed shapes on {device}")
    fp32 = setting.config("seed", "training.precision=fp32")
    setting.settle(fp32)
    ours = Ours(fp32, setting, device)
    measured = [ours]
    size = 1 if device.type == "cpu" else 10  # steps a turn
    batches = ours.window(rounds * size)
    turns_of = [batches[first : first + size] for first in range(0, len(batches), size)]
    sides = [Side("ours, fp32", turns_of, ours.step, ours.wait)]
    for name, one_hot in (("plain, fp32", False), ("plain, fp32, one-hot targets", True)):
        torch.manual_seed(0)
        model = plain.Seed(fp32, ours.vocabulary, one_hot=one_hot)
        sides.append(Side(name, turns_of, plain.stepper(model, fp32, device), ours.wait))
    if computes_bf16(device):
        measured.append(Ours(setting.config("seed", "training.precision=bf16"), setting, device))
        sides.append(Side("ours, bf16", turns_of, measured[1].step, ours.wait))
    else:
        say(f"{device} has no units for bf16: that side is left out")
    turns = take_turns(sides)
    wanted = {"ours, fp32": 1.0, "ours, bf16": 1.3}
    return _result(turns, "plain, fp32", wanted, turns_of, measured, device)


def modern(setting: Setting, device: torch.device, rounds: int, say: Say) -> dict[str, Any]:
    """The CPU preset's model: our buckets by length, against batches in no order, both in fp32.

    Every side takes the same reviews in a turn, and scores every real token; the last line leaves the share
    of tokens that are scored as the preset has it.
    """
    say(f"modern shapes on {device}")
    whole = setting.config("imdb-cpu", "training.precision=fp32", "objective.scored_share=1.0")
    setting.settle(whole)
    ours, preset = (
        Ours(whole, setting, device),
        Ours(setting.config("imdb-cpu", "training.precision=fp32"), setting, device),
    )
    size = 4 if device.type == "cpu" else 10
    bucketed = portions(ours.window(50), rounds, size)
    padded = [unsorted(portion, whole, number) for number, portion in enumerate(bucketed)]
    shape = padded[0][0].tokens.shape
    recurrence = plain.faster_recurrence(shape[0], shape[1], whole.model.decoder_hidden, device)
    say(f"plain recurrence: {recurrence.__name__}")
    torch.manual_seed(0)
    model = plain.Modern(whole, ours.vocabulary, recurrence)
    assert preset.config.objective.kind == "elbo"
    share = preset.config.objective.scored_share
    sides = [
        Side("ours, fp32", bucketed, ours.step, ours.wait),
        Side("plain, fp32", padded, plain.stepper(model, whole, device), ours.wait),
        Side(f"ours, fp32, {share:g} of the tokens scored", bucketed, preset.step, ours.wait),
    ]
    turns = take_turns(sides)
    result = _result(turns, "plain, fp32", {"ours, fp32": 1.5}, bucketed, [ours], device)
    result["recurrence of the plain loop"] = recurrence.__name__
    for name, of in (("ours", bucketed), ("plain", padded)):
        result[f"padding, {name}"] = _padding(of)
    return result


def large(setting: Setting, device: torch.device, rounds: int, say: Say) -> dict[str, Any]:
    """The GPU preset's model, on a GPU alone: there is no plain side, but the share of the device's peak."""
    say(f"the GPU preset's shapes on {device}")
    ours = Ours(setting.config("imdb"), setting, device)
    of = portions(ours.window(50), rounds, 10)
    turns = take_turns([Side(f"ours, {_computed(ours, device)}", of, ours.step, ours.wait)])
    return _result(turns, None, {}, of, [ours], device)


def _computed(side: Ours, device: torch.device) -> str:
    """The precision that a side computes in."""
    return side.config.training.precision if computes_bf16(device) else "fp32"


def _result(
    turns: Mapping[str, Sequence[Turn]],
    reference: str | None,
    wanted: Mapping[str, float],
    work: Sequence[Portion],
    ours: Sequence[Ours],
    device: torch.device,
) -> dict[str, Any]:
    rates = {name: [turn.rate for turn in each] for name, each in turns.items()}
    sides: dict[str, dict[str, Any]] = {
        name: {
            "real tokens/s, median": statistics.median(each),
            "real tokens/s, best turn": max(each),
            "ms a step, median": 1000 * statistics.median(t.seconds for t in turns[name]) / len(work[0]),
        }
        for name, each in rates.items()
    }
    result: dict[str, Any] = {"reference": reference, "sides": sides, "ratios": {}}
    for name, each in rates.items():
        if reference is not None and name != reference:
            result["ratios"][name] = {**ratio(each, rates[reference]).as_dict(), "wanted": wanted.get(name)}
    for side in ours:
        precision = _computed(side, device)
        name = f"ours, {precision}"
        flops = peak.matrix_flops(side.config, side.vocabulary, work)
        reached = statistics.median(f / turn.seconds for f, turn in zip(flops, turns[name], strict=True))
        sides[name] |= {
            "matrix GFLOP/s": reached / 1e9,
            "share of a large product": reached / peak.measured(device, precision),
            "LSTM kernels": sorted(peak.lstm_kernels(side, work[0][0])),
        }
    return result


def _padding(work: Sequence[Portion]) -> float:
    """The share of positions that are padding."""
    every = sum(batch.tokens.numel() for portion in work for batch in portion)
    return 1 - sum(int(batch.lengths.sum()) for portion in work for batch in portion) / every
