from __future__ import annotations

from pathlib import Path

import pytest

from jobs.config import JobConfig, Select, from_mapping, load, presets
from textvae.config import Config, ConfigError
from textvae.config import load as load_training

PRESETS = sorted(path.stem for path in presets().glob("*.yaml"))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_for_the_service_and_for_the_library(name: str):
    config = load(name)
    assert config.name == name
    assert config.training_config() == load_training(presets() / f"{name}.yaml")
    assert from_mapping(config.model_dump(mode="json")) == config


def test_the_presets_are_the_promised_ones():
    assert {"seed", "quickstart", "imdb"} <= set(PRESETS)
    assert load("seed").objective.kind == "seed"
    assert load("quickstart").objective.kind == load("imdb").objective.kind == "elbo"


def test_a_config_without_a_name_is_named_after_its_file(tmp_path: Path):
    path = tmp_path / "My Model_1.yaml"
    path.write_text("seed: 1\n")
    assert load(path).name == "my-model_1"


def test_overrides_reach_any_depth_and_are_typed():
    config = load(
        "quickstart", ["training.epochs=3", "objective.kl_weight=0.5", "name=other", "model.dense=null"]
    )
    assert (config.training.epochs, config.objective.kl_weight, config.name) == (3, 0.5, "other")
    assert config.model.dense is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("ranks=3", "ranks: unknown key; the nearest known one is resources.ranks"),
        ("training.epochs", "must be KEY=VALUE"),
        ("seed.x=1", "seed is a value, not a section"),
        ("training.epochs=[", "not YAML"),
        ("name=Bad Name", "is not a model name"),
        ("resources.ranks=100", "must be at least resources.ranks"),
        ("select.metric=bleu", "select.metric"),
    ],
)
def test_a_bad_override_says_which_and_why(override: str, said: str):
    with pytest.raises(ConfigError) as caught:
        load("quickstart", [override])
    assert said in str(caught.value)


def test_training_config_holds_no_section_of_the_service():
    assert type(JobConfig().training_config()) is Config


def test_select_is_strict():
    assert Select(mode="max").better(2, 1) and not Select(mode="max").better(1, 1)
    assert Select(mode="min").better(1, 2) and not Select(mode="min").better(2, 1)


def test_resources_add_up():
    config = load(
        "quickstart", ["resources.ranks=4", "resources.cpus_per_rank=2", "resources.gpus_per_rank=0.5"]
    )
    assert (config.resources.cpus, config.resources.gpus) == (8, 2)
