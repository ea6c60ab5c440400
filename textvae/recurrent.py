"""LSTMs as Keras has them: one bias per gate set, and padding that can be kept out of both directions."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LSTM(nn.LSTM):
    """nn.LSTM, batch first, with a single bias per gate set; gates in the order i, f, g, o.

    PyTorch adds two biases, an arrangement of cuDNN's; their sum is all that counts. The second one is a
    buffer of zeros here: it is no parameter, it is not in the state dict, and the fused kernels of cuDNN and
    oneDNN, which want both, still apply.

    `weight_drop` is the share of the recurrent weights that each call leaves out in training, the same ones
    at all positions (Merity et al., "Regularizing and Optimizing LSTM Language Models", ICLR 2018).
    """

    weight_drop = 0.0

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, *, bidirectional: bool = False
    ):
        super().__init__(input_size, hidden_size, num_layers, batch_first=True, bidirectional=bidirectional)
        for name in [name for name in self._flat_weights_names if name.startswith("bias_hh")]:
            zeros = torch.zeros_like(getattr(self, name)).detach()
            delattr(self, name)
            self.register_buffer(name, zeros, persistent=False)
        self._init_flat_weights()  # PyTorch keeps its own list of the weights; it must hold the buffers

    def reset_parameters(self) -> None:
        """Keras' initial weights: Glorot uniform, recurrence orthogonal, biases 0 but the forget gate's 1."""
        for name, weight in self.named_parameters():
            if weight.is_meta:
                continue  # nothing to set, and importing PyTorch's meta kernels takes a second
            if name.startswith("weight_ih"):
                nn.init.xavier_uniform_(weight)
            elif name.startswith("weight_hh"):
                nn.init.orthogonal_(weight)
            else:
                nn.init.zeros_(weight)
                nn.init.ones_(weight[self.hidden_size : 2 * self.hidden_size])

    def drawn_weights(self) -> list[Tensor]:
        """The weights as torch.lstm takes them, without those that a draw leaves out of the recurrence."""
        self._update_flat_weights()
        weights = cast(list[Tensor], self._flat_weights)
        if not (self.training and self.weight_drop):
            return weights
        names = self._flat_weights_names
        return [
            F.dropout(weight, self.weight_drop) if name.startswith("weight_hh") else weight
            for name, weight in zip(names, weights, strict=True)
        ]

    def forward(self, inputs: Any, hx: Any = None) -> Any:
        """What nn.LSTM gives, of a batch."""
        if not (self.training and self.weight_drop):
            return super().forward(inputs, hx)
        if hx is None:
            directions = 2 if self.bidirectional else 1
            zeros = inputs.new_zeros(self.num_layers * directions, len(inputs), self.hidden_size)
            hx = (zeros, zeros)
        weights = self.drawn_weights()
        found = torch.lstm(inputs, hx, weights, True, self.num_layers, 0.0, True, self.bidirectional, True)
        return found[0], found[1:]

    def final_states(
        self, inputs: Tensor, lengths: Tensor | None, weights: list[Tensor] | None = None
    ) -> Tensor:
        """Both directions' last states of the last layer, concatenated: (batch, 2 * hidden).

        `inputs` is (batch, length, input). Without `lengths` every position counts. With `lengths` (batch,),
        positions from lengths[i] on are padding, and change nothing in either direction. `weights` are those
        of an earlier draw.
        """
        if lengths is None:
            last = self(inputs)[1][0][-2:]  # (2, batch, hidden)
            return torch.cat((last[0], last[1]), dim=-1)
        ahead, behind = self.directions(inputs, lengths, weights)
        rows, last = torch.arange(len(inputs), device=inputs.device), lengths - 1
        return torch.cat((ahead[rows, last], behind[rows, last]), dim=-1)

    def directions(
        self, inputs: Tensor, lengths: Tensor, weights: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The last layer's states of the way ahead and of the way back, (batch, length, hidden) each.

        The latter begin with the review's last real token: state i is that of position lengths - 1 - i.
        What stands from lengths on is of padding.
        """
        # Each sequence reversed within its length, so that padding comes last in both directions. PyTorch's
        # packed sequences do the same, but leave oneDNN for a loop three to eight times slower.
        weights = self.drawn_weights() if weights is None else weights
        batch, length, _ = inputs.shape
        rows = torch.arange(batch, device=inputs.device)[:, None]  # (batch, 1)
        reverse = reversal(lengths, length)
        state = torch.zeros(1, batch, self.hidden_size, dtype=inputs.dtype, device=inputs.device)

        def direction(sequence: Tensor, of: list[Tensor]) -> Tensor:  # (batch, length, hidden)
            return torch.lstm(sequence, (state, state), of, True, 1, 0.0, self.training, False, True)[0]

        for layer in range(self.num_layers):
            forward, backward = weights[8 * layer : 8 * layer + 4], weights[8 * layer + 4 : 8 * layer + 8]
            ahead = direction(inputs, forward)
            behind = direction(inputs[rows, reverse], backward)
            if layer < self.num_layers - 1:
                inputs = torch.cat((ahead, behind[rows, reverse]), dim=-1)
                state = state.to(inputs.dtype)
        return ahead, behind


def reversal(lengths: Tensor, length: int) -> Tensor:
    """The positions (batch, length) of each sequence from its end to its beginning, then those of padding.

    lengths (batch,). Its own inverse.
    """
    steps = torch.arange(length, device=lengths.device)  # (length,)
    ends = lengths[:, None]
    return torch.where(steps < ends, ends - 1 - steps, steps)
