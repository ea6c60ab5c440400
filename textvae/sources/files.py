"""The user's own reviews: Parquet, CSV, TSV and JSON Lines, on disk or wherever pyarrow's filesystems go."""

from __future__ import annotations

import difflib
import io
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet

from textvae.config import Data
from textvae.sources.errors import SourceError
from textvae.sources.writing import Progress, Row, Split

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
# Rows of one file: row number from 1, then text, label and (if any) rating as the format has them.
_Rows = Iterator[tuple[int, tuple[Any, ...]]]
_NO_LABEL = ("", "-1", "-1.0", "nan", "null", "none")
_LABELS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1} | dict.fromkeys(_NO_LABEL)
# Bytes of a text file that are parsed at a time; no single row may be longer.
_BLOCK = 8 << 20
_PARQUET_ROWS = 1024


class Source:
    """The files under data.train, data.validation and data.test."""

    total = None

    def __init__(self, data: Data):
        self._data = data
        self._files = {split: _match(getattr(data, split), f"data.{split}") for split in _SPLITS}
        seen: dict[str, str] = {}
        for split, found in self._files.items():
            for info, _ in found:
                if seen.setdefault(info, split) != split:
                    raise SourceError(f"{info}: is under both data.{seen[info]} and data.{split}")

    def identity(self) -> tuple[str | int, ...]:
        """What these reviews are: columns, and each file with its size and time of change."""
        data = self._data
        files = [f"{split} {name} {stamp}" for split in _SPLITS for name, stamp in self._files[split]]
        fraction = "" if data.validation else str(data.validation_fraction)
        return ("files", data.text_column, data.label_column, fraction, *files)

    def rows(self, progress: Progress) -> Iterator[tuple[Split, Row]]:
        """Every row of every file with its split."""
        del progress  # the number of rows is not known before the end, and the caller counts them
        for split in _SPLITS:
            for name, _ in self._files[split]:
                for row in read_rows(name, self._data.text_column, self._data.label_column):
                    yield split, row

    def hold_out(self, labelled: int) -> Mapping[str, int]:
        """data.validation_fraction of the labelled training reviews, unless validation files are named."""
        if self._data.validation:
            return {}
        if labelled < 2:
            raise SourceError(
                f"data.train holds {labelled} labelled reviews, too few to hold some out for validation; "
                f"check data.label_column ({self._data.label_column!r}) or name files under data.validation"
            )
        return {"validation": min(labelled - 1, max(1, round(labelled * self._data.validation_fraction)))}


def read_rows(name: str, text: str, label: str, rating: str | None = None) -> Iterator[Row]:
    """The rows of one file: text (None becomes empty), label (1, 0 or None), rating (if it has one).

    name: a path or URI whose ending tells the format. SourceError names file, row (the first data row is 1)
    and column of whatever is wrong; an empty file is wrong.
    """
    read = _reader(name)
    row = 0
    try:
        for row, values in read(name, [text, label], rating):
            yield _text(values[0], name, row, text), _label(values[1], name, row, label), _rating(values[2:])
    except (OSError, EOFError) as error:
        raise SourceError(f"{name}: cannot be read after row {row}: {error}") from error
    except pa.ArrowException as error:
        raise SourceError(f"{name}: cannot be parsed after row {row}: {error}") from error
    if not row:
        raise SourceError(f"{name}: is empty: it has no rows")


def _text(value: Any, name: str, row: int, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{name}, row {row}, column {column!r}: not UTF-8: byte 0x{value[error.start]:02x} "
                f"at position {error.start}; save the file as UTF-8"
            ) from error
    if not isinstance(value, str):
        raise SourceError(f"{name}, row {row}, column {column!r}: must be text, not {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceError(
            f"{name}, row {row}, column {column!r}: half a surrogate pair at position {error.start}"
        ) from error
    return value


def _label(value: Any, name: str, row: int, column: str) -> int | None:
    plain = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    key = "" if plain is None else str(plain).strip().lower()
    if key not in _LABELS:
        raise SourceError(
            f"{name}, row {row}, column {column!r}: label {plain!r} must be 0 or 1 (or empty or -1: no label)"
        )
    return _LABELS[key]


def _rating(values: tuple[Any, ...]) -> float | None:
    return None if not values or values[0] is None or math.isnan(values[0]) else float(values[0])


# --- formats ---------------------------------------------------------------------------------------------


def _parquet(name: str, columns: list[str], rating: str | None) -> _Rows:
    filesystem, path = _resolve(name)
    with filesystem.open_input_file(path) as stream:
        if stream.size() == 0:
            return
        file = pa.parquet.ParquetFile(stream)
        present = file.schema_arrow.names
        _check_columns(name, columns, present)
        wanted = columns + ([rating] if rating in present else [])
        row = 0
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=list(dict.fromkeys(wanted))):
            got = [_plain(batch.column(column)) for column in wanted]
            for values in zip(*got, strict=True):
                row += 1
                yield row, values


def _plain(column: Any) -> list[Any]:
    """Values of an Arrow column; strings as bytes, for Parquet does not promise that they are UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        column = column.cast(pa.binary())
    elif pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return list(column.to_pylist())


def _delimited(delimiter: str) -> Callable[[str, list[str], str | None], _Rows]:
    def read(name: str, columns: list[str], rating: str | None) -> _Rows:
        del rating
        parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        # Without threads an error can name its row.
        how = pa.csv.ReadOptions(block_size=_BLOCK, use_threads=False)
        with _open(name) as stream:
            header = _csv_header(stream, name, delimiter)
        if header is None:
            return
        _check_columns(name, columns, header)
        # As bytes: pyarrow would say that a text is not UTF-8, but not in which row.
        convert = pa.csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.binary())
        )
        with _open(name) as stream:
            row = 0
            try:
                for batch in pa.csv.open_csv(stream, how, parse, convert):
                    for values in zip(*(batch.column(column).to_pylist() for column in columns), strict=True):
                        row += 1
                        yield row, values
            except pa.ArrowInvalid as error:
                named = re.search(r"Row #(\d+): (.*)", str(error), re.DOTALL)
                if named is None:
                    raise
                # pyarrow counts the header as a row, and shows the whole of a wrong one.
                what = textwrap.shorten(named[2], 200)
                raise SourceError(f"{name}, row {int(named[1]) - 1}: cannot be parsed: {what}") from error

    return read


def _csv_header(stream: Any, name: str, delimiter: str) -> list[str] | None:
    """The column names in the first line; None for a file without a byte."""
    start = stream.read(_BLOCK).lstrip(b"\r\n")
    if not start.strip():
        return None
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    first = start.split(b"\n", 1)[0] + b"\n"
    try:
        names = pa.csv.open_csv(io.BytesIO(first), parse_options=parse).schema.names
    except UnicodeDecodeError as error:
        raise SourceError(f"{name}: the first line is not UTF-8: {error}; save the file as UTF-8") from error
    except pa.ArrowException as error:
        raise SourceError(f"{name}: the first line does not hold column names: {error}") from error
    return list(names)


def _json_lines(name: str, columns: list[str], rating: str | None) -> _Rows:
    del rating
    text, label = columns
    with _open(name) as stream:
        row = 0
        for line in io.BufferedReader(stream, _BLOCK):
            if not line.strip():
                continue
            row += 1
            try:
                value = json.loads(line)
            except UnicodeDecodeError as error:
                raise SourceError(f"{name}, row {row}: not UTF-8: {error}; save the file as UTF-8") from error
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{name}, row {row}: not JSON: {error}") from error
            if not isinstance(value, dict):
                raise SourceError(
                    f'{name}, row {row}: must be an object such as {{"{text}": "...", "{label}": 1}}'
                )
            if text not in value or (row == 1 and label not in value):
                _check_columns(f"{name}, row {row}", columns, list(value))
            yield row, (value[text], value.get(label))


_FORMATS: dict[str, Callable[[str, list[str], str | None], _Rows]] = {
    ".parquet": _parquet,
    ".csv": _delimited(","),
    ".csv.gz": _delimited(","),
    ".tsv": _delimited("\t"),
    ".tsv.gz": _delimited("\t"),
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".ndjson": _json_lines,
    ".ndjson.gz": _json_lines,
}


def _reader(name: str) -> Callable[[str, list[str], str | None], _Rows]:
    for ending, read in _FORMATS.items():
        if name.lower().endswith(ending):
            return read
    raise SourceError(f"{name}: unknown format; a name must end in one of {', '.join(_FORMATS)}")


def _check_columns(where: str, wanted: list[str], present: list[str]) -> None:
    for column in wanted:
        if column not in present:
            near = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise SourceError(
                f"{where}: has no column {column!r}; it has {', '.join(map(repr, present))}{hint}"
            )
        if present.count(column) > 1:
            raise SourceError(f"{where}: has {present.count(column)} columns named {column!r}")


# --- finding files ---------------------------------------------------------------------------------------


def _is_uri(name: str) -> bool:
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", name) is not None


def _resolve(name: str) -> tuple[Any, str]:
    """The filesystem of a path or URI, and the path within it."""
    if not _is_uri(name):
        return pa.fs.LocalFileSystem(), str(Path(name).expanduser().absolute())
    try:
        filesystem, path = pa.fs.FileSystem.from_uri(name)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"{name}: not a URI that can be read: {error}") from error
    return filesystem, path


def _open(name: str) -> Any:
    """A stream of the file's bytes, decompressed if its name ends in .gz."""
    filesystem, path = _resolve(name)
    return filesystem.open_input_stream(path, compression="gzip" if name.lower().endswith(".gz") else None)


def _match(patterns: tuple[str, ...], option: str) -> list[tuple[str, str]]:
    """Each file that patterns name (a path or URI), with its size and time of change, sorted by name."""
    found: dict[str, str] = {}
    for pattern in patterns:
        try:
            infos = _infos(pattern)
        except OSError as error:
            raise SourceError(f"{option}: {pattern}: cannot be looked up: {error}") from error
        if not infos:
            raise SourceError(f"{option}: no file matches {pattern}")
        for name, info in infos:
            if info.type == pa.fs.FileType.Directory:
                raise SourceError(
                    f"{option}: {name} is a folder; name the files in it, such as {name}/*.parquet"
                )
            _reader(name)
            found[name] = f"{info.size} {info.mtime_ns}"
    return sorted(found.items())


def _infos(pattern: str) -> list[tuple[str, Any]]:
    uri = _is_uri(pattern)
    # The wildcards must not take part in the URI's parsing: `?` would begin a query.
    wild = re.search(r"[*?\[]", pattern)
    if wild is None:
        filesystem, path = _resolve(pattern)
        info = filesystem.get_file_info(path)
        return [] if info.type == pa.fs.FileType.NotFound else [(pattern if uri else path, info)]
    base = pattern[: pattern.rfind("/", 0, wild.start()) + 1]
    filesystem, folder = _resolve(base or ".")
    rest = pattern[len(base) :]
    selector = pa.fs.FileSelector(folder, recursive="/" in rest or "**" in rest, allow_not_found=True)
    matches = _glob(rest)
    found = []
    for info in filesystem.get_file_info(selector):
        inside = str(PurePosixPath(info.path).relative_to(PurePosixPath(folder)))
        if info.type == pa.fs.FileType.File and matches.fullmatch(inside):
            found.append((base + inside if uri else info.path, info))
    return found


def _glob(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression: * and ? stay within a folder, ** crosses folders, [...] is a set."""
    translated = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return re.compile(
        "".join(
            translated.get(part)
            or (
                "[" + part[1:-1].replace("\\", r"\\").replace("!", "^", part[1] == "!") + "]"
                if part[:1] == "[" and len(part) > 2
                else re.escape(part)
            )
            for part in parts
        )
    )
