from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from jobs.settings import Settings, SettingsError, sqlite_path
from jobs.store import Store


def test_everything_has_a_default_below_home(tmp_path: Path):
    settings = Settings.from_environment({"HOME": str(tmp_path)})
    home = tmp_path / ".textvae"
    assert settings.home == home
    assert settings.database_url == f"sqlite:///{home}/textvae.db"
    assert settings.storage == str(home / "storage")
    assert settings.redis_url is None
    assert settings.ray_address is None
    assert settings.ray_results == str(home / "ray")
    assert settings.attempt_log("abcd", 2) == home / "logs" / "abcd" / "attempt-2.log"
    assert settings.stack_file == home / "run" / "stack.json"


def test_the_environment_decides(tmp_path: Path):
    settings = Settings.from_environment(
        {
            "HOME": "/nowhere",
            "TEXTVAE_HOME": str(tmp_path),
            "TEXTVAE_DATABASE_URL": "postgresql+psycopg://u:p@db/x",
            "TEXTVAE_REDIS_URL": "redis://:secret@127.0.0.1:7000/0",
            "TEXTVAE_STORAGE": "s3://bucket/reviews",
            "RAY_ADDRESS": "10.0.0.1:6379",
            "TEXTVAE_MAX_GPUS": "16",
        }
    )
    assert settings.home == tmp_path
    assert settings.database_url == "postgresql+psycopg://u:p@db/x"
    assert settings.storage == "s3://bucket/reviews"
    assert settings.ray_results == "s3://bucket/reviews/ray"
    assert settings.ray_address == "10.0.0.1:6379"
    assert settings.max_gpus == 16
    assert settings.max_cpus is None


def test_a_variable_set_to_nothing_is_not_set():
    settings = Settings.from_environment({"HOME": "/home/ada", "TEXTVAE_REDIS_URL": "", "TEXTVAE_HOME": " "})
    assert settings.redis_url is None
    assert settings.home == Path("/home/ada/.textvae")


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("TEXTVAE_MAX_GPUS", "many", "TEXTVAE_MAX_GPUS: 'many' is not a number"),
        ("TEXTVAE_START_TIMEOUT", "-1", "at least 0"),
        ("TEXTVAE_REDIS_URL", "http://x", "must begin with redis://"),
    ],
)
def test_a_wrong_value_is_named(variable: str, text: str, words: str):
    with pytest.raises(SettingsError, match=words):
        Settings.from_environment({"HOME": "/", variable: text})


def test_the_local_stack_fills_what_the_environment_leaves_open(tmp_path: Path):
    environment = {"TEXTVAE_HOME": str(tmp_path), "RAY_ADDRESS": "10.0.0.1:6379"}
    settings = Settings.from_environment(environment)
    assert settings.connected() == settings  # no stack is up
    settings.run_folder.mkdir()
    stack = {
        "redis_url": "redis://:s@127.0.0.1:1/0",
        "ray_address": "127.0.0.1:2",
        "dashboard_url": "http://127.0.0.1:3",
        "serve_url": "http://127.0.0.1:4",
        "token_path": str(tmp_path / "token"),
        "processes": [],
    }
    settings.stack_file.write_text(json.dumps(stack))
    connected = settings.connected()
    assert connected.redis_url == stack["redis_url"]
    assert connected.ray_address == "10.0.0.1:6379"
    assert connected.serve_url == stack["serve_url"]
    assert connected.token_path == tmp_path / "token"
    origins = {line.name: line.origin for line in connected.describe()}
    assert origins["ray_address"] == "RAY_ADDRESS"
    assert origins["redis_url"] == str(settings.stack_file)
    assert origins["storage"] == "default"


@pytest.mark.parametrize(("address", "token"), [({}, "stacks"), ({"RAY_ADDRESS": "10.0.0.1:6379"}, "own")])
def test_a_token_of_the_environment_is_for_the_cluster_that_it_names(
    tmp_path: Path, address: dict[str, str], token: str
):
    settings = Settings.from_environment(
        {"TEXTVAE_HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "own"), **address}
    )
    settings.run_folder.mkdir()
    stack = {"ray_address": "127.0.0.1:2", "token_path": str(tmp_path / "stacks")}
    settings.stack_file.write_text(json.dumps(stack))
    assert settings.connected().token_path == tmp_path / token


def test_a_broken_stack_file_is_named(tmp_path: Path):
    settings = Settings.from_environment({"TEXTVAE_HOME": str(tmp_path)})
    settings.run_folder.mkdir()
    settings.stack_file.write_text("{")
    with pytest.raises(SettingsError, match=r"stack\.json cannot be read"):
        settings.connected()


def test_passwords_are_masked():
    settings = Settings.from_environment(
        {
            "HOME": "/",
            "TEXTVAE_REDIS_URL": "redis://:secret@h:1",
            "TEXTVAE_DATABASE_URL": "postgresql://a:secret@h/x",
        }
    )
    assert "secret" not in str(settings.describe())


@pytest.mark.parametrize("name", ["plain", "a b", "b?1", "b%20c", "ä#1"])
def test_a_home_of_any_name_holds_its_database(tmp_path: Path, name: str):
    settings = Settings.from_environment({"TEXTVAE_HOME": str(tmp_path / name)})
    settings.create_home()
    Store(settings.database_url).close()
    assert (tmp_path / name / "textvae.db").is_file()
    assert sqlite_path(settings.database_url) == tmp_path / name / "textvae.db"
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert sqlite_path("postgresql+psycopg://u@h/x") is None


def test_home_is_closed_to_others(tmp_path: Path):
    settings = Settings.from_environment({"TEXTVAE_HOME": str(tmp_path / "a" / "b")})
    settings.create_home()
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700
    settings.create_home()


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    settings = Settings.from_environment({"TEXTVAE_HOME": str(tmp_path / "file" / "home")})
    with pytest.raises(SettingsError, match="cannot be made"):
        settings.create_home()


def test_settings_travel_as_plain_values(tmp_path: Path):
    settings = Settings.from_environment(
        {"TEXTVAE_HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "t"), "TEXTVAE_MAX_CPUS": "8"}
    )
    plain = json.loads(json.dumps(settings.to_dict()))
    assert Settings.from_dict(plain) == settings
