from __future__ import annotations

import torch
from torch import nn

from textvae.averaging import Average


def test_it_is_a_moving_average_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = Average(model, 0.75)
    expected = {name: value.detach().clone() for name, value in model.named_parameters()}
    for step in range(1, 40):
        with torch.no_grad():
            for value in model.parameters():
                value += torch.randn(value.shape)
        average.update(step)
        decay = min(0.75, (1 + step) / (10 + step))
        for name, value in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach()
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    with average.shown():
        for name, value in model.named_parameters():
            torch.testing.assert_close(value.detach(), expected[name])
            assert torch.equal(average.apart()[name], weights[name])
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())


def test_it_goes_on_where_a_checkpoint_left_it() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = Average(model, 0.9)
    with torch.no_grad():
        model.weight += 1.0
    average.update(50)
    with average.shown():
        state = {name: value.clone() for name, value in model.state_dict().items()}
        weights = {name: value.clone() for name, value in average.apart().items()}
    other = nn.Linear(3, 2)
    other.load_state_dict(state)
    again = Average(other, 0.9)
    again.restore(weights)
    for each in (average, again):
        each.update(51)
    assert torch.equal(other.weight, model.weight)
    assert all(torch.equal(again.apart()[name], value) for name, value in average.apart().items())


def test_a_parameter_that_is_drawn_anew_forgets_what_it_was() -> None:
    model = nn.Linear(3, 2)
    average = Average(model, 0.9)
    before = model.bias.detach().clone()
    with torch.no_grad():
        model.weight.fill_(7.0)
        model.bias += 1.0
    average.restart(model.weight)
    assert (average.apart()["weight"] == 7.0).all()
    assert torch.equal(average.apart()["bias"], before)
