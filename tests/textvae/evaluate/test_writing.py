from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from textvae.evaluate.likelihood import posterior
from textvae.evaluate.overlap import trained_on
from textvae.evaluate.reading import Texts
from textvae.evaluate.surface import bleu
from textvae.evaluate.writing import rewrite, sample, write
from textvae.predict import Predictor
from textvae.sources import Corpus
from textvae.vocabulary import OOV

Make = Callable[..., Predictor]
TextsOf = Callable[..., Texts]


@pytest.mark.parametrize("kind", ["elbo", "seed"])
def test_rewriting_counts_known_words_at_their_place(make: Make, texts_of: TextsOf, kind: str) -> None:
    predictor = make(kind, max_length=7)
    texts = texts_of(
        predictor, ["A great film!", "I hate this zzz film", "a", "Terrible acting and a story here it is"]
    )
    means = posterior(predictor.model, texts).mean * 3
    # Some tokens are right: the model is made to prefer the words of the second review.
    with torch.no_grad():
        for token in texts.kept(1):
            predictor.model.output.bias[token] += 2
    found = rewrite(predictor.model, texts, means)
    right = counted = 0
    for row in range(4):
        written = predictor.model.generate(torch.tensor(means[row : row + 1], dtype=torch.float32))[
            0
        ].tolist()
        kept = texts.kept(row)
        offset = 7 - len(kept) if kind == "seed" else 0  # the seed's padding comes first
        for place, token in enumerate(kept):
            if token != OOV:
                counted += 1
                right += place + offset < len(written) and written[place + offset] == token
        assert predictor.vocabulary.decode(written) == found.texts[row]
    assert right > 0
    assert found.token_accuracy == right / counted
    assert found.bleu == pytest.approx(bleu(found.texts, [texts.readable(row) for row in range(4)]))


def test_writing_and_sampling_are_the_predictors(make: Make) -> None:
    predictor = make()
    texts = ["A great film!", "what a mess"]
    z = predictor.embed(texts).astype(np.float64)
    assert write(predictor.model, predictor.vocabulary, z)[1] == predictor.reconstruct(texts)
    assert sample(predictor.model, predictor.vocabulary, 5, seed=3) == predictor.sample(5, seed=3)
    assert len(sample(predictor.model, predictor.vocabulary, 70)) == 70


def test_reviews_that_were_trained_on_are_found(corpus: Corpus, write_reviews: Callable[..., Path]) -> None:
    known = corpus.train.read([3, 3100]).texts  # one labelled, one unlabelled
    texts = ["never seen", known[0], "  " + known[1].replace(" ", "  ") + "\n", known[0].upper(), known[0]]
    assert trained_on(texts, corpus.train).tolist() == [False, True, True, False, True]
    assert not trained_on(texts, corpus.test).any()
