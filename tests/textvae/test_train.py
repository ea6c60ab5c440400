"""The training loop: exact, resumable at any step, and honest about what cannot go on."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

from textvae import checkpoint, train, validation
from textvae.checkpoint import Position
from textvae.config import METRICS, Config
from textvae.parsing import parse
from textvae.train import Outcome, Progress, Report, TrainingError

from .gloo_ranks import noting

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
    """Remembers everything, and stops after the given step."""

    def __init__(self, stop_after: int | None = None):
        self.stop_after = stop_after
        self.steps = 0
        self.progressed: list[Progress] = []
        self.checkpoints: list[tuple[Path, str, Position, Report | None]] = []
        self.epochs: list[Report] = []

    def progress(self, progress: Progress) -> None:
        self.progressed.append(progress)

    def stop(self) -> bool:
        self.steps += 1
        return self.steps == self.stop_after

    def checkpoint(self, folder: Path, digest: str, position: Position, report: Report | None) -> None:
        self.checkpoints.append((folder, digest, position, report))

    def epoch(self, report: Report) -> None:
        self.epochs.append(report)


def run(config: Config, folder: Path, scratch: Path, hooks: Hooks, **more: Any) -> Outcome:
    return train.run(config, data_folder=folder / "data", scratch=scratch, hooks=hooks, **more)


def same_checkpoint(a: Path, b: Path) -> bool:
    """Whether weights and optimizer are equal, bit for bit."""
    equal = []
    for file in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        x, y = load_file(a / file), load_file(b / file)
        equal += [x.keys() == y.keys(), *(torch.equal(x[name], y[name]) for name in x)]
    return all(equal)


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[Hooks, Outcome]:
    """Training that nothing interrupted."""
    hooks = Hooks()
    return hooks, run(elbo(folder), folder, folder / "whole", hooks)


def test_training_reports_every_epoch_and_learns(whole):
    hooks, outcome = whole
    assert outcome.finished
    assert outcome.position == Position(epoch=3, step=3 * STEPS, batch=0)
    assert [each.epoch for each in outcome.reports] == [1, 2, 3]
    assert hooks.epochs == outcome.reports
    assert [each[0].name for each in hooks.checkpoints] == ["epoch-01", "epoch-02", "epoch-03"]
    assert [each[3] for each in hooks.checkpoints] == outcome.reports
    for report in outcome.reports:
        assert tuple(report.train) == tuple(report.validation) == METRICS
        assert all(math.isfinite(value) for value in report.train.values())
        assert report.seconds > 0
        assert report.tokens_per_second > 0
    losses = [report.train["reconstruction"] for report in outcome.reports]
    assert losses == sorted(losses, reverse=True)
    folder, digest, position, report = hooks.checkpoints[-1]
    saved = checkpoint.load(folder, digest=digest)
    assert (saved.position, saved.config.seed, saved.sums) == (position, 3, {})
    seconds = pytest.approx(sum(each.seconds for each in outcome.reports))
    expected = {"train": report.train, "validation": report.validation, "seconds": seconds}
    assert saved.metrics == expected


def test_the_log_tells_once_when_the_first_step_was_done(folder, tmp_path, caplog):
    with caplog.at_level("INFO", "textvae"):
        run(elbo(folder), folder, tmp_path, Hooks(stop_after=STEPS + 2))
    built, first = (
        [number for number, message in enumerate(caplog.messages) if part in message]
        for part in (" parameters, 1 rank(s) on cpu, step 0", "the first step is done")
    )
    assert len(built) == len(first) == 1
    assert built < first


@pytest.mark.parametrize("step", [1, 3, STEPS, STEPS + 1, 2 * STEPS + 5, 3 * STEPS])
def test_stopped_and_resumed_training_ends_with_the_same_weights(folder, whole, tmp_path, step):
    stopped = Hooks(stop_after=step)
    outcome = run(elbo(folder), folder, tmp_path, stopped)
    assert not outcome.finished
    assert outcome.position.step == step
    at, digest, position, report = stopped.checkpoints[-1]
    assert (at.name, position, report) == (f"step-{step:06d}", outcome.position, None)

    resumed = Hooks()
    outcome = run(elbo(folder), folder, tmp_path, resumed, resume=at, digest=digest)
    assert outcome.finished
    assert same_checkpoint(whole[0].checkpoints[-1][0], resumed.checkpoints[-1][0])
    # The interrupted epoch reports all of its reviews, those read before the stop included.
    expected = whole[1].reports[-len(outcome.reports) :]
    assert [each.train for each in outcome.reports] == [each.train for each in expected]
    assert [each.validation for each in outcome.reports] == [each.validation for each in expected]


def test_training_resumes_from_the_checkpoint_of_an_epoch_too(folder, whole, tmp_path):
    hooks = Hooks()
    at, digest, *_ = whole[0].checkpoints[0]
    run(elbo(folder), folder, tmp_path, hooks, resume=at, digest=digest)
    assert same_checkpoint(whole[0].checkpoints[-1][0], hooks.checkpoints[-1][0])


def test_finished_training_resumes_to_nothing(folder, whole, tmp_path):
    outcome = run(elbo(folder), folder, tmp_path, Hooks(), resume=whole[0].checkpoints[-1][0])
    assert outcome == Outcome(True, [], Position(3, 3 * STEPS, 0))


def modern(folder: Path) -> Config:
    """The other encoder and decoder, and everything else that draws or changes with the steps."""
    model = {"encoder": "ngrams", "ngram_buckets": 64, "decoder": "mingru", "decoder_layers": 2, "tied": True}
    model |= {"mean_scale": 0.5, "variance": "fixed"}
    objective = {"free_bits": 0.1, "scored_share": 0.5, "kl_warmup_epochs": 1, "decorrelation_weight": 2.0}
    return elbo(folder, model=model, objective=objective, training={"epochs": 2, "schedule": "linear"})


def test_the_modern_parts_resume_to_the_same_weights_too(folder, tmp_path):
    config = modern(folder)
    whole, stopped, resumed = Hooks(), Hooks(stop_after=STEPS + 3), Hooks()
    run(config, folder, tmp_path / "whole", whole)
    run(config, folder, tmp_path / "stopped", stopped)
    at, digest, *_ = stopped.checkpoints[-1]
    assert 0 < checkpoint.load(at).metrics["seconds"] == stopped.epochs[0].seconds
    run(config, folder, tmp_path / "resumed", resumed, resume=at, digest=digest)
    assert same_checkpoint(whole.checkpoints[-1][0], resumed.checkpoints[-1][0])
    saved = checkpoint.load(resumed.checkpoints[-1][0])
    rate = saved.optimizer_state["param_groups"][0]["lr"]
    assert rate == pytest.approx(0.01 / (2 * STEPS))  # of the last step, before it would be nothing


def regularized(folder: Path) -> Config:
    """An average of the weights, and all that is drawn or perturbed for the sake of what is not seen."""
    model = {"weight_drop": 0.3, "embedding_dropout": 0.1, "dropout_mask": "review", "pooling": "all"}
    model |= {"decoder": "transformer", "decoder_layers": 2, "decoder_heads": 2, "mean_scale": 0.5}
    objective = {"adversarial_weight": 2.0, "words_weight": 0.1, "entropy_weight": 0.5}
    training = {"epochs": 3, "averaging": 0.9, "layer_decay": 0.5}
    pretrained = {"pretraining_epochs": 1, "reset_decoder": True}
    return elbo(folder, model=model, objective={**objective, **pretrained}, training=training)


def test_regularization_and_an_average_of_the_weights_resume_to_the_same_too(folder, tmp_path):
    config = regularized(folder)
    whole = Hooks()
    run(config, folder, tmp_path / "whole", whole)
    for stop_after in (3, STEPS, STEPS + 1, 2 * STEPS + 5):
        stopped, resumed = Hooks(stop_after=stop_after), Hooks()
        run(config, folder, tmp_path / f"stopped-{stop_after}", stopped)
        at, digest, *_ = stopped.checkpoints[-1]
        run(config, folder, tmp_path / f"resumed-{stop_after}", resumed, resume=at, digest=digest)
        assert same_checkpoint(whole.checkpoints[-1][0], resumed.checkpoints[-1][0])
        assert resumed.epochs[-1].validation == whole.epochs[-1].validation
    at, digest, *_ = whole.checkpoints[1]
    resumed = Hooks()
    run(config, folder, tmp_path / "resumed", resumed, resume=at, digest=digest)
    assert same_checkpoint(whole.checkpoints[-1][0], resumed.checkpoints[-1][0])


def foreseeing(folder: Path) -> Config:
    """An encoder that begins as two language models, and a naive Bayes feature beside it."""
    model = {"encoder": "mingru", "encoder_layers": 2, "decoder": "mingru", "mean_scale": 0.5}
    model |= {"naive_bayes_order": 2, "naive_bayes_buckets": 100, "pooling": "all"}
    objective = {"pretraining_epochs": 1, "encoder_lm_weight": 0.5, "decorrelation_weight": 1.0}
    return elbo(folder, model=model, objective=objective, training={"epochs": 2})


def test_an_encoder_that_foresees_and_its_coefficients_resume_to_the_same_too(folder, tmp_path):
    config = foreseeing(folder)
    whole = Hooks()
    run(config, folder, tmp_path / "whole", whole)
    coefficients = checkpoint.load(whole.checkpoints[0][0]).model_state["naive_bayes.coefficients"]
    assert coefficients.abs().sum() > 0
    for stop_after in (2, STEPS + 1):
        stopped, resumed = Hooks(stop_after=stop_after), Hooks()
        run(config, folder, tmp_path / f"stopped-{stop_after}", stopped)
        at, digest, *_ = stopped.checkpoints[-1]
        run(config, folder, tmp_path / f"resumed-{stop_after}", resumed, resume=at, digest=digest)
        assert same_checkpoint(whole.checkpoints[-1][0], resumed.checkpoints[-1][0])
    assert torch.equal(
        checkpoint.load(whole.checkpoints[-1][0]).model_state["naive_bayes.coefficients"], coefficients
    )


def test_an_average_is_what_is_kept_and_does_not_change_the_way_of_training(folder, tmp_path):
    plain, averaged = Hooks(), Hooks()
    run(elbo(folder, training={"epochs": 1}), folder, tmp_path / "plain", plain)
    run(elbo(folder, training={"epochs": 1, "averaging": 0.9}), folder, tmp_path / "averaged", averaged)
    assert averaged.epochs[0].train == plain.epochs[0].train
    assert averaged.epochs[0].validation != plain.epochs[0].validation
    without, kept = (checkpoint.load(each.checkpoints[-1][0]) for each in (plain, averaged))
    assert not without.training_weights
    assert kept.training_weights.keys() == without.model_state.keys()
    assert all(torch.equal(kept.training_weights[name], w) for name, w in without.model_state.items())
    assert not torch.equal(kept.model_state["embedding.weight"], without.model_state["embedding.weight"])


def test_pretraining_and_a_new_decoder_resume_to_the_same_weights_too(folder, tmp_path):
    settings = {"pretraining": "autoencoder", "pretraining_epochs": 1, "reset_decoder": True}
    config = elbo(folder, objective=settings, training={"epochs": 2})
    whole = Hooks()
    outcome = run(config, folder, tmp_path / "whole", whole)
    for stop_after in (STEPS, STEPS + 1):  # before the decoder is drawn anew, and behind it
        stopped, resumed = Hooks(stop_after=stop_after), Hooks()
        run(config, folder, tmp_path / f"stopped-{stop_after}", stopped)
        at, digest, *_ = stopped.checkpoints[-1]
        run(config, folder, tmp_path / f"resumed-{stop_after}", resumed, resume=at, digest=digest)
        assert same_checkpoint(whole.checkpoints[-1][0], resumed.checkpoints[-1][0])
    kept = elbo(folder, objective={**settings, "reset_decoder": False}, training={"epochs": 2})
    other = run(kept, folder, tmp_path / "kept", Hooks())
    assert other.reports[0].train == outcome.reports[0].train
    assert other.reports[1].train["reconstruction"] < outcome.reports[1].train["reconstruction"]


def test_a_language_model_is_trained_by_the_same_loop(folder, tmp_path):
    config = elbo(folder, model={"latent": "none", "decoder": "mingru"})
    outcome = run(config, folder, tmp_path, Hooks())
    losses = [report.validation["loss"] for report in outcome.reports]
    assert losses == sorted(losses, reverse=True)
    for report in outcome.reports:
        assert report.validation["kl"] == report.validation["active_units"] == 0
        assert math.isnan(report.validation["sentiment_accuracy"])
        assert report.validation["loss"] == report.validation["reconstruction"]


def test_the_seed_objective_resumes_to_the_same_weights_too(folder, tmp_path):
    config = seed(folder)
    straight, stopped, resumed = Hooks(), Hooks(stop_after=STEPS // 2), Hooks()
    run(config, folder, tmp_path / "a", straight)
    run(config, folder, tmp_path / "b", stopped)
    run(config, folder, tmp_path / "b", resumed, resume=stopped.checkpoints[-1][0])
    assert same_checkpoint(straight.checkpoints[-1][0], resumed.checkpoints[-1][0])


def test_another_seed_gives_other_weights(folder, whole, tmp_path):
    hooks = Hooks()
    run(elbo(folder).model_copy(update={"seed": 4}), folder, tmp_path, hooks)
    assert not same_checkpoint(whole[0].checkpoints[-1][0], hooks.checkpoints[-1][0])


def test_the_random_state_of_the_caller_is_left_alone(folder, tmp_path):
    before = torch.get_rng_state()
    run(elbo(folder, training={"epochs": 1}), folder, tmp_path, Hooks())
    assert torch.equal(torch.get_rng_state(), before)


def test_bfloat16_trains(folder, tmp_path):
    outcome = run(elbo(folder, training={"epochs": 1, "precision": "bf16"}), folder, tmp_path, Hooks())
    assert math.isfinite(outcome.reports[0].train["loss"])


def test_bfloat16_without_units_for_it_is_said(folder, tmp_path, monkeypatch, caplog):
    for module in (validation, train):
        monkeypatch.setattr(module, "computes_bf16", lambda device: False)
    reports = []
    for precision in ("bf16", "fp32"):
        config = elbo(folder, training={"epochs": 1, "precision": precision})
        reports += run(config, folder, tmp_path / precision, Hooks()).reports
    assert "training.precision bf16: cpu has no units for it, fp32 is used" in caplog.messages
    assert reports[0].train == reports[1].train


def test_gradients_are_clipped(folder, tmp_path):
    # With an epsilon far above the gradient Adam's step is proportional to it: 10 * gradient / 10.
    first, clipped = (
        elbo(folder, training={"epochs": 1, "learning_rate": 1e3, "adam_epsilon": 1e3, "clip_norm": norm})
        for norm in (None, 0.01)
    )
    moved = []
    for config in (first, clipped):
        stop = Hooks(stop_after=1)
        run(config, folder, tmp_path / str(config.training.clip_norm), stop)
        optimizer = checkpoint.load(stop.checkpoints[0][0]).optimizer_state["state"]
        # After one step exp_avg is a tenth of the gradient.
        moved.append(
            math.sqrt(sum(float((each["exp_avg"] * 10).square().sum()) for each in optimizer.values()))
        )
    assert moved[0] > 0.1
    assert moved[1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("stop_after", [None, 3])
def test_a_loss_that_is_not_finite_ends_training_without_a_checkpoint(folder, tmp_path, stop_after):
    config = elbo(folder, training={"learning_rate": 1e30, "clip_norm": None})
    hooks = Hooks(stop_after)
    with pytest.raises(TrainingError, match=r"epoch 1, step \d+: the .* (is nan|is inf|not finite)"):
        run(config, folder, tmp_path, hooks)
    assert hooks.checkpoints == []
    assert list(tmp_path.glob("*")) == []


def test_the_loss_is_looked_at_with_each_progress(folder, tmp_path):
    ticks = itertools.count()
    hooks = Hooks()
    with pytest.raises(TrainingError, match=r"epoch 1, step [1-4]: the training loss is (nan|inf)"):
        run(
            elbo(folder, training={"learning_rate": 1e30, "clip_norm": None}),
            folder,
            tmp_path,
            hooks,
            clock=lambda: float(next(ticks)),
        )


def test_a_checkpoint_of_another_config_is_refused(folder, whole, tmp_path):
    other = elbo(folder, model={"latent": 5}, training={"learning_rate": 0.5})
    with pytest.raises(TrainingError, match="another config: model, training differ"):
        run(other, folder, tmp_path, Hooks(), resume=whole[0].checkpoints[0][0])


def test_a_checkpoint_of_fewer_epochs_goes_on(folder, whole, tmp_path):
    shorter, hooks = Hooks(), Hooks()
    run(elbo(folder, training={"epochs": 1}), folder, tmp_path, shorter)
    outcome = run(elbo(folder), folder, tmp_path, hooks, resume=shorter.checkpoints[-1][0])
    assert [each.epoch for each in outcome.reports] == [2, 3]
    assert same_checkpoint(whole[0].checkpoints[-1][0], hooks.checkpoints[-1][0])


def test_another_digest_is_refused(folder, whole, tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="not the checkpoint that was recorded"):
        run(elbo(folder), folder, tmp_path, Hooks(), resume=whole[0].checkpoints[0][0], digest="0" * 64)


def test_what_a_hook_raises_ends_training(folder, tmp_path):
    class Fenced(Hooks):
        def checkpoint(self, *_: Any) -> None:
            raise PermissionError("a newer attempt works on this job")

    with pytest.raises(PermissionError, match="a newer attempt"):
        run(elbo(folder), folder, tmp_path, Fenced())


def test_progress_is_told_by_the_clock(folder, tmp_path):
    ticks = itertools.count()
    hooks = Hooks()
    config = elbo(folder, training={"epochs": 1})
    run(config, folder, tmp_path, hooks, clock=lambda: next(ticks) * 0.25)
    steps = [each.step for each in hooks.progressed]
    assert steps == [2, 4, 6, 8]  # every 0.5 s, the first step past PROGRESS_INTERVAL
    first = hooks.progressed[0]
    assert (first.epoch, first.epochs, first.steps) == (1, 1, STEPS)
    assert first.reviews_per_second == 36 / 0.5
    assert first.tokens_per_second > first.reviews_per_second
    assert first.loss > 0


def run_ranks(world_size: int, jobs: list[dict[str, Any]]) -> None:
    """Train on several ranks, each a process, over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("gloo_ranks.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(world_size), str(port), json.dumps(jobs)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * world_size, "\n".join(errors)


def test_several_ranks_take_the_exact_step_of_one_and_resume_bit_for_bit(folder, tmp_path):
    # One step of all reviews, which three ranks share unequally, and without anything random in it. Adam's
    # epsilon makes the step proportional to the gradient, so that it shows.
    step = elbo(
        folder,
        data={"train_size": 100},
        model={"dropout": 0.0, "noise_std": 1e-6},
        objective={"word_dropout": 0.0, "kl_warmup_epochs": 0},
        training={
            "epochs": 1,
            "batch_size": 1000,
            "clip_norm": None,
            "learning_rate": 1.0,
            "adam_epsilon": 1.0,
        },
    )
    still = {"dropout": 0.0, "noise_std": 1e-6, "ngram_dropout": 0.0, "naive_bayes_order": 2}
    quiet = {**modern(folder).model_dump()["objective"], "scored_share": 1.0, "free_bits": 30.0}
    quiet |= {"word_dropout": 0.0, "kl_warmup_epochs": 0, "adversarial_weight": 20.0, "words_weight": 0.2}
    once = {"schedule": "constant", **step.model_dump()["training"]}
    modern_step = elbo(
        folder,
        data={"train_size": 100},
        model={**modern(folder).model_dump()["model"], **still},
        objective=quiet,
        training=once,
    )
    objective = {"adversarial_weight": 2.0, "words_weight": 0.1}
    config = elbo(folder, objective=objective, training={"averaging": 0.9, "layer_decay": 0.5})
    data = str(folder / "data")
    job = {"config": config.model_dump(mode="json"), "data": data}
    stop_at = STEPS + 3
    run_ranks(
        3,
        [
            {"config": step.model_dump(mode="json"), "data": data, "scratch": str(tmp_path / "step")},
            {
                "config": modern_step.model_dump(mode="json"),
                "data": data,
                "scratch": str(tmp_path / "modern-step"),
            },
            {**job, "scratch": str(tmp_path / "whole")},
            {**job, "scratch": str(tmp_path / "stopped"), "stop_at": stop_at},
            {
                **job,
                "scratch": str(tmp_path / "resumed"),
                "resume": str(tmp_path / f"stopped/step-{stop_at:06d}"),
            },
        ],
    )
    for config, name in ((step, "step"), (modern_step, "modern-step")):
        run(config, folder, tmp_path / f"{name}-alone", Hooks())
        places = [tmp_path / f"{name}-alone/epoch-01", tmp_path / f"{name}/epoch-01"]
        a, b = (load_file(place / "model.safetensors") for place in places)
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=2e-5)
        mine, theirs = (checkpoint.load(place).metrics["train"] for place in places)
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert same_checkpoint(tmp_path / "whole/epoch-03", tmp_path / "resumed/epoch-03")


def test_an_epoch_in_which_ranks_come_and_go_reads_every_review_once(folder, tmp_path, monkeypatch):
    config = elbo(folder, vocabulary={"size": 200}, training={"epochs": 2})
    job = {"config": config.model_dump(mode="json"), "data": str(folder / "data"), "max_ranks": 3}
    job |= {"scratch": str(tmp_path), "read": str(tmp_path / "parts")}
    run_ranks(2, [{**job, "stop_at": 3}])
    run_ranks(3, [{**job, "stop_at": 2, "resume": str(tmp_path / "step-000003")}])
    at = tmp_path / "step-000005"
    assert checkpoint.load(at).position == Position(0, 5, 5, ranks=2)  # the window that two ranks began
    step = train._Loop._step
    monkeypatch.setattr(train._Loop, "_step", noting(tmp_path / "parts-alone", step))
    resumed = run(config, folder, tmp_path, Hooks(), resume=at, max_ranks=3)
    monkeypatch.setattr(train._Loop, "_step", noting(tmp_path / "whole", step))
    whole = run(config, folder, tmp_path / "straight", Hooks(), max_ranks=3)

    expected = (tmp_path / "whole").read_text().splitlines()
    read = [line for file in tmp_path.glob("parts-*") for line in file.read_text().splitlines()]
    assert len(set(expected)) > 2 * 100  # of 2 * 144: most can be told from one another
    assert sorted(read) == sorted(expected)
    assert resumed.position == whole.position == Position(2, 2 * STEPS, 0)
    # Other ranks draw other noise. What is measured is of all reviews, those before the stops included.
    for a, b in zip(resumed.reports, whole.reports, strict=True):
        assert a.train["loss"] == pytest.approx(b.train["loss"], rel=0.1)
