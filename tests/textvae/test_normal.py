from __future__ import annotations

import pytest
import torch

from textvae.config import Config
from textvae.model import TextVAE
from textvae.normal import MeanNorm
from textvae.parsing import parse

torch.set_num_threads(1)


def test_it_is_pytorchs_batch_norm_without_a_shift() -> None:
    torch.manual_seed(0)
    ours = MeanNorm(4, 0.6)
    theirs = torch.nn.BatchNorm1d(4, eps=MeanNorm.EPSILON, momentum=MeanNorm.MOMENTUM)
    torch.nn.init.constant_(theirs.weight, 0.6)
    for _ in range(3):
        a = (torch.randn(8, 4) * 3 + 1).requires_grad_()
        b = a.detach().clone().requires_grad_()
        weights = torch.randn(8, 4)
        got, expected = ours(a)(a), theirs(b)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        (got * weights).sum().backward()
        (expected * weights).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    assert theirs.running_mean is not None
    torch.testing.assert_close(ours.mean, theirs.running_mean, rtol=1e-4, atol=1e-5)
    x = torch.randn(5, 4)
    expected = (x - ours.mean) / ours.variance.sqrt() * 0.6
    torch.testing.assert_close(ours.eval()(x)(x), expected)


def test_ranks_see_the_mean_and_variance_of_the_whole_step() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(6, 3), torch.randn(6, 3)
    whole = x.clone().requires_grad_()
    expected = MeanNorm(3, 1.0)(whole)(whole)
    (expected * weights).sum().backward()

    # Two ranks in one process: what one rank is handed is the sum that both would make.
    parts = [x[:2].clone().requires_grad_(), x[2:].clone().requires_grad_()]
    sums = torch.cat((x.sum(0), x.square().sum(0), torch.tensor([6.0])))
    norm = MeanNorm(3, 1.0)
    got = [norm(part, lambda _: sums.clone())(part) for part in parts]
    torch.testing.assert_close(torch.cat(got), expected, rtol=1e-5, atol=1e-6)


def test_the_means_spread_by_the_scale_and_so_cost_at_least_half_its_square() -> None:
    torch.manual_seed(0)
    raw = torch.randn(400, 5) * 0.01 + 7.0
    means = MeanNorm(5, 0.8)(raw)(raw)
    assert means.mean(dim=0).abs().max() < 1e-3
    assert means.std(dim=0).tolist() == pytest.approx([0.8] * 5, rel=0.06)
    assert float(0.5 * means.square().sum(dim=1).mean()) == pytest.approx(5 * 0.64 / 2, rel=0.12)


def test_there_is_no_way_around_the_scale_in_small_means() -> None:
    torch.manual_seed(0)
    raw = torch.randn(400, 5)
    expected = MeanNorm(5, 0.8)(raw)(raw)
    size = torch.tensor(1.0, requires_grad=True)
    small = raw * 1e-4 * size
    means = MeanNorm(5, 0.8)(small)(small)
    torch.testing.assert_close(means, expected, rtol=1e-3, atol=1e-4)
    means.square().sum(dim=1).mean().backward()  # twice the KL of the means
    assert size.grad is not None and abs(float(size.grad)) < 1e-3


def test_means_that_are_all_the_same_are_zero() -> None:
    raw = torch.full((8, 3), 0.3, requires_grad=True)
    means = MeanNorm(3, 0.8)(raw)(raw)
    means.sum().backward()
    assert means.abs().max() < 0.1 and raw.grad is not None and raw.grad.isfinite().all()


def test_means_far_from_zero_are_told_apart_in_half_precision_too() -> None:
    """In bf16 there would be 4 between a mean of 1,000 and the next."""
    sizes = {"encoder": "ngrams", "encoder_hidden": 16, "latent": 5, "mean_scale": 0.8, "decoder": "mingru"}
    sizes |= {"ngram_buckets": 50, "ngram_dropout": 0.0}
    torch.manual_seed(0)
    model = TextVAE(parse(Config, {"model": sizes, "vocabulary": {"kind": "words", "size": 30}}))
    assert model.mean is not None
    torch.nn.init.constant_(model.mean.bias, -1000.0)
    tokens, lengths = torch.randint(4, 30, (40, 20)), torch.full((40,), 20)
    with torch.autocast("cpu", torch.bfloat16):
        means = model.encode(tokens, lengths)[0]
    torch.nn.init.zeros_(model.mean.bias)
    torch.testing.assert_close(means, model.encode(tokens, lengths)[0], atol=0.02, rtol=0.02)
    assert means.std(dim=0, correction=0).tolist() == pytest.approx([0.8] * 5, rel=0.05)
