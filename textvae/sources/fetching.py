"""Fetching one large file over HTTP: resumed where it was cut, checked, then renamed into place."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from textvae.sources.errors import SourceError
from textvae.sources.writing import Progress

if TYPE_CHECKING:
    import httpx

_CHUNK = 1 << 18
_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 15.0


def fetch(url: str, target: Path, md5: str, *, progress: Progress) -> Path:
    """Make `target` the file at `url`, whose MD5 is `md5`; at once if it is there.

    One process fetches it, others wait. The bytes go to `<target>.part`, which outlives a lost connection:
    this call tries again while tries bring new bytes, and the next call goes on where this one stopped. A
    file with another checksum is deleted, and so is the part when the disk is full. Raises SourceError.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if target.exists():  # only a checked file gets this name
                return target
            _fetch(url, part, md5, progress)
            part.rename(target)
    except OSError as error:
        raise SourceError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def _fetch(url: str, part: Path, md5: str, progress: Progress) -> None:
    try:
        _download(url, part, progress)
        found = _md5(part)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    if found != md5:
        part.unlink()
        raise SourceError(f"{url}: wrong checksum: MD5 {found} instead of {md5}; the download was deleted")


def _download(url: str, part: Path, progress: Progress) -> None:
    import httpx

    timeout = httpx.Timeout(_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    with httpx.Client(timeout=timeout, follow_redirects=True) as client:
        while True:
            before = _size(part)
            try:
                if _stream(client, url, part, progress):
                    return
            except (httpx.TransportError, httpx.TooManyRedirects, httpx.InvalidURL) as error:
                # A try that brought nothing new means that the network is down, not that it hiccuped.
                if _size(part) <= before:
                    kept = (
                        f"; the first {before} bytes are kept, the next try goes on from there"
                        if before
                        else ""
                    )
                    raise SourceError(
                        f"{url}: cannot be fetched: {error or type(error).__name__}{kept}"
                    ) from error


def _stream(client: httpx.Client, url: str, part: Path, progress: Progress) -> bool:
    """One request for the bytes that `part` lacks; whether it is complete now."""
    have = _size(part)
    # Ask for the bytes as they are: a server may otherwise compress the archive once more.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416 and have:
            # Nothing lies beyond what we have: it is whole, or it belongs to another file.
            if response.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return True
            part.unlink()
            return False
        if response.status_code not in (200, 206):
            answer = f"{response.status_code} {response.reason_phrase}"
            raise SourceError(f"{url}: cannot be fetched: the server answered {answer}")
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_raw(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress("fetching " + url.rsplit("/", 1)[-1], have, total)
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
