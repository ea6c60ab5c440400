"""The training loop."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
import torch

from textvae import checkpoint, train, validation, vocabulary
from textvae.checkpoint import Position
from textvae.config import METRICS
from textvae.train import TrainingError

from .training import STEPS, Hooks, elbo, folder, one_thread, rewritten, run, same_checkpoint, whole

__all__ = ["folder", "one_thread", "whole"]


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


def test_a_language_model_is_trained_by_the_same_loop(folder, tmp_path):
    config = elbo(folder, model={"latent": "none", "decoder": "mingru"})
    outcome = run(config, folder, tmp_path, Hooks())
    losses = [report.validation["loss"] for report in outcome.reports]
    assert losses == sorted(losses, reverse=True)
    for report in outcome.reports:
        assert report.validation["kl"] == report.validation["active_units"] == 0
        assert math.isnan(report.validation["sentiment_accuracy"])
        assert report.validation["loss"] == report.validation["reconstruction"]


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


def test_a_loss_that_stops_being_finite_leaves_the_last_good_checkpoint(folder, whole, tmp_path, monkeypatch):
    settled = train.optimizer.set_rate

    def wild(optimizer, config, passed):
        settled(optimizer, config, passed)
        if passed >= 1.25:
            for group in optimizer.param_groups:
                group["lr"] = 1e30

    monkeypatch.setattr(train.optimizer, "set_rate", wild)
    hooks = Hooks()
    with pytest.raises(TrainingError, match=r"epoch 2, step \d+: the .* (is nan|is inf|not finite)"):
        run(elbo(folder, training={"clip_norm": None}), folder, tmp_path, hooks)
    assert [each.name for each in tmp_path.iterdir()] == ["epoch-01"]
    kept, digest, position, _ = hooks.checkpoints[0]
    assert position == Position(epoch=1, step=STEPS, batch=0)
    monkeypatch.undo()
    again = Hooks()
    run(elbo(folder, training={"clip_norm": None}), folder, tmp_path, again, resume=kept, digest=digest)
    assert [each[0].name for each in again.checkpoints] == ["epoch-02", "epoch-03"]
    assert math.isfinite(again.epochs[-1].validation["loss"])


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


def test_a_checkpoint_with_another_vocabulary_is_not_resumed(folder, whole, tmp_path):
    """Its manifest says that it is whole, but its weights are of other tokens."""
    other = vocabulary.Words(["film"], 12).to_json()
    copy = rewritten(whole[0].checkpoints[0][0], tmp_path / "epoch-01", checkpoint.VOCABULARY, other)
    hooks = Hooks()
    with pytest.raises(checkpoint.CheckpointError, match=r"epoch-01: its weights do not fit .* of 12 tokens"):
        run(elbo(folder), folder, tmp_path / "more", hooks, resume=copy)
    assert hooks.checkpoints == []


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
    # The first at once, then every 0.5 s, the first step past PROGRESS_INTERVAL; in validation too.
    assert steps == [1, 3, 5, 7, STEPS]
    first, *_, trained, validating = hooks.progressed
    assert (first.epoch, first.epochs, first.steps) == (1, 1, STEPS)
    assert first.reviews_per_second == 36 / 0.5
    assert first.tokens_per_second > first.reviews_per_second
    assert first.loss > 0
    assert validating.reviews_per_second == trained.reviews_per_second


@pytest.mark.parametrize(
    ("data", "ranks"),
    [({"validation_size": 5}, {"max_ranks": 4}), ({"train_size": 7}, {"max_ranks": 4})],
    ids=["validation", "training"],
)
def test_too_few_reviews_for_so_many_ranks_is_said_before_training(folder, tmp_path, data, ranks):
    with pytest.raises(TrainingError, match=r"the number of reviews \([57]\) must be at least 8"):
        run(elbo(folder, data=data), folder, tmp_path, Hooks(), **ranks)
    assert not list(tmp_path.iterdir())


def test_a_naive_bayes_feature_needs_labels_of_both_kinds(folder, tmp_path):
    path = tmp_path / "praise.jsonl"
    path.write_text("".join(json.dumps({"text": f"a lovely film {n}", "label": 1}) + "\n" for n in range(40)))
    config = elbo(folder, data={"train": [str(path)]}, model={"naive_bayes_order": 2})
    with pytest.raises(TrainingError, match="naive_bayes_order needs training reviews of both labels"):
        run(config, folder, tmp_path, Hooks())
