"""imdb: a small archive from a real server that misbehaves on demand; a folder of Parquet files."""

from __future__ import annotations

import hashlib
import io
import resource
import socket
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from textvae.config import Data
from textvae.sources import Archive, SourceError, prepare
from textvae.sources.fetching import fetch

IMDB = Data(source="imdb")


def _archive(train: int = 20, test: int = 10, unlabelled: int = 15, extra: bytes = b"") -> bytes:
    """An archive laid out as the official one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(f"aclImdb/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        add("README", b"not a review")
        add("train/urls_pos.txt", b"not a review either")
        for split, count in (("test", test), ("train", train)):
            for i in range(count):
                kind, rating = ("pos", 7 + i % 4) if i % 2 else ("neg", 1 + i % 4)
                add(f"{split}/{kind}/{i}_{rating}.txt", f"{split} {kind} {i} <br />é {rating}".encode())
        for i in range(unlabelled):
            add(f"train/unsup/{i}_0.txt", f"unsup {i}".encode())
        if extra:
            add("train/pos/999_9.txt", extra)
        # Bytes that gzip cannot shrink, so that the archive takes many chunks to send.
        add("imdbEr.bin", np.random.default_rng(0).bytes(2_000_000))
    return buffer.getvalue()


@dataclass
class _Server:
    """Serves `content` at any path; `cuts` are after how many bytes the next answers break off."""

    content: bytes
    status: int = 200
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[_Server]:
    state = _Server(_archive())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            if state.status != 200:
                self.send_error(state.status)
                return
            size = len(state.content)
            begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and state.ranges else 0
            if begin >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if wanted and state.ranges else 200)
            if wanted and state.ranges:
                self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
            self.send_header("Content-Length", str(size - begin))
            self.end_headers()
            body = state.content[begin:]
            if state.cuts:
                self.wfile.write(body[: state.cuts.pop(0)])
                self.close_connection = True
                return
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}/aclImdb_v1.tar.gz"
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _fetch(server: _Server, folder: Path, md5: str | None = None) -> Path:
    target = folder / "downloads" / "aclImdb_v1.tar.gz"
    return fetch(server.url, target, md5 or _md5(server.content), progress=lambda *args: None)


def _downloads(folder: Path) -> list[str]:
    """The names of what was fetched, whole or in part."""
    return [path.name for path in (folder / "downloads").iterdir() if path.suffix != ".lock"]


def test_the_whole_road(server: _Server, tmp_path: Path) -> None:
    archive = Archive(server.url, _md5(server.content))
    said: list[tuple[str, int, int | None]] = []
    corpus = prepare(IMDB, tmp_path, archive=archive, progress=lambda *args: said.append(args))
    assert [len(r) for r in (corpus.train, corpus.labelled, corpus.validation, corpus.test)] == [
        31,
        16,
        4,
        10,
    ]
    assert ("fetching aclImdb_v1.tar.gz", len(server.content), len(server.content)) in said
    for reviews, split in ((corpus.labelled, "train"), (corpus.validation, "train"), (corpus.test, "test")):
        got = reviews.read(np.arange(len(reviews)))
        for text, label, rating in zip(got.texts, got.labels, got.ratings, strict=True):
            assert text.startswith(f"{split} {'pos' if label else 'neg'} ") and "<br />é" in text
            assert text.endswith(f" {int(rating)}") and (rating >= 7) == bool(label)
    rest = corpus.train.read(np.arange(16, 31))
    assert sorted(rest.texts) == sorted(f"unsup {i}" for i in range(15))
    assert (rest.labels == -1).all() and np.isnan(rest.ratings).all()
    # Neither the second time nor another setting fetches anything again.
    prepare(IMDB, tmp_path, archive=archive)
    fewer = prepare(Data(source="imdb", min_characters=8), tmp_path, archive=archive)
    assert fewer.dropped == 10  # "unsup 0" to "unsup 9"
    assert len(server.asked) == 1


def test_5000_are_held_out_of_a_whole_set() -> None:
    from textvae.sources.imdb import Source

    source = Source(IMDB, Path("data"))
    assert source.hold_out(25_000) == {"validation": 5_000}
    assert source.hold_out(2_000) == {"validation": 400}
    assert source.total == 100_000


def test_a_cut_connection_is_resumed(server: _Server, tmp_path: Path) -> None:
    server.cuts = [700_000, 600_000]
    assert _fetch(server, tmp_path).read_bytes() == server.content
    assert server.asked[0] is None and len(server.asked) == 3
    begins = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in server.asked[1:] if asked]
    assert 0 < begins[0] < begins[1] < len(server.content)
    assert _downloads(tmp_path) == ["aclImdb_v1.tar.gz"]


def test_the_next_call_goes_on_where_one_stopped(server: _Server, tmp_path: Path) -> None:
    server.cuts = [700_000, 0]  # the second try brings nothing: the network is down
    with pytest.raises(SourceError, match=r"cannot be fetched: .*the first \d+ bytes are kept"):
        _fetch(server, tmp_path)
    part = tmp_path / "downloads" / "aclImdb_v1.tar.gz.part"
    have = part.stat().st_size
    assert 0 < have <= 700_000
    assert _fetch(server, tmp_path).read_bytes() == server.content
    assert server.asked[-1] == f"bytes={have}-"


def test_a_server_without_ranges_starts_over(server: _Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [700_000]
    assert _fetch(server, tmp_path).read_bytes() == server.content
    assert len(server.asked) == 2


@pytest.mark.parametrize("kept", ["all of it", "more than there is"])
def test_a_part_that_needs_no_more_bytes(server: _Server, tmp_path: Path, kept: str) -> None:
    part = tmp_path / "downloads" / "aclImdb_v1.tar.gz.part"
    part.parent.mkdir()
    part.write_bytes(server.content + (b"" if kept == "all of it" else b"x"))
    assert _fetch(server, tmp_path).read_bytes() == server.content


def test_a_wrong_checksum_deletes_the_download(server: _Server, tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=rf"{server.url}: wrong checksum: MD5 {_md5(server.content)} instead of 0000"
    ):
        _fetch(server, tmp_path, "0" * 32)
    assert not _downloads(tmp_path)


def test_a_missing_page(server: _Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(
        SourceError, match=f"{server.url}: cannot be fetched: the server answered 404 Not Found"
    ):
        prepare(IMDB, tmp_path, archive=Archive(server.url, "0" * 32))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/aclImdb_v1.tar.gz"
        with pytest.raises(SourceError, match=f"{url}: cannot be fetched: .*refused"):
            prepare(IMDB, tmp_path, archive=Archive(url, "0" * 32))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_full_disk_while_fetching(server: _Server, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(SourceError, match=r"aclImdb_v1\.tar\.gz: cannot be written: File too large"):
            _fetch(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not _downloads(tmp_path)


def test_those_who_want_it_at_once_fetch_it_once(server: _Server, tmp_path: Path) -> None:
    server.cuts = [700_000, 600_000]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: _fetch(server, tmp_path), range(4)))
    assert {path.read_bytes() for path in found} == {server.content}
    assert server.asked[0] is None and None not in server.asked[1:] and len(server.asked) == 3
    assert _downloads(tmp_path) == ["aclImdb_v1.tar.gz"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not an archive", "not a readable tar.gz archive"),
        (_archive()[:1_500_000], "not a readable tar.gz archive"),
        (_archive(0, 0, 0), "holds no reviews"),
        (_archive(extra=b"caf\xe9"), "aclImdb/train/pos/999_9.txt: not UTF-8"),
    ],
    ids=["not one", "torn", "another", "Latin-1"],
)
def test_a_wrong_archive(server: _Server, tmp_path: Path, content: bytes, reason: str) -> None:
    server.content = content
    with pytest.raises(SourceError, match=reason):
        prepare(IMDB, tmp_path, archive=Archive(server.url, _md5(content)))
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["downloads"]


def _parquet(path: Path, rows: list[tuple[str, int, int | None]], rated: bool = True) -> None:
    texts, labels, ratings = zip(*rows, strict=True)
    columns = {"text": list(texts), "label": pa.array(labels, pa.int64())}
    pq.write_table(
        pa.table({**columns, **({"rating": pa.array(ratings, pa.int64())} if rated else {})}), path
    )


def test_a_folder_of_parquet_is_used_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "imdb"
    folder.mkdir()
    _parquet(folder / "train.parquet", [(f"train {i}", i % 2, 8 if i % 2 else 2) for i in range(50)])
    _parquet(folder / "unsupervised.parquet", [(f"unsup {i}", -1, None) for i in range(30)], rated=False)
    _parquet(folder / "test.parquet", [(f"test {i}", i % 2, None) for i in range(10)])
    data = Data(source="imdb", folder=str(folder))
    corpus = prepare(data, tmp_path / "data")
    assert [len(r) for r in (corpus.train, corpus.labelled, corpus.validation, corpus.test)] == [
        70,
        40,
        10,
        10,
    ]
    got = corpus.labelled.read(np.arange(40))
    assert (got.ratings == np.where(got.labels == 1, 8, 2)).all()
    learned_from = [*corpus.train.texts(), *corpus.validation.texts()]
    assert not any(text.startswith("test") for text in learned_from)
    # The files are not copied anywhere else, and one that changed is converted anew.
    assert not (tmp_path / "data" / "downloads").exists()
    _parquet(folder / "test.parquet", [(f"test {i}", i % 2, None) for i in range(12)])
    assert len(prepare(data, tmp_path / "data").test) == 12


def test_a_folder_without_its_files(tmp_path: Path) -> None:
    _parquet(tmp_path / "train.parquet", [("a review", 1, None)])
    with pytest.raises(
        SourceError, match=r"has no unsupervised\.parquet and no test\.parquet; data\.folder must hold"
    ):
        prepare(Data(source="imdb", folder=str(tmp_path)), tmp_path / "data")
