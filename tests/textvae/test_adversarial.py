from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from textvae import adversarial
from textvae.batches import Batch
from textvae.config import Config
from textvae.encoders import NgramEncoder
from textvae.model import TextVAE
from textvae.parsing import parse
from textvae.vocabulary import END, PAD

torch.set_num_threads(1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=p), torch.distributions.Bernoulli(logits=q)
    )


def test_divergence_is_that_of_two_coins() -> None:
    p, q = torch.tensor([-2.0, 0.0, 3.0, 40.0]), torch.tensor([1.0, 0.0, -1.0, 35.0])
    torch.testing.assert_close(adversarial.divergence(p, q), kl(p, q), rtol=1e-5, atol=1e-6)


def test_the_worst_step_is_the_first_eigenvector_of_the_papers_hessian() -> None:
    of = network()
    scale = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0, 0.1])
    inputs = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    step = adversarial.worst_step(of(inputs)[:, 0], inputs, scale, 0.01)
    for x, taken in zip(inputs.detach(), step, strict=True):
        clean = of(x)[0].detach()

        def doubt(r: Tensor, x: Tensor = x, clean: Tensor = clean) -> Tensor:
            return kl(clean, of(x + r * scale)[0])

        hessian = torch.autograd.functional.hessian(doubt, torch.zeros(6, dtype=torch.float64))
        assert isinstance(hessian, Tensor)
        worst = torch.linalg.eigh(hessian).eigenvectors[:, -1]
        taken = taken / scale
        assert float(taken.norm()) == pytest.approx(0.01, rel=1e-5)
        assert abs(float(taken @ worst)) == pytest.approx(0.01, rel=1e-5)
        assert doubt(taken) >= doubt(-taken)
        draws = torch.randn(2000, 6, dtype=torch.float64)
        draws *= 0.01 / draws.norm(dim=1, keepdim=True)
        assert float(doubt(taken).detach()) > 0.999 * max(float(doubt(r).detach()) for r in draws)


def test_the_norm_is_over_all_of_a_reviews_tokens_and_padding_is_left_alone() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3)
    inputs = torch.randn(2, 5, 3, requires_grad=True)
    real = torch.arange(5) < torch.tensor([[5], [2]])
    step = adversarial.worst_step(((inputs @ weight) * real).sum(dim=1), inputs, torch.ones(3), 2.0)
    assert step.flatten(1).norm(dim=1).tolist() == pytest.approx([2.0, 2.0])
    assert not step[1, 2:].any() and step[1, :2].any()


def test_the_spread_is_the_deviation_of_the_real_positions_of_all_ranks() -> None:
    torch.manual_seed(0)
    inputs, real = torch.randn(4, 7, 3) * 2 + 1, torch.rand(4, 7) < 0.6
    expected = inputs[real].std(dim=0, correction=0)
    torch.testing.assert_close(adversarial.spread(inputs, real), expected)
    sums: list[Tensor] = []
    for part in (slice(0, 1), slice(1, 4)):
        adversarial.spread(inputs[part], real[part], lambda x: (sums.append(x), x)[1])
    got = adversarial.spread(inputs[:1], real[:1], lambda x: sums[0] + sums[1])
    torch.testing.assert_close(got, expected)


def test_a_step_of_the_sum_is_one_of_all_ngrams_vectors_of_the_same_norm() -> None:
    torch.manual_seed(0)
    of = NgramEncoder(20, width=5, order=1, buckets=1, dropout=0.0)
    tokens, lengths = torch.tensor([[7, 8, 9, END]]), torch.tensor([4])
    before, step = of.features(tokens, torch.empty(0), lengths), torch.randn(5)
    with torch.no_grad():
        of.table.weight += step / math.sqrt(4)  # four vectors: the norm of all of them is that of `step`
    torch.testing.assert_close(of.features(tokens, torch.empty(0), lengths), before + step)


LSTM = {"encoder": "lstm", "weight_drop": 0.5, "dropout": 0.3, "dropout_mask": "review", "pooling": "all"}
NGRAMS = {"encoder": "ngrams", "ngram_buckets": 50, "decoder": "mingru", "mean_scale": 0.5}


def loss(model: dict[str, Any], **objective: Any) -> Tensor:
    sizes = {"embedding": 8, "encoder_hidden": 6, "latent": 4, "decoder_hidden": 8}
    config = parse(
        Config,
        {
            "vocabulary": {"kind": "words", "size": 13, "max_length": 9},
            "model": {**sizes, **model},
            "objective": objective,
        },
    )
    torch.manual_seed(0)
    of = TextVAE(config, 13)
    lengths = torch.tensor([10, 4, 2, 7, 2])
    tokens = torch.randint(4, 13, (5, 10))
    tokens[torch.arange(10) >= lengths[:, None]] = PAD
    tokens[torch.arange(5), lengths - 1] = END
    torch.manual_seed(1)
    return of(Batch(tokens, lengths, torch.tensor([1, 0, -1, 0, 1]), 5)).loss


@pytest.mark.parametrize("model", [LSTM, NGRAMS])
def test_a_review_and_its_perturbed_self_share_what_dropout_drew(model: dict[str, Any]) -> None:
    """Otherwise the smallest step would change the sentiment."""
    without = loss(model, kind="elbo")
    tiny = loss(model, kind="elbo", adversarial_weight=1e4, adversarial_norm=1e-4)
    torch.testing.assert_close(tiny, without, rtol=1e-4, atol=1e-3)
    large = loss(model, kind="elbo", adversarial_weight=1e4, adversarial_norm=1.0)
    assert float(large) > float(without) + 1.0


@pytest.mark.parametrize("model", [LSTM, NGRAMS])
def test_it_waits_for_the_pretraining_and_is_not_of_validation(model: dict[str, Any]) -> None:
    config = {"kind": "elbo", "adversarial_weight": 100.0}
    sizes = {"embedding": 8, "encoder_hidden": 6, "latent": 4, "decoder_hidden": 8, **model}
    settings = {"vocabulary": {"kind": "words", "size": 13, "max_length": 9}, "model": sizes}
    tokens = torch.randint(4, 13, (3, 5))
    batch = Batch(tokens, torch.full((3,), 5), torch.tensor([1, 0, -1]), 3)
    found = []
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        of = TextVAE(parse(Config, {**settings, "objective": {**config, "adversarial_weight": weight}}), 13)
        torch.manual_seed(1)
        found.append((of(batch, pretraining=True).loss, of.eval()(batch).loss))
    assert found[0] == found[1]


def test_what_the_norm_of_the_means_takes_away_is_not_trained() -> None:
    """An offset, a scale: without end they would be learned for perturbed reviews, and never help."""
    sizes = {"embedding": 8, "encoder_hidden": 6, "latent": 4, "decoder_hidden": 8, "mean_scale": 0.5}
    vocabulary = {"kind": "words", "size": 13, "max_length": 9}
    gradients = []
    for weight in (0.0, 1000.0):
        objective = {"kind": "elbo", "adversarial_weight": weight, "adversarial_norm": 1.0}
        torch.manual_seed(0)
        mapping = {"vocabulary": vocabulary, "model": sizes, "objective": objective}
        of = TextVAE(parse(Config, mapping), 13)
        nn.init.normal_(
            of.embedding.weight, std=2.0
        )  # so that the norm's epsilon is nothing to the variances
        tokens = torch.randint(4, 13, (6, 10))
        batch = Batch(tokens, torch.full((6,), 10), torch.tensor([1, 0, -1, 0, 1, 1]), 6)
        torch.manual_seed(1)
        of(batch).loss.backward()
        assert of.mean is not None and of.mean.weight.grad is not None and of.mean.bias.grad is not None
        gradients.append((of.mean.weight.grad, of.mean.bias.grad))
    (weight, bias), (more, moved) = gradients
    extra = more - weight  # (latent, features)
    assert extra.norm() > 1.0
    assert (moved - bias).norm() < 1e-4 * extra.norm()
    assert (extra * of.mean.weight).sum(dim=1).norm() < 1e-2 * extra.norm()
