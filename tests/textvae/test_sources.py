"""Prepared reviews: written whole, shuffled, split, read at random; the permutation under all of it."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textvae.config import Data
from textvae.sources import Corpus, Reviews, SourceError, prepare, writing
from textvae.sources.permutation import key_of, permute


@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(n: int, key: int) -> None:
    assert sorted(permute(np.arange(n), n, key).tolist()) == list(range(n))


@given(n=st.integers(1, 2**40), key=st.integers(0, 2**64 - 1), data=st.data())
def test_a_part_of_a_permutation_is_the_same_alone(n: int, key: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, n - 1), max_size=20))
    together = permute(indices, n, key)
    assert together.tolist() == [int(permute(i, n, key)) for i in indices]
    assert len(set(together.tolist())) == len(set(indices))
    assert all(0 <= i < n for i in together)


def test_keys_give_different_and_well_mixed_permutations() -> None:
    orders = [permute(np.arange(1000), 1000, key_of(seed, "reviews")) for seed in range(20)]
    assert len({order.tobytes() for order in orders}) == 20
    # Every index lands anywhere: the mean of 20 landings of each of 1,000 is far from its extremes.
    means = np.mean(orders, axis=0)
    assert 400 < np.median(means) < 600
    assert means.min() > 150 and means.max() < 850
    # Few fixed points and few neighbours that stay neighbours (one of each is expected).
    assert all((order == np.arange(1000)).sum() < 10 for order in orders)
    assert all((np.diff(order) == 1).sum() < 10 for order in orders)


def test_every_order_of_three_occurs() -> None:
    counts = Counter(tuple(permute(np.arange(3), 3, key_of(seed)).tolist()) for seed in range(600))
    assert len(counts) == 6 and min(counts.values()) > 50


@pytest.mark.parametrize(
    ("indices", "n", "error"), [([0], 0, ValueError), ([5], 5, IndexError), ([-1], 5, IndexError)]
)
def test_permute_refuses(indices: list[int], n: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        permute(indices, n, 1)


def test_the_splits_are_disjoint_and_whole(corpus: Corpus) -> None:
    splits = [set(reviews.texts()) for reviews in (corpus.train, corpus.validation)]
    assert [len(reviews) for reviews in (corpus.train, corpus.labelled, corpus.validation, corpus.test)] == [
        3200,
        2700,
        300,
        40,
    ]
    assert not splits[0] & splits[1] and len(splits[0] | splits[1]) == 3500
    assert corpus.dropped == 0


def test_rows_are_shuffled_the_same_way_every_time(
    corpus: Corpus, tmp_path: Path, write_reviews: Callable[..., Path]
) -> None:
    numbers = [int(text.split(":")[0]) for text in corpus.labelled.texts()]
    assert numbers != sorted(numbers)
    data = Data(source="files", train=(str(tmp_path / "train.jsonl"),), test=(str(tmp_path / "test.jsonl"),))
    again = prepare(data, tmp_path / "elsewhere")
    assert list(again.train.texts()) == list(corpus.train.texts())


def test_reading_keeps_the_order_asked_for(corpus: Corpus) -> None:
    texts = list(corpus.train.texts())
    rows = np.random.default_rng(0).integers(
        0, len(texts), 2000
    )  # across files and record batches, some twice
    got = corpus.train.read(rows)
    assert got.texts == [texts[row] for row in rows]
    assert len(got) == 2000
    number = np.array([int(text.split(":")[0]) for text in got.texts])
    assert (got.labels == np.where(number < 3000, number % 2, -1)).all()
    assert np.isnan(got.ratings).all()
    empty = corpus.train.read([])
    assert len(empty) == 0 and empty.labels.shape == (0,)


def test_reading_outside_is_an_error(corpus: Corpus) -> None:
    for row in (-1, len(corpus.train)):
        with pytest.raises(IndexError, match=f"range\\({len(corpus.train)}\\)"):
            corpus.train.read([row])


def test_reviews_can_be_pickled_and_read_by_threads(corpus: Corpus) -> None:
    copy: Reviews = pickle.loads(pickle.dumps(corpus.train))
    expected = corpus.train.read(np.arange(len(copy))).texts
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(copy.read(np.arange(len(copy))).texts == expected))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_subsets_are_drawn_without_replacement(tmp_path: Path, write_reviews: Callable[..., Path]) -> None:
    path = str(write_reviews(1000, 500))

    def texts(seed: int, **sizes: int) -> tuple[list[str], list[str], int]:
        corpus = prepare(Data(source="files", train=(path,), **sizes), tmp_path / "data", seed=seed)
        return list(corpus.train.texts()), list(corpus.validation.texts()), len(corpus.labelled)

    everything, held_out, _ = texts(0)
    train, validation, labelled = texts(0, train_size=280, validation_size=30)
    assert len(set(train)) == 280 and set(train) < set(everything)
    assert labelled == 180  # in proportion: 900 of 1,400 training reviews have a label
    assert len(set(validation)) == 30 and set(validation) < set(held_out)
    assert texts(0, train_size=280)[0] == train
    assert set(texts(1, train_size=280)[0]) != set(train)
    assert set(texts(0, train_size=1400)[0]) == set(everything)
    with pytest.raises(
        SourceError, match=r"data\.train_size is 1401, but there are only 1400 training reviews"
    ):
        texts(0, train_size=1401)
    with pytest.raises(SourceError, match=r"data\.validation_size is 101, but there are only 100"):
        texts(0, validation_size=101)


def test_without_unlabelled_reviews_only_labelled_ones_are_trained_on(
    tmp_path: Path, write_reviews: Callable[..., Path]
) -> None:
    data = Data(source="files", train=(str(write_reviews(100, 50)),), unlabelled=False)
    corpus = prepare(data, tmp_path / "data")
    assert corpus.train == corpus.labelled and len(corpus.train) == 90
    assert (corpus.train.read(np.arange(90)).labels >= 0).all()


def test_the_description(corpus: Corpus) -> None:
    description = corpus.describe()
    assert {name: counts.reviews for name, counts in description.counts.items()} == {
        "labelled": 2700,
        "unlabelled": 500,
        "validation": 300,
        "test": 40,
    }
    assert description.counts["test"] == writing.Counts(positive=20, negative=20, unlabelled=0)
    texts = [text for reviews in (corpus.train, corpus.validation, corpus.test) for text in reviews.texts()]
    for lengths, quantiles in (
        (sorted(len(text.split()) for text in texts), description.words),
        (sorted(map(len, texts)), description.characters),
    ):
        assert quantiles["0 %"] == lengths[0] and quantiles["100 %"] == lengths[-1]
        assert quantiles["50 %"] == lengths[len(lengths) // 2 - 1]
        assert list(quantiles) == ["0 %", "5 %", "25 %", "50 %", "75 %", "95 %", "100 %"]
    assert [example.text for example in description.examples] == corpus.labelled.read([0, 1, 2]).texts


def test_preparing_again_changes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.folder.iterdir()}
    data = Data(source="files", train=(str(tmp_path / "train.jsonl"),), test=(str(tmp_path / "test.jsonl"),))
    said: list[tuple[str, int, int | None]] = []
    assert prepare(data, tmp_path / "data", progress=lambda *args: said.append(args)) == corpus
    assert {path: path.stat().st_mtime_ns for path in corpus.folder.iterdir()} == before
    assert not said


def test_progress_is_told(tmp_path: Path, write_reviews: Callable[..., Path]) -> None:
    said: list[tuple[str, int, int | None]] = []
    data = Data(source="files", train=(str(write_reviews(2500)),))
    prepare(data, tmp_path / "data", progress=lambda *args: said.append(args))
    assert [args for args in said if args[0] == "reading files"] == [
        ("reading files", 1024, None),
        ("reading files", 2048, None),
        ("reading files", 2500, 2500),
    ]
    assert said[-1] == ("writing files", 2500, 2500)


def test_many_at_once_prepare_once(tmp_path: Path, write_reviews: Callable[..., Path]) -> None:
    data = Data(source="files", train=(str(write_reviews(3000)),))
    written: list[str] = []
    corpora: list[Corpus] = []

    def work() -> None:
        corpora.append(
            prepare(
                data, tmp_path / "data", progress=lambda what, done, total: written.append(f"{what} {done}")
            )
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(corpora) == 4 and len(set(corpora)) == 1
    assert written.count("writing files 3000") == 1


def _left(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if not path.name.endswith(".lock")]


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, write_reviews: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data(source="files", train=(str(write_reviews(3000)),))
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SourceError, match=r"data/files-\w+: cannot be written: No space left on device"):
        prepare(data, tmp_path / "data")
    assert not _left(tmp_path / "data")
    monkeypatch.setattr(os, "fsync", real)
    assert len(prepare(data, tmp_path / "data").train) == 2700


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, write_reviews: Callable[..., Path]) -> None:
    data = Data(source="files", train=(str(write_reviews(3000)),))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the system now refuses to write more
    try:
        with pytest.raises(SourceError, match="cannot be written: File too large"):
            prepare(data, tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not _left(tmp_path / "data")


def test_what_a_killed_process_left_is_cleared(tmp_path: Path, write_reviews: Callable[..., Path]) -> None:
    data = Data(source="files", train=(str(write_reviews(50)),))
    folder = prepare(data, tmp_path / "data").folder
    torn = folder.rename(folder.with_name(folder.name + ".partial"))
    (torn / "description.json").unlink()
    assert prepare(data, tmp_path / "data").folder == folder
    assert not torn.exists() and not (folder / "spool").exists()


def test_an_interrupt_leaves_nothing(tmp_path: Path, write_reviews: Callable[..., Path]) -> None:
    def interrupt(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(
            Data(source="files", train=(str(write_reviews(2000)),)), tmp_path / "data", progress=interrupt
        )
    assert not _left(tmp_path / "data")


def test_a_folder_that_cannot_be_made(tmp_path: Path, write_reviews: Callable[..., Path]) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(SourceError, match=r"data: cannot be written: File exists"):
        prepare(Data(source="files", train=(str(write_reviews(10)),)), tmp_path / "data")


def test_a_damaged_file_is_named(corpus: Corpus) -> None:
    path = corpus.folder / "labelled.arrow"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SourceError, match=r"labelled\.arrow: cannot be read .*delete its folder"):
        corpus.train.read([0])


# Reads a corpus from end to end, in shuffled order, and prints by how many KiB the resident memory grew.
_READ = """
import sys
from pathlib import Path
import numpy as np
from textvae.sources import Reviews
from textvae.sources.permutation import permute

def memory(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name + ":"))

reviews = Reviews.open([Path(sys.argv[1])])
reviews.read(np.arange(2048) % len(reviews))
before = memory("VmRSS")
for start in range(0, len(reviews), 2048):
    reviews.read(permute(np.arange(start, min(start + 2048, len(reviews))), len(reviews), 1))
print(memory("VmHWM") - before)
"""


def test_reading_more_takes_no_more_memory(tmp_path: Path) -> None:
    grown = []
    for copies in (2, 20):  # 4,096 and 40,960 reviews: 5 and 50 MB
        path = tmp_path / f"{copies}.arrow"
        with writing._Writer(path) as writer:
            for i in range(2048 * copies):
                writer.append(f"{i} " * 200, i % 2, None)
        done = subprocess.run(
            [sys.executable, "-c", _READ, str(path)], capture_output=True, text=True, check=True, timeout=120
        )
        grown.append(int(done.stdout))
    assert path.stat().st_size > 40_000_000
    assert grown[1] < grown[0] + 20_000, f"KiB more than at the start, small and large: {grown}"
