"""Vocabularies: the Keras IMDB convention against an independent reading of it; byte-level BPE."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from textvae.config import Vocabulary as Section
from textvae.vocabulary import END, OOV, PAD, START, BytePairs, Vocabulary, Words, build, split_words

TEXTS = [
    "The film was great, the cast was GREAT!<br /><br />Don't miss it.",
    "It was dull; the plot didn't work... I don't recommend it -- at all.",
    "naïve café: une œuvre d'art (vraiment) 10/10 \U0001f600",
    "the the the film",
]
CHARACTERS = st.characters(exclude_categories=["Cs"])
TRAINED = build(Section(kind="bpe", size=300), TEXTS * 3)


def _keras_words(text: str) -> list[str]:
    """Keras' text_to_word_sequence, written down from its documentation."""
    text = text.lower()
    for character in '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n':
        text = text.replace(character, " ")
    return [word for word in text.split(" ") if word]


def _keras_ids(learned: list[str], texts: list[str], num_words: int) -> list[list[int]]:
    """The ids of imdb.load_data(num_words, index_from=3, oov_char=2), without its start_char."""
    counts: OrderedDict[str, int] = OrderedDict()
    for text in learned:
        for word in _keras_words(text):
            counts[word] = counts.get(word, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: item[1], reverse=True)
    word_index = {word: rank for rank, (word, _) in enumerate(ordered, 1)}
    ids = [
        [word_index[w] + 3 if w in word_index else num_words for w in _keras_words(text)] for text in texts
    ]
    return [[i if i < num_words else 2 for i in row] for row in ids]


@given(
    st.lists(st.text(st.sampled_from("ab'C é\t\n\r.<>/-Üİ\u00a0\u2028"), max_size=30), max_size=6),
    st.integers(5, 20),
)
def test_words_are_those_of_keras(texts: list[str], size: int) -> None:
    learned, other = texts[:4], texts
    assert [split_words(text) for text in other] == [_keras_words(text) for text in other]
    vocabulary = build(Section(kind="words", size=size), learned)
    assert vocabulary.encode(other) == _keras_ids(learned, other, size)
    assert vocabulary.size == size


def test_words_by_example() -> None:
    vocabulary = build(Section(kind="words", size=8), TEXTS)
    # the: 6 times, was and it: 3, then those that occur twice, the first to come first.
    assert json.loads(vocabulary.to_json())["words"] == ["the", "was", "it", "film"]
    assert vocabulary.encode(["The film, was IT", "", "don't unknown"]) == [[4, 7, 5, 6], [], [2, 2]]
    assert vocabulary.decode([PAD, PAD, START, 4, 7, OOV, 6, END, PAD]) == "the film <oov> it"
    assert (vocabulary.kind, vocabulary.size) == ("words", 8)


def test_a_small_corpus_leaves_ids_unused() -> None:
    vocabulary = build(Section(kind="words", size=1000), ["two words"])
    assert vocabulary.size == 1000
    assert vocabulary.decode([4, 5, 6, 999]) == "two words <oov> <oov>"


def test_training_texts_are_streamed() -> None:
    for kind, size in (("words", 20), ("bpe", 300)):
        section = Section.model_validate({"kind": kind, "size": size})
        assert build(section, iter(TEXTS)).to_json() == build(section, TEXTS).to_json()


@given(st.lists(st.text(CHARACTERS), max_size=5))
def test_bpe_loses_nothing(texts: list[str]) -> None:
    encoded = TRAINED.encode(texts)
    assert [TRAINED.decode(ids) for ids in encoded] == texts
    assert all(END < i < TRAINED.size for ids in encoded for i in ids)


@given(st.text(st.one_of(st.sampled_from(" \t\n\r\x1c\x85\xa0\u2003'sta1"), CHARACTERS), max_size=60))
def test_bpe_of_pieces_is_bpe_of_the_whole(text: str) -> None:
    assert isinstance(TRAINED, BytePairs)
    tokenizer: Tokenizer = TRAINED._tokenizer
    assert TRAINED.encode([text]) == [tokenizer.encode(text).ids]


def test_bpe_merges_what_is_frequent() -> None:
    assert TRAINED.kind == "bpe" and 260 < TRAINED.size <= 300
    assert len(TRAINED.encode(["the film was great"])[0]) < len("the film was great") / 2
    assert (
        TRAINED.decode([START, *TRAINED.encode(["so "])[0], OOV, *TRAINED.encode(["é"])[0], END, PAD])
        == "so <oov>é"
    )


@pytest.mark.parametrize("text", ["[pad]", "[start] [end]", "[oov ]", "[pad ]", "<br />", "<oov>"])
def test_no_text_can_make_a_special_token(text: str) -> None:
    vocabulary = build(Section(kind="bpe", size=400), [text] * 50)
    ids = vocabulary.encode([text])[0]
    assert not {PAD, START, OOV, END} & set(ids)
    assert vocabulary.decode(ids) == text
    tokens = json.loads(vocabulary.to_json())["tokens"]
    assert [token.strip("[ ]") for token in tokens[:4]] == ["pad", "start", "oov", "end"]
    assert len(set(tokens)) == len(tokens) == vocabulary.size


def test_half_a_surrogate_pair_is_no_reason_to_fail() -> None:
    assert TRAINED.decode(TRAINED.encode(["a\ud83d"])[0]) == "a?"
    assert Words(["a"], 10).encode(["a \ud83d"]) == [[4]]


@pytest.mark.parametrize(
    "section", [Section(kind="words", size=20), Section(kind="bpe", size=300)], ids=lambda s: s.kind
)
def test_json_keeps_everything(section: Section) -> None:
    vocabulary = build(section, TEXTS)
    text = vocabulary.to_json()
    again = Vocabulary.from_json(text)
    assert type(again) is type(vocabulary) and "\n" not in text
    assert again.to_json() == text and again.size == vocabulary.size
    assert again.encode(TEXTS) == vocabulary.encode(TEXTS)
    with pytest.raises(
        ValueError, match=f"token id {vocabulary.size} is outside the vocabulary of {vocabulary.size}"
    ):
        again.decode([vocabulary.size])


@pytest.mark.parametrize("text", ["{}", "[]", '{"kind": "letters"}'])
def test_json_of_something_else(text: str) -> None:
    with pytest.raises(ValueError, match="not a vocabulary"):
        Vocabulary.from_json(text)


_BUILD = """
from textvae.config import Vocabulary
from textvae.vocabulary import build
texts = [f"{w}{i % 7} {w}er and {w}ing" for i in range(300) for w in ("watch", "film", "caf\\u00e9")]
for kind in ("words", "bpe"):
    print(build(Vocabulary(kind=kind, size=300), texts).to_json())
"""


def test_every_process_learns_the_same() -> None:
    done = [
        subprocess.run(
            [sys.executable, "-c", _BUILD],
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]
    assert done[0] == done[1] and done[0].count(b"\n") == 2
