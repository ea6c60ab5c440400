from __future__ import annotations

import pytest
import torch

from textvae.config import Model
from textvae.encoders import MinGRUEncoder, NgramEncoder, build
from textvae.vocabulary import END, PAD

torch.set_num_threads(1)


def encoder(order: int = 3, dropout: float = 0.0) -> NgramEncoder:
    torch.manual_seed(0)
    return NgramEncoder(20, width=5, order=order, buckets=1000, dropout=dropout)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.tensor([[7, 8, 7, 9, END, PAD], [4, END, PAD, PAD, PAD, PAD], [9, 8, 7, 6, 5, END]])
    return tokens, torch.tensor([5, 2, 6])


def features(of: NgramEncoder, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return of.features(tokens, torch.empty(0), lengths).detach()


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_features_are_the_scaled_sum_of_the_vectors_of_all_ngrams(order: int) -> None:
    of = encoder(order)
    tokens, lengths = rows()
    got = features(of, tokens, lengths)
    for row, length, vector in zip(tokens, lengths.tolist(), got, strict=True):
        grams = [
            of.ngrams.ids(row[None, start : start + n], n)[0, 0]
            for n in range(1, order + 1)
            for start in range(length - n + 1)
        ]
        expected = of.table.weight[torch.stack(grams)].sum(dim=0) / len(grams) ** 0.5
        torch.testing.assert_close(vector, expected.detach())


def test_equal_ngrams_share_a_vector_and_their_order_matters() -> None:
    of = encoder()
    tokens = torch.tensor([[7, 8, 9, 7, 8, 9, 8, 7]])
    pairs = of.ngrams.ids(tokens, 2)[0]
    assert pairs[0] == pairs[3] and pairs[1] == pairs[4]
    assert pairs[0] != pairs[6]  # 7 8 against 8 7
    assert bool((pairs >= 20).all()) and bool((pairs < 1020).all())


def test_the_hash_spreads_evenly() -> None:
    of = NgramEncoder(300, width=1, order=2, buckets=100, dropout=0.0)
    first, second = torch.meshgrid(torch.arange(300), torch.arange(300), indexing="ij")
    pairs = of.ngrams.ids(torch.stack((first.flatten(), second.flatten()), dim=1), 2)[:, 0] - 300
    counts = torch.bincount(pairs, minlength=100).float()
    # 90,000 pairs in 100 buckets: chi-squared with 99 degrees of freedom, mean 99, deviation 14
    assert float(((counts - 900).square() / 900).sum()) < 180


def test_padding_changes_nothing() -> None:
    of = encoder()
    tokens, lengths = rows()
    wide = torch.nn.functional.pad(tokens, (0, 7), value=PAD)
    torch.testing.assert_close(features(of, wide, lengths), features(of, tokens, lengths))


def test_a_review_whose_ngrams_are_all_dropped_is_zeros_not_nan() -> None:
    of = encoder(dropout=0.999999)
    tokens, lengths = rows()
    assert not of.dropped(tokens, lengths).any()
    assert features(of, tokens, lengths).any(dim=1).all()


def test_dropout_changes_features_by_chance_and_not_on_average() -> None:
    of = encoder(dropout=0.6)
    tokens, lengths = rows()
    draws = torch.stack([of.dropped(tokens, lengths).detach() for _ in range(4000)])
    whole = features(of, tokens, lengths)
    error = draws.std(dim=0) / len(draws) ** 0.5
    assert bool(((draws.mean(dim=0) - whole).abs() < 5 * error).all())


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
def test_each_way_of_minimal_grus_knows_what_it_has_passed_and_nothing_else(layers: int) -> None:
    torch.manual_seed(0)
    sizes = {"embedding": 3, "encoder_hidden": 4, "encoder_layers": layers, "latent": 2}
    of = build(Model(**sizes, encoder="mingru"), 10)  # type: ignore[arg-type]
    assert isinstance(of, MinGRUEncoder) and of.width == 8
    of.begin()
    _, lengths = rows()
    embedded = torch.randn(3, 6, 3)
    ahead, behind = of.directions(embedded, lengths)
    changed = embedded.clone()
    changed[0, 3] += 1.0  # the first review has five tokens: the way back meets this one second
    further, back = of.directions(changed, lengths)
    torch.testing.assert_close(further[0, :3], ahead[0, :3])
    torch.testing.assert_close(back[0, :1], behind[0, :1])
    for position in (3, 4):
        assert not torch.allclose(further[0, position], ahead[0, position])
    for position in (1, 2, 3, 4):
        assert not torch.allclose(back[0, position], behind[0, position])
    for row, length in enumerate(lengths.tolist()):  # alone, without padding
        alone = of.directions(embedded[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0][0], ahead[row, :length])
        torch.testing.assert_close(alone[1][0], behind[row, :length])
        got = of.features(torch.empty(0), embedded, lengths)[row]
        torch.testing.assert_close(got, torch.cat((ahead[row, length - 1], behind[row, length - 1])))


@torch.no_grad()
def test_pooling_is_of_all_states_of_each_review_alone() -> None:
    torch.manual_seed(0)
    sizes = {"embedding": 3, "encoder_hidden": 4, "encoder_layers": 2, "latent": 2}
    of = build(Model(**sizes, pooling="all"), 10)  # type: ignore[arg-type]
    plain = build(Model(**sizes), 10)  # type: ignore[arg-type]
    assert of is not None and plain is not None and of.width == 3 * plain.width == 24
    plain.load_state_dict(of.state_dict())
    tokens, lengths = rows()
    embedded = torch.randn(3, 6, 3)
    got = of.features(tokens, embedded, lengths)
    torch.testing.assert_close(got[:, :8], plain.features(tokens, embedded, lengths))
    for row, length, vector in zip(embedded, lengths.tolist(), got, strict=True):
        states = torch.nn.LSTM.forward(of, row[None, :length])[0][0]  # (length, 8)
        torch.testing.assert_close(vector[8:16], states.amax(dim=0))
        torch.testing.assert_close(vector[16:], states.mean(dim=0))
