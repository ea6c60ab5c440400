"""What benchmarks/train.py compares is the same: both sides' losses agree, and so do their reviews."""

from __future__ import annotations

import dataclasses
import json
import random
import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from textvae import train
from textvae.batches import Batch
from textvae.config import Config
from textvae.model import TextVAE

from .marks import takes_minutes

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def speed() -> Any:
    """The benchmark's modules; its folder is on the path for this module's tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        from speed import loss_memory, on_ray, ours, peak, plain, turns

        return SimpleNamespace(
            loss_memory=loss_memory, on_ray=on_ray, ours=ours, peak=peak, plain=plain, turns=turns
        )


@pytest.fixture
def setting(speed: Any, tmp_path: Path) -> Any:
    return speed.ours.Setting(tmp_path, tmp_path / "data", None, True)


def padded(config: Config, lengths: list[int]) -> Batch:
    """A batch of random reviews, padded behind."""
    width = max(lengths)
    tokens = torch.randint(4, config.vocabulary.size, (len(lengths), width))
    tokens[torch.arange(width) >= torch.tensor(lengths)[:, None]] = 0
    labels = torch.tensor([1, 0, -1] * len(lengths))[: len(lengths)]
    return Batch(tokens, torch.tensor(lengths), labels, len(lengths))


def our_loss(model: TextVAE, batch: Batch) -> torch.Tensor:
    torch.manual_seed(1)
    return model(batch, kl_weight=1.0).loss / len(batch)


def plain_loss(model: Any, batch: Batch) -> torch.Tensor:
    torch.manual_seed(1)
    return model.loss(batch)


def gradients(loss: torch.Tensor, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("one_hot", [False, True])
def test_the_plain_seed_has_our_loss_and_gradients(speed: Any, setting: Any, one_hot: bool) -> None:
    config = setting.config("seed", "training.precision=fp32")
    ours = TextVAE(config)
    plain = speed.plain.Seed(config, config.vocabulary.size, one_hot=one_hot)
    missing, unexpected = plain.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected and all("bias_hh" in name for name in missing)  # PyTorch's second bias
    for name, parameter in plain.named_parameters():
        if "bias_hh" in name:
            torch.nn.init.zeros_(parameter)
    length = config.vocabulary.max_length
    tokens = torch.randint(0, config.vocabulary.size, (3, length))
    batch = Batch(tokens, (tokens != 0).sum(1), torch.tensor([1, 0, 1]), 3)
    a, b = our_loss(ours, batch), plain_loss(plain, batch)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    theirs = gradients(b, plain)
    for name, gradient in gradients(a, ours).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("recurrence", ["stepwise", "doubling"])
def test_the_plain_modern_model_has_our_loss_and_gradients(speed: Any, setting: Any, recurrence: str) -> None:
    config = setting.config("imdb-cpu", "objective.scored_share=1.0", "model.ngram_dropout=0")
    ours = TextVAE(config)
    for layer in ours.decoder.layers:  # z begins without influence
        torch.nn.init.normal_(layer.of_latent.weight, std=0.1)
        torch.nn.init.normal_(layer.initial.weight, std=0.1)
    torch.nn.init.normal_(ours.naive_bayes.coefficients[1:])  # PAD has no coefficient
    plain = speed.plain.Modern(config, config.vocabulary.size, getattr(speed.plain, recurrence))
    state = ours.state_dict()
    state["output_bias"] = state.pop("output.bias")
    for name in [name for name in state if name.startswith("mean_norm.")]:
        del state[name]  # running figures, of no use to a step
    plain.load_state_dict(state)
    batch = padded(config, [33, 7, 20, 1])
    a, b = our_loss(ours, batch), plain_loss(plain, batch)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    theirs = gradients(b, plain)
    theirs["output.bias"] = theirs.pop("output_bias")
    found = gradients(a, ours)
    del found["mean.bias"]  # the norm takes it away again: its gradient is rounding alone
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-4, msg=name)


def test_our_side_ends_with_the_weights_of_training(speed: Any, setting: Any, tmp_path: Path) -> None:
    config = setting.config("imdb-cpu", "training.epochs=1")
    ours = speed.ours.Ours(config, setting, torch.device("cpu"))
    with torch.random.fork_rng():
        for batch in ours.window(3):
            ours.step(batch)

    class Three:
        steps = 0

        def progress(self, progress: object) -> None: ...

        def stop(self) -> bool:
            self.steps += 1
            return self.steps == 3

        def checkpoint(self, folder: Path, *_: object) -> None:
            self.folder = folder

        def epoch(self, report: object) -> None: ...

    hooks = Three()
    train.run(config, data_folder=setting.data, scratch=tmp_path / "trained", hooks=hooks)
    saved = train.checkpoint.load(hooks.folder).model_state
    for name, weight in ours.loop.model.state_dict().items():
        assert torch.equal(weight, saved[name]), name


def test_both_sides_take_the_same_reviews(speed: Any, setting: Any) -> None:
    config = setting.config("imdb-cpu")
    draw = random.Random(0)
    batches = [padded(config, [draw.randint(1, 33) for _ in range(8)]) for _ in range(12)]
    for number, portion in enumerate(speed.ours.portions(batches, 3, 4)):
        mixed = speed.ours.unsorted(portion, config, number)
        seen = [
            Counter(
                (tuple(row[:length].tolist()), int(label))
                for batch in side
                for row, length, label in zip(batch.tokens, batch.lengths.tolist(), batch.labels, strict=True)
            )
            for side in (portion, mixed)
        ]
        assert seen[0] == seen[1]
        assert [b.tokens.tolist() for b in portion] != [b.tokens.tolist() for b in mixed]


def test_sides_alternate_and_are_timed_by_the_clock(speed: Any) -> None:
    now, order = [0.0], []
    tokens = torch.ones(1, 4, dtype=torch.long)
    batch = Batch(tokens, torch.tensor([4]), torch.tensor([1]), 1)

    def side(name: str, seconds: float) -> Any:
        def step(batch: Batch) -> None:
            order.append(name)
            now[0] += seconds

        return speed.turns.Side(name, [[batch, batch]] * 3, step)

    turns = speed.turns.take_turns([side("a", 1.0), side("b", 2.0)], clock=lambda: now[0])
    assert "".join(order) == "ab" + "aabb" + "bbaa" + "aabb"
    assert [turn.rate for turn in turns["a"]] == [4.0] * 3
    assert [turn.rate for turn in turns["b"]] == [2.0] * 3
    ratio = speed.turns.ratio([4.0] * 3, [2.0] * 3)
    assert dataclasses.astuple(ratio) == (2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 3)


def test_the_interval_of_a_median_covers_it(speed: Any) -> None:
    draw = random.Random(0)
    hits = 0
    for _ in range(60):
        low, high = speed.turns.interval([draw.gauss(1.0, 0.1) for _ in range(30)])
        hits += low <= 1.0 <= high
    assert 52 <= hits <= 60  # 57 are to be expected


def test_three_per_cent_are_decided_by_the_interval(speed: Any) -> None:
    assert speed.on_ray.decided(0.99, 1.02) == "within 3 %"
    assert speed.on_ray.decided(1.01, 1.05) == "not decided"
    assert speed.on_ray.decided(1.04, 1.05) == "more than 3 %"


def test_at_the_gate_each_takes_its_steps_while_the_other_waits(speed: Any, tmp_path: Path) -> None:
    on_ray = speed.on_ray
    order: list[str] = []

    class Hooks:
        def stop(self) -> bool:
            return False

    def train(name: str) -> None:
        gate = on_ray.Gate(Hooks(), str(tmp_path / "gate"), name)
        while not gate.stop():
            order.append(name)

    with socket.socket(socket.AF_UNIX) as listening, ThreadPoolExecutor(2) as pool:
        listening.bind(str(tmp_path / "gate"))
        listening.listen()
        listening.settimeout(30)
        trained = [pool.submit(train, name) for name in (on_ray.ALONE, on_ray.ON_RAY)]
        costs = on_ray.alternate(listening, 3, 5, lambda _: None)
        for each in trained:
            each.result(timeout=30)
    turns = [(name, len(list(steps))) for name, steps in groupby(order)]
    # Neighbouring rounds begin with the one that the last one ended with; the first two warm up.
    a, b = on_ray.ON_RAY, on_ray.ALONE
    assert turns == [(a, 5), (b, 10), (a, 10), (b, 10), (a, 10), (b, 5)]
    assert {name: len(each) for name, each in costs.items()} == {a: 3, b: 3}
    assert all(cost.wall > 0 for each in costs.values() for cost in each)


def test_matrix_flops_are_those_of_the_modules(speed: Any, setting: Any) -> None:
    config = setting.config("seed")
    sizes, positions = config.model, 3 * 24
    batch = Batch(torch.ones(3, 24, dtype=torch.long), torch.full((3,), 24), torch.ones(3), 3)
    model = TextVAE(config)
    used = [*model.encoder.parameters(), *model.decoder.parameters(), model.output.weight]
    weights = sum(p.numel() for p in used if p.dim() == 2)
    assert sizes.encoder_layers == 2
    assert speed.peak.matrix_flops(config, 100, [[batch]]) == [6.0 * positions * weights]


def test_memory_of_our_loss_does_not_grow_with_the_logits(speed: Any) -> None:
    table = speed.loss_memory.table([2048, 16384], lambda _: None, vocabulary=4000, width=16)
    small, large = table["rows"]
    assert large["logits MB"] == pytest.approx(262, abs=1)
    assert large["plain"] - small["plain"] > 300  # more than one copy of them
    assert large["ours"] < 150


@takes_minutes
def test_the_program_measures_the_models_and_prints_json() -> None:
    answer = subprocess.run(
        [
            sys.executable,
            "train.py",
            "--quick",
            "--json",
            "--threads=1",
            "--parts=plain,modern",
            "--device=cpu",
        ],
        cwd=BENCHMARKS,
        stdout=subprocess.PIPE,
        check=True,
    )
    result = json.loads(answer.stdout)
    assert result["quick"] is True
    assert set(result["parts"]) == {"plain", "modern"}
    modern = result["parts"]["modern"]["cpu"]
    assert {"ours, fp32", "plain, fp32"} < set(modern["sides"])
    assert modern["ratios"]["ours, fp32"]["pairs"] == 5
    assert result["parts"]["plain"]["cpu"]["sides"]["ours, fp32"]["LSTM kernels"]


@takes_minutes
@pytest.mark.ray
def test_the_program_compares_a_rank_on_ray_with_one_without() -> None:
    answer = subprocess.run(
        [sys.executable, "train.py", "--quick", "--json", "--parts", "ray"],
        cwd=BENCHMARKS,
        stdout=subprocess.PIPE,
        check=True,
    )
    result = json.loads(answer.stdout)["parts"]["ray"]
    assert result["ratios"]["wall"]["pairs"] == 4
    assert 0.2 < result["ratios"]["cpu"]["paired"] < 5  # the same steps


def test_a_part_that_there_is_not_is_an_error() -> None:
    answer = subprocess.run(
        [sys.executable, "train.py", "--parts", "plain,fancy"], cwd=BENCHMARKS, capture_output=True, text=True
    )
    assert answer.returncode == 2
    assert "fancy" in answer.stderr and "modern" in answer.stderr
