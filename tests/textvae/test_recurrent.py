from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from textvae.recurrent import LSTM

torch.set_num_threads(1)


def reference(ours: LSTM) -> nn.LSTM:
    """PyTorch's own LSTM with the same weights, and a second bias of zero."""
    theirs = nn.LSTM(
        ours.input_size,
        ours.hidden_size,
        ours.num_layers,
        batch_first=True,
        bidirectional=ours.bidirectional,
    )
    state = theirs.state_dict()
    for name in state:
        state[name] = torch.zeros_like(state[name]) if name.startswith("bias_hh") else ours.state_dict()[name]
    theirs.load_state_dict(state)
    return theirs


def test_it_is_an_lstm_with_one_bias() -> None:
    ours = LSTM(5, 7, 2, bidirectional=True)
    x = torch.randn(3, 11, 5)
    torch.testing.assert_close(ours(x)[0], reference(ours)(x)[0])
    per_direction = 4 * 7 * (5 + 7 + 1), 4 * 7 * (14 + 7 + 1)
    assert sum(p.numel() for p in ours.parameters()) == 2 * sum(per_direction)
    assert not any("bias_hh" in name for name in [*ours.state_dict(), *dict(ours.named_parameters())])


def test_initial_weights_are_those_of_keras() -> None:
    lstm = LSTM(30, 40)
    w_ih, w_hh, bias = lstm.weight_ih_l0.detach(), lstm.weight_hh_l0.detach(), lstm.bias_ih_l0.detach()
    limit = (6 / (30 + 4 * 40)) ** 0.5  # Glorot: Keras' fans of a kernel (30, 4 * 40)
    assert 0.95 * limit < w_ih.abs().max() <= limit
    torch.testing.assert_close(w_hh.T @ w_hh, torch.eye(40), atol=1e-5, rtol=0)
    assert bias.tolist() == 40 * [0.0] + 40 * [1.0] + 80 * [0.0]
    assert lstm.bias_hh_l0.abs().sum() == 0


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_padding_changes_nothing(layers: int) -> None:
    lstm = LSTM(4, 6, layers, bidirectional=True)
    sequences = [torch.randn(length, 4) for length in (5, 1, 9, 5)]
    alone = torch.cat([lstm.final_states(s[None], None) for s in sequences])
    padded = torch.full((4, 12, 4), 7.5)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    lengths = torch.tensor([5, 1, 9, 5])
    torch.testing.assert_close(lstm.final_states(padded, lengths), alone)
    torch.testing.assert_close(packed(lstm, padded, lengths), alone)


def packed(lstm: LSTM, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """PyTorch's own way of keeping padding out."""
    sequences = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    return torch.cat(tuple(lstm(sequences)[1][0][-2:]), dim=-1)


def test_the_gradients_are_those_of_packed_sequences() -> None:
    lstm = LSTM(4, 6, 2, bidirectional=True)
    x, lengths = torch.randn(3, 8, 4), torch.tensor([8, 3, 5])
    gradients = []
    for way in (lstm.final_states, partial(packed, lstm)):
        lstm.zero_grad()
        way(x, lengths).square().sum().backward()
        gradients.append([p.grad.clone() for p in lstm.parameters() if p.grad is not None])
    assert len(gradients[0]) == 12
    torch.testing.assert_close(gradients[0], gradients[1])


def test_copies_and_moves_keep_the_zero_bias_and_their_own_weights() -> None:
    lstm = LSTM(4, 6)
    x = torch.randn(2, 5, 4)
    copied = copy.deepcopy(lstm)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert copied(x)[0].abs().sum() == 0  # its own list of weights is of its own parameters
    assert lstm(x)[0].abs().sum() > 0
    double = copy.deepcopy(lstm).to(torch.float64)
    assert {b.dtype for b in double.buffers()} == {torch.float64}
    torch.testing.assert_close(double(x.double())[0].float(), lstm(x)[0])
    loaded = LSTM(4, 6)
    loaded.load_state_dict(lstm.state_dict())
    torch.testing.assert_close(loaded(x)[0], lstm(x)[0])


def test_training_leaves_the_second_bias_at_zero() -> None:
    lstm = LSTM(4, 6)
    optimizer = torch.optim.Adam(lstm.parameters(), 0.1)
    lstm(torch.randn(2, 5, 4))[0].square().sum().backward()
    optimizer.step()
    assert lstm.bias_ih_l0.abs().sum() > 0
    assert lstm.bias_hh_l0.abs().sum() == 0


def test_a_share_of_the_recurrent_weights_is_left_out_the_same_at_all_positions() -> None:
    torch.manual_seed(0)
    lstm, plain = LSTM(3, 5, 2), LSTM(3, 5, 2)
    lstm.weight_drop = 0.4
    inputs = torch.randn(2, 6, 3)
    torch.manual_seed(1)
    got, (h, c) = lstm(inputs)
    torch.manual_seed(1)
    drawn = lstm.drawn_weights()
    own = dict(zip(lstm._flat_weights_names, drawn, strict=True))
    for name, weight in own.items():
        if name.startswith("weight_hh"):
            kept = weight != 0
            assert 0.4 < float(kept.float().mean()) < 0.8
            torch.testing.assert_close(weight[kept], getattr(lstm, name)[kept] / 0.6)
        else:
            assert weight is getattr(lstm, name)
    plain.load_state_dict({name: value for name, value in own.items() if not name.startswith("bias_hh")})
    expected, (last, cell) = plain(inputs)
    for a, b in ((got, expected), (h, last), (c, cell)):
        torch.testing.assert_close(a, b)
    plain.load_state_dict(lstm.state_dict())
    torch.testing.assert_close(lstm.eval()(inputs)[0], plain(inputs)[0])


def test_both_directions_leave_out_weights_and_an_earlier_draw_can_be_used_again() -> None:
    torch.manual_seed(0)
    lstm = LSTM(3, 5, bidirectional=True)
    lstm.weight_drop = 0.5
    inputs, lengths = torch.randn(2, 6, 3), torch.tensor([6, 3])
    draw = lstm.drawn_weights()
    again = [lstm.final_states(inputs, lengths, draw) for _ in range(2)]
    assert torch.equal(*again)
    others = [lstm.final_states(inputs, lengths) for _ in range(2)]
    assert all((a != b).any() for a, b in zip(others[0].chunk(2, -1), others[1].chunk(2, -1), strict=True))
