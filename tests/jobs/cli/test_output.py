"""What is printed: in a pipe, on a terminal, as JSON."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from jobs.cli import output
from jobs.settings import Settings
from jobs.store import Job

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, "-"),
        (0.04, "0.0s"),
        (-3, "0.0s"),
        (9.94, "9.9s"),
        (12.4, "12s"),
        (59.6, "1m00s"),
        (184, "3m04s"),
        (3599.7, "1h00m"),
        (7500, "2h05m"),
        (86399.8, "1d00h"),
        (3 * 86400 + 7200, "3d02h"),
    ],
)
def test_durations(seconds: float | None, told: str) -> None:
    assert output.duration(seconds) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.83123, "0.8312"),
        (12.3456, "12.35"),
        (1234.5, "1234"),
        (0, "0"),
        (1.23e-5, "1.2e-05"),
        (math.nan, "-"),
    ],
)
def test_numbers(value: float, told: str) -> None:
    assert output.number(value) == told


@pytest.mark.parametrize(
    ("n", "told"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (147_000_000, "147 MB"), (1.2e9, "1.2 GB")]
)
def test_sizes(n: float, told: str) -> None:
    assert output.size(n) == told


@given(st.text(), st.integers(min_value=2, max_value=60))
def test_a_shortened_text_is_one_line_that_fits(text: str, width: int) -> None:
    short = output.shorten(text, width)
    assert len(short) <= width
    assert len(short.splitlines()) <= 1


def test_json_holds_times_with_their_zone_and_no_nan() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    value = {"at": moment, "bad": math.nan, "path": Path("/x"), "many": ({"a": math.inf},)}
    assert output.plain(value) == {
        "at": "2026-01-02T01:04:05.000Z",
        "bad": None,
        "path": "/x",
        "many": [{"a": None}],
    }
    assert output.plain(datetime(2026, 1, 2, tzinfo=UTC)) == "2026-01-02T00:00:00.000Z"


def on_a_terminal(words: list[str], home: Path, columns: int) -> str:
    """What the command line writes when a person looks at it."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TEXTVAE_HOME": str(home), "COLUMNS": str(columns), "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    pieces = []
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side has closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(ours)
    assert process.wait(30) == 0
    return b"".join(pieces).decode()


def test_a_terminal_gets_a_coloured_table_that_fits(run: Run, trained: Job, settings: Settings) -> None:
    text = on_a_terminal(["list"], settings.home, 60)
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "abc12345" in plain  # whole, however narrow the terminal is
    assert all(len(line) <= 60 for line in plain.splitlines())


def test_texts_are_never_taken_for_markup(run: Run, add_job: Callable[..., Job], settings: Settings) -> None:
    add_job("job-a", owner="[red]ada[/]")
    assert "[red]ada[/]" in on_a_terminal(["list"], settings.home, 200)


def test_every_json_is_json(run: Run, trained: Job) -> None:
    for words in (
        ["list"],
        ["show", "abc"],
        ["models", "list"],
        ["models", "show", "reviews"],
        ["wait", "abc"],
    ):
        json.loads(run(*words, "--json").stdout)
