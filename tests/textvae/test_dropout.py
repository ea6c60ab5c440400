from __future__ import annotations

import pytest
import torch

from textvae.dropout import dropout, without_tokens

torch.set_num_threads(1)


def test_a_locked_mask_is_one_a_review() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, 7, 40)
    locked = dropout(x, 0.3, True, locked=True)
    assert torch.equal(locked, locked[:, :1].expand_as(locked))
    assert not torch.equal(locked[0], locked[1])
    assert sorted(locked.unique().tolist()) == pytest.approx([0.0, 1 / 0.7])
    assert float((locked == 0).float().mean()) == pytest.approx(0.3, abs=0.05)
    free = dropout(x, 0.3, True)
    assert not torch.equal(free[:, 0], free[:, 1])


@pytest.mark.parametrize("locked", [False, True])
def test_nothing_is_dropped_outside_of_training(locked: bool) -> None:
    x = torch.randn(3, 4, 5)
    assert torch.equal(dropout(x, 0.9, False, locked=locked), x)
    assert torch.equal(dropout(x, 0.0, True, locked=locked), x)


def test_a_token_left_out_is_left_out_wherever_it_stands() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 30, (20, 11))
    thinned = without_tokens(torch.ones(20, 11, 3), tokens, 0.4, 30)
    kept = [thinned[tokens == token] for token in range(30)]
    assert all((rows == 0).all() or rows.unique().tolist() == pytest.approx([1 / 0.6]) for rows in kept)
    gone = sum(bool((rows == 0).all()) for rows in kept)
    assert 4 <= gone <= 20
