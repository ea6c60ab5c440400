"""Decoders: a latent vector and the tokens so far -> hidden states, which the next token is read off.

An autoregressive decoder has a `width`; `start(z)` gives the state before the first token, and
`advance(embedded, z, state)` the hidden states (batch, length, width) of embedded (batch, length, embedding)
and the state behind them, so that training walks a whole review in one call and writing a token in each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textvae.config import Model
from textvae.dropout import dropout
from textvae.recurrent import LSTM
from textvae.scan import scan
from textvae.transformer import TransformerDecoder

State = Sequence[Tensor]


def build(sizes: Model) -> Decoder:
    """The autoregressive decoder that a config's model section names."""
    widths = (sizes.embedding, sizes.latent, sizes.decoder_hidden, sizes.decoder_layers)
    locked = sizes.dropout_mask == "review"
    if sizes.decoder == "mingru":
        return MinGRUDecoder(*widths, sizes.dropout, locked)
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


class MinGRUDecoder(nn.Module):
    """Stacked minimal GRUs, whose gates look at the input alone, so that a scan runs the recurrence.

    Feng et al., "Were RNNs All We Needed?" (2024), in residual layers with layer norm and a gated output. The
    input is the last three tokens; z makes the initial states and enters every gate at every position.
    """

    reach = 3  # tokens that the input of a position looks at

    def __init__(
        self, embedding: int, latent: int, hidden: int, layers: int, share: float, locked: bool = False
    ):
        super().__init__()
        self.latent = latent
        self.width = hidden
        self.embedding = embedding
        self.enter = nn.Linear(self.reach * embedding, hidden)
        self.layers = nn.ModuleList(_MinGRU(latent, hidden, share, locked) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def begin(self) -> None:
        """Set the weights that do not begin as any layer's do.

        Some units begin as a memory: gates forget over two to fifty-odd tokens. And z has no influence at
        first: a draw of an encoder that knows nothing is noise, which a decoder would first have to unlearn.
        """
        for layer in self.layers:
            assert isinstance(layer, _MinGRU)
            hidden = layer.outer.in_features
            with torch.no_grad():
                layer.inner.bias[:hidden] = -torch.linspace(0.0, 4.0, hidden)
            for of_latent in (layer.of_latent, layer.initial):
                if of_latent is not None:
                    nn.init.zeros_(of_latent.weight)

    def start(self, z: Tensor) -> State:
        """The tokens before the first one (batch, 2, embedding), zeros, and each layer's (batch, hidden)."""
        before = z.new_zeros(len(z), self.reach - 1, self.embedding)
        return [before, *(layer.start(z) for layer in self.layers)]  # type: ignore[operator]

    def advance(self, embedded: Tensor, z: Tensor, state: State) -> tuple[Tensor, State]:
        """Hidden states (batch, length, hidden) of embedded (batch, length, embedding), and what follows."""
        length = embedded.shape[1]
        seen = torch.cat((state[0].to(embedded.dtype), embedded), dim=1)  # (batch, 2 + length, embedding)
        x = self.enter(torch.cat([seen[:, i : i + length] for i in range(self.reach)], dim=-1)).float()
        behind = [seen[:, length:]]
        for layer, before in zip(self.layers, state[1:], strict=True):
            x, after = layer(x, z, before)
            behind.append(after)
        return self.norm(x), behind


class _MinGRU(nn.Module):
    def __init__(self, latent: int, hidden: int, share: float, locked: bool):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.inner = nn.Linear(hidden, 3 * hidden)
        self.of_latent = nn.Linear(latent, 3 * hidden, bias=False) if latent else None
        self.initial = nn.Linear(latent, hidden) if latent else None
        self.outer = nn.Linear(hidden, hidden)
        self.share, self.locked = share, locked

    def start(self, z: Tensor) -> Tensor:
        """(batch, hidden) of z (batch, latent)."""
        if self.initial is None:
            return z.new_zeros(len(z), self.outer.in_features)
        return self.initial(z).float()

    def forward(self, x: Tensor, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x (batch, length, hidden) one layer on, and the state (batch, hidden) behind its last position."""
        inner = self.inner(self.norm(x))  # (batch, length, 3 * hidden)
        if self.of_latent is not None:
            inner = inner + self.of_latent(z)[:, None]
        update, candidate, opened = inner.float().chunk(3, dim=-1)
        gate = update.sigmoid()
        states = scan(1.0 - gate, gate * candidate, state)  # (batch, length, hidden)
        out = self.outer(states * F.silu(opened)).float()
        return x + dropout(out, self.share, self.training, locked=self.locked), states[:, -1]


Decoder = LSTMDecoder | MinGRUDecoder | TransformerDecoder
