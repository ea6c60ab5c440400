"""The Large Movie Review Dataset (Maas et al., "Learning word vectors for sentiment analysis", ACL 2011)."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from textvae.config import Data
from textvae.sources import files
from textvae.sources.errors import SourceError
from textvae.sources.fetching import fetch
from textvae.sources.writing import Progress, Row, Split

_PARQUET: dict[str, Split] = {
    "train.parquet": "train",
    "unsupervised.parquet": "train",
    "test.parquet": "test",
}
_MEMBER = re.compile(r"(?:\./)?aclImdb/(train|test)/(pos|neg|unsup)/\d+_(\d+)\.txt")
_LABELS = {"pos": 1, "neg": 0, "unsup": None}


@dataclass(frozen=True)
class Archive:
    """Where the archive is, and the MD5 of its bytes in hexadecimal."""

    url: str
    md5: str


OFFICIAL = Archive(
    "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz", "7c2ac02c03563afcf9b574c7e56c153a"
)


class Source:
    """The official archive, fetched once, or a folder of three Parquet files, used as it is."""

    def __init__(self, data: Data, folder: Path, archive: Archive = OFFICIAL):
        self._archive = archive
        self._download = folder / "downloads" / archive.url.rsplit("/", 1)[-1]
        self._given = None if data.folder is None else Path(data.folder).expanduser()
        self.total = 100_000 if self._given is None and archive == OFFICIAL else None

    def identity(self) -> tuple[str | int, ...]:
        """What these reviews are: the archive's checksum, or the files with their sizes and times."""
        if self._given is None:
            return ("imdb", self._archive.md5)
        missing = [name for name in _PARQUET if not (self._given / name).is_file()]
        if missing:
            must = f"data.folder must hold {', '.join(_PARQUET)}"
            raise SourceError(f"{self._given}: has no {' and no '.join(missing)}; {must}")
        stats = [(self._given / name, (self._given / name).stat()) for name in _PARQUET]
        return ("imdb-folder", *(str((str(p.resolve()), s.st_size, s.st_mtime_ns)) for p, s in stats))

    def rows(self, progress: Progress) -> Iterator[tuple[Split, Row]]:
        """Every review with its split, fetched if need be."""
        if self._given is None:
            fetch(self._archive.url, self._download, self._archive.md5, progress=progress)
            yield from _archived(self._download)
            return
        for name, split in _PARQUET.items():
            for row in files.read_rows(str(self._given / name), "text", "label", rating="rating"):
                yield split, row

    def hold_out(self, labelled: int) -> Mapping[str, int]:
        """5,000 of the 25,000 labelled training reviews for validation; of a smaller set, a fifth."""
        return {"validation": 5_000 if labelled >= 25_000 else labelled // 5}


def _archived(path: Path) -> Iterator[tuple[Split, Row]]:
    """The reviews of an archive, read from its first byte to its last without unpacking it."""
    found = 0
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                match = _MEMBER.fullmatch(member.name)
                stream = archive.extractfile(member) if match else None
                if match is None or stream is None:
                    continue
                found += 1
                split, kind, rating = match.groups()
                label = _LABELS[kind]
                try:
                    text = stream.read().decode("utf-8")
                except UnicodeDecodeError as error:
                    raise SourceError(f"{path}: {member.name}: not UTF-8: {error}") from error
                yield (
                    "train" if split == "train" else "test",
                    (text, label, None if label is None else float(rating)),
                )
    except (tarfile.TarError, EOFError, OSError) as error:
        raise SourceError(f"{path}: not a readable tar.gz archive: {error}") from error
    if not found:
        raise SourceError(f"{path}: holds no reviews (no aclImdb/train/pos/0_9.txt and the like)")
