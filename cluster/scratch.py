"""A rank's folder for what it is at work on; those that killed ranks left go when the next one starts.

A rank holds a lock on a file in its folder, which no kind of death leaves behind. The number of its process
would not do: it may be another's by then, or that of another container's process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "textvae-rank-"
_LOCK = ".lock"
_NEW = ".lock-new"
_WORK = "work"


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new empty folder in the temporary one, removed afterwards; first, those of the user's dead ranks are.

    Raises OSError if none can be made.
    """
    _sweep(Path(tempfile.gettempdir()))
    made = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with (made / _NEW).open("w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks: nothing is swept there
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (made / _NEW).rename(made / _LOCK)  # only now may others look whether it is held
            work = made / _WORK
            work.mkdir()
            yield work
    finally:
        _remove(made)


def _sweep(place: Path) -> None:
    """Remove the folders in `place` that are of this user's ranks and whose lock nobody holds."""
    for each in place.glob(f"{_PREFIX}*"):
        # Of another user, a link, gone meanwhile, held, on a disk that refuses: it stays.
        with contextlib.suppress(OSError):
            about = each.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            with (each / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(each)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder / _WORK, ignore_errors=True)
    # The lock last: without it nobody would remove what a kill in the middle leaves.
    shutil.rmtree(folder, ignore_errors=True)
