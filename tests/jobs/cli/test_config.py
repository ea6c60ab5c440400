"""config check, config schema, data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import Result

from jobs.cli import reference
from jobs.config import JobConfig, from_mapping, load
from textvae.parsing import keys

Run = Callable[..., Result]


def test_check_prints_a_config_that_means_the_same(offline: Run) -> None:
    result = offline("config", "check", "quickstart", "--set", "training.epochs=3")
    assert result.exit_code == 0
    again = from_mapping(yaml.safe_load(result.stdout))
    assert again == load("quickstart", ["training.epochs=3"])


def test_check_knows_the_size_of_the_original(offline: Run) -> None:
    result = offline("config", "check", "seed")
    assert "# parameters: 12,863,036" in result.stdout
    told = json.loads(offline("config", "check", "seed", "--json").stdout)
    assert told["parameters"] == 12_863_036
    # Parameters, gradients and Adam's two moments are four bytes each, at least.
    assert told["expected_memory_bytes_per_rank"] > 4 * 4 * 12_863_036


def test_check_of_a_wrong_config_names_file_key_reason_and_nearest_key(offline: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("trainin: {epochs: 3}\nmodel: {latent: lots}\n")
    result = offline("config", "check", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {path}: ")
    assert "trainin: unknown key; the nearest known one is training" in result.stderr
    assert "model.latent: " in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_json_schema_takes_the_presets_and_refuses_unknown_keys(offline: Run) -> None:
    schema = json.loads(offline("config", "schema", "--json").stdout)
    for name in ("quickstart", "imdb", "seed"):
        jsonschema.validate(load(name).model_dump(mode="json"), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"trainin": {}}, schema)


def test_the_reference_has_every_key_once_with_a_meaning() -> None:
    named = [key for part in reference.parts() for key in part.keys]
    leaves = {key for key in keys(JobConfig) if not any(k.startswith(key + ".") for k in keys(JobConfig))}
    assert {key.key for key in named} == leaves | {"resources.ranks"}  # a number, or a section
    assert [key.key for key in named if not key.meaning] == []


def test_the_reference_reads_well_in_plain_text(offline: Run) -> None:
    text = offline("config", "schema").stdout
    assert "training.epochs" in text
    assert "integer, at least 1" in text


def reviews(folder: Path) -> Path:
    """A config with a small source of its own."""
    rows = ["text,label", *[f"a film number {n} that was quite good,{n % 2}" for n in range(40)], "x,1"]
    (folder / "reviews.csv").write_text("\n".join(rows))
    config = folder / "mine.yaml"
    config.write_text(f"data: {{source: files, train: ['{folder}/reviews.csv']}}\n")
    return config


def test_data_show_describes_the_users_own_files(offline: Run, tmp_path: Path) -> None:
    config = reviews(tmp_path)
    told = json.loads(offline("data", "show", str(config), "--json").stdout)
    counted = {name: sum(counts.values()) for name, counts in told["counts"].items()}
    assert sum(counted.values()) == 40
    assert told["dropped"] == 1
    assert len(told["examples"]) == 3
    text = offline("data", "show", str(config)).stdout
    assert [line.split()[0] for line in text.splitlines()[1:5]] == [
        "labelled",
        "unlabelled",
        "validation",
        "test",
    ]
    assert "a film number" in text


def test_data_fetch_prints_the_folder_and_says_what_is_there(offline: Run, tmp_path: Path) -> None:
    result = offline("data", "fetch", str(reviews(tmp_path)))
    assert Path(result.stdout.strip()).is_dir()
    assert "36 training, 4 validation and 0 test reviews are ready" in result.stderr


def test_bad_data_is_one_line_and_exit_code_2(offline: Run, tmp_path: Path) -> None:
    config = reviews(tmp_path)
    (tmp_path / "reviews.csv").write_text("text,label\ngood film,7\n")
    result = offline("data", "show", str(config))
    assert result.exit_code == 2
    assert "reviews.csv" in result.stderr and "label" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_folder_goes_with_imdb_alone(offline: Run, tmp_path: Path) -> None:
    result = offline("data", "show", "snippets", "--folder", str(tmp_path))
    assert result.exit_code == 2
    assert "data.folder goes with source imdb, not snippets" in result.stderr
