"""A Transformer as a decoder: causal attention over the tokens so far, z at every layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from textvae.dropout import dropout


class TransformerDecoder(nn.Module):
    """Causal self-attention in residual layers with layer norm before each part; z enters every layer twice.

    As in Li et al., "Optimus: Organizing Sentences via Pre-trained Modeling of a Latent Space" (EMNLP 2020):
    as a key and a value before the first token (their memory), and added to what each layer is given (their
    embedding). Positions are told by rotation (Su et al., "RoFormer", 2021), so that no length is the limit.
    """

    def __init__(
        self,
        embedding: int,
        latent: int,
        hidden: int,
        layers: int,
        heads: int,
        share: float,
        locked: bool = False,
    ):
        super().__init__()
        self.latent = latent
        self.width = hidden
        self.heads = heads
        self.enter = nn.Linear(embedding, hidden)
        self.layers = nn.ModuleList(_Layer(latent, hidden, heads, share, locked) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def begin(self) -> None:
        """Set the weights that do not begin as any layer's do.

        What a layer adds begins small beside what it is added to. And z has no influence at first: a draw of
        an encoder that knows nothing is noise, which a decoder would first have to unlearn.
        """
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            with torch.no_grad():
                for outer in (layer.gathered, layer.outer):
                    outer.weight.mul_((2 * len(self.layers)) ** -0.5)
            for of_latent in (layer.of_latent, layer.memory):
                if of_latent is not None:
                    nn.init.zeros_(of_latent.weight)

    def start(self, z: Tensor) -> Sequence[Tensor]:
        """Keys and values of each layer by turns, of what z says alone: (batch, heads, 1 or 0, width)."""
        return [part for layer in self.layers for part in layer.start(z)]  # type: ignore[operator]

    def advance(
        self, embedded: Tensor, z: Tensor, state: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Hidden states (batch, length, hidden) of embedded (batch, length, embedding), and what follows."""
        x = self.enter(embedded).float()
        past, length = state[0].shape[2], embedded.shape[1]
        turns = _turns(past, length, self.width // self.heads, x.device)
        behind: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            x, keys, values = layer(x, z, state[2 * number], state[2 * number + 1], turns)
            behind += (keys, values)
        return self.norm(x), behind


class _Layer(nn.Module):
    def __init__(self, latent: int, hidden: int, heads: int, share: float, locked: bool):
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(hidden)
        self.asked = nn.Linear(hidden, 3 * hidden)  # query, key, value
        self.gathered = nn.Linear(hidden, hidden)
        self.between = nn.LayerNorm(hidden)
        self.inner = nn.Linear(hidden, 4 * hidden)
        self.outer = nn.Linear(4 * hidden, hidden)
        self.of_latent = nn.Linear(latent, hidden, bias=False) if latent else None
        self.memory = nn.Linear(latent, 2 * hidden) if latent else None  # key, value
        self.share, self.locked = share, locked

    def start(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value (batch, heads, 1, width) of z (batch, latent); none of them without a latent."""
        if self.memory is None:
            none = z.new_zeros(len(z), self.heads, 0, self.gathered.in_features // self.heads)
            return none, none
        key, value = self._split(self.memory(z)[:, None], 2)
        return key, value

    def forward(
        self, x: Tensor, z: Tensor, keys: Tensor, values: Tensor, turns: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (batch, length, hidden) one layer on; keys and values (batch, heads, past + length, width)."""
        past, length = keys.shape[2], x.shape[1]
        if self.of_latent is not None:
            x = x + self.of_latent(z).float()[:, None]
        query, key, value = self._split(self.asked(self.before(x)), 3)
        query, key = _rotate(query, turns), _rotate(key, turns)
        keys = torch.cat((keys.to(key.dtype), key), dim=2)
        values = torch.cat((values.to(value.dtype), value), dim=2)
        if length > 1:
            # Queries for the past, thrown away, make a square of it, which is what the fast kernels know.
            query = F.pad(query, (0, 0, past, 0))
        found = F.scaled_dot_product_attention(query, keys, values, is_causal=length > 1)
        found = found[:, :, -length:].transpose(1, 2).flatten(2)  # (batch, length, hidden)
        x = x + dropout(self.gathered(found).float(), self.share, self.training, locked=self.locked)
        out = self.outer(F.gelu(self.inner(self.between(x)))).float()
        return x + dropout(out, self.share, self.training, locked=self.locked), keys, values

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """x (batch, length, parts * hidden) as that many of (batch, heads, length, width)."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _turns(first: int, length: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles of `length` positions from `first` on: (length, width / 2) each."""
    speeds = 10_000.0 ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angles = torch.arange(first, first + length, device=device, dtype=torch.float32)[:, None] * speeds
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """x (..., length, width) with each pair of its halves' numbers turned by its position's angle."""
    cosine, sine = turns
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, a * sine + b * cosine), dim=-1).to(x.dtype)
