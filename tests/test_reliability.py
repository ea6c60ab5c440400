"""The failure table is whole, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"

PARTS = (
    "client",
    "dispatcher",
    "attempt process",
    "training rank",
    "Ray node",
    "Ray head",
    "Redis",
    "Serve replica",
    "database file",
    "disk",
)
EVENTS = ("killed", "frozen", "restarted", "unreachable", "full")
NOT_YET = "not shown yet"

_LINK = re.compile(r"\]\((\.\./tests/[^)#]+)#(\w+)\)")


def cells() -> dict[tuple[str, str], list[str]]:
    """Of each part and event, the other columns of its row."""
    rows = [
        line.strip("| \n").split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line[:2] == "| "
    ]
    return {(row[0], row[1]): row[2:] for row in rows[1:]}


def test_every_part_has_every_event():
    assert list(cells()) == [(part, event) for part in PARTS for event in EVENTS]


def test_every_cell_names_a_test_or_says_that_there_is_none():
    for cell, row in cells().items():
        assert len(row) == 4 and all(row), cell
        assert row[3] == NOT_YET or _LINK.search(row[3]), cell


def test_the_count_of_cells_without_a_test_is_true():
    missing = sum(row[3] == NOT_YET for row in cells().values())
    assert f"{missing} of the {len(PARTS) * len(EVENTS)} cells are not shown yet" in PAGE.read_text("utf-8")


def test_every_test_that_is_named_exists():
    links = _LINK.findall(PAGE.read_text("utf-8"))
    assert len(links) > 40
    for path, name in links:
        tree = ast.parse((PAGE.parent / path).resolve().read_text("utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (path, name)
