"""The program itself: errors, completion, version, doctor, status without a service."""

from __future__ import annotations

import errno
import getpass
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cluster.stack import StackError
from jobs.cli import checks, errors, main
from jobs.config import default_owner
from jobs.settings import Settings
from jobs.store import Job, StoreUnavailable

Run = Callable[..., Result]


def test_a_mistyped_command_names_the_nearest(offline: Run) -> None:
    result = offline("lst")
    assert result.exit_code == 2
    assert result.stderr == "error: no command 'lst' (did you mean 'list'?)\nhelp:  textvae-jobs -h\n"


def test_a_mistyped_option_says_where_help_is(offline: Run) -> None:
    result = offline("list", "--sate", "queued")
    assert result.exit_code == 2
    assert "--sate" in result.stderr and "--state" in result.stderr
    assert result.stderr.splitlines()[-1] == "help:  textvae-jobs list -h"


def test_without_a_command_the_help_is_shown(offline: Run) -> None:
    result = offline()
    assert result.exit_code == 2
    assert "Exit codes:" in result.stderr


def test_the_version(offline: Run) -> None:
    assert offline("--version").stdout.startswith("textvae-jobs ")


def test_an_error_of_a_layer_below_is_one_line_with_its_code() -> None:
    failure = errors.translate(StackError("ray: not ready\nthe end of its log"))
    assert failure is not None and failure.exit_code == errors.UNREACHABLE
    full = errors.translate(StoreUnavailable("database or disk is full"))
    assert full is not None and full.exit_code == errors.UNREACHABLE
    refused = errors.translate(ConnectionRefusedError("nobody\nthere"))
    assert refused is not None
    assert (refused.exit_code, refused.format_message()) == (errors.UNREACHABLE, "nobody there")


def test_an_error_that_nobody_foresaw_keeps_its_traceback() -> None:
    assert errors.translate(KeyError("x")) is None


def test_a_database_that_cannot_be_opened_is_exit_code_4(
    offline: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TEXTVAE_DATABASE_URL", f"sqlite:///{tmp_path}/file/x.db")
    result = offline("list")
    assert result.exit_code == 4
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def test_a_driver_that_is_not_installed_is_named_with_how_to_install_it(
    offline: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXTVAE_DATABASE_URL", "postgresql+psycopg://ada:secret@127.0.0.1:9/x")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    result = offline("list")
    assert result.exit_code == 2
    assert "pip install 'textvae-jobs[postgresql]'" in result.stderr
    assert "secret" not in result.stderr


def test_a_wrong_setting_is_exit_code_2(offline: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTVAE_REDIS_URL", "localhost:6379")
    result = offline("list")
    assert result.exit_code == 2
    assert "must begin with redis://" in result.stderr


@pytest.mark.parametrize("words", [("--version",), ("list", "--json")])
def test_an_output_that_takes_nothing_more_is_one_line(words: tuple[str, ...], settings: Settings) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *words],
            env=os.environ | {"TEXTVAE_HOME": str(settings.home)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == errors.FAILED
    assert done.stderr == (
        "error: the output cannot be written: No space left on device; make room, or write elsewhere\n"
    )


def test_a_full_disk_is_named_with_the_file() -> None:
    failure = errors.translate(OSError(errno.ENOSPC, "No space left on device", "plots/latent.png"))
    assert failure is not None and failure.exit_code == errors.FAILED
    assert failure.format_message().startswith("plots/latent.png cannot be written: No space left on device")
    failure = errors.translate(OSError(errno.EIO, "Input/output error"))  # of a read, perhaps
    assert failure is not None and failure.exit_code == errors.FAILED
    assert failure.format_message() == "a file or the output: Input/output error; is the disk in order?"
    assert errors.translate(OSError(errno.EBADF, "Bad file descriptor")) is None  # a bug of ours


@pytest.mark.parametrize(
    "words",
    [
        ("list", "--limit", "*"),
        ("usage", "--limit", "*"),
        ("top", "--once", "--limit", "*"),
        ("events", "--after", "*"),
        ("events", "--limit", "*"),
        ("models", "promote", "x", "*"),
        ("models", "export", "x", "folder", "--version", "*"),
        ("logs", "x", "--attempt", "*"),
        ("logs", "x", "--offset", "*"),
        ("plot", "x", "--seed", "*"),
        ("plot", "x", "--reviews", "*"),
        ("explore", "x", "--seed", "*"),
        ("explore", "x", "--samples", "*"),
        ("explore", "x", "--steps", "*"),
        ("evaluate", "x", "--threads", "*"),
        ("up", "--cpus", "*"),
        ("plot", "x", "--seed", "-1"),
        ("top", "--every", "inf"),
    ],
)
def test_a_number_out_of_all_bounds_is_told(offline: Run, words: tuple[str, ...]) -> None:
    result = offline(*(word.replace("*", "9" * 23) for word in words))
    assert result.exit_code == errors.USAGE
    assert result.stderr.startswith("error: invalid value for ") and "is not in the range" in result.stderr


def test_a_url_that_is_none_is_named_without_its_password(
    offline: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXTVAE_REDIS_URL", "redis://:secret@[::1")
    doctor = offline("doctor")
    assert doctor.exit_code == 1
    assert "the Redis URL cannot be used: Invalid IPv6 URL" in doctor.stdout
    monkeypatch.setenv("TEXTVAE_DATABASE_URL", "postgresql://u:secret@[::1/x")
    listed = offline("list")
    assert listed.exit_code == 2
    assert listed.stderr.startswith("error: the database URL cannot be used (its port is no number); ")
    assert "secret" not in doctor.output + listed.output


def test_passwords_of_a_store_and_in_a_query_are_not_shown(
    offline: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXTVAE_DATABASE_URL", "postgresql+psycopg://ada@127.0.0.1:9/x?password=secret")
    listed = offline("list")
    assert (listed.exit_code, "127.0.0.1:9" in listed.stderr, "secret" in listed.output) == (4, True, False)
    monkeypatch.setenv("TEXTVAE_STORAGE", "s3://key:secret@bucket?endpoint_override=127.0.0.1:9&scheme=http")
    assert "secret" not in offline("doctor").output


def test_an_argument_that_is_no_text_is_one_line(offline: Run) -> None:
    result = offline("show", os.fsdecode(b"\xff"))
    assert (result.exit_code, result.stderr) == (errors.USAGE, "error: '\\udcff' is not UTF-8\n")


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert default_owner() == f"uid-{os.getuid()}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, tmp_path: Path) -> None:
    if shell == "bash" and not shutil.which("bash"):
        pytest.fail("bash is needed to complete for it")
    text = CliRunner().invoke(main, ["completion", shell]).stdout
    assert "_TEXTVAE_JOBS_COMPLETE" in text and "textvae-jobs" in text
    if shutil.which(shell):
        check = ["fish", "--no-execute"] if shell == "fish" else [shell, "-n"]
        path = tmp_path / "script"
        path.write_text(text)
        assert subprocess.run([*check, path], check=False).returncode == 0


def completed(words: str, home: Path) -> list[str]:
    """What bash is offered for the last word."""
    environment = os.environ | {
        "TEXTVAE_HOME": str(home),
        "_TEXTVAE_JOBS_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "jobs"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return [line.split(",", 1)[1] for line in done.stdout.splitlines() if line.startswith("plain,")]


def test_completion_offers_commands_job_ids_and_shipped_configs(
    run: Run, trained: Job, add_job: Callable[..., Job], settings: Settings
) -> None:
    add_job("job-a")
    assert completed("textvae-jobs wa", settings.home) == ["watch", "wait"]
    assert completed("textvae-jobs show ", settings.home) == ["job-a", "abc12345"]
    assert completed("textvae-jobs show ab", settings.home) == ["abc12345"]
    assert completed("textvae-jobs models show ", settings.home) == ["reviews"]
    assert completed("textvae-jobs submit q", settings.home) == ["quickstart"]


def test_completion_is_silent_when_the_database_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "textvae.db").mkdir()
    assert completed("textvae-jobs show ", tmp_path) == []


def test_doctor_with_nothing_up_finds_no_failure(offline: Run) -> None:
    result = offline("doctor", "--json")
    told = json.loads(result.stdout)
    marks = {check["part"]: check["mark"] for check in told["checks"]}
    assert result.exit_code == 0 and told["ok"]
    assert len(marks) == len(checks.ALL) == len(told["checks"])
    assert "fail" not in marks.values()
    found = {check["part"]: check["found"] for check in told["checks"]}
    assert found["redis"] == found["ray"] == "not running"
    assert {s["name"]: s["origin"] for s in told["settings"]}["home"] == "TEXTVAE_HOME"


def test_doctor_sees_a_real_redis_and_hides_its_password(run: Run, settings: Settings) -> None:
    result = run("doctor")
    assert result.exit_code == 0
    row = next(line for line in result.stdout.splitlines() if line.split()[1:2] == ["redis"])
    # The one of this test is named by its URL, so it is not ours to excuse.
    assert row.split()[0] == "warn"
    assert "CVE-2025-49844" in row
    assert settings.redis_url is not None
    assert settings.redis_url.split("@")[0].split(":")[-1] not in result.stdout


def test_doctor_fails_when_a_part_does_not_answer(offline: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTVAE_REDIS_URL", "redis://127.0.0.1:9/0")
    result = offline("doctor")
    assert result.exit_code == 1
    assert next(
        line for line in result.stdout.splitlines() if " redis " in line and "answer" in line
    ).startswith("fail")


def test_doctor_names_a_token_that_is_gone(offline: Run, settings: Settings) -> None:
    settings.run_folder.mkdir()
    stack = {"dashboard_url": "http://127.0.0.1:9", "token_path": str(settings.home / "gone")}
    settings.stack_file.write_text(json.dumps(stack))
    result = offline("doctor", "--json")
    assert result.exit_code == 1
    found = {check["part"]: check for check in json.loads(result.stdout)["checks"]}
    assert found["ray"]["mark"] == "fail"
    assert f"{settings.home / 'gone'} cannot be read: No such file" in found["ray"]["found"]


@pytest.mark.parametrize("record", ["{", "[]", "[1]", '{"redis_url": "redis://127.0.0.1:9"}'])
@pytest.mark.parametrize("command", ["down", "status"])
def test_a_broken_record_of_the_stack_says_what_to_do(
    offline: Run, settings: Settings, record: str, command: str
) -> None:
    settings.run_folder.mkdir()
    settings.stack_file.write_text(record)
    result = offline(command)
    assert result.exit_code in (errors.USAGE, errors.UNREACHABLE)
    (line,) = result.stderr.splitlines()
    assert str(settings.stack_file) in line and "remove it" in line


@pytest.mark.parametrize(
    ("version", "mended"),
    [
        ((6, 2, 14), False),
        ((6, 2, 20), True),
        ((7, 0, 15), False),
        ((7, 2, 11), True),
        ((7, 4, 5), False),
        ((8, 0, 4), True),
        ((8, 2, 1), False),
        ((8, 4, 0), True),
        ((10, 0, 0), True),
    ],
)
def test_which_redis_is_mended(version: tuple[int, ...], mended: bool) -> None:
    assert checks.mended(version) is mended


def test_status_with_nothing_up_says_so_with_exit_code_4(offline: Run) -> None:
    result = offline("status", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 4
    assert told["up"] is False
    assert {part["state"] for part in told["parts"]} == {"stopped"}
    assert "textvae-jobs up" in offline("status").stderr


def test_down_with_nothing_up_is_no_error(offline: Run) -> None:
    result = offline("down")
    assert result.exit_code == 0
    assert "nothing is up" in result.stderr
