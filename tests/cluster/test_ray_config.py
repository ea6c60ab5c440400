from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def read() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "ray-config.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    # As `ray up` does.
    prepared = prepare_config(read())
    validate_config(prepared)
    return prepared


def commands(config: dict[str, Any]) -> list[str]:
    # prepare_config has merged the common commands into those of either kind of node.
    kinds = ("initialization", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return [command for kind in kinds for command in config[f"{kind}_commands"]]


def test_ray_s_own_schema_takes_it_with_and_without_defaults(config: dict[str, Any]) -> None:
    import jsonschema
    from ray import autoscaler

    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(read(), schema)
    assert config["provider"]["type"] == "aws"
    assert config["head_node_type"] in config["available_node_types"]
    assert set(config["available_node_types"]) == {"head", "gpu"}
    assert config["available_node_types"]["gpu"]["min_workers"] == 0
    assert config["available_node_types"]["gpu"]["max_workers"] == config["max_workers"]


def test_every_command_is_one_that_a_shell_can_read(config: dict[str, Any]) -> None:
    for command in commands(config):
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_ray_never_runs_open_and_storage_is_a_bucket(config: dict[str, Any]) -> None:
    settings = next(command for command in commands(config) if "textvae.env <<" in command)
    assert "RAY_AUTH_MODE=token" in settings
    assert "TEXTVAE_STORAGE=s3://" in settings
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert command.startswith(". ~/textvae.env;"), command
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_the_settings_that_the_shells_read_are_the_service_s(config: dict[str, Any], tmp_path: Path) -> None:
    from jobs.settings import Settings

    write = next(command for command in commands(config) if "textvae.env <<" in command)
    show = f"{write}\n. ~/textvae.env; env -0"
    shown = subprocess.run(
        ["bash", "-ec", show],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
    )
    environment = dict(pair.split("=", 1) for pair in shown.stdout.decode().split("\0") if pair)
    settings = Settings.from_environment(environment)
    assert settings.home == tmp_path / "textvae-home"
    assert settings.storage == "s3://CHANGE-ME-BUCKET/textvae"
    assert settings.token_path == tmp_path / ".ray" / "auth_token"
    assert settings.max_gpus == config["max_workers"]


def test_what_is_to_be_filled_in_is_named_in_the_head_of_the_file() -> None:
    text = (ROOT / "ray-config.yaml").read_text(encoding="utf-8")
    head, _, body = text.partition("\ncluster_name:")
    for placeholder in ("CHANGE-ME-BUCKET", "ami-CHANGE-ME"):
        assert placeholder in head
        assert body.count(placeholder) == 1
