"""N-grams and naive Bayes against plain Python and scikit-learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.naive_bayes import MultinomialNB
from torch.nn import functional as F

from textvae.batches import Batch
from textvae.config import Config
from textvae.encoders import NgramEncoder
from textvae.model import TextVAE
from textvae.ngrams import NaiveBayes
from textvae.parsing import parse
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


def many(count: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reviews of which an 8 followed by a 7 is praise, and a 9 is not, most of the time."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 10, (count, 9), generator=random)
    lengths = torch.randint(2, 10, (count,), generator=random)
    pairs = ((tokens[:, :-1] == 8) & (tokens[:, 1:] == 7)).sum(dim=1) - (tokens == 9).sum(dim=1)
    noise = torch.randn(count, generator=random)
    padding = torch.arange(9) >= lengths[:, None]
    return tokens.masked_fill(padding, PAD), lengths, (pairs + noise > -1).long()


def test_the_coefficients_are_those_of_a_ridge_classifier_of_scaled_ngrams() -> None:
    of = NaiveBayes(10, order=2, buckets=40, dropout=0.0)
    tokens, lengths, labels = many()
    labels[:5] = -1
    of.fit([(tokens[:20], lengths[:20], labels[:20]), (tokens[20:], lengths[20:], labels[20:])])
    counts = np.zeros((60, of.ngrams.rows))
    for row, length in enumerate(lengths.tolist()):
        words = tokens[row, :length].tolist()
        pairs = [int(of.ngrams.ids(torch.tensor([pair]), 2)) for pair in itertools.pairwise(words)]
        np.add.at(counts[row], [*words, *pairs], 1.0)
    counts, y = counts[5:], labels[5:].numpy()
    theirs = MultinomialNB(alpha=1.0).fit(counts > 0, y).feature_log_prob_
    ratios = theirs[1] - theirs[0]
    x = np.hstack((counts / np.sqrt(counts.sum(axis=1, keepdims=True)) * ratios, np.ones((55, 1))))

    def cost(w: np.ndarray) -> float:  # the intercept is held small, too, as liblinear does
        return float(w @ w / 2 + of.C * np.logaddexp(0.0, -(2 * y - 1) * (x @ w)).sum())

    expected = minimize(cost, np.zeros(x.shape[1]), method="BFGS", options={"gtol": 1e-4}).x
    np.testing.assert_allclose(of.coefficients.numpy(), expected[:-1] * ratios, atol=0.02)


def test_the_feature_is_the_sum_of_the_coefficients_over_the_root_of_their_number() -> None:
    of, (tokens, lengths, _) = NaiveBayes(10, order=2, buckets=40, dropout=0.0), reviews()
    assert not of(tokens, lengths).any()
    torch.nn.init.normal_(of.coefficients)
    got = of(tokens, lengths)
    assert got.shape == (4, 1)
    for row, length in enumerate(lengths.tolist()):
        ids = [of.ngrams.ids(tokens[row : row + 1, :length], order)[0] for order in (1, 2)]
        terms = [float(of.coefficients[id]) for id in torch.cat(ids)]
        assert float(got[row, 0]) == pytest.approx(sum(terms) / math.sqrt(len(terms)), rel=1e-5)


def test_training_hears_of_a_review_what_is_known_without_the_reviews_of_its_fold() -> None:
    of = NaiveBayes(10, order=2, buckets=40, dropout=0.0, folds=3)
    tokens, lengths, labels = many()
    of.fit([(tokens, lengths, labels)])
    whole = NaiveBayes(10, order=2, buckets=40, dropout=0.0)
    whole.fit([(tokens, lengths, labels)])
    torch.testing.assert_close(of.eval()(tokens, lengths), whole(tokens, lengths))
    told = of.train()(tokens, lengths)
    folds = tokens.sum(dim=1) % 3
    assert len(set(folds.tolist())) == 3
    for fold in range(3):
        mine = folds == fold
        others = NaiveBayes(10, order=2, buckets=40, dropout=0.0)
        others.fit([(tokens[~mine], lengths[~mine], labels[~mine])])
        expected = others(tokens[mine], lengths[mine])
        torch.testing.assert_close(told[mine], expected, rtol=2e-3, atol=1e-2)  # of half precision
    padded = F.pad(tokens, (0, 5), value=PAD)
    torch.testing.assert_close(of(padded, lengths), told)


def test_a_fold_without_which_one_label_is_left_tells_nothing() -> None:
    of = NaiveBayes(10, order=1, buckets=1, dropout=0.0, folds=2)
    tokens, lengths = torch.tensor([[4, END], [5, END], [6, END]]), torch.tensor([2, 2, 2])
    assert (tokens.sum(dim=1) % 2).tolist() == [1, 0, 1]
    of.fit([(tokens, lengths, torch.tensor([1, 0, 1]))])
    assert of.coefficients.any() and not of.held_out.any()


def test_dropped_ngrams_leave_the_held_out_feature_what_it_is_on_average() -> None:
    of = NaiveBayes(10, order=2, buckets=40, dropout=0.5, folds=2)
    tokens, lengths, labels = many()
    of.fit([(tokens, lengths, labels)])
    torch.manual_seed(0)
    mean = torch.stack([of(tokens, lengths, dropout=0.5) for _ in range(2000)]).mean(dim=0)
    torch.testing.assert_close(mean, of(tokens, lengths), atol=0.2, rtol=0.05)


def test_reviews_of_one_label_alone_are_refused() -> None:
    tokens, lengths, labels = many()
    with pytest.raises(ValueError, match="needs training reviews of both labels"):
        NaiveBayes(10, order=2, buckets=40, dropout=0.0).fit([(tokens, lengths, labels * 0)])


def test_the_model_reads_it_beside_its_encoder_and_drops_ngrams_for_the_sentiment_alone() -> None:
    torch.manual_seed(0)
    sizes = {"embedding": 4, "encoder_hidden": 3, "latent": 2, "decoder_hidden": 4}
    mapping = {
        "vocabulary": {"kind": "words", "size": 10, "max_length": 6},
        "model": {**sizes, "naive_bayes_order": 2, "naive_bayes_buckets": 50, "ngram_dropout": 0.5},
    }
    model, (tokens, lengths, labels) = TextVAE(parse(Config, mapping)), reviews()
    assert model.naive_bayes is not None and model.mean is not None and model.mean.in_features == 2 * 3 + 1
    before = model.eval().encode(tokens, lengths)[0]
    model.naive_bayes.fit([(tokens, lengths, labels)])
    feature = model.naive_bayes(tokens, lengths)
    assert feature.any()
    after = model.encode(tokens, lengths)[0]
    torch.testing.assert_close(after - before, feature @ model.mean.weight[:, -1:].T)
    told = [model.train().posterior(tokens, lengths).told for _ in range(2)]
    assert not torch.equal(told[0], told[1])
    known = model.eval().posterior(tokens, lengths)
    assert known.told is known.mean
    assert "naive_bayes.coefficients" in model.state_dict()


@pytest.mark.parametrize("adversarial", [0.0, 1.0])
def test_an_ngram_encoder_is_not_trained_by_the_sentiment_where_there_is_the_feature(
    adversarial: float,
) -> None:
    torch.manual_seed(0)
    sizes = {"encoder": "ngrams", "encoder_hidden": 3, "embedding": 4, "latent": 2, "decoder_hidden": 4}
    mapping = {
        "vocabulary": {"kind": "words", "size": 10, "max_length": 6},
        "model": {**sizes, "naive_bayes_order": 2, "naive_bayes_buckets": 50, "ngram_buckets": 50},
        "objective": {"kind": "elbo", "adversarial_weight": adversarial},
    }
    model, (tokens, lengths, labels) = TextVAE(parse(Config, mapping)), reviews()
    assert model.naive_bayes is not None and isinstance(model.encoder, NgramEncoder)
    model.naive_bayes.fit([(tokens, lengths, labels)])
    told = model.posterior(tokens, lengths).told
    model.sentiment_logits(told).sum().backward()
    assert model.encoder.table.weight.grad is None
    assert model.mean is not None and model.mean.weight.grad is not None
    model(Batch(tokens, lengths, labels, 4)).loss.backward()  # the reconstruction trains them
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
