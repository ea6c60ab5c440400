from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from textvae import parts
from textvae.batches import Batch
from textvae.config import Config
from textvae.model import TextVAE
from textvae.parsing import parse
from textvae.vocabulary import END, PAD

torch.set_num_threads(1)


@pytest.mark.parametrize("at_once", [1, 7, 21, 1000])
def test_a_sum_in_parts_has_the_value_and_the_gradients_of_the_whole(at_once: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 5).double()
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    seen: list[int] = []

    def score(part: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        seen.append(len(part))
        out = layer(part).tanh().square() * torch.arange(6)[rows][:, None]
        return out.sum(), (out.detach() > 0.5)[:, 0]

    whole, hits = score(z, slice(0, 6))
    expected = torch.autograd.grad(3.0 * whole, (z, *layer.parameters()))
    seen.clear()
    total, rest = parts.scored(score, z, 7, list(layer.parameters()), at_once)
    assert max(seen) == min(6, max(1, at_once // 7)) and sum(seen) == 6
    got = torch.autograd.grad(3.0 * total, (z, *layer.parameters()))
    torch.testing.assert_close(total.double(), whole, rtol=1e-6, atol=1e-6)
    assert torch.equal(rest, hits)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


KINDS = [
    {"decoder": "mingru", "encoder": "ngrams", "ngram_buckets": 50, "tied": True},
    {"decoder": "transformer", "decoder_layers": 2},
    {"decoder": "autoregressive"},
    {"decoder": "mingru", "latent": 0},
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_decodes_in_parts_learns_the_same(
    kind: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"embedding": 8, "encoder_hidden": 6, "latent": 4, "decoder_hidden": 8, **kind}
    vocabulary = {"kind": "words", "size": 13, "max_length": 9}
    config = parse(
        Config, {"vocabulary": vocabulary, "model": sizes, "objective": {"kind": "elbo", "scored_share": 0.7}}
    )
    torch.manual_seed(0)
    model = TextVAE(config, 13)
    lengths = torch.tensor([10, 4, 2, 7, 2])
    tokens = torch.randint(4, 13, (5, 10))
    tokens[torch.arange(10) >= lengths[:, None]] = PAD
    tokens[torch.arange(5), lengths - 1] = END
    batch = Batch(tokens, lengths, torch.tensor([1, 0, -1, 0, 1]), 5)
    found = []
    for at_once in (1000, 20):
        monkeypatch.setattr(parts, "tokens_at_once", lambda _, tokens=at_once: tokens)
        torch.manual_seed(1)
        model.zero_grad()
        losses = model.train()(batch)
        losses.loss.backward()
        gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
        with torch.no_grad():
            torch.manual_seed(2)
            validated = model.eval()(batch)
        found.append((losses, gradients, validated))
    (whole, expected, validated), (cut, got, validated_cut) = found
    torch.testing.assert_close(cut.loss, whole.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(validated_cut.loss, validated.loss, rtol=1e-6, atol=1e-6)
    assert cut.tokens_correct == whole.tokens_correct
    assert cut.positions_correct == whole.positions_correct
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=2e-5)
