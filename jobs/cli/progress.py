"""A progress bar on a terminal, a line now and then in a pipe; both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from jobs.cli import output

_EVERY = 5.0  # in a pipe, seconds between two lines about the same thing


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
                for task in shown.tasks:  # one thing after the other: what went before is done
                    shown.update(task.id, total=task.total or 1, completed=task.total or 1)
                tasks[what] = shown.add_task(what, total=total, far="")
            shown.update(tasks[what], completed=done, total=total, far=_far(what, done, total))

        yield tell


def _lines() -> Tell:
    told: dict[str, float] = {}

    def tell(what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        told.setdefault(what, now)
        if done == total or now - told[what] >= _EVERY:
            told[what] = now
            output.talk(f"{what}: {_far(what, done, total)}")

    return tell


def _far(what: str, done: int, total: int | None) -> str:
    shown = output.size if what.startswith("fetching") else output.count  # bytes, or reviews
    if total is None:
        return shown(done) if done else ""
    return f"{shown(done)} of {shown(total)}"
