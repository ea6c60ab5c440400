"""What the commands print: tables on a terminal, aligned plain text in a pipe, JSON when asked. Stdout is
data, stderr is talk. Rich is imported only when a terminal is there to see it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

Command = TypeVar("Command", bound=Callable[..., Any])

NONE = "-"  # an empty cell; a word, so that `awk '{print $3}'` counts right

_STYLES = {
    "running": "bold cyan",
    "starting": "cyan",
    "queued": "yellow",
    "held": "yellow",
    "yielding": "yellow",
    "preempted": "yellow",
    "succeeded": "green",
    "failed": "bold red",
    "lost": "red",
    "cancelled": "magenta",
    "up": "green",
    "down": "dim",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
    "served": "green",
    "positive": "green",
    "negative": "red",
}


def json_option(command: Command) -> Command:
    """The `--json` of every command that a program might read."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def terminal() -> bool:
    """Whether someone is looking at stdout."""
    return sys.stdout is not None and sys.stdout.isatty()  # None: the caller has closed it


def console(stderr: bool = False) -> Console:
    """A rich console on stdout or stderr."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def talk(text: str) -> None:
    """Say something to the user that is not data."""
    # A terminal that has gone hears nothing, and must not keep a service from being taken down.
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def emit_json(value: Any) -> None:
    """Print a value as JSON: dataclasses as objects, times in ISO 8601 with their zone."""
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def plain(value: Any) -> Any:
    """The value made of what JSON knows; a number that is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return str(value)  # an enum member that is a string
    return value


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Iterable[str] = (),
    wrap: str | None = None,
) -> None:
    """Print rows under column names.

    `right` names the columns of numbers, `wrap` one that may take many lines.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = set(right)
    if terminal():
        _rich_table(columns, cells, numeric, wrap)
        return
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    for row in [[name.upper() for name in columns], *cells]:
        padded = [
            text.rjust(width) if name in numeric else text.ljust(width)
            for name, text, width in zip(columns, row, widths, strict=True)
        ]
        click.echo("  ".join(padded).rstrip())


def fields(pairs: Sequence[tuple[str, object]]) -> None:
    """Print names and values, one a line."""
    width = max(len(name) for name, _ in pairs) + 2
    for name, value in pairs:
        text = _cell(value).replace("\n", "\n" + " " * width)
        label = f"{name}:".ljust(width)
        if terminal():
            click.echo(click.style(label, dim=True) + styled(text))
        else:
            click.echo(label + text)


def heading(text: str) -> None:
    """Print a line that titles what follows."""
    click.echo(("\n" + click.style(text, bold=True)) if terminal() else f"\n{text}")


def styled(text: str) -> str:
    """The text in the colour of the state that it begins with."""
    style = _STYLES.get(text.split(" ", 1)[0].rstrip(":,")) if terminal() else None
    if style is None:
        return text
    colour = style.split()[-1]
    return click.style(text, fg=None if colour == "dim" else colour, bold="bold" in style, dim=style == "dim")


def _rich_table(columns: Sequence[str], cells: list[list[str]], numeric: set[str], wrap: str | None) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        shown.add_column(
            name,
            justify="right" if name in numeric else "left",
            no_wrap=name != wrap,
            overflow="fold" if name == wrap else "ellipsis",
            # The first column names the row: it is what the user copies, so it is never cut.
            min_width=max((len(row[0]) for row in cells), default=0) if i == 0 else None,
        )
    for row in cells:
        shown.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in row))
    console().print(shown)


def _cell(value: object) -> str:
    if value is None or value == "":
        return NONE
    if isinstance(value, float):
        return number(value)
    return str(value)


def number(value: float | None) -> str:
    """`0.8312`, `12.3`, `1234`, `1.2e-05`: four digits that matter."""
    if value is None or math.isnan(value):
        return NONE
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}" if abs(value) < 1e3 else f"{value:.0f}"
    return f"{value:.2g}" if abs(value) < 1e-3 else f"{value:.4g}"


def count(value: int) -> str:
    """`12,863,036`."""
    return f"{value:,}"


def ranks(least: int, most: int | None) -> str:
    """`2`; `1-8` of a job that may have so many."""
    return str(least) if most is None or most == least else f"{least}-{most}"


def several(n: float, noun: str) -> str:
    """`1 job`, `2 jobs`, `0.5 CPUs`."""
    return f"{n:g} {noun}" + ("" if n == 1 else "s")


def needs(cpus: float, gpus: float) -> str:
    """`2 CPUs`, `4 CPUs and 1 GPU`."""
    return several(cpus, "CPU") + (f" and {several(gpus, 'GPU')}" if gpus else "")


def size(n: float) -> str:
    """`512 B`, `3.4 MB`, `1.2 GB` (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def duration(seconds: float | None) -> str:
    """`0.4s`, `12s`, `3m04s`, `2h05m`, `3d02h`."""
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def when(moment: datetime | None) -> str:
    """A time in the user's own zone, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else NONE


def shorten(text: str, width: int) -> str:
    """One line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"
