"""A progress bar on a terminal, a line now and then in a pipe; both on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from jobs.cli import output

_SHARE = 0.25  # in a pipe, a line each time this share of the whole is done


class Tell(Protocol):
    """Told again and again how far something is."""

    def __call__(self, what: str, done: int, total: int | None) -> None: ...


@contextmanager
def bars() -> Iterator[Tell]:
    """Yields a function that shows how far each thing is; one bar a thing."""
    if sys.stderr.isatty():
        with _rich_bars() as tell:
            yield tell
    else:
        yield _lines()


@contextmanager
def _rich_bars() -> Iterator[Tell]:
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[far]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=output.console(stderr=True)) as shown:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = shown.add_task(what, total=total, far="")
            shown.update(tasks[what], completed=done, total=total, far=_far(done, total))

        yield tell


def _lines() -> Tell:
    told: dict[str, int] = {}

    def tell(what: str, done: int, total: int | None) -> None:
        share = int(done / total / _SHARE) if total else 0
        if told.get(what) != share:
            told[what] = share
            output.talk(f"{what}: {_far(done, total)}")

    return tell


def _far(done: int, total: int | None) -> str:
    return f"{done:,}" if total is None else f"{done:,} of {total:,}"
