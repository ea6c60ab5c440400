from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from textvae import softmax

torch.set_num_threads(1)


def inputs(rows: int = 37, width: int = 6, vocabulary: int = 11) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=random)
    weight, bias = torch.randn(vocabulary, width, generator=random), torch.randn(vocabulary, generator=random)
    return [hidden, weight, bias, torch.randint(vocabulary, (rows,), generator=random)]


@pytest.mark.parametrize(("block", "cached"), [(2**24, 2**19), (11 * 5, 11 * 2), (1, 1)])
def test_it_is_pytorchs_cross_entropy_in_value_and_gradient(
    block: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "BLOCK_LOGITS", block)
    monkeypatch.setattr(softmax, "_CACHED_LOGITS", cached)
    hidden, weight, bias, targets = inputs()
    ours = [each.double().requires_grad_() for each in (hidden, weight, bias)]
    total, losses, correct = softmax.linear_cross_entropy(*ours, targets)
    (3.0 * total).backward()
    theirs = [each.double().requires_grad_() for each in (hidden, weight, bias)]
    logits = F.linear(*theirs)
    expected = F.cross_entropy(logits, targets, reduction="none")
    (3.0 * expected.sum()).backward()
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total.double(), expected.detach().sum(), rtol=1e-5, atol=1e-5)
    assert torch.equal(correct, logits.argmax(-1) == targets)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_without_gradients_it_computes_none_and_says_the_same() -> None:
    hidden, weight, bias, targets = inputs()
    weight.requires_grad_()
    total = softmax.linear_cross_entropy(hidden, weight, bias, targets)[0]
    assert total.requires_grad
    with torch.no_grad():
        assert torch.equal(softmax.linear_cross_entropy(hidden, weight, bias, targets)[0], total)


def test_no_rows_cost_nothing_and_still_reach_the_weights() -> None:
    _, weight, bias, _ = inputs()
    weight.requires_grad_()
    total, losses, correct = softmax.linear_cross_entropy(
        torch.zeros(0, 6), weight, bias, torch.zeros(0, dtype=torch.long)
    )
    total.backward()
    assert total == 0 and len(losses) == len(correct) == 0
    assert weight.grad is not None and not weight.grad.any()


def test_bfloat16_stays_within_its_rounding() -> None:
    hidden, weight, bias, targets = inputs(rows=200)
    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
    hidden.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _, _ = softmax.linear_cross_entropy(hidden, weight, bias, targets)
    total.backward()
    assert total.dtype == torch.float32
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32
    torch.testing.assert_close(total.detach(), expected.detach(), rtol=2e-2, atol=0)
