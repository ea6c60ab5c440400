from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from sacrebleu.metrics import BLEU

from textvae.evaluate.surface import bleu, distinct, self_bleu, sentence_bleu, words

TEXTS = [
    "A great film, and a great, great story.",
    "A great film and a dull story!",
    "I hate this film.",
    "the the the the cat",
    "the cat the cat sat on the mat the",
    "Hm",
]


def by_hand(written: list[str], references: list[str]) -> float:
    """BLEU-4 as Papineni et al. write it, no n-gram order being without a match."""
    logs = []
    for n in range(1, 5):
        right = total = 0
        for text, reference in zip(written, references, strict=True):
            a, b = text.split(), reference.split()
            counts = Counter(tuple(a[i : i + n]) for i in range(len(a) - n + 1))
            most = Counter(tuple(b[i : i + n]) for i in range(len(b) - n + 1))
            right += (counts & most).total()
            total += counts.total()
        logs.append(math.log(right / total))
    c, r = (sum(len(text.split()) for text in texts) for texts in (written, references))
    return 100 * math.exp(sum(logs) / 4 + min(0.0, 1 - r / c))


def test_bleu_is_papinenis() -> None:
    written = ["the cat sat on the mat today", "a dull film with a dull and long story in it"]
    references = ["the cat sat on a mat today or so", "a dull film with a dull and long story behind it"]
    assert bleu(written, references) == pytest.approx(by_hand(written, references), rel=1e-9)
    assert bleu(references, references) == pytest.approx(100)
    assert sentence_bleu("yes", "yes") == pytest.approx(100)  # shorter than four words, and right
    with pytest.raises(ValueError, match="references"):
        bleu(["a"], [])


def test_self_bleu_is_sacrebleus_with_all_others_as_references() -> None:
    scorer = BLEU(tokenize="13a", effective_order=True)
    expected = [scorer.sentence_score(text, TEXTS[:i] + TEXTS[i + 1 :]).score for i, text in enumerate(TEXTS)]
    assert self_bleu(TEXTS) == pytest.approx(sum(expected) / len(expected), rel=1e-9)
    random_ = random.Random(0)
    many = [" ".join(random_.choices("abcde", k=random_.randint(1, 12))) for _ in range(40)]
    expected = [scorer.sentence_score(text, many[:i] + many[i + 1 :]).score for i, text in enumerate(many)]
    assert self_bleu(many) == pytest.approx(sum(expected) / 40, rel=1e-9)
    assert self_bleu(["all the same here", "all the same here"]) == pytest.approx(100)
    with pytest.raises(ValueError, match="at least 2"):
        self_bleu(TEXTS[:1])


def test_distinct_counts_different_ngrams() -> None:
    texts = ["a b a b", "a b c"]
    assert distinct(texts, 1) == 3 / 7
    assert distinct(texts, 2) == 3 / 5  # ab ba ab | ab bc
    assert distinct(texts, 4) == 1
    assert distinct(texts, 5) == 0


def test_words_are_bleus() -> None:
    assert words("Don't stop: it's great.") == ["Don't", "stop", ":", "it's", "great", "."]
