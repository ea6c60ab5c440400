"""files: every format, and every mistake a user can make in one, named by file, row and column."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from textvae.config import Data
from textvae.sources import Corpus, SourceError, files, prepare

# Texts that tempt a parser: quotes, separators, line breaks, a lone carriage return, space around, no ASCII.
TEXTS = ['She said "go", then\tleft.', "two\nlines", "  kept as is  ", "naïve 😀 <br />", "a,b;c\td", "plain"]
LABELS = [1, 0, None, 1, 0, None]


def _csv(separator: str, rows: list[list[str]]) -> bytes:
    quoted = ('"' + cell.replace('"', '""') + '"' for row in rows for cell in row)
    cells = list(quoted)
    width = len(rows[0])
    lines = [separator.join(cells[i : i + width]) for i in range(0, len(cells), width)]
    return ("\n".join(lines) + "\n").encode()


def _rows() -> list[list[str]]:
    labels = ["" if label is None else str(label) for label in LABELS]
    return [
        ["id", "label", "text"],
        *([str(i), *row] for i, row in enumerate(zip(labels, TEXTS, strict=True))),
    ]


def _json() -> bytes:
    return "".join(
        json.dumps({"text": t, "label": y}) + "\n" for t, y in zip(TEXTS, LABELS, strict=True)
    ).encode()


def _write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"label": pa.array(LABELS, pa.int32()), "text": TEXTS}), path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.csv": lambda path: path.write_bytes(_csv(",", _rows())),
    "a.csv.gz": lambda path: path.write_bytes(gzip.compress(_csv(",", _rows()))),
    "a.tsv": lambda path: path.write_bytes(_csv("\t", _rows())),
    "a.tsv.gz": lambda path: path.write_bytes(gzip.compress(_csv("\t", _rows()))),
    "a.jsonl": lambda path: path.write_bytes(_json()),
    "a.ndjson": lambda path: path.write_bytes(b"\n" + _json().replace(b"\n", b"\r\n")),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(_json())),
    "A.Parquet": _write_parquet,
    "with a byte order mark.csv": lambda path: path.write_bytes(b"\xef\xbb\xbf" + _csv(",", _rows())),
    "windows.csv": lambda path: path.write_bytes(b"text,label\r\nfirst,1\r\n\r\nsecond,0\r\n"),
}


def _read(path: Path, text: str = "text", label: str = "label") -> list[tuple[str, int | None, float | None]]:
    return list(files.read_rows(str(path), text, label))


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "windows.csv"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert _read(tmp_path / name) == [(t, y, None) for t, y in zip(TEXTS, LABELS, strict=True)]


def test_line_endings_of_windows(tmp_path: Path) -> None:
    WRITERS["windows.csv"](tmp_path / "windows.csv")
    assert _read(tmp_path / "windows.csv") == [("first", 1, None), ("second", 0, None)]


@pytest.mark.parametrize(
    ("written", "label"),
    [
        *[(value, 1) for value in ("1", "true", "True", "TRUE", "1.0", " 1 ")],
        *[(value, 0) for value in ("0", "false", "False", "0.0")],
        *[(value, None) for value in ("", "-1", "nan", "null")],
    ],
)
def test_labels_as_text(tmp_path: Path, written: str, label: int | None) -> None:
    (tmp_path / "a.csv").write_text(f'text,label\nfine,"{written}"\n')
    assert _read(tmp_path / "a.csv") == [("fine", label, None)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([True, False, None]),
        pa.array([1.0, 0.0, float("nan")]),
        pa.array([1, 0, -1], pa.int8()),
        pa.array(["1", "0", None]).dictionary_encode(),
        pa.array(["true", "false", ""], pa.large_string()),
    ],
    ids=lambda column: str(column.type),
)
def test_labels_of_every_parquet_type(tmp_path: Path, column: pa.Array) -> None:
    texts = pa.array(["a", "b", "c"]).dictionary_encode()
    pq.write_table(pa.table({"text": texts, "label": column}), tmp_path / "a.parquet")
    assert [label for _, label, _ in _read(tmp_path / "a.parquet")] == [1, 0, None]


def test_other_columns_do_not_matter(tmp_path: Path) -> None:
    # A column whose type changes in the middle breaks whoever guesses types.
    rows = "".join(f"{i if i < 1500 else 'x'},review {i},{i % 2}\n" for i in range(3000))
    (tmp_path / "a.csv").write_text("id,body,stars\n" + rows)
    assert _read(tmp_path / "a.csv", "body", "stars")[2999] == ("review 2999", 1, None)


def _invalid_parquet(path: Path) -> None:
    texts = pa.StringArray.from_buffers(3, *pa.array([b"fine", b"caf\xe9", b"x"], pa.binary()).buffers()[1:])
    pq.write_table(pa.table({"text": texts, "label": pa.array([1, 0, 1])}), path)


def _two_columns_of_one_name(path: Path) -> None:
    pq.write_table(
        pa.table([pa.array(["x"]), pa.array(["y"]), pa.array([1])], names=["text", "text", "label"]), path
    )


MISTAKES: list[tuple[str, bytes | Callable[[Path], object], str]] = [
    ("a.csv", b"txt,label\nfine,1\n", "has no column 'text'; it has 'txt', 'label'; the nearest is 'txt'"),
    ("a.tsv", b"text\tsentiment\nfine\t1\n", "has no column 'label'; it has 'text', 'sentiment'"),
    ("a.jsonl", b'{"Text": "fine", "label": 1}\n', "row 1: has no column 'text'; it has 'Text', 'label'"),
    (
        "a.jsonl",
        b'{"text": "fine", "label": 1}\n{"label": 1}\n',
        "row 2: has no column 'text'; it has 'label'",
    ),
    ("a.parquet", _two_columns_of_one_name, "has 2 columns named 'text'"),
    ("a.csv", b"", "is empty: it has no rows"),
    ("a.csv", b"\n\n", "is empty: it has no rows"),
    ("a.csv", b"text,label\n", "is empty: it has no rows"),
    ("a.jsonl", b"\n", "is empty: it has no rows"),
    ("a.parquet", b"", "is empty: it has no rows"),
    ("a.csv.gz", gzip.compress(b""), "is empty: it has no rows"),
    ("a.csv", b"text,label\nfine,1\nbad,2\n", "row 2, column 'label': label '2' must be 0 or 1"),
    (
        "a.csv",
        b"text,label\nfine,1\nbad,caf\xe9\n",
        "row 2, column 'label': label 'caf�' must be 0 or 1",
    ),
    (
        "a.jsonl",
        b'{"text": "fine", "label": "positive"}\n',
        "row 1, column 'label': label 'positive' must be",
    ),
    ("a.jsonl", b'{"text": "fine", "label": 0.5}\n', "row 1, column 'label': label 0.5 must be"),
    ("a.csv", b"text,label\nfine,1\ncaf\xe9,0\n", "row 2, column 'text': not UTF-8: byte 0xe9 at position 3"),
    ("a.jsonl", b'{"text": "fine", "label": 1}\n{"text": "caf\xe9", "label": 1}\n', "row 2: not UTF-8"),
    (
        "a.jsonl",
        b'{"text": "\\ud83d", "label": 1}\n',
        "row 1, column 'text': half a surrogate pair at position 0",
    ),
    ("a.parquet", _invalid_parquet, "row 2, column 'text': not UTF-8: byte 0xe9 at position 3"),
    ("a.jsonl", b'{"text": "fine", "label": 1}\n{"text": \n', "row 2: not JSON"),
    ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "row 1: not JSON: maximum recursion depth"),
    (
        "a.csv",
        "text,label,Größe\nfine,1,2\n".encode("latin-1"),
        "the first line is not UTF-8: .*; save the file",
    ),
    (
        "a.csv",
        "text,label\nfine,1\n".encode("utf-16"),
        "the first line is not UTF-8: .*; save the file as UTF-8",
    ),
    ("a.jsonl", b'["fine", 1]\n', "row 1: must be an object such as"),
    ("a.jsonl", b'{"text": 5, "label": 1}\n', "row 1, column 'text': must be text, not 5"),
    (
        "a.csv",
        b"text,label\nfine,1\nno comma\n",
        "row 2: cannot be parsed: Expected 2 columns, got 1: no comma",
    ),
    ("a.parquet", b"not Parquet at all", "cannot be parsed after row 0"),
    ("a.csv.gz", b"not gzip", "cannot be (read|parsed) after row 0"),
]


@pytest.mark.parametrize(
    ("name", "content", "reason"), MISTAKES, ids=[f"{m[0]}: {m[2][:40]}" for m in MISTAKES]
)
def test_mistakes(tmp_path: Path, name: str, content: bytes | Callable[[Path], object], reason: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    with pytest.raises(SourceError, match=f"^{path}(: |, ){reason}"):
        prepare(Data(source="files", train=(str(path),)), tmp_path / "data")
    assert not [left for left in (tmp_path / "data").iterdir() if left.suffix != ".lock"]


def _prepare(tmp_path: Path, **settings: object) -> Corpus:
    return prepare(Data.model_validate({"source": "files", **settings}), tmp_path / "data")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "reviews.xlsx").touch()
    (tmp_path / "folder").mkdir()
    for pattern, reason in {
        f"{tmp_path}/absent.csv": r"data\.train: no file matches .*absent\.csv",
        f"{tmp_path}/*.csv": r"data\.train: no file matches .*\*\.csv",
        f"{tmp_path}/reviews.xlsx": r"reviews\.xlsx: unknown format; a name must end in one of \.parquet, ",
        f"{tmp_path}/folder": r"folder is a folder; name the files in it",
        "nosuch://bucket/a.csv": "nosuch://bucket/a.csv: not a URI that can be read",
    }.items():
        with pytest.raises(SourceError, match=reason):
            _prepare(tmp_path, train=[pattern])


def test_a_file_under_two_splits(tmp_path: Path, write_reviews: Callable[..., Path]) -> None:
    path = write_reviews(10)
    with pytest.raises(SourceError, match=r"train\.jsonl: is under both data\.train and data\.test"):
        _prepare(tmp_path, train=[str(path)], test=[f"{tmp_path}/*.jsonl"])


def test_globs_and_uris(
    tmp_path: Path, write_reviews: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl", "ab.jsonl", "deep/c.jsonl", "deep/er/d.jsonl"):
        write_reviews(10, name=name)

    def matched(pattern: str) -> list[str]:
        return [Path(name).name for name, _ in files._match((pattern,), "data.train")]

    assert matched(f"{tmp_path}/*.jsonl") == ["a.jsonl", "ab.jsonl", "b.jsonl"]
    assert matched(f"{tmp_path}/?.jsonl") == ["a.jsonl", "b.jsonl"]
    assert matched(f"{tmp_path}/[!b].jsonl") == ["a.jsonl"]
    assert matched(f"{tmp_path}/*/*.jsonl") == ["c.jsonl"]
    assert matched(f"{tmp_path}/**/*.jsonl") == ["a.jsonl", "ab.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]
    assert matched(f"file://{tmp_path}/deep/*.jsonl") == ["c.jsonl"]
    assert matched(f"file://{tmp_path}/a.jsonl") == ["a.jsonl"]
    monkeypatch.chdir(tmp_path)
    assert matched("deep/*.jsonl") == ["c.jsonl"] and matched("?.jsonl") == ["a.jsonl", "b.jsonl"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert matched("~/a.jsonl") == ["a.jsonl"] == matched("~/a.json[l]")
    assert len(_prepare(tmp_path, train=[f"file://{tmp_path}/?.jsonl"]).train) == 18


def test_short_texts_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [("", 1), (None, 0), ("  ", 1), ("x", 0), (" x ", 1), ("ok", 0), ("fine", 1)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows))
    corpus = _prepare(tmp_path, train=[str(tmp_path / "a.jsonl")])
    assert corpus.dropped == 5 == corpus.describe().dropped
    assert sorted([*corpus.train.texts(), *corpus.validation.texts()]) == ["fine", "ok"]
    with pytest.raises(SourceError, match=r"all 7 reviews are shorter than data\.min_characters \(10\)"):
        _prepare(tmp_path, train=[str(tmp_path / "a.jsonl")], min_characters=10)


def test_validation_files_are_used(tmp_path: Path, write_reviews: Callable[..., Path]) -> None:
    train, validation = str(write_reviews(100)), str(write_reviews(20, 5, "validation.jsonl"))
    corpus = _prepare(tmp_path, train=[train], validation=[validation])
    assert [len(r) for r in (corpus.train, corpus.validation, corpus.test)] == [100, 25, 0]
    labels = corpus.validation.read(np.arange(25)).labels
    assert [(labels == label).sum() for label in (1, 0, -1)] == [10, 10, 5]


def test_too_few_labels_to_hold_out(tmp_path: Path, write_reviews: Callable[..., Path]) -> None:
    with pytest.raises(SourceError, match=r"data\.train holds 1 labelled reviews, too few to hold some out"):
        _prepare(tmp_path, train=[str(write_reviews(1, 50))])
    assert len(_prepare(tmp_path, train=[str(write_reviews(2, 0))]).validation) == 1


def test_changed_files_and_settings_are_converted_anew(
    tmp_path: Path, write_reviews: Callable[..., Path]
) -> None:
    path = str(write_reviews(100))
    first = _prepare(tmp_path, train=[path])
    assert _prepare(tmp_path, train=[path]) == first
    assert _prepare(tmp_path, train=[path], validation_fraction=0.5).folder != first.folder
    write_reviews(200)
    second = _prepare(tmp_path, train=[path])
    assert second.folder != first.folder and len(second.train) == 180
    assert len(list(first.train.texts())) == 90  # what was prepared before is still there


def test_a_file_larger_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK", 4096)
    for name, separator in (("a.csv", ","), ("a.tsv.gz", "\t")):
        rows = [["text", "label"], *([f'review {i}\n"{"x" * (i % 90)}"', str(i % 2)] for i in range(500))]
        content = _csv(separator, rows)
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        assert [text for text, _, _ in _read(tmp_path / name)] == [row[0] for row in rows[1:]]
