from __future__ import annotations

import pytest
import torch

from textvae.config import Model
from textvae.decoders import LSTMDecoder, MinGRUDecoder, build

torch.set_num_threads(1)


def decoder(kind: str, latent: int = 3) -> LSTMDecoder | MinGRUDecoder:
    torch.manual_seed(0)
    return build(
        Model(embedding=5, latent=latent, decoder=kind, decoder_hidden=6, decoder_layers=2)  # type: ignore[arg-type]
    ).eval()


@pytest.mark.parametrize("latent", [0, 3])
@pytest.mark.parametrize("kind", ["autoregressive", "mingru"])
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


@pytest.mark.parametrize("kind", ["autoregressive", "mingru"])
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
    of = MinGRUDecoder(2, 3, 4, 1, 0.0)
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
    of = MinGRUDecoder(2, 3, 9, 2, 0.0)
    of.begin()
    embedded = torch.randn(1, 5, 2)
    z = torch.randn(2, 1, 3)
    hidden = [of.advance(embedded, each, of.start(each))[0] for each in z]
    torch.testing.assert_close(hidden[0], hidden[1])
    forgets = torch.sigmoid(of.layers[1].inner.bias[:9])
    assert forgets[0] == 0.5 and forgets[-1] == pytest.approx(1 / 55.6, rel=1e-3)
