"""The losses against explicit float64 computations with one-hot targets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from textvae import objective
from textvae.batches import Batch
from textvae.config import Config
from textvae.encoders import NgramEncoder
from textvae.model import TextVAE
from textvae.parsing import parse

from .small import config, elbo_batch

torch.set_num_threads(1)


def test_seed_reconstruction_is_keras_binary_cross_entropy_of_one_hot() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(scale=6.0, size=(40, 13))  # so wide that clipping matters
    logits[0] = [60.0, *12 * [0.0]]
    targets = random.integers(0, 13, size=40)
    targets[:2] = 0, 1
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = np.clip(e / e.sum(axis=1, keepdims=True), 1e-7, 1 - 1e-7)
    one_hot = np.eye(13)[targets]
    expected = -(one_hot * np.log(p) + (1 - one_hot) * np.log(1 - p)).sum(axis=1)
    got = objective.seed_reconstruction(torch.from_numpy(logits).float(), torch.from_numpy(targets))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-5)
    # An impossible target costs -log(1e-7) and no more.
    worst = objective.seed_reconstruction(torch.tensor([[200.0, 0.0]]), torch.tensor([1]))
    assert float(worst) == pytest.approx(-2 * np.log(1e-7), rel=1e-2)


def test_seed_sentiment_is_clipped_and_leaves_out_reviews_without_a_label() -> None:
    logits = torch.tensor([0.3, -2.0, 40.0, -40.0, 5.0])
    labels = torch.tensor([1, 0, 0, 1, -1])
    p = np.clip(1 / (1 + np.exp(-logits.double().numpy())), 1e-7, 1 - 1e-7)
    expected = [-np.log(p[0]), -np.log(1 - p[1]), -np.log(1 - p[2]), -np.log(p[3]), 0.0]
    np.testing.assert_allclose(objective.seed_sentiment(logits, labels), expected, rtol=2e-2)
    np.testing.assert_allclose(objective.seed_sentiment(logits, labels)[:2], expected[:2], rtol=1e-5)


def test_kl_is_that_of_normal_distributions() -> None:
    random = torch.Generator().manual_seed(0)
    mean, log_var = torch.randn(2, 6, 4, generator=random)
    for noise_std in (1.0, 0.5):
        posterior = torch.distributions.Normal(mean, torch.exp(log_var / 2) * noise_std)
        prior = torch.distributions.Normal(0.0, 1.0)
        expected = torch.distributions.kl_divergence(posterior, prior).sum(dim=1)
        torch.testing.assert_close(objective.kl(mean, log_var, noise_std), expected)
    # The seed's is a mean over the latent, without the noise's scale.
    torch.testing.assert_close(objective.seed_kl(mean, log_var), objective.kl(mean, log_var, 1.0) / 4)


def test_kl_weight_grows_linearly() -> None:
    warm = config(kl_weight=0.5, kl_warmup_epochs=4)
    assert [objective.kl_weight(warm, e) for e in (0, 1, 2.5, 4, 99)] == [0, 0.125, 0.3125, 0.5, 0.5]
    assert objective.kl_weight(config(kl_weight=0.5, kl_warmup_epochs=0), 0.0) == 0.5
    assert objective.kl_weight(config("seed"), 0.0) == 1.0


def seed_batch(n: int = 6) -> Batch:
    tokens = torch.randint(1, 13, (n, 9), generator=torch.Generator().manual_seed(0))
    tokens[0, :7] = 0
    labels = torch.tensor([1, 0, 1, 0, 0, 1])[:n]
    return Batch(tokens, (tokens != 0).sum(1), labels, n)


def test_seed_loss_is_the_original_formula() -> None:
    settings = config("seed", model={"noise_std": 0.01, "sentiment_hidden": 3})
    torch.manual_seed(0)
    model = TextVAE(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    batch = seed_batch()
    losses = model(batch, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        mean, log_var = (t.double() for t in model.encode(batch.tokens))
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5)).double()
        z = mean + torch.exp(log_var / 2) * 0.01 * noise
        p = model.decode(z.float()).double().softmax(-1).clamp(1e-7, 1 - 1e-7)
        one_hot = torch.nn.functional.one_hot(batch.tokens, 13).double()
        # max_length * mean over everything, as the tutorial's vae_loss on flattened tensors
        crossed = 9 * torch.nn.functional.binary_cross_entropy(p, one_hot)
        divergence = -0.5 * torch.mean(1 + log_var - mean**2 - torch.exp(log_var))
        positive = model.predict_sentiment(z.float()).double().clamp(1e-7, 1 - 1e-7)
        head = torch.nn.functional.binary_cross_entropy(positive, batch.labels.double())
    assert float(losses.reconstruction / 6) == pytest.approx(float(crossed), rel=1e-5)
    assert float(losses.kl / 6) == pytest.approx(float(divergence), rel=1e-5)
    assert float(losses.sentiment / 6) == pytest.approx(float(head), rel=1e-5)
    assert float(losses.loss.detach() / 6) == pytest.approx(float(crossed + divergence + head), rel=1e-5)
    predicted = p.argmax(-1)
    assert int(losses.positions) == 54
    assert int(losses.positions_correct) == int((predicted == batch.tokens).sum())
    assert int(losses.tokens) == 47
    assert int(losses.tokens_correct) == int(((predicted == batch.tokens) & (batch.tokens != 0)).sum())
    assert int(losses.labelled) == 6
    assert int(losses.sentiment_correct) == int(((positive > 0.5) == (batch.labels == 1)).sum())


def test_elbo_counts_real_tokens_and_labelled_reviews_only() -> None:
    settings = config(kl_weight=1.0, sentiment_weight=7.0)
    torch.manual_seed(0)
    model = TextVAE(settings)
    batch = elbo_batch()
    losses = model(batch, kl_weight=0.25, generator=torch.Generator().manual_seed(5))
    reconstruction = divergence = 0.0
    hits = ended = 0
    with torch.no_grad():
        noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(5))
        for row, length, eps in zip(batch.tokens, batch.lengths.tolist(), noise, strict=True):
            alone = row[None, :length]  # each review by itself: no padding anywhere
            mean, log_var = model.encode(alone)
            z = mean + torch.exp(log_var / 2) * eps
            log_p = model.decode(z, alone).double().log_softmax(-1)[0]
            reconstruction -= float(log_p[torch.arange(length), alone[0]].sum())
            divergence += 0.5 * float((mean**2 + log_var.exp() - 1 - log_var).sum())
            right = log_p.argmax(-1) == alone[0]
            hits += int(right.sum())
            ended += int(right[-1]) * (10 - length)
        head = model.sentiment_logits(model.encode(batch.tokens, batch.lengths)[0]).double().sigmoid()
        sentiment = -float(head[0].log() + (1 - head[2]).log())
    assert float(losses.reconstruction) == pytest.approx(reconstruction, rel=1e-5)
    assert float(losses.kl) == pytest.approx(divergence, rel=1e-4)
    assert float(losses.sentiment) == pytest.approx(sentiment, rel=1e-5)
    whole = reconstruction + 0.25 * divergence + 7.0 * sentiment
    assert float(losses.loss.detach()) == pytest.approx(whole, rel=1e-5)
    assert (int(losses.tokens), int(losses.tokens_correct)) == (22, hits)
    assert (int(losses.positions), int(losses.positions_correct)) == (40, hits + ended)
    assert (int(losses.labelled), losses.reviews) == (2, 4)


def test_padding_counts_as_right_where_end_was_foreseen() -> None:
    model = TextVAE(config())
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(torch.nn.functional.one_hot(torch.tensor(3), 13))  # END, always
    losses = model(elbo_batch())
    assert int(losses.tokens_correct) == 4
    assert int(losses.positions_correct) == 4 + 6 + 9 + 3


@pytest.mark.parametrize("kind", ["seed", "elbo"])
def test_sums_of_shards_are_the_sum_of_the_whole(kind: str) -> None:
    settings = config(kind)
    model = TextVAE(settings)
    with torch.no_grad():
        model.log_var.bias.fill_(-60.0)  # no noise, so that shards can be compared
    batch = seed_batch() if kind == "seed" else elbo_batch()

    def gradients(rows: list[slice]) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        total = 0.0
        for row in rows:
            part = model(Batch(batch.tokens[row], batch.lengths[row], batch.labels[row], len(batch)))
            (part.loss / len(batch)).backward()
            total += float(part.loss.detach())
        return total, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, expected = gradients([slice(None)])
    split, got = gradients([slice(0, 1), slice(1, None), slice(0, 0)])  # one shard is empty
    assert split == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


def test_a_shard_without_labels_still_gives_every_parameter_a_gradient() -> None:
    model = TextVAE(config())
    batch = elbo_batch()
    batch.labels[:] = -1
    losses = model(batch)
    losses.loss.backward()
    assert float(losses.sentiment) == 0.0
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    empty = model(Batch(batch.tokens[:0], batch.lengths[:0], batch.labels[:0], 4))
    empty.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in model.parameters())
    assert empty.means.shape == (0, 4)


def test_the_kl_weight_waits_for_pretraining_and_may_come_in_cycles() -> None:
    section = {"kind": "elbo", "kl_weight": 2.0, "kl_warmup_epochs": 1.0, "pretraining_epochs": 3}
    waiting = parse(Config, {"objective": section})
    weights = [objective.kl_weight(waiting, epoch) for epoch in (0.0, 2.9, 3.0, 3.25, 4.0, 9.0, math.inf)]
    assert weights == pytest.approx([0.0, 0.0, 0.0, 0.5, 2.0, 2.0, 2.0])
    assert [objective.pretraining(waiting, epoch) for epoch in (0, 2, 3)] == [True, True, False]
    cyclic = parse(Config, {"objective": {**section, "pretraining_epochs": 0, "kl_cycle_epochs": 2.0}})
    weights = [objective.kl_weight(cyclic, epoch) for epoch in (0.0, 0.5, 1.5, 2.0, 2.5, 3.9, math.inf)]
    assert weights == pytest.approx([0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 2.0])


def test_the_entropy_is_that_of_unlabelled_reviews_alone() -> None:
    logits = torch.tensor([0.0, 2.0, -3.0, 1.0], dtype=torch.float64)
    got = objective.entropy(logits, torch.tensor([-1, -1, -1, 1]))
    p = logits.double().sigmoid().numpy()
    expected = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert got.tolist() == pytest.approx([*expected[:3], 0.0], rel=1e-5)


@pytest.mark.parametrize("what", ["language_model", "autoencoder"])
def test_pretraining_counts_the_reconstruction_alone(what: str) -> None:
    torch.manual_seed(0)
    settings = config(pretraining=what, sentiment_weight=9.0, entropy_weight=9.0)
    model = TextVAE(settings).eval()
    batch = elbo_batch()
    losses = model(batch, kl_weight=0.0, pretraining=True)
    assert float(losses.loss.detach()) == pytest.approx(float(losses.reconstruction))
    losses.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    moved = bool(gradients["encoder.weight_ih_l0"].abs().sum() > 0)
    assert moved == (what == "autoencoder")
    if what == "language_model":
        without = -model.log_likelihood(torch.zeros(4, 4), batch.tokens).sum()
        assert float(losses.reconstruction) == pytest.approx(float(without.detach()), rel=1e-5)


@pytest.mark.parametrize("encoder", ["lstm", "mingru"])
def test_an_encoder_pretrained_as_language_models_foresees_the_next_token_each_way(encoder: str) -> None:
    torch.manual_seed(0)
    sizes = {"encoder": encoder, "encoder_hidden": 8, "mean_scale": 0.5}
    settings = config(model=sizes, encoder_lm_weight=0.5, pretraining_epochs=1, decorrelation_weight=1.0)
    model, batch = TextVAE(settings).train(), elbo_batch()
    losses = model(batch, kl_weight=0.0, pretraining=True)
    assert model.encoder is not None and not isinstance(model.encoder, NgramEncoder)
    expected = 0.0
    for tokens, length in zip(batch.tokens, batch.lengths.tolist(), strict=True):
        ahead, behind = model.encoder.directions(
            model.embedding(tokens[None, :length]), torch.tensor([length])
        )
        for states, sequence in ((ahead, tokens[:length]), (behind, tokens[:length].flip(0))):
            scores = model.output(states[0, :-1]).log_softmax(dim=-1)
            expected -= float(scores.gather(1, sequence[1:, None]).sum().detach())
    assert float(losses.loss.detach()) == pytest.approx(
        float(losses.reconstruction) + 0.5 * expected, rel=1e-5
    )
    losses.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith("encoder."):
            assert parameter.grad.abs().sum() > 0, name
        if name.startswith(("mean.", "sentiment_output.")):  # nothing asks for z yet
            assert parameter.grad.abs().sum() == 0, name
    assert float(model(batch, kl_weight=0.0).loss.detach()) != pytest.approx(float(losses.loss.detach()))


def test_correlations_are_numpys_and_scaled_by_the_reviews() -> None:
    x = np.random.default_rng(0).normal(size=(50, 4)) @ np.random.default_rng(1).normal(size=(4, 4))
    x = 0.6 * (x - x.mean(axis=0)) / x.std(axis=0)
    off = np.corrcoef(x.T) - np.eye(4)
    got = objective.correlation(torch.from_numpy(x), 0.6, 50)
    assert float(got) == pytest.approx(50 * np.square(off).sum())
    assert float(objective.correlation(torch.zeros(0, 4), 0.6, 50)) == 0.0


def test_correlations_of_shards_have_the_steps_value_and_gradient() -> None:
    torch.manual_seed(0)
    means = torch.randn(7, 3, dtype=torch.float64)
    whole = means.clone().requires_grad_()
    covariance = whole.T @ whole / (7 * 0.5**2)
    plain = 7 * (covariance - torch.diag(torch.diag(covariance))).square().sum()
    plain.backward()
    parts = [means[:2].clone().requires_grad_(), means[2:].clone().requires_grad_()]
    total = means.T @ means / 0.5**2
    shares = [objective.correlation(part, 0.5, 7, lambda _: total.clone()) for part in parts]
    for share in shares:
        share.backward()
    assert float(sum(shares).detach()) == pytest.approx(float(plain.detach()))
    torch.testing.assert_close(torch.cat([part.grad for part in parts]), whole.grad)


def test_free_bits_charge_what_a_dimension_costs_beyond_them_on_average() -> None:
    terms = torch.tensor([[0.1, 2.0, 0.0], [0.3, 4.0, 0.9], [0.2, 0.0, 0.6]]).requires_grad_()
    charged = objective.over_free_bits(terms, 0.4, 3)
    # Means 0.2 (free), 2.0 and 0.5 (charged whole, though single reviews are below).
    assert float(charged.detach()) == pytest.approx(3 * (0.4 + 2.0 + 0.5))
    charged.backward()
    assert terms.grad is not None and terms.grad.tolist() == [[0.0, 1.0, 1.0]] * 3
    assert float(objective.over_free_bits(terms, 0.0, 3).detach()) == pytest.approx(
        float(terms.sum().detach())
    )


def test_free_bits_of_shards_are_those_of_the_step() -> None:
    terms = torch.tensor([[0.1, 2.0], [0.9, 0.0], [0.2, 0.0]])
    whole = objective.over_free_bits(terms, 0.5, 3)
    parts = [terms[:1], terms[1:]]
    sharded = [objective.over_free_bits(part, 0.5, 3, lambda _: terms.sum(dim=0)) for part in parts]
    assert float(sum(sharded)) == pytest.approx(float(whole))


def test_a_share_of_the_tokens_estimates_the_whole_reconstruction() -> None:
    torch.manual_seed(0)
    model = TextVAE(config(scored_share=0.3, word_dropout=0.0))
    with torch.no_grad():
        model.log_var.bias.fill_(-60.0)
    batch = elbo_batch()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draws = [model(batch, generator=random) for _ in range(3000)]
        whole = model.eval()(batch)
    mean = sum(float(each.reconstruction) for each in draws) / len(draws)
    assert mean == pytest.approx(float(whole.reconstruction), rel=0.03)
    assert 0.25 < sum(int(each.tokens) for each in draws) / (22 * len(draws)) < 0.35
    assert int(whole.tokens) == 22


def test_the_step_size_falls_to_nothing_at_the_end() -> None:
    settings = parse(Config, {"training": {"epochs": 4, "learning_rate": 0.8, "schedule": "linear"}})
    rates = [objective.learning_rate(settings, epoch) for epoch in (0.0, 1.0, 3.5, 4.0)]
    assert rates == pytest.approx([0.8, 0.6, 0.1, 0.0])
    assert objective.learning_rate(config(), 9.0) == 0.001


def test_a_bag_of_words_is_scored_word_by_word() -> None:
    torch.manual_seed(0)
    logits, tokens = torch.randn(3, 7), torch.randint(0, 7, (3, 4))
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    got = objective.bag_of_words(logits, tokens, real)
    for row in range(3):
        odds = logits[row].exp().tolist()
        words = [token for token, counts in zip(tokens[row].tolist(), real[row], strict=True) if counts]
        assert float(got[row]) == pytest.approx(-sum(math.log(odds[w] / sum(odds)) for w in words), abs=1e-5)
