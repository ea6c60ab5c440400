"""Decoders: a latent vector and the tokens so far -> hidden states, which the next token is read off.

An autoregressive decoder has a `width`; `start(z)` gives the state before the first token, and
`advance(embedded, z, state)` the hidden states (batch, length, width) of embedded (batch, length, embedding)
and the state behind them, so that training walks a whole review in one call and writing a token in each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from textvae.config import Model
from textvae.mingru import MinGRU
from textvae.recurrent import LSTM
from textvae.transformer import TransformerDecoder

State = Sequence[Tensor]


def build(sizes: Model) -> Decoder:
    """The autoregressive decoder that a config's model section names."""
    widths = (sizes.embedding, sizes.latent, sizes.decoder_hidden, sizes.decoder_layers)
    locked = sizes.dropout_mask == "review"
    if sizes.decoder == "mingru":
        return MinGRU(*widths, sizes.dropout, locked)
    if sizes.decoder == "transformer":
        return TransformerDecoder(*widths, sizes.decoder_heads, sizes.dropout, locked)
    decoder = LSTMDecoder(*widths)
    decoder.weight_drop = sizes.weight_drop
    return decoder


class LSTMDecoder(LSTM):
    """Stacked LSTMs; z makes their initial states and is fed beside every token (Bowman et al. 2016)."""

    def __init__(self, embedding: int, latent: int, hidden: int, layers: int):
        super().__init__(embedding + latent, hidden, layers)
        self.latent = latent
        # h and c of every layer
        self.state = nn.Linear(latent, 2 * layers * hidden) if latent else None

    @property
    def width(self) -> int:
        """Hidden units a position."""
        return self.hidden_size

    def start(self, z: Tensor) -> State:
        """h and c, (layers, batch, hidden) each, from z (batch, latent)."""
        if self.state is None:
            return (z.new_zeros(self.num_layers, len(z), self.hidden_size),) * 2
        state = self.state(z).to(z.dtype).view(len(z), 2, self.num_layers, self.hidden_size)
        h, c = state.permute(1, 2, 0, 3).contiguous()
        return h, c

    def advance(self, embedded: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Hidden states (batch, length, hidden) of embedded (batch, length, embedding), and what follows."""
        repeated = z[:, None].expand(-1, embedded.shape[1], -1).to(embedded.dtype)
        hidden, behind = self(torch.cat((embedded, repeated), dim=-1), (state[0], state[1]))
        return hidden, behind


Decoder = LSTMDecoder | MinGRU | TransformerDecoder
