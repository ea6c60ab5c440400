from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from textvae.evaluate.moving import STEPS, advance, classifier, interpolate, push, transfer
from textvae.evaluate.reading import Texts
from textvae.evaluate.surface import bleu, sentence_bleu
from textvae.predict import Predictor
from textvae.vocabulary import OOV

Make = Callable[..., Predictor]
TextsOf = Callable[..., Texts]


def test_a_push_ends_where_it_should_on_the_shortest_way() -> None:
    random = np.random.default_rng(0)
    means, weight, bias = random.normal(size=(20, 4)), random.normal(size=4), 0.3
    pushed = push(means, weight, bias, 2.5)
    np.testing.assert_allclose(pushed @ weight + bias, np.where(means @ weight + bias > 0, -2.5, 2.5))
    moved = pushed - means
    np.testing.assert_allclose(moved, (moved @ weight / (weight @ weight))[:, None] * weight)  # along w alone
    with pytest.raises(ValueError, match="no direction"):
        push(means, np.zeros(4), bias, 1.0)
    with pytest.raises(ValueError, match="above 0"):
        push(means, weight, bias, 0.0)


def test_transfer_is_what_the_predictor_would_say_of_the_texts(make: Make, texts_of: TextsOf) -> None:
    predictor = make()
    with torch.no_grad():
        predictor.model.sentiment_output.bias.zero_()  # type: ignore[union-attr]
    texts = texts_of(predictor)
    means = predictor.embed(texts.texts).astype(np.float64)
    means -= means.mean(axis=0)  # some on each side
    direction, b = predictor.model.sentiment_direction()
    weight, bias = direction.double().numpy(), float(b)
    positive = np.array(["great" in text for text in ["x"]])
    rows = transfer(
        predictor.model, texts, means, weight, bias, judge=lambda some: np.resize(positive, len(some))
    )
    assert [row.step for row in rows] == [None, *STEPS]
    assert rows[0].bleu == pytest.approx(100)
    words = [re.findall(r"[a-z']+", text.lower())[:9] for text in texts.texts]
    known = {word for line in words for word in line if OOV not in predictor.vocabulary.encode([word])[0]}
    source = [" ".join(word for word in line if word in known) for line in words]
    assert 0 < len(known) < len({word for line in words for word in line})
    other = means @ weight + bias <= 0
    assert 0 < other.sum() < 8
    for row in rows:
        z = means if row.step is None else push(means, weight, bias, row.step)
        written = [
            predictor.vocabulary.decode(ids)
            for ids in predictor.model.generate(torch.tensor(z, dtype=torch.float32)).tolist()
        ]
        own = [
            predictor.vocabulary.decode(ids)
            for ids in predictor.model.generate(torch.tensor(means, dtype=torch.float32)).tolist()
        ]
        flipped = [(p > 0.5) == up for p, up in zip(predictor.sentiment(written), other, strict=True)]
        assert row.flipped == np.mean(flipped)
        assert row.judged == np.mean(~other)  # this judge says negative of everything
        assert row.bleu == pytest.approx(bleu(written, own))
        assert row.source_bleu == pytest.approx(bleu(written, source))
        assert row.source_bleu != pytest.approx(row.bleu)


def test_an_even_walk_deviates_by_nothing() -> None:
    way = np.linspace(0, 1, 5)[:, None] * np.array([3.0, -1.0])
    assert advance(way[None] + 7) == pytest.approx((0, 1))
    # A jump in the middle: 0 0 1 1 1 instead of quarters.
    jump = np.array([0, 0, 1, 1, 1.0])[:, None] * np.array([3.0, -1.0])
    deviation, monotone = advance(jump[None])
    assert deviation == pytest.approx((0.25 + 0.5 + 0.25) / 3) and monotone == 1 / 4
    # A line that goes nowhere is left out; all of them, and there is nothing to say.
    assert advance(np.stack([way, np.zeros_like(way)])) == pytest.approx((0, 1))
    assert all(math.isnan(value) for value in advance(np.zeros((2, 5, 2))))


def test_interpolation_compares_neighbours(make: Make, texts_of: TextsOf) -> None:
    predictor = make()
    texts = texts_of(predictor)
    means = predictor.embed(texts.texts).astype(np.float64) * 4
    found = interpolate(predictor.model, texts, means, 4)
    neighbours, ends, deviations, grows = [], [], [], []
    for i in range(0, 8, 2):
        z = torch.stack([torch.lerp(*torch.tensor(means[i : i + 2]), k / 3) for k in range(4)]).float()
        line = [predictor.vocabulary.decode(ids) for ids in predictor.model.generate(z).tolist()]
        neighbours += [sentence_bleu(line[k + 1], line[k]) for k in range(3)]
        ends.append(sentence_bleu(line[3], line[0]))
        read = predictor.embed(line).astype(np.float64)
        way = read[3] - read[0]
        far = [float((read[k] - read[0]) @ way / (way @ way)) for k in range(4)]
        deviations += [abs(far[1] - 1 / 3), abs(far[2] - 2 / 3)]
        grows += [far[k + 1] > far[k] for k in range(3)]
    assert found.pairs == 4 and found.steps == 4
    assert found.neighbour_bleu == pytest.approx(np.mean(neighbours))
    assert found.ends_bleu == pytest.approx(np.mean(ends))
    assert found.deviation == pytest.approx(np.mean(deviations), rel=1e-4)
    assert found.monotone == pytest.approx(np.mean(grows)) and 0 < found.monotone < 1
    with pytest.raises(ValueError, match="at least 3"):
        interpolate(predictor.model, texts, means, 2)
    with pytest.raises(ValueError, match="at least 2 reviews"):
        interpolate(predictor.model, texts.first(1), means[:1])


def test_the_judge_learns_from_labelled_texts_alone() -> None:
    texts = ["great fun", "great joy", "a bore", "dull bore", "great bore"] * 4
    labels = np.array([1, 1, 0, 0, -1] * 4, dtype=np.int8)
    assert classifier(texts, labels)(["great", "bore", ""]).tolist()[:2] == [True, False]
    with pytest.raises(ValueError, match="both labels"):
        classifier(texts, np.ones(20, dtype=np.int8))
