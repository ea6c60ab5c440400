"""What several tests of the library need: reviews in files, prepared."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from textvae.config import Data
from textvae.sources import Corpus, prepare

_GOOD = ["great", "wonderful", "moving", "a joy", "superb", "don't miss it"]
_BAD = ["awful", "boring", "a mess", "dull", "painful", "don't bother"]
_PLAIN = [
    "the film",
    "its plot",
    "the cast",
    "this story",
    "every scene",
    "the score",
    "was",
    "and",
    "so",
    "at times",
]


def _review(number: int, label: int | None, random_: random.Random) -> dict[str, object]:
    mood = random_.choice((_GOOD, _BAD)) if label is None else (_BAD, _GOOD)[label]
    words = [
        random_.choice(mood if random_.random() < 0.3 else _PLAIN) for _ in range(random_.randint(1, 40))
    ]
    return {"text": f"{number}: {' '.join(words)}.", "label": label}


@pytest.fixture
def write_reviews(tmp_path: Path) -> Callable[..., Path]:
    """write_reviews(labelled, unlabelled=0, name="train.jsonl") -> a file of distinct, seeded reviews."""

    def write(labelled: int, unlabelled: int = 0, name: str = "train.jsonl") -> Path:
        random_ = random.Random(name)
        labels = [i % 2 for i in range(labelled)] + [None] * unlabelled
        rows = [_review(i, label, random_) for i, label in enumerate(labels)]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def corpus(tmp_path: Path, write_reviews: Callable[..., Path]) -> Corpus:
    """3,000 labelled and 500 unlabelled reviews, a tenth of the labelled ones held out; 40 test reviews."""
    data = Data(
        source="files",
        train=(str(write_reviews(3000, 500)),),
        test=(str(write_reviews(40, name="test.jsonl")),),
    )
    return prepare(data, tmp_path / "data")
