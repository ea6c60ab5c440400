"""N-grams and naive Bayes against plain Python and scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.naive_bayes import MultinomialNB

from textvae.batches import Batch
from textvae.config import Config, parse
from textvae.encoders import NgramEncoder
from textvae.model import TextVAE
from textvae.ngrams import NaiveBayes
from textvae.vocabulary import END, PAD

torch.set_num_threads(1)


def reviews() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.tensor(
        [
            [7, 8, 7, 8, END, PAD],
            [4, END, PAD, PAD, PAD, PAD],
            [9, 8, 7, 6, 5, END],
            [7, 8, END, PAD, PAD, PAD],
        ]
    )
    return tokens, torch.tensor([5, 2, 6, 3]), torch.tensor([1, 0, 0, -1])


def fitted(order: int = 2, dropout: float = 0.0) -> NaiveBayes:
    of = NaiveBayes(10, order=order, buckets=1000, dropout=dropout)
    of.fit(of.counts(*reviews()))
    return of


def test_an_ngram_counts_once_for_each_labelled_review_that_has_it() -> None:
    of = NaiveBayes(10, order=2, buckets=1000, dropout=0.0)
    tokens, lengths, labels = reviews()
    counts = of.counts(tokens, lengths, labels)
    assert counts.shape == (2, 1010) and int(counts[1].sum()) == 3 + 3 and int(counts[0].sum()) == 3 + 11
    assert (
        counts[:, 7].tolist() == [1, 1]
        and counts[:, 4].tolist() == [1, 0]
        and counts[:, PAD].tolist() == [0, 0]
    )
    pair = int(of.ngrams.ids(torch.tensor([[7, 8]]), 2))
    assert counts[:, pair].tolist() == [0, 1]
    halves = of.counts(tokens[:2], lengths[:2], labels[:2]) + of.counts(tokens[2:], lengths[2:], labels[2:])
    assert torch.equal(halves, counts)


def test_ratios_are_the_log_odds_of_a_naive_bayes_classifier() -> None:
    of = NaiveBayes(10, order=2, buckets=20, dropout=0.0)
    tokens, lengths, labels = reviews()
    has = torch.zeros(3, of.ngrams.rows)
    for row in range(3):
        length = int(lengths[row])
        for order in (1, 2):
            has[row, of.ngrams.ids(tokens[row : row + 1, :length], order)[0]] = 1.0
    theirs = MultinomialNB(alpha=1.0).fit(has.numpy(), labels[:3].numpy()).feature_log_prob_
    of.fit(of.counts(tokens, lengths, labels))
    torch.testing.assert_close(
        of.ratios.double(), torch.from_numpy(theirs[1] - theirs[0]), rtol=1e-5, atol=1e-6
    )


def test_the_feature_is_the_weighted_sum_of_the_ratios() -> None:
    of, (tokens, lengths, _) = fitted(), reviews()
    assert not of(tokens, lengths).any()  # no n-gram is trusted before training
    torch.nn.init.normal_(of.weights.weight)
    got = of(tokens, lengths)
    assert got.shape == (4, 1)
    for row, length in enumerate(lengths.tolist()):
        ids = [of.ngrams.ids(tokens[row : row + 1, :length], order)[0] for order in (1, 2)]
        terms = [float(of.weights.weight.detach()[id, 0] * of.ratios[id]) for id in torch.cat(ids)]
        assert float(got.detach()[row, 0]) == pytest.approx(sum(terms) / math.sqrt(len(terms)), rel=1e-5)


def test_the_model_reads_it_beside_its_encoder_and_drops_ngrams_for_the_sentiment_alone() -> None:
    torch.manual_seed(0)
    sizes = {"embedding": 4, "encoder_hidden": 3, "latent": 2, "decoder_hidden": 4}
    mapping = {
        "vocabulary": {"kind": "words", "size": 10, "max_length": 6},
        "model": {**sizes, "naive_bayes_order": 2, "naive_bayes_buckets": 50, "ngram_dropout": 0.5},
    }
    model, (tokens, lengths, labels) = TextVAE(parse(Config, mapping)), reviews()
    assert model.naive_bayes is not None and model.mean is not None and model.mean.in_features == 2 * 3 + 1
    before = model.encode(tokens, lengths)[0]
    model.naive_bayes.fit(model.naive_bayes.counts(tokens, lengths, labels))
    torch.nn.init.ones_(model.naive_bayes.weights.weight)
    feature = model.naive_bayes(tokens, lengths)
    after = model.encode(tokens, lengths)[0]
    torch.testing.assert_close(after - before, feature @ model.mean.weight[:, -1:].T)
    told = [model.train().posterior(tokens, lengths).told for _ in range(2)]
    assert not torch.equal(told[0], told[1])
    known = model.eval().posterior(tokens, lengths)
    assert torch.equal(known.told, known.mean)
    assert {"naive_bayes.ratios", "naive_bayes.weights.weight"} <= set(model.state_dict())


@pytest.mark.parametrize("adversarial", [0.0, 1.0])
def test_an_ngram_encoder_leaves_the_sentiment_to_the_ratios(adversarial: float) -> None:
    torch.manual_seed(0)
    sizes = {"encoder": "ngrams", "encoder_hidden": 3, "embedding": 4, "latent": 2, "decoder_hidden": 4}
    mapping = {
        "vocabulary": {"kind": "words", "size": 10, "max_length": 6},
        "model": {**sizes, "naive_bayes_order": 2, "naive_bayes_buckets": 50, "ngram_buckets": 50},
        "objective": {"kind": "elbo", "adversarial_weight": adversarial},
    }
    model, (tokens, lengths, labels) = TextVAE(parse(Config, mapping)), reviews()
    assert model.naive_bayes is not None and isinstance(model.encoder, NgramEncoder)
    model.naive_bayes.fit(model.naive_bayes.counts(tokens, lengths, labels))
    told = model.posterior(tokens, lengths).told
    model.sentiment_logits(told).sum().backward()
    assert model.encoder.table.weight.grad is None
    assert model.naive_bayes.weights.weight.grad is not None
    assert model.naive_bayes.weights.weight.grad.abs().sum() > 0
    model(Batch(tokens, lengths, labels, 4)).loss.backward()  # the reconstruction trains them
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
