"""Training that was stopped and resumed ends with the weights of training that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from textvae import checkpoint
from textvae.checkpoint import Position
from textvae.config import Config
from textvae.train import Outcome

from .training import (
    STEPS,
    Hooks,
    elbo,
    folder,
    modern,
    one_thread,
    rewritten,
    run,
    same_checkpoint,
    seed,
    staged,
    whole,
)

__all__ = ["folder", "one_thread", "whole"]


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


# `modern` looks at its validation reviews, one batch, twice: to settle the norm of its means, and to judge.
@pytest.mark.parametrize(
    ("of", "batch", "epochs"), [(elbo, 1, 0), (elbo, 2, 1), (modern, 1, 0), (modern, 2, 0), (modern, 3, 1)]
)
def test_a_validation_is_stopped_and_done_again(folder, tmp_path, of, batch, epochs):
    config = of(folder)
    whole, stopped, resumed = Hooks(), Hooks(in_validation=batch), Hooks()
    run(config, folder, tmp_path / "whole", whole)
    outcome = run(config, folder, tmp_path / "stopped", stopped)
    step = (epochs + 1) * STEPS
    assert not outcome.finished and len(outcome.reports) == epochs and outcome.position.step == step
    at, digest, position, report = stopped.checkpoints[-1]
    assert (at.name, position, report) == (f"step-{step:06d}", outcome.position, None)
    run(config, folder, tmp_path / "resumed", resumed, resume=at, digest=digest)
    assert same_checkpoint(whole.checkpoints[-1][0], resumed.checkpoints[-1][0])
    assert [(each.train, each.validation) for each in resumed.epochs] == [
        (each.train, each.validation) for each in whole.epochs[epochs:]
    ]


def test_a_stop_after_an_epoch_needs_no_other_checkpoint(folder, whole, tmp_path):
    stopped = Hooks(at_epoch=2)
    outcome = run(elbo(folder), folder, tmp_path, stopped)
    assert not outcome.finished and outcome.position == Position(2, 2 * STEPS, 0)
    assert [at.name for at, *_ in stopped.checkpoints] == ["epoch-01", "epoch-02"]
    assert same_checkpoint(whole[0].checkpoints[1][0], stopped.checkpoints[1][0])


def test_training_resumes_from_the_checkpoint_of_an_epoch_too(folder, whole, tmp_path):
    hooks = Hooks()
    at, digest, *_ = whole[0].checkpoints[0]
    run(elbo(folder), folder, tmp_path, hooks, resume=at, digest=digest)
    assert same_checkpoint(whole[0].checkpoints[-1][0], hooks.checkpoints[-1][0])


def test_a_checkpoint_of_before_a_key_existed_is_loaded_and_resumed(folder, whole, tmp_path):
    saved = whole[0].checkpoints[0][0]
    config: dict[str, Any] = json.loads((saved / checkpoint.CONFIG).read_text())
    assert config["objective"].pop("pretraining_token_drop") == 0
    assert config["objective"].pop("sentiment_after_epochs") == 0
    older = rewritten(saved, tmp_path / "epoch-01", checkpoint.CONFIG, json.dumps(config))
    assert checkpoint.load(older).config == elbo(folder)
    hooks = Hooks()
    run(elbo(folder), folder, tmp_path / "more", hooks, resume=older)
    assert same_checkpoint(whole[0].checkpoints[-1][0], hooks.checkpoints[-1][0])


def test_finished_training_resumes_to_nothing(folder, whole, tmp_path):
    outcome = run(elbo(folder), folder, tmp_path, Hooks(), resume=whole[0].checkpoints[-1][0])
    assert outcome == Outcome(True, [], Position(3, 3 * STEPS, 0))


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
    first = checkpoint.load(whole.checkpoints[0][0]).model_state
    coefficients, held_out = first["naive_bayes.coefficients"], first["naive_bayes.held_out"]
    assert coefficients.abs().sum() > 0 and held_out.abs().sum() > 0
    for stop_after in (2, STEPS + 1):
        stopped, resumed = Hooks(stop_after=stop_after), Hooks()
        run(config, folder, tmp_path / f"stopped-{stop_after}", stopped)
        at, digest, *_ = stopped.checkpoints[-1]
        run(config, folder, tmp_path / f"resumed-{stop_after}", resumed, resume=at, digest=digest)
        assert same_checkpoint(whole.checkpoints[-1][0], resumed.checkpoints[-1][0])
    assert torch.equal(
        checkpoint.load(whole.checkpoints[-1][0]).model_state["naive_bayes.coefficients"], coefficients
    )


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


def test_a_training_in_stages_resumes_to_the_same_weights_from_each(folder, tmp_path):
    config = staged(folder)
    whole = Hooks()
    run(config, folder, tmp_path / "whole", whole)
    for stop_after in (3, STEPS, STEPS + 3, 2 * STEPS, 2 * STEPS + 3):
        stopped, resumed = Hooks(stop_after=stop_after), Hooks()
        run(config, folder, tmp_path / f"stopped-{stop_after}", stopped)
        at, digest, *_ = stopped.checkpoints[-1]
        run(config, folder, tmp_path / f"resumed-{stop_after}", resumed, resume=at, digest=digest)
        assert same_checkpoint(whole.checkpoints[-1][0], resumed.checkpoints[-1][0])
        assert [each.train for each in resumed.epochs] == [
            each.train for each in whole.epochs[-len(resumed.epochs) :]
        ]


def test_the_seed_objective_resumes_to_the_same_weights_too(folder, tmp_path):
    config = seed(folder)
    straight, stopped, resumed = Hooks(), Hooks(stop_after=STEPS // 2), Hooks()
    run(config, folder, tmp_path / "a", straight)
    run(config, folder, tmp_path / "b", stopped)
    run(config, folder, tmp_path / "b", resumed, resume=stopped.checkpoints[-1][0])
    assert same_checkpoint(straight.checkpoints[-1][0], resumed.checkpoints[-1][0])
