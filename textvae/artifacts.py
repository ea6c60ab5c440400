"""The artifact store: checkpoints by name, in a folder or behind an s3:// or gs:// URI.

A name such as `jobs/ab12cd34/attempt-1/epoch-03` holds one checkpoint folder (textvae.checkpoint). It is
there whole or not at all: a local folder is renamed into place, and in an object store, which cannot
rename, the manifest is written last and deleted first, and what has no manifest does not exist.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from textvae.checkpoint import (
    FILES,
    MANIFEST,
    CheckpointError,
    parse_manifest,
    publish,
    read_manifest,
    sync,
    verify,
)
from textvae.urls import masked

_PIECE = 8 * 1024 * 1024  # bytes copied at a time


class ArtifactError(RuntimeError):
    """The artifact store cannot do what was asked; the message says which artifact and why."""


class ArtifactUnavailable(ArtifactError, OSError):
    """The artifact store does not answer, which says nothing about what is in it."""


class Artifacts:
    """Checkpoints by name under `root`, a folder or a URI that pyarrow.fs understands.

    `filesystem` (a pyarrow.fs.FileSystem) replaces the one that the URI names.
    """

    def __init__(self, root: str | Path, filesystem: Any = None):
        self.root = str(root)
        self.local: Path | None = None
        self._filesystem: Any = filesystem
        self._base = ""
        try:
            parts = urlsplit(self.root)
        except ValueError as error:
            raise ArtifactError(f"artifact store {self.root}: not a URI: {error}") from error
        if filesystem is not None:
            self._base = self.root.strip("/")
        elif "://" not in self.root:
            self.local = Path(self.root).expanduser().absolute()
        elif parts.scheme == "file":
            self.local = Path(unquote(parts.path))
        else:
            self._filesystem, self._base = _connect(self.root)

    def put(self, folder: Path, name: str) -> None:
        """Copy the checkpoint at `folder` in under `name`; every byte is checked against its manifest on
        the way.

        Putting the same checkpoint again changes nothing. Raises ArtifactError if another one has that name,
        CheckpointError if `folder` is not whole.
        """
        _check(name)
        files = read_manifest(folder / MANIFEST)
        # Read once: `folder` may be of another store, and pruned there before its files are copied.
        try:
            manifest = (folder / MANIFEST).read_bytes()
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder} was deleted while it was read") from error
        present = self._manifest(name)
        if present is not None:
            if present == manifest:
                return
            raise ArtifactError(
                f"{self._shown(name)}: another checkpoint has this name already; it stays as it is"
            )
        if self.local is not None:
            self._put_local(folder, name, files, manifest)
        else:
            self._put_remote(folder, name, files, manifest)

    def fetch(self, name: str, cache: Path) -> Path:
        """A local folder that holds the checkpoint `name`: itself in a local store, else a copy under
        `cache`.

        Raises ArtifactError if it is not there, CheckpointError if it is not whole; an OSError, such as
        ArtifactUnavailable, if that cannot be known, or `cache` not be written.
        """
        _check(name)
        manifest = self._manifest(name)
        if manifest is None:
            raise ArtifactError(f"{self._shown(name)}: no such checkpoint")
        files = parse_manifest(manifest, f"{self._shown(name)}/{MANIFEST}")
        if self.local is not None:
            folder = self.local / name
            for file in files:
                try:
                    (folder / file).stat()
                except (FileNotFoundError, NotADirectoryError) as error:
                    raise CheckpointError(f"{folder / file}: missing; the checkpoint is not whole") from error
            return folder
        # The digest in the path: a name that was deleted and put again never finds the older copy.
        copy = cache / f"{name.replace('/', '--')}-{hashlib.sha256(manifest).hexdigest()[:16]}"
        with contextlib.suppress(CheckpointError):  # there is none, or it has been damaged since
            verify(copy)
            return copy
        partial = copy.parent / f".{copy.name}.{uuid.uuid4().hex[:8]}.partial"
        try:
            partial.mkdir(parents=True)
            for file, expected in files.items():
                try:
                    with self._filesystem.open_input_stream(self._path(name, file)) as source:
                        _copy_to_disk(source, partial / file, expected, f"{self._shown(name)}/{file}")
                except FileNotFoundError as error:
                    raise CheckpointError(f"{self._shown(name)}/{file}: missing; not whole") from error
            (partial / MANIFEST).write_bytes(manifest)
            sync(partial / MANIFEST)
            publish(partial, copy)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return copy

    def exists(self, name: str) -> bool:
        """Whether the checkpoint `name` is there, whole. Raises ArtifactUnavailable."""
        _check(name)
        return self._manifest(name) is not None

    def delete(self, name: str) -> None:
        """Remove the checkpoint `name`, or what a dead process left of it; nothing happens without one."""
        _check(name)
        if self.local is not None:
            folder = self.local / name
            if folder.is_dir():
                # Renamed first, so that nobody finds half of it.
                aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.old"
                folder.rename(aside)
                shutil.rmtree(aside)
            return
        from pyarrow import fs

        for file in (MANIFEST, *FILES):
            if self._filesystem.get_file_info(self._path(name, file)).type == fs.FileType.File:
                self._filesystem.delete_file(self._path(name, file))
        if self._filesystem.get_file_info(self._path(name)).type == fs.FileType.Directory:
            self._filesystem.delete_dir(self._path(name))

    def list(self, prefix: str = "") -> list[str]:
        """The names of all whole checkpoints under `prefix` (a folder of names), sorted.

        Raises ArtifactUnavailable.
        """
        if prefix:
            _check(prefix)
        return sorted(self._walk(prefix))

    def torn(self, prefix: str) -> dict[str, float]:
        """What a kill in the middle of `put` or `delete` has left in an object store: names under `prefix`
        with files and no manifest, and when the last of these was written, in seconds since 1970.

        In a folder it has a name that begins with a dot, and is no artifact's.
        """
        _check(prefix)
        if self.local is not None:
            return {}
        from pyarrow import fs

        whole: set[str] = set()
        written: dict[str, float] = {}
        for info in self._listed(prefix):
            found = PurePosixPath(info.path)
            name = found.parent.relative_to(self._base or ".").as_posix()
            if info.type == fs.FileType.File and found.name == MANIFEST:
                whole.add(name)
            elif info.type == fs.FileType.File and found.name in FILES and info.mtime is not None:
                written[name] = max(written.get(name, 0.0), info.mtime.timestamp())
        return {name: at for name, at in sorted(written.items()) if name not in whole}

    def location(self, name: str) -> str:
        """The folder or URI of the checkpoint `name`."""
        if self.local is not None:
            return str(self.local / name)
        parts = urlsplit(self.root)
        if not parts.scheme:
            return self._path(name)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))

    def _shown(self, name: str) -> str:
        return masked(self.location(name))

    def _path(self, *names: str) -> str:
        return "/".join(part for part in (self._base, *names) if part)

    def _manifest(self, name: str) -> bytes | None:
        """The manifest of `name`, or None if there is no such checkpoint."""
        try:
            if self.local is not None:
                return (self.local / name / MANIFEST).read_bytes()
            with self._filesystem.open_input_stream(self._path(name, MANIFEST)) as file:
                return bytes(file.read())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ArtifactUnavailable(f"{self._shown(name)}: cannot be read: {error}") from error

    def _put_local(self, folder: Path, name: str, files: dict[str, str], manifest: bytes) -> None:
        assert self.local is not None
        target = self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
        try:
            partial.mkdir()
            for file, expected in files.items():
                with _open(folder / file) as source:
                    _copy_to_disk(source, partial / file, expected, str(folder / file))
            (partial / MANIFEST).write_bytes(manifest)
            sync(partial / MANIFEST)
            publish(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _put_remote(self, folder: Path, name: str, files: dict[str, str], manifest: bytes) -> None:
        # Object stores ignore this; a mounted or in-memory file system needs it.
        self._filesystem.create_dir(self._path(name), recursive=True)
        for file, expected in files.items():
            with (
                _open(folder / file) as source,
                self._filesystem.open_output_stream(self._path(name, file)) as target,
            ):
                found = _copy(source, target)
            if found != expected:
                raise CheckpointError(
                    f"{folder / file}: its SHA-256 is {found}, the manifest says {expected}"
                )
        with self._filesystem.open_output_stream(self._path(name, MANIFEST)) as target:
            target.write(manifest)

    def _everything(self, prefix: str) -> Any:
        from pyarrow import fs

        return fs.FileSelector(self._path(prefix), recursive=True, allow_not_found=True)

    def _listed(self, prefix: str) -> Any:
        try:
            return self._filesystem.get_file_info(self._everything(prefix))
        except OSError as error:
            raise ArtifactUnavailable(f"{masked(self.root)}: cannot be listed: {error}") from error

    def _walk(self, prefix: str) -> Iterator[str]:
        if self.local is not None:
            for path in (self.local / prefix).glob(f"**/{MANIFEST}"):
                name = path.parent.relative_to(self.local)
                if not any(part.startswith(".") for part in name.parts):
                    yield name.as_posix()
            return
        from pyarrow import fs

        for info in self._listed(prefix):
            found = PurePosixPath(info.path)
            if info.type == fs.FileType.File and found.name == MANIFEST:
                yield found.parent.relative_to(self._base or ".").as_posix()


def fetch(location: str, cache: Path) -> Path:
    """A local folder that holds the checkpoint at `location`, as Artifacts.location gave it."""
    parts = urlsplit(location)
    path = PurePosixPath(parts.path if "://" in location else location)
    parent = str(path.parent) if "://" not in location else urlunsplit(parts._replace(path=str(path.parent)))
    return Artifacts(parent).fetch(path.name, cache)


def _connect(uri: str) -> tuple[Any, str]:
    import pyarrow
    from pyarrow import fs

    try:
        filesystem, base = fs.FileSystem.from_uri(uri)
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        raise ArtifactError(
            f"{masked(uri)}: not a folder or a URI that can be opened: {str(error).replace(uri, masked(uri))}"
        ) from error
    return filesystem, base.strip("/") if urlsplit(uri).scheme != "mock" else base


def _check(name: str) -> None:
    parts = name.split("/")
    if not name or any(not part or part.startswith(".") or "\\" in part for part in parts):
        raise ArtifactError(
            f"{name!r} is not an artifact's name: parts joined by '/', none empty or beginning with '.'"
        )


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; the checkpoint is not whole") from error


def _copy(source: Any, target: Any) -> str:
    """Copy a stream in pieces; returns the SHA-256 of what went by."""
    digest = hashlib.sha256()
    while piece := source.read(_PIECE):
        digest.update(piece)
        target.write(piece)
    return digest.hexdigest()


def _copy_to_disk(source: Any, target: Path, expected: str, origin: str) -> None:
    with target.open("wb") as file:
        found = _copy(source, file)
    sync(target)
    if found != expected:
        raise CheckpointError(
            f"{origin}: its SHA-256 is {found}, the manifest says {expected}: torn or changed"
        )
