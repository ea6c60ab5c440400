from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from textvae.batches import framing
from textvae.evaluate.reading import Texts, encode, kept_positions, read
from textvae.predict import Predictor
from textvae.sources import Corpus
from textvae.vocabulary import OOV

Make = Callable[..., Predictor]
TextsOf = Callable[..., Texts]


@pytest.mark.parametrize("tokens", ["words", "bpe"])
def test_whole_texts_have_the_words_and_bytes_of_the_text(make: Make, texts_of: TextsOf, tokens: str) -> None:
    given = ["A great film!", "caf\u00e9 -- what a great\tstory", "zzz unknown, unknown"]
    texts = texts_of(make(tokens=tokens, max_length=60), given)
    assert texts.words.tolist() == [3, 6, 3]
    assert texts.bytes.tolist() == [len(text.encode()) for text in given]
    assert not texts.cut.any()


def test_cut_texts_are_counted_up_to_the_cut(make: Make, texts_of: TextsOf) -> None:
    predictor = make(max_length=3)
    texts = texts_of(predictor, ['"A great - film, what \u00cf a mess', "great"])
    # Three words are kept; the sign between two of them is white-space separated and so a word of the text.
    assert texts.cut.tolist() == [True, False]
    assert texts.words[0] == 4
    assert texts.bytes[0] == len("A great - film")
    from_behind = predictor.config.vocabulary.model_copy(update={"truncation": "pre"})
    frame = framing(predictor.config.model_copy(update={"vocabulary": from_behind}))
    behind = encode(['"A great - film, what \u00cf a mess!'], predictor.vocabulary, frame)
    assert behind.words[0] == 3 and behind.bytes[0] == len("\u00cf a mess".encode())


def test_a_cut_of_byte_pairs_may_fall_inside_a_character(make: Make) -> None:
    predictor = make(tokens="bpe", max_length=4)
    texts = encode(["ab\u2603\u2603"], predictor.vocabulary, framing(predictor.config))
    assert len(texts.ids[0]) == 8 and texts.bytes.tolist() == [4] and texts.words.tolist() == [1]
    assert len(texts.kept(0)) == 4


def test_kept_positions_are_those_that_the_framing_keeps(make: Make) -> None:
    seed = framing(make("seed", max_length=5).config)
    assert kept_positions(3, seed) == [0, 1, 2]
    assert kept_positions(4, seed) == [0, 1, 2, 3]  # START is one of the five
    assert kept_positions(5, seed) == [0, 1, 2, 3, 4]  # and the first to go
    assert kept_positions(7, seed) == [2, 3, 4, 5, 6]


def test_batches_hold_every_review_once_and_stay_within_their_positions(
    make: Make, texts_of: TextsOf
) -> None:
    texts = texts_of(make(tokens="bpe", max_length=20))
    seen: list[int] = []
    for rows, tokens, lengths in texts.batches(positions=60):
        assert tokens.numel() <= 60 and tokens.shape[1] == lengths.max()
        seen += rows.tolist()
    assert sorted(seen) == list(range(8))


def test_reading_draws_the_same_reviews_for_any_number(make: Make, corpus: Corpus) -> None:
    predictor = make()
    frame = framing(predictor.config)
    few = read(corpus.validation, predictor.vocabulary, frame, 7)
    many = read(corpus.validation, predictor.vocabulary, frame, 20)
    everything = read(corpus.validation, predictor.vocabulary, frame, 10**6)
    assert many.texts[:7] == few.texts and len(everything) == len(corpus.validation)
    assert sorted(everything.texts) == sorted(corpus.validation.texts())
    assert read(corpus.validation, predictor.vocabulary, frame, 7, seed=1).texts != few.texts
    np.testing.assert_array_equal(few.labels, many.first(7).labels)
    with pytest.raises(ValueError, match="at least 1"):
        read(corpus.validation, predictor.vocabulary, frame, 0)


def test_what_can_be_read_leaves_unknown_words_out(make: Make, texts_of: TextsOf) -> None:
    texts = texts_of(make(), ["A great zzz film"])
    assert OOV in texts.kept(0) and texts.readable(0) == "a great film"
