from __future__ import annotations

import pytest
import torch

from textvae.config import Model
from textvae.decoders import Decoder, build
from textvae.mingru import MinGRU
from textvae.transformer import TransformerDecoder

torch.set_num_threads(1)


KINDS = ["autoregressive", "mingru", "transformer"]


def decoder(kind: str, latent: int = 3) -> Decoder:
    torch.manual_seed(0)
    sizes = {"embedding": 5, "latent": latent, "decoder_hidden": 12, "decoder_layers": 2, "decoder_heads": 3}
    return build(Model(decoder=kind, **sizes)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("latent", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_review_at_once_is_the_review_token_by_token(kind: str, latent: int) -> None:
    of = decoder(kind, latent)
    embedded, z = torch.randn(2, 9, 5), torch.randn(2, latent)
    whole, end = of.advance(embedded, z, of.start(z))
    assert whole.shape == (2, 9, of.width)
    state, parts = of.start(z), []
    for first, last in ((0, 1), (1, 2), (2, 6), (6, 9)):
        hidden, state = of.advance(embedded[:, first:last], z, state)
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-6)
    for a, b in zip(state, end, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_position_sees_what_comes_after_it_and_all_see_z(kind: str) -> None:
    of = decoder(kind)
    embedded, z = torch.randn(1, 9, 5), torch.randn(1, 3)
    hidden = of.advance(embedded, z, of.start(z))[0]
    embedded[:, 6] += 1.0
    changed = of.advance(embedded, z, of.start(z))[0]
    assert torch.equal(changed[:, :6], hidden[:, :6])
    assert (changed[:, 6:] != hidden[:, 6:]).any(dim=-1).all()
    moved = of.advance(embedded, z + 1.0, of.start(z))[0]
    assert (moved != changed).any(dim=-1).all()
    started = of.advance(embedded, z, of.start(z + 1.0))[0]
    assert (started != changed).any(dim=-1).all()


def test_the_mingru_is_the_recurrence_of_its_paper() -> None:
    """h_t = (1 - g_t) h_(t-1) + g_t c_t with g and c of the input alone; one layer, by hand."""
    torch.manual_seed(0)
    of = MinGRU(2, 3, 4, 1, 0.0)
    layer = of.layers[0]
    embedded, z = torch.randn(1, 5, 2), torch.randn(1, 3)
    got = of.advance(embedded, z, of.start(z))[0][0]
    before = [torch.zeros(2), torch.zeros(2), *embedded[0]]
    h = layer.initial(z)[0]
    for position in range(5):
        x = of.enter(torch.cat(before[position : position + 3]))
        update, candidate, opened = (layer.inner(layer.norm(x)) + layer.of_latent(z)[0]).chunk(3)
        g = torch.sigmoid(update)
        h = (1 - g) * h + g * candidate
        out = x + layer.outer(h * opened * torch.sigmoid(opened))
        torch.testing.assert_close(got[position], of.norm(out), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_minimal_gru_begins_without_a_latent_and_with_memories_of_many_lengths() -> None:
    torch.manual_seed(0)
    of = MinGRU(2, 3, 9, 2, 0.0)
    of.begin()
    embedded = torch.randn(1, 5, 2)
    z = torch.randn(2, 1, 3)
    hidden = [of.advance(embedded, each, of.start(each))[0] for each in z]
    torch.testing.assert_close(hidden[0], hidden[1])
    forgets = torch.sigmoid(of.layers[1].inner.bias[:9])
    assert forgets[0] == 0.5 and forgets[-1] == pytest.approx(1 / 55.6, rel=1e-3)


@torch.no_grad()
def test_attention_is_that_of_its_paper_with_z_before_the_first_token() -> None:
    """One layer by hand, in loops over positions and heads; angles as complex numbers."""
    torch.manual_seed(0)
    of = TransformerDecoder(5, 3, 12, 1, 3, 0.0).eval()
    layer = of.layers[0]
    embedded, z = torch.randn(1, 6, 5), torch.randn(1, 3)
    got = of.advance(embedded, z, of.start(z))[0][0]
    x = of.enter(embedded[0]) + layer.of_latent(z)
    asked = layer.asked(layer.before(x)).view(6, 3, 3, 4)  # (position, what, head, width)
    memory = layer.memory(z).view(2, 3, 4)
    found = torch.zeros(6, 3, 4)

    def turned(vector: torch.Tensor, position: int) -> torch.Tensor:
        pairs = torch.complex(vector[:2], vector[2:])
        angles = torch.tensor([position * 10_000.0 ** (-2 * i / 4) for i in range(2)])
        pairs = pairs * torch.polar(torch.ones(2), angles)
        return torch.cat((pairs.real, pairs.imag))

    for head in range(3):
        for position in range(6):
            query = turned(asked[position, 0, head], position + 1)
            keys = [memory[0, head], *(turned(asked[i, 1, head], i + 1) for i in range(position + 1))]
            values = [memory[1, head], *(asked[i, 2, head] for i in range(position + 1))]
            weights = torch.stack([query @ key / 2.0 for key in keys]).softmax(dim=0)
            found[position, head] = (weights[:, None] * torch.stack(values)).sum(dim=0)
    x = x + layer.gathered(found.flatten(1))
    x = x + layer.outer(torch.nn.functional.gelu(layer.inner(layer.between(x))))
    torch.testing.assert_close(got, of.norm(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["of_latent", "memory"])
@pytest.mark.parametrize("number", [0, 1, 2])
@torch.no_grad()
def test_z_enters_a_transformer_at_every_layer_by_both_ways(number: int, way: str) -> None:
    torch.manual_seed(0)
    of = TransformerDecoder(5, 3, 12, 3, 3, 0.0).eval()
    of.begin()
    embedded, z = torch.randn(1, 6, 5), torch.randn(2, 1, 3)
    nothing = [of.advance(embedded, each, of.start(each))[0] for each in z]
    assert torch.equal(*nothing)  # z has no influence at first
    torch.nn.init.normal_(getattr(of.layers[number], way).weight)
    something = [of.advance(embedded, each, of.start(each))[0] for each in z]
    assert (something[0] != something[1]).any(dim=-1).all()
