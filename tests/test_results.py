"""The table of results is what the stored records give, and rows are made as they say."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from textvae.config import Config
from textvae.evaluate.records import with_provenance
from textvae.evaluate.showing import rows as shown
from textvae.parsing import parse

ROOT = Path(__file__).parent.parent
STORED = sorted((ROOT / "docs" / "results").glob("*.json"))
# Of presets as they are: their next seeds belong to the same rows.
SHIPPED = [path for path in STORED if (ROOT / "configs" / f"{path.stem.rpartition('-')[0]}.yaml").exists()]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


results = _load()


def record(preset: str = "small", seed: int = 0, accuracy: float = 0.9, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "preset": preset,
        "seed": seed,
        "git": "0123456789ab",
        "hardware": "an abacus",
        "training_seconds": 3600.0 + 60 * seed,
        "config_key": "k",
        "evaluation": {
            "part": "test",
            "reviews": 5000,
            "metrics": {
                "likelihood": {
                    "kl": 12.0,
                    "importance_weighted": {"review": 700.25, "word": 4.5, "bits_per_byte": 1.5},
                },
                "latent": {
                    "mutual_information": 5.0,
                    "mutual_information_reviews": 5000,
                    "training": {"mutual_information": 6.0, "mutual_information_reviews": 10_000},
                    "active_share": 0.95,
                    "delta_reconstruction": 7.0,
                },
                "sentiment": {"head": {"accuracy": accuracy}, "probe": None},
            },
        },
    }
    return made | changes


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(made: str) -> list[dict[str, str]]:
    head, _, *body = made.splitlines()
    return [dict(zip(cells(head), cells(line), strict=True)) for line in body]


def test_the_committed_table_is_the_regenerated_one() -> None:
    made = results.table(results.records(ROOT / "docs" / "results"), results.presets(ROOT / "configs"))
    for page in (ROOT / "README.md", ROOT / "docs" / "results" / "README.md"):
        assert f"{results.BEGIN}\n\n{made}\n\n{results.END}" in page.read_text(encoding="utf-8"), (
            f"{page.name}: `make results` makes it anew"
        )


def test_shipped_presets_have_a_row_run_or_not() -> None:
    names = results.presets(ROOT / "configs")
    assert "imdb" in names and names[-1] == "seed" and "quickstart" not in names
    assert [row["status"] for row in rows(results.table([], ["a", "seed"]))] == ["not run", "not run"]
    assert set(rows(results.table([], ["a"]))[0].values()) == {"`a`", "-", "not run"}


def test_seeds_become_mean_and_deviation() -> None:
    made = results.table([record(seed=s, accuracy=a) for s, a in enumerate((0.90, 0.91, 0.92))], ["small"])
    (row,) = rows(made)
    assert row["accuracy, %"] == "91.0 ± 1.0"  # the standard deviation of 90, 91, 92
    assert row["KL"] == "12.0 ± 0.0" and row["MI"] == "5.0 ± 0.0" and row["MI, N ≥ 10,000"] == "6.0 ± 0.0"
    assert row["NLL"].startswith("700.2")
    assert row["probe, %"] == row["BLEU"] == "-"
    assert row["reviews"] == "test, 5,000" and row["in"] == "61 min" and row["trained on"] == "an abacus"
    assert row["status"] == "not final (3 of 5 seeds)"
    five = rows(results.table([record(seed=s) for s in range(5)], ["small"]))
    assert five[0]["status"] == "5 seeds"
    lost = record()
    lost["evaluation"]["metrics"]["latent"]["delta_reconstruction"] = -0.002
    assert rows(results.table([lost], ["small"]))[0]["Δ-rec."] == "0.0"
    unlabelled = record()
    unlabelled["evaluation"]["metrics"]["sentiment"] |= {"head_trained": False, "probe": {"accuracy": 0.7}}
    (row,) = rows(results.table([unlabelled], ["small"]))
    assert row["accuracy, %"] == "-" and row["probe, %"] == "70.0"
    one = rows(results.table([record(training_seconds=None)], ["small"]))[0]
    assert one["accuracy, %"] == "90.0" and one["in"] == "-"


def test_other_configs_and_parts_are_other_rows() -> None:
    validation = copy.deepcopy(record())
    validation["evaluation"]["part"] = "validation"
    made = rows(
        results.table([record(), record(config_key="other"), validation, record("unknown")], ["small"])
    )
    assert [row["preset"] for row in made] == ["`small`", "`small`", "`small`", "`unknown`"]
    with pytest.raises(results.ResultsError, match="two records of one seed"):
        results.table([record(), record()], ["small"])
    # A figure that one seed lacks is not averaged over the others.
    lacking = record(seed=1)
    lacking["evaluation"]["metrics"]["sentiment"]["head"]["accuracy"] = None
    assert rows(results.table([record(), lacking], ["small"]))[0]["accuracy, %"] == "-"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_stored_record_and_another_seed_of_its_config_are_one_row(path: Path) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    # As this version writes it down, keys included that the stored one is older than.
    config = parse(Config, stored["evaluation"]["config"]).model_dump(mode="json")
    evaluation = {**stored["evaluation"], "config": {**config, "seed": stored["seed"] + 1}}
    again = with_provenance(evaluation, stored["preset"], hardware=stored["hardware"])
    assert [row["status"] for row in rows(results.table([stored, again], []))] == ["not final (2 of 5 seeds)"]
    for name, value in (("pretraining_token_drop", 0.3), ("sentiment_after_epochs", 1)):
        other = {**evaluation, "config": {**config, "objective": {**config["objective"], name: value}}}
        assert with_provenance(other, stored["preset"], hardware="-")["config_key"] != stored["config_key"]


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_record_is_shown_whatever_it_is_older_than(path: Path) -> None:
    evaluation = json.loads(path.read_text(encoding="utf-8"))["evaluation"]
    steps = evaluation["metrics"].get("transfer", {}).get("steps", [])
    remarks = [remark for group, name, _, remark in shown(evaluation) if name.endswith(": flipped")]
    assert len(remarks) == len(steps)
    for step, remark in zip(steps, remarks, strict=True):
        assert ("with the review" in remark) == ("source_bleu" in step)


def test_pages_and_records_that_are_none_are_told(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    assert results.update(page, "new", write=False) and "old" in page.read_text()
    assert results.update(page, "new", write=True)
    assert page.read_text() == f"before\n{results.BEGIN}\n\nnew\n\n{results.END}\nafter\n"
    assert not results.update(page, "new", write=True)
    page.write_text("no markers")
    with pytest.raises(results.ResultsError, match="for the table to stand between"):
        results.update(page, "new", write=True)
    (tmp_path / "a.json").write_text(json.dumps(record()))
    assert results.records(tmp_path) == [record()]
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(results.ResultsError, match=r"b.json: not a record .*config_key"):
        results.records(tmp_path)
    (tmp_path / "b.json").write_text("not JSON")
    with pytest.raises(results.ResultsError, match=r"b.json: not a record"):
        results.records(tmp_path)
