"""Batches: what every rank reads, in which order, framed and padded how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from textvae.batches import Batch, Batches, Framing, collate, framing
from textvae.config import Config, Data
from textvae.config import Vocabulary as VocabularySection
from textvae.sources import Corpus, Reviews, Slice, prepare
from textvae.vocabulary import END, PAD, START, build

ELBO = Framing(start=False, end=True, pad="post", truncate="post", max_length=30, fixed=False)
SEED = Framing(start=True, end=False, pad="pre", truncate="pre", max_length=8, fixed=True)


@dataclass(frozen=True)
class _Numbered(Reviews):
    """Reviews that exist only as their numbers: review i is `i` repeated 1 to 20 times."""

    parts: tuple[()] = ()
    count: int = 0
    asked: list[int] = field(default_factory=list, compare=False)

    def __len__(self) -> int:
        return self.count

    def read(self, rows: ArrayLike) -> Slice:
        numbers = np.asarray(rows).tolist()
        self.asked.extend(numbers)
        texts = [" ".join([str(i)] * (1 + i * 7 % 20)) for i in numbers]
        return Slice(
            texts, np.array([i % 3 - 1 for i in numbers], np.int8), np.zeros(len(numbers), np.float32)
        )


class _Digits:
    """A vocabulary whose ids are numbers, moved past the special ones."""

    kind = "words"
    size = 10**6

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [[int(word) + 4 for word in text.split()] for text in texts]


def _batches(count: int, framing: Framing = ELBO, seed: int = 0, **options: object) -> Batches:
    return Batches(_Numbered(count=count), _Digits(), framing, seed=seed, **options)  # type: ignore[arg-type]


def _numbers(batch: Batch) -> list[int]:
    """Which reviews are in a batch."""
    return [int(row[row > END].min()) - 4 for row in batch.tokens]


def _equal(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.tokens, b.tokens)
        and torch.equal(a.lengths, b.lengths)
        and torch.equal(a.labels, b.labels)
        and a.total == b.total
    )


SIZES = st.tuples(st.integers(1, 400), st.integers(1, 7), st.integers(0, 40)).map(
    lambda sizes: (max(sizes[0], sizes[1]), sizes[1], sizes[1] + sizes[2])
)


@settings(deadline=None)
@given(sizes=SIZES, shuffle=st.booleans(), fixed=st.booleans(), epoch=st.integers(0, 3))
def test_every_review_once_and_every_rank_in_step(
    sizes: tuple[int, int, int], shuffle: bool, fixed: bool, epoch: int
) -> None:
    count, world, batch_size = sizes
    ranks = [
        _batches(
            count, SEED if fixed else ELBO, batch_size=batch_size, rank=r, world_size=world, shuffle=shuffle
        )
        for r in range(world)
    ]
    epochs = [list(rank.epoch(epoch)) for rank in ranks]
    assert {len(rank) for rank in ranks} == {len(batches) for batches in epochs} == {len(ranks[0])}
    read = [number for batches in epochs for batch in batches for number in _numbers(batch)]
    assert sorted(read) == list(range(count))
    for step in zip(*epochs, strict=True):
        assert {batch.total for batch in step} == {sum(len(batch) for batch in step)}
        assert all(len(batch) >= 1 for batch in step)
        # Rounded up for every rank; only too few reviews for all ranks in a last step can make it more.
        assert max(len(batch) for batch in step) <= max(-(-batch_size // world), 2)
    assert sum(batch.total for batch in epochs[0]) == count
    assert [
        number for rank in ranks for number in sorted(rank._reviews.asked)
    ]  # the shards were read from it
    assert sorted(n for rank in ranks for n in rank._reviews.asked) == list(range(count))  # and nothing twice


@settings(deadline=None)
@given(sizes=SIZES, data=st.data())
def test_an_epoch_can_begin_anywhere(sizes: tuple[int, int, int], data: st.DataObject) -> None:
    count, world, batch_size = sizes
    rank = data.draw(st.integers(0, world - 1))
    batches = _batches(count, batch_size=batch_size, rank=rank, world_size=world)
    whole = list(batches.epoch(2))
    start = data.draw(st.integers(0, len(whole)))
    rest = list(batches.epoch(2, start))
    assert len(rest) == len(whole) - start
    assert all(_equal(a, b) for a, b in zip(rest, whole[start:], strict=True))


ELASTIC = st.tuples(st.integers(1, 6), st.integers(0, 600), st.integers(0, 40)).map(
    lambda sizes: (sizes[0], 2 * sizes[0] + sizes[1], 2 * sizes[0] + sizes[2])
)


@settings(deadline=None)
@given(sizes=ELASTIC, shuffle=st.booleans(), fixed=st.booleans(), data=st.data())
def test_every_review_once_however_often_the_number_of_ranks_changes(
    sizes: tuple[int, int, int], shuffle: bool, fixed: bool, data: st.DataObject
) -> None:
    most, count, batch_size = sizes
    step, begun, read = 0, 0, []
    steps = None
    while step != steps:
        world = data.draw(st.integers(1, most), label="ranks")
        ranks = [
            _batches(
                count,
                SEED if fixed else ELBO,
                batch_size=batch_size,
                rank=rank,
                world_size=world,
                max_ranks=most,
                shuffle=shuffle,
            )
            for rank in range(world)
        ]
        steps = len(ranks[0])
        stop = data.draw(st.integers(step + 1, steps), label="until")
        parts = [list(rank.epoch(1, step, begun))[: stop - step] for rank in ranks]
        for together in zip(*parts, strict=True):
            assert all(len(batch) >= 1 for batch in together)
            assert {batch.total for batch in together} == {sum(len(batch) for batch in together)}
            read += [number for batch in together for number in _numbers(batch)]
        while step != stop:
            begun = ranks[0].layout(step, begun)
            step += 1
    assert sorted(read) == list(range(count))


def test_the_number_of_ranks_decides_nothing_but_who_reads_what() -> None:
    """A window that one rank began has the same reviews in each of its other steps for three ranks."""
    one = [set(_numbers(batch)) for batch in _batches(1000, batch_size=10).epoch(0)]
    three = [_batches(1000, batch_size=10, rank=rank, world_size=3) for rank in range(3)]
    steps = list(zip(*(rank.epoch(0, 20, 1) for rank in three), strict=True))
    read = [{number for batch in batches for number in _numbers(batch)} for batches in steps]
    assert read[:30] == one[20:50]  # the rest of the first window
    assert read[30:] != one[50:] and set.union(*read[30:]) == set.union(*one[50:])  # the second


def test_ranks_that_cannot_go_on_say_so() -> None:
    two = _batches(9, batch_size=4, world_size=2)
    assert len(two) == 3 and len(_batches(9, batch_size=4, world_size=4)) == 2
    with pytest.raises(ValueError, match=r"that 2 ranks began in 3 steps .* by 4, for which it has 2"):
        _batches(9, batch_size=4, world_size=4).epoch(0, 1, 2)
    layout = _batches(13, batch_size=5, world_size=2)
    sizes = [batch.total for batch in layout.epoch(0)]
    assert len(sizes) == 3 and min(sizes) == 4
    assert len(list(_batches(13, batch_size=5, world_size=4).epoch(0, 1, 2))) == 2
    uneven = _batches(12, batch_size=4, world_size=2)
    assert [batch.total for batch in uneven.epoch(0)] == [4, 4, 4]
    uneven = _batches(10, batch_size=4, world_size=2)
    assert sorted(batch.total for batch in uneven.epoch(0)) == [2, 4, 4]
    with pytest.raises(ValueError, match=r"that 2 ranks laid out has 2 reviews, too few for 3 ranks"):
        _batches(10, batch_size=4, world_size=3).epoch(0, 1, 2)


def test_skipping_reads_only_the_window_it_lands_in() -> None:
    batches = _batches(10_000, batch_size=10)
    next(iter(batches.epoch(0, start=970)))
    assert len(batches._reviews.asked) == 500


def test_ahead_the_batches_are_the_same() -> None:
    here, ahead = (_batches(700, batch_size=5, ahead=ahead) for ahead in (False, True))
    for start in (0, 57):
        ours, theirs = list(here.epoch(2, start)), list(ahead.epoch(2, start))
        assert len(ours) == len(theirs) == 140 - start
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.tokens, b.tokens) and torch.equal(a.labels, b.labels) and a.total == b.total
    with pytest.raises(ValueError, match="by 4, for which it has 2"):  # before it is iterated
        _batches(9, batch_size=4, world_size=4, ahead=True).epoch(0, 1, 2)


def test_a_whole_batch_is_as_large_as_asked() -> None:
    assert {len(batch) for batch in _batches(2000, batch_size=10).epoch(0)} == {10}
    sizes = [len(batch) for batch in _batches(1003, batch_size=10).epoch(0)]
    assert set(sizes) == {9, 10} and len(sizes) == 101


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return [_numbers(batch) for batch in _batches(1000, batch_size=10, seed=seed).epoch(epoch)]

    assert order(1, 0) == order(1, 0)
    different = [order(1, 0), order(1, 1), order(2, 0)]
    for i, a in enumerate(different):
        assert sorted(number for numbers in a for number in numbers) == list(range(1000))
        assert all(a != b for b in different[i + 1 :])
        # Batches are made of other reviews too, not the same ones in another order.
        assert all(len({frozenset(x) for x in a} & {frozenset(x) for x in b}) < 5 for b in different[i + 1 :])


def test_without_shuffling_windows_come_in_order() -> None:
    batches = list(_batches(1000, batch_size=10, shuffle=False).epoch(0))
    assert sorted(n for batch in batches[:50] for n in _numbers(batch)) == list(range(500))
    assert all(
        _equal(a, b)
        for a, b in zip(batches, _batches(1000, batch_size=10, shuffle=False).epoch(7), strict=True)
    )
    in_order = _batches(100, SEED, batch_size=10, shuffle=False).epoch(0)
    assert [n for batch in in_order for n in _numbers(batch)] == list(range(100))


def _padding(batches: Iterator[Batch]) -> float:
    shapes = [(batch.tokens.numel(), int(batch.lengths.sum())) for batch in batches]
    return 1 - sum(real for _, real in shapes) / sum(every for every, _ in shapes)


def test_bucketing_saves_padding() -> None:
    bucketed = _batches(3200, batch_size=32)
    assert len(bucketed) == 100
    numbers = np.random.default_rng(0).permutation(3200).reshape(100, 32)
    unsorted = []
    for rows in numbers:
        tokens, lengths = collate(_Digits().encode(_Numbered(count=3200).read(rows).texts), ELBO)
        unsorted.append(Batch(tokens, lengths, torch.zeros(32), 32))
    assert _padding(bucketed.epoch(0)) < 0.06 < 0.4 < _padding(iter(unsorted))


def test_ranks_find_similar_lengths_at_the_same_step() -> None:
    ranks = [list(_batches(6400, batch_size=64, rank=r, world_size=4).epoch(0)) for r in range(4)]
    widths = np.array([[batch.tokens.shape[1] for batch in batches] for batches in ranks])
    assert np.ptp(widths, axis=0).max() <= 2  # while lengths go from 2 to 21
    assert np.ptp(widths, axis=1).min() >= 15


def test_labels_stay_with_their_reviews() -> None:
    for batch in _batches(500, batch_size=16).epoch(0):
        assert batch.labels.tolist() == [number % 3 - 1 for number in _numbers(batch)]
        assert batch.lengths.tolist() == [1 + number * 7 % 20 + 1 for number in _numbers(batch)]
        assert (batch.tokens.dtype, batch.lengths.dtype, batch.labels.dtype) == (torch.int64,) * 3


def test_a_batch_moves_to_a_device() -> None:
    batch = next(iter(_batches(10, batch_size=5).epoch(0)))
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in (moved.tokens, moved.lengths, moved.labels)} == {"meta"}
    assert moved.total == batch.total and len(moved) == 5


@pytest.mark.parametrize(
    ("count", "options", "reason"),
    [
        (3, {"batch_size": 8, "world_size": 4}, "3 reviews cannot be shared by 4 ranks: ask for fewer ranks"),
        (0, {"batch_size": 8}, "0 reviews cannot be shared by 1 ranks"),
        (9, {"batch_size": 3, "world_size": 4}, r"batch_size \(3\) counts the reviews of all 4 ranks"),
        (9, {"batch_size": 4, "world_size": 2, "rank": 2}, r"rank 2 is not in range\(2\)"),
        (99, {"batch_size": 9, "max_ranks": 5}, r"batch_size \(9\) must be at least 10, two for each of"),
        (9, {"batch_size": 99, "max_ranks": 5}, r"the number of reviews \(9\) must be at least 10"),
        (9, {"batch_size": 9, "world_size": 3, "max_ranks": 2}, r"3 ranks are more than max_ranks \(2\)"),
    ],
)
def test_what_cannot_be_done(count: int, options: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        _batches(count, **options)


@pytest.mark.parametrize(
    ("truncate", "rows"),
    [
        # As Keras: START belongs to what is cut.
        (
            "pre",
            [[PAD] * 5 + [START, 10, 11], [START, *range(10, 17)], [*range(10, 18)], [PAD] * 7 + [START]],
        ),
        (
            "post",
            [
                [PAD] * 5 + [START, 10, 11],
                [START, *range(10, 17)],
                [START, *range(10, 17)],
                [PAD] * 7 + [START],
            ],
        ),
    ],
)
def test_framing_of_the_seed(truncate: str, rows: list[list[int]]) -> None:
    config = Config.model_validate(
        {
            "objective": "seed",
            "model": {"decoder": "repeat"},
            "vocabulary": {"kind": "words", "max_length": 8, "truncation": truncate},
        }
    )
    tokens, lengths = collate([[10, 11], [*range(10, 17)], [*range(10, 18)], []], framing(config))
    assert tokens.tolist() == rows
    assert lengths.tolist() == [3, 8, 8, 1]
    assert collate([[10]], framing(config))[0].shape == (1, 8)


@pytest.mark.parametrize(
    ("truncate", "kept"),
    [("post", [10, 11, 12, 13]), ("pre", [12, 13, 14, 15]), ("middle", [10, 13, 14, 15])],
)
def test_framing_of_the_elbo(truncate: str, kept: list[int]) -> None:
    config = Config.model_validate({"vocabulary": {"max_length": 4, "truncation": truncate}})
    tokens, lengths = collate([[10, 11], [*range(10, 16)], []], framing(config))
    assert tokens.tolist() == [[10, 11, END, PAD, PAD], [*kept, END], [END, PAD, PAD, PAD, PAD]]
    assert lengths.tolist() == [3, 5, 1]
    assert collate([[10], []], framing(config))[0].tolist() == [[10, END], [END, PAD]]
    assert collate([], framing(config))[0].shape == (0, 0)


def test_with_real_reviews(corpus: Corpus, tmp_path: Path, write_reviews: Callable[..., Path]) -> None:
    vocabulary = build(VocabularySection(kind="bpe", size=400), corpus.train.texts())
    batches = Batches(corpus.train, vocabulary, ELBO, batch_size=64, seed=3)
    decoded = {}
    for batch in batches.epoch(0):
        for row, label in zip(batch.tokens, batch.labels.tolist(), strict=True):
            decoded[vocabulary.decode(row.tolist())] = label
    got = corpus.train.read(np.arange(len(corpus.train)))
    expected = {
        vocabulary.decode(ids[:30]): label
        for ids, label in zip(vocabulary.encode(got.texts), got.labels.tolist(), strict=True)
    }
    assert decoded == expected and len(decoded) == 3200
    drawn = prepare(
        Data(source="files", train=(str(write_reviews(500)),), train_size=100), tmp_path / "more", seed=1
    )
    assert sum(len(b) for b in Batches(drawn.train, vocabulary, ELBO, batch_size=8, seed=0).epoch(0)) == 100
