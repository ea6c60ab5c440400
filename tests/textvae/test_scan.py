from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from textvae.scan import _Scan, doubling, scan

torch.set_num_threads(1)


def by_definition(decay: Tensor, added: Tensor, initial: Tensor) -> Tensor:
    states = [initial]
    for position in range(decay.shape[1]):
        states.append(decay[:, position] * states[-1] + added[:, position])
    return torch.stack(states[1:], dim=1)


def doubled_back(decay: Tensor, added: Tensor, initial: Tensor) -> Tensor:
    """`scan` as it is on a GPU."""
    return _Scan.apply(decay, added, initial, False)


@pytest.mark.parametrize("way", [scan, doubling, doubled_back])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 21])
def test_all_ways_follow_the_definition_in_value_and_gradient(
    way: Callable[[Tensor, Tensor, Tensor], Tensor], length: int
) -> None:
    random = torch.Generator().manual_seed(length)

    def inputs() -> list[Tensor]:
        random.manual_seed(length)
        shapes = [(3, length, 4), (3, length, 4), (3, 4)]
        made = [torch.rand(shape, generator=random, dtype=torch.float64) for shape in shapes]
        return [each.requires_grad_() for each in made]

    ours, theirs = inputs(), inputs()
    states, expected = way(*ours), by_definition(*theirs)
    torch.testing.assert_close(states, expected)
    wanted = torch.randn(states.shape, generator=random, dtype=torch.float64)
    (states * wanted).sum().backward()
    (expected * wanted).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
