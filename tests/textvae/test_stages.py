"""The stages of a training: what is asked of the model, and what the encoder reads, in each of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from textvae import checkpoint, objective, steps
from textvae.batches import Batch
from textvae.encoders import MinGRUEncoder
from textvae.model import TextVAE
from textvae.vocabulary import END, OOV, PAD

from .small import config, elbo_batch
from .training import STEPS, Hooks, folder, one_thread, run, staged

__all__ = ["folder", "one_thread"]

DENOISING: dict[str, Any] = {"pretraining": "autoencoder", "pretraining_epochs": 1}
DENOISING |= {"pretraining_token_drop": 0.3}


def test_about_that_share_of_the_words_is_masked_and_neither_end_nor_padding() -> None:
    model = TextVAE(config(**DENOISING)).train()
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 41, (500,), generator=random)
    tokens = torch.randint(4, 13, (500, 40), generator=random)
    tokens[torch.arange(40) >= lengths[:, None]] = PAD
    tokens[torch.arange(500), lengths - 1] = END
    before = tokens.clone()
    shown = steps.shown_tokens(model, tokens, random)
    changed = shown != tokens
    assert torch.equal(tokens, before) and (shown[changed] == OOV).all() and (tokens[changed] > END).all()
    words = int((lengths - 1).sum())
    share = int(changed.sum()) / words
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / words)  # some 10,000 words: within 2.3 points
    again = steps.shown_tokens(model, tokens, random)
    assert not torch.equal(again, shown)  # drawn anew at each step
    assert torch.equal(steps.shown_tokens(model.eval(), tokens, random), tokens)


@pytest.mark.parametrize("encoder", ["lstm", "mingru", "ngrams"])
def test_the_encoder_reads_what_is_left_and_the_decoder_is_asked_for_all_of_it(encoder: str) -> None:
    torch.manual_seed(0)
    sizes = {"encoder": encoder, "ngram_buckets": 50, "ngram_dropout": 0.0}
    model, batch = TextVAE(config(model=sizes, **DENOISING)).train(), elbo_batch()
    assert model.log_var is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
        model.log_var.bias.fill_(-60.0)  # no noise: z is the mean
    draw = torch.rand(batch.tokens.shape, generator=torch.Generator().manual_seed(7))
    masked = batch.tokens.clone()
    for row, length in enumerate(batch.lengths.tolist()):
        for place in range(length - 1):
            if draw[row, place] < 0.3:
                masked[row, place] = OOV
    assert 0 < int((masked == OOV).sum()) < 18
    with torch.no_grad():
        told, clean = (model.encode(tokens, batch.lengths)[0] for tokens in (masked, batch.tokens))
        losses = model(batch, pretraining=True, generator=torch.Generator().manual_seed(7))
        expected = -model.log_likelihood(told, batch.tokens).sum()
        torch.testing.assert_close(losses.means, told)
        assert float(losses.reconstruction) == pytest.approx(float(expected), rel=1e-4)
        assert int(losses.tokens) == 22
        # Of what comes after pretraining, and of what is not trained on, the encoder reads everything.
        torch.testing.assert_close(model(batch).means, clean)
        torch.testing.assert_close(model.eval()(batch, pretraining=True).means, clean)
    assert not torch.allclose(told, clean, atol=1e-3)


def test_an_encoder_that_foresees_is_asked_for_the_words_that_were_masked() -> None:
    torch.manual_seed(0)
    settings = {"pretraining_epochs": 1, "encoder_lm_weight": 1.0, "pretraining_token_drop": 1 - 1e-9}
    sizes = {"encoder": "mingru", "encoder_hidden": 8}
    model, batch = TextVAE(config(model=sizes, **settings)).train(), elbo_batch()
    assert isinstance(model.encoder, MinGRUEncoder)
    expected = 0.0
    with torch.no_grad():
        losses = model(batch, kl_weight=0.0, pretraining=True)
        for row, length in zip(batch.tokens, batch.lengths.tolist(), strict=True):
            read = torch.tensor([[OOV] * (length - 1) + [END]])
            ways = model.encoder.directions(model.embedding(read), torch.tensor([length]))
            for states, asked in zip(ways, (row[:length], row[:length].flip(0)), strict=True):
                scores = model.output(states[0, :-1]).log_softmax(dim=-1)
                expected -= float(scores.gather(1, asked[1:, None]).sum())
    assert float(losses.loss - losses.reconstruction) == pytest.approx(expected, rel=1e-5)


def test_a_naive_bayes_feature_knows_a_review_by_its_own_words() -> None:
    """Masked, it would be of another fold: of coefficients that were fitted to it."""
    torch.manual_seed(0)
    sizes = {"naive_bayes_order": 1, "ngram_dropout": 0.0}
    model, batch = TextVAE(config(model=sizes, **DENOISING)).train(), elbo_batch()
    assert model.naive_bayes is not None
    seen: list[torch.Tensor] = []
    model.naive_bayes.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(batch, pretraining=True)
    assert len(seen) == 1 and torch.equal(seen[0], batch.tokens)


def test_without_a_drop_nothing_is_drawn_for_it() -> None:
    model, batch = TextVAE(config(**{**DENOISING, "pretraining_token_drop": 0.0})).train(), elbo_batch()
    dropping = TextVAE(config(**DENOISING)).train()
    states = []
    for each, pretraining in ((model, True), (model, False), (dropping, False), (dropping, True)):
        random = torch.Generator().manual_seed(0)
        each(batch, pretraining=pretraining, generator=random)
        states.append(random.get_state())
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])
    assert not torch.equal(states[0], states[3])


@pytest.mark.parametrize("counts", [False, True])
def test_a_rank_without_reviews_gives_zeros_in_every_stage(counts: bool) -> None:
    model, batch = TextVAE(config(adversarial_weight=1.0, **DENOISING)).train(), elbo_batch()
    nothing = Batch(batch.tokens[:0], batch.lengths[:0], batch.labels[:0], 4)
    model(nothing, pretraining=not counts, sentiment_counts=counts).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in model.parameters())


def test_the_sentiment_waits_for_the_stages_before_it() -> None:
    settings = config(pretraining_epochs=2, sentiment_after_epochs=1)
    assert [objective.pretraining(settings, epoch) for epoch in range(4)] == [True, True, False, False]
    assert [objective.sentiment_counts(settings, epoch) for epoch in range(4)] == [False, False, False, True]
    assert objective.kl_weight(settings, 2.5) > 0
    assert objective.sentiment_counts(config(), 0) and objective.sentiment_counts(config("seed"), 0)


def test_until_the_sentiment_counts_it_has_no_gradient_and_afterwards_it_has() -> None:
    weights = {"sentiment_weight": 9.0, "entropy_weight": 5.0, "adversarial_weight": 7.0}

    def gradients(counts: bool, **changes: float) -> tuple[float, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model = TextVAE(config(words_weight=0.5, **{**weights, **changes})).train()
        torch.manual_seed(1)
        losses = model(elbo_batch(), kl_weight=0.7, sentiment_counts=counts)
        losses.loss.backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert len(found) == len(list(model.parameters()))
        return float(losses.loss.detach()), found

    loss, waiting = gradients(False)
    # What is trained then is what is trained where nothing weighs the sentiment: the bound, and the words.
    bound, expected = gradients(True, **dict.fromkeys(weights, 0.0))
    assert loss == pytest.approx(bound, rel=1e-6)
    torch.testing.assert_close(waiting, expected)
    assert waiting["words.weight"].abs().sum() > 0 and waiting["log_var.weight"].abs().sum() > 0
    for name in ("sentiment_output.weight", "sentiment_output.bias"):
        assert waiting[name].abs().sum() == 0
    whole, joint = gradients(True)
    assert whole > loss
    assert joint["sentiment_output.weight"].abs().sum() > 0 and joint["sentiment_output.bias"].abs().sum() > 0
    assert not torch.allclose(joint["mean.weight"], waiting["mean.weight"])


def test_a_training_goes_from_stage_to_stage(folder, tmp_path) -> None:
    hooks = Hooks()
    run(staged(folder), folder, tmp_path, hooks)
    denoising, alone, joint = (report.train for report in hooks.epochs)
    assert denoising["loss"] == pytest.approx(denoising["reconstruction"], rel=1e-5)
    assert alone["loss"] == pytest.approx(alone["reconstruction"] + alone["kl"], rel=1e-5)
    assert joint["loss"] > joint["reconstruction"] + joint["kl"] + 0.1
    saved = [checkpoint.load(each[0]) for each in hooks.checkpoints]
    first, second, third = (each.model_state for each in saved)
    for name in ("sentiment_output.weight", "sentiment_output.bias"):
        assert torch.equal(first[name], second[name]) and not torch.equal(second[name], third[name])
    assert not torch.equal(first["log_var.weight"], second["log_var.weight"])
    for (
        each
    ) in saved:  # Adam's moments are of the stage's own steps: those of another loss are of another size
        assert {int(moments["step"]) for moments in each.optimizer_state["state"].values()} == {STEPS}


def test_where_another_loss_begins_a_stage_begins() -> None:
    in_stages = config(**DENOISING, sentiment_after_epochs=2)
    assert [objective.begins_stage(in_stages, epoch) for epoch in range(5)] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert not any(objective.begins_stage(config(), epoch) for epoch in range(3))
