"""prepare(): a config's data section -> a Corpus, converted once and found again at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from textvae.config import Data
from textvae.sources import files, imdb, snippets
from textvae.sources.errors import SourceError
from textvae.sources.permutation import key_of
from textvae.sources.reviews import Part, Reviews
from textvae.sources.writing import (
    DESCRIPTION,
    Counts,
    Description,
    Example,
    HoldOut,
    Progress,
    Row,
    Split,
    build,
)

__all__ = ["Corpus", "Counts", "Description", "Example", "prepare"]

# Part of every fingerprint: raise it when prepared files change, so that old ones are not taken for new.
_FORMAT = 1


@dataclass(frozen=True)
class Corpus:
    """A prepared source.

    train: labelled reviews and, where the config wants them, unlabelled ones; labelled: those of train that
    have a label; validation: not in train, unless the source has the same text twice; test: touched by
    nothing but a final evaluation; dropped: reviews left out as too short; folder: where the files are.
    """

    name: str
    train: Reviews
    validation: Reviews
    test: Reviews
    labelled: Reviews
    dropped: int
    folder: Path

    def describe(self) -> Description:
        """Counts, label balance, length quantiles and examples of the whole source, as found on writing."""
        return Description.load(self.folder)


def prepare(
    data: Data,
    folder: Path | str,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    archive: imdb.Archive = imdb.OFFICIAL,
) -> Corpus:
    """Fetch and convert the reviews that `data` names, unless that was done before, and open them.

    data: the config's section. folder: the data folder, which holds one folder a source. seed: draws the
    subsets of data.train_size and data.validation_size. progress: called with what is being done, how much is
    done and of how much. archive: where imdb is fetched from. Any number of processes may call it at once:
    one works, the others wait for it. Raises SourceError, and leaves nothing half-written but the beginning
    of an interrupted download, which the next call continues.
    """
    folder = Path(folder)
    report: Progress = progress or (lambda what, done, total: None)
    source: imdb.Source | snippets.Source | files.Source
    if data.source == "imdb":
        source = imdb.Source(data, folder, archive)
    elif data.source == "snippets":
        source = snippets.Source(data)
    else:
        source = files.Source(data)
    identity = key_of(_FORMAT, data.min_characters, *source.identity())
    place = folder / f"{data.source}-{identity:016x}"
    # A prepared folder appears by one rename, so finding its description needs no lock.
    if not (place / DESCRIPTION).exists():
        _make(place, source, data, report)
    return _open(place, data, seed)


def _make(
    place: Path, source: imdb.Source | snippets.Source | files.Source, data: Data, report: Progress
) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.with_name(f".{place.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise SourceError(f"{place.parent}: cannot be written: {error.strerror or error}") from error
    try:
        if (place / DESCRIPTION).exists():
            return
        rows: Iterable[tuple[Split, Row]] = source.rows(report)
        hold_out: HoldOut = source.hold_out
        build(
            place,
            data.source,
            rows,
            hold_out=hold_out,
            min_characters=data.min_characters,
            progress=report,
            total=source.total,
        )
    finally:
        lock.release()


def _open(place: Path, data: Data, seed: int) -> Corpus:
    description = Description.load(place)

    def part(name: str) -> Part:
        rows = description.counts[name].reviews
        return Part(place / f"{name}.arrow", rows, rows)

    train = [part("labelled"), *([part("unlabelled")] if data.unlabelled else [])]
    train = _draw(train, data.train_size, "data.train_size", "training", key_of(seed, "train"))
    validation = _draw(
        [part("validation")],
        data.validation_size,
        "data.validation_size",
        "validation",
        key_of(seed, "validation"),
    )
    return Corpus(
        name=data.source,
        train=Reviews(tuple(train)),
        validation=Reviews(tuple(validation)),
        test=Reviews((part("test"),)),
        labelled=Reviews((train[0],)),
        dropped=description.dropped,
        folder=place,
    )


def _draw(parts: list[Part], size: int | None, option: str, kind: str, key: int) -> list[Part]:
    """`size` reviews of the parts, drawn without replacement, from each in proportion to its rows."""
    rows = sum(part.rows for part in parts)
    if size is None:
        return parts
    if size > rows:
        raise SourceError(f"{option} is {size}, but there are only {rows} {kind} reviews to draw from")
    first = min(parts[0].rows, max(1, size * parts[0].rows // rows))
    sizes = [first, size - first][: len(parts)]
    return [replace(part, size=n, key=key) for part, n in zip(parts, sizes, strict=True)]
