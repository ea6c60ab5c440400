from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from jobs.config import JobConfig, Select, from_mapping, load, presets
from textvae.config import Config
from textvae.config import load as load_training
from textvae.parsing import ConfigError

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


def test_paths_are_those_of_the_folder_that_it_is_submitted_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    path = tmp_path / "below" / "shop.yaml"
    path.parent.mkdir()
    path.write_text(
        "data: {source: files, train: [more.csv, 's3://bucket/*.csv', ~/a.csv, /b.csv], test: [t.csv]}\n"
        "sweep: {parameters: {data.validation: {values: [[v.csv], [w.csv]]}}}\n"
    )
    config = load(path)
    here = str(tmp_path)
    assert config.data.train == (f"{here}/more.csv", "s3://bucket/*.csv", "/home/ada/a.csv", "/b.csv")
    assert config.data.test == (f"{here}/t.csv",)
    assert config.sweep is not None
    assert config.sweep.parameters["data.validation"].values == ([f"{here}/v.csv"], [f"{here}/w.csv"])
    assert load("imdb", ["data.folder=reviews"]).data.folder == f"{here}/reviews"
    with pytest.raises(ConfigError, match=r"data\.train"):
        load(path, ["data.train={a: 1}"])


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
        ("name=2024-13-45", "'2024-13-45' is no timestamp (month must be in 1..12); text goes into quotes"),
        ("model.tied=!!bool perhaps", "'perhaps' is no bool"),
        ("name=Bad Name", "is not a model name"),
        ("resources.ranks=100", "must be at least resources.ranks"),
        ("select.metric=bleu", "select.metric"),
        (
            "resources.cpus_per_rank=.inf",
            "resources.cpus_per_rank: input should be a finite number (got inf)",
        ),
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


def test_plain_max_attempts_is_short_for_that_of_retry():
    assert from_mapping({"max_attempts": 5}) == from_mapping({"retry": {"max_attempts": 5}})
    assert load("quickstart", ["max_attempts=7"]).retry.max_attempts == 7
    both = from_mapping({"max_attempts": 2, "retry": {"backoff": 0, "max_attempts": 2}})
    assert (both.retry.max_attempts, both.retry.backoff) == (2, 0)
    assert from_mapping(both.model_dump(mode="json")) == both


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_attempts": 2, "retry": {"max_attempts": 3}}, "short for retry.max_attempts"),
        ({"max_attempts": 0}, "retry.max_attempts: input should be greater than or equal to 1"),
        ({"max_attempts": 2, "retry": 3}, "retry"),
        (
            {"retry": {"on": ["weather"]}},
            "retry.on.0: input should be 'infrastructure', 'error' or 'timeout'",
        ),
        ({"retry": {"times": 3}}, "retry.times: unknown key"),
        ({"time_limit": "soon"}, "time_limit: 'soon' is no length of time"),
        ({"time_limit": 0}, "time_limit: input should be greater than 0"),
    ],
)
def test_a_bad_retry_says_what_is_wrong(given: dict[str, object], said: str):
    with pytest.raises(ConfigError) as caught:
        from_mapping(given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "given", [{"max_attempts": 2}, {"time_limit": "2h30m"}, {"time_limit": None}, {"retry": {"on": []}}]
)
def test_editors_take_what_the_service_takes(given: dict[str, object]):
    from_mapping(given)
    jsonschema.validate(given, JobConfig.model_json_schema())


@pytest.mark.parametrize(
    "given", [{"max_attempts": 0}, {"time_limit": "soon"}, {"retry": {"on": ["weather"]}}]
)
def test_editors_refuse_what_the_service_refuses(given: dict[str, object]):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(given, JobConfig.model_json_schema())
