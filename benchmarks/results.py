"""The table of results, from the evaluation records in docs/results.

    python benchmarks/results.py [--check]

Each record was written by `textvae-jobs evaluate ... --preset NAME --output docs/results/NAME-SEED.json`.
Seeds of one preset make one row: mean and standard deviation over them. The table goes between the markers
in README.md and in docs/results/README.md. With --check nothing is written: the exit status is 1 if a table
is not what the records give.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
FINAL = 5  # seeds of a row that is called final
NONE = "-"


class ResultsError(RuntimeError):
    """A record or a page is not what it should be."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both tables, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a table is out of date")
    options = parser.parse_args(arguments)
    try:
        made = table(records(ROOT / "docs" / "results"), presets(ROOT / "configs"))
        stale = [
            page
            for page in (ROOT / "README.md", ROOT / "docs" / "results" / "README.md")
            if update(page, made, write=not options.check)
        ]
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'not what the records give' if options.check else 'written'}")
    return 1 if stale and options.check else 0


def records(folder: Path) -> list[dict[str, Any]]:
    """Every record in a folder, by file name; ResultsError for a file that is none."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            missing = {
                "preset",
                "seed",
                "git",
                "hardware",
                "training_seconds",
                "config_key",
                "evaluation",
            } - set(record)
            if missing or "metrics" not in record["evaluation"]:
                raise ResultsError(f"{path}: not a record of evaluate --preset: {', '.join(sorted(missing))}")
        except (ValueError, TypeError) as error:
            raise ResultsError(f"{path}: not a record of evaluate --preset: {error}") from error
        found.append(record)
    return found


def presets(folder: Path) -> list[str]:
    """The shipped configs that are trained on IMDB, the seed last: each has a row, run or not."""
    names = [
        path.stem
        for path in sorted(folder.glob("*.yaml"))
        if (yaml.safe_load(path.read_text(encoding="utf-8")).get("data") or {}).get("source") == "imdb"
    ]
    return sorted(names, key=lambda name: (name == "seed", name))


@dataclass(frozen=True)
class Column:
    """A figure of a record, and how it is written."""

    title: str
    value: Callable[[dict[str, Any]], float | None]  # of a record's metrics
    digits: int = 1


def _at(*keys: str, times: float = 1.0) -> Callable[[dict[str, Any]], float | None]:
    def value(metrics: dict[str, Any]) -> float | None:
        inner: Any = metrics
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        return inner * times if isinstance(inner, int | float) else None

    return value


def _accuracy(metrics: dict[str, Any]) -> float | None:
    """Of the head, unless it was told no label."""
    trained = (metrics.get("sentiment") or {}).get("head_trained", True)
    return _at("sentiment", "head", "accuracy", times=100)(metrics) if trained else None


def _of_ten_thousand(metrics: dict[str, Any]) -> float | None:
    """Mutual information over 10,000 reviews or more: training ones if those measured are fewer."""
    latent = metrics.get("latent") or {}
    for found in (latent, latent.get("training") or {}):
        if (found.get("mutual_information_reviews") or 0) >= 10_000:
            return _at("mutual_information")(found)
    return None


COLUMNS = (
    Column("accuracy, %", _accuracy),
    Column("probe, %", _at("sentiment", "probe", "accuracy", times=100)),
    Column("KL", _at("likelihood", "kl")),
    Column("MI", _at("latent", "mutual_information")),
    Column("MI, N ≥ 10,000", _of_ten_thousand),
    Column("active, %", _at("latent", "active_share", times=100), 0),
    Column("Δ-rec.", _at("latent", "delta_reconstruction")),
    Column("NLL", _at("likelihood", "importance_weighted", "review")),
    Column("per word", _at("likelihood", "importance_weighted", "word"), 3),
    Column("bits/byte", _at("likelihood", "importance_weighted", "bits_per_byte"), 3),
    Column("BLEU", _at("text", "bleu")),
)


def table(found: list[dict[str, Any]], shipped: Iterable[str]) -> str:
    """The Markdown table: a row for each preset, part and config; "not run" for a preset without a record."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in found:
        key = record["preset"], record["evaluation"]["part"], record["config_key"]
        groups.setdefault(key, []).append(record)
    order = [*shipped]
    order += sorted({preset for preset, _, _ in groups} - set(order))
    titles = ["preset", "reviews", *(column.title for column in COLUMNS), "trained on", "in", "status"]
    lines = [_row(titles), _row([":--", ":--", *["--:"] * len(COLUMNS), ":--", "--:", ":--"])]
    for preset in order:
        rows = [members for key, members in groups.items() if key[0] == preset]
        if not rows:
            lines.append(_row([f"`{preset}`", NONE, *[NONE] * len(COLUMNS), NONE, NONE, "not run"]))
        lines += [_summary(preset, members) for members in rows]
    return "\n".join(lines)


def _summary(preset: str, members: list[dict[str, Any]]) -> str:
    seeds = [record["seed"] for record in members]
    if len(set(seeds)) < len(seeds):
        raise ResultsError(f"{preset}: two records of one seed, part and config: {sorted(seeds)}")
    evaluations = [record["evaluation"] for record in members]
    sizes = {evaluation["reviews"] for evaluation in evaluations}
    reviews = f"{evaluations[0]['part']}, {'/'.join(f'{size:,}' for size in sorted(sizes))}"
    cells = [
        _mean([column.value(evaluation["metrics"]) for evaluation in evaluations], column.digits)
        for column in COLUMNS
    ]
    hardware = "; ".join(sorted({record["hardware"] for record in members}))
    seconds = [record["training_seconds"] for record in members]
    took = NONE if None in seconds else f"{statistics.fmean(seconds) / 60:.0f} min"
    n = len(members)
    status = f"{n} seeds" if n >= FINAL else f"not final ({n} of {FINAL} seeds)"
    return _row([f"`{preset}`", reviews, *cells, hardware, took, status])


def _mean(values: list[float | None], digits: int) -> str:
    """`89.1 ± 0.2`: mean and, of several, standard deviation (n - 1); a dash unless every seed has it."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < len(values):
        return NONE
    text = f"{statistics.fmean(known):z.{digits}f}"  # z: no "-0.0"
    return f"{text} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else text


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def update(page: Path, made: str, *, write: bool) -> bool:
    """Put the table between the markers of a page; whether that changes it. ResultsError without markers."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ResultsError(f"{page}: has no {BEGIN} and {END} for the table to stand between")
    new = f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"
    if new != text and write:
        page.write_text(new, encoding="utf-8")
    return new != text


if __name__ == "__main__":
    sys.exit(main())
