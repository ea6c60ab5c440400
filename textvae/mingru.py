"""Minimal GRUs: recurrent layers whose gates look at the input alone, so that a scan runs the recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textvae.dropout import dropout
from textvae.scan import scan

REACH = 3  # tokens that the input of a position looks at


class MinGRU(nn.Module):
    """Stacked minimal GRUs over embedded tokens, steered by a vector z where there is one (`latent` above 0).

    Feng et al., "Were RNNs All We Needed?" (2024), in residual layers with layer norm and a gated output. The
    input is the last three tokens; z makes the initial states and enters every gate at every position.
    """

    def __init__(
        self, embedding: int, latent: int, hidden: int, layers: int, share: float, locked: bool = False
    ):
        super().__init__()
        self.latent = latent
        self.width = hidden
        self.embedding = embedding
        self.enter = nn.Linear(REACH * embedding, hidden)
        self.layers = nn.ModuleList(_Layer(latent, hidden, share, locked) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def begin(self) -> None:
        """Set the weights that do not begin as any layer's do.

        Some units begin as a memory: gates forget over two to fifty-odd tokens. And z has no influence at
        first: a draw of an encoder that knows nothing is noise, which a decoder would first have to unlearn.
        """
        for layer in self._layers():
            hidden = layer.outer.in_features
            with torch.no_grad():
                layer.inner.bias[:hidden] = -torch.linspace(0.0, 4.0, hidden)
            for of_latent in (layer.of_latent, layer.initial):
                if of_latent is not None:
                    nn.init.zeros_(of_latent.weight)

    def start(self, z: Tensor) -> list[Tensor]:
        """The tokens before the first one (batch, 2, embedding), zeros, and each layer's (batch, hidden)."""
        before = z.new_zeros(len(z), REACH - 1, self.embedding)
        return [before, *(layer.start(z) for layer in self._layers())]

    def advance(self, embedded: Tensor, z: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Hidden states (batch, length, hidden) of embedded (batch, length, embedding), and what follows."""
        length = embedded.shape[1]
        seen = torch.cat((state[0].to(embedded.dtype), embedded), dim=1)  # (batch, 2 + length, embedding)
        x = self.enter(torch.cat([seen[:, i : i + length] for i in range(REACH)], dim=-1)).float()
        behind = [seen[:, length:]]
        for layer, before in zip(self._layers(), state[1:], strict=True):
            x, after = layer(x, z, before)
            behind.append(after)
        return self.norm(x), behind

    def _layers(self) -> list[_Layer]:
        return [cast(_Layer, layer) for layer in self.layers]


class _Layer(nn.Module):
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
        return cast(Tensor, self.initial(z).float())

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
