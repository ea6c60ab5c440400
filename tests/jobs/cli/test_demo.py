"""The demo's own logic; the demo itself is run by `make demo`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cluster.stack import StackError
from jobs.cli import demo, errors, service, stack
from jobs.settings import Settings
from jobs.store import Job, Store

Run = Callable[..., Result]


@pytest.fixture
def taken_down(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The homes whose stack the demo took down; nothing is really up in these tests."""
    homes: list[Path] = []

    def take_down() -> list[str]:
        homes.append(service.settings().home)
        return []

    monkeypatch.setattr(stack, "take_down", take_down)
    return homes


@pytest.fixture
def anywhere(offline: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`offline` from an empty folder; the environment is what it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(service, "_environment", None)
    return offline


def test_a_wrong_config_is_said_before_anything_is_started(anywhere: Run, taken_down: list[Path]) -> None:
    result = anywhere("demo", "--set", "training.epochs=none")
    assert result.exit_code == 2
    assert "training.epochs" in result.stderr
    assert taken_down == []


def test_a_step_that_fails_is_named_and_everything_is_taken_down(
    anywhere: Run, taken_down: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**ports: object) -> None:
        raise StackError("redis: no redis-server anywhere\nthe end of its log")

    monkeypatch.setattr(stack, "bring_up", refuse)
    result = anywhere("demo")
    assert result.exit_code == 1
    assert result.stdout.startswith("\n[1/8] bring the service up")
    assert "error: step 1 of 8 (bring the service up: Redis, Ray" in result.stderr
    assert "failed: redis: no redis-server anywhere\n  the end of its log\n" in result.stderr
    assert taken_down == [tmp_path / "demo" / "home"]


def test_with_keep_a_failed_demo_stays_up_and_says_how_to_end_it(
    anywhere: Run, taken_down: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**ports: object) -> None:
        raise StackError("ray: not ready")

    monkeypatch.setattr(stack, "bring_up", refuse)
    result = anywhere("demo", "--keep")
    assert result.exit_code == 1
    assert taken_down == []
    assert f"TEXTVAE_HOME={tmp_path}/demo/home textvae-jobs down" in result.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_demo_through_its_clean_up(
    anywhere: Run, taken_down: list[Path], monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    monkeypatch.setattr(stack, "bring_up", lambda **ports: os.kill(os.getpid(), number))
    assert anywhere("demo").exit_code == code
    assert len(taken_down) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_error_that_nobody_foresaw_is_shown_whole(
    anywhere: Run, taken_down: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_(**ports: object) -> None:
        raise KeyError("nothing")

    monkeypatch.setattr(stack, "bring_up", break_)
    result = anywhere("demo")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("failed: KeyError: 'nothing'")
    assert len(taken_down) == 1


def test_the_demo_never_touches_the_users_own_service(
    run: Run, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_environment", None)
    monkeypatch.setenv("TEXTVAE_DATABASE_URL", "sqlite:////nowhere/else.db")
    service.move_to(tmp_path / "own")
    own = service.settings()
    assert own.home == tmp_path / "own"
    assert own.redis_url is None
    assert own.database_url == f"sqlite:///{tmp_path}/own/textvae.db"
    # The parts of the stack are given these, so that they do not inherit what the user set.
    assert service.environment()["TEXTVAE_REDIS_URL"] == ""


def test_jobs_of_an_interrupted_demo_do_not_go_first(
    run: Run, store: Store, add_job: Callable[..., Job]
) -> None:
    run("list")  # opens the home
    add_job("waiting")
    add_job("running")
    store.open_attempt("running", 1, "dispatcher")
    demo._cancel_earlier()
    assert store.job("waiting").state == "cancelled"
    assert store.job("running").cancel_requested is not None


def test_patience_ends_when_nothing_new_is_seen(add_job: Callable[..., Job]) -> None:
    now = [0.0]
    patience, job = demo._Patience(lambda: now[0]), add_job("job-a")
    for step in range(5):
        now[0] += 0.9 * demo._STALL
        patience(job, {"epoch": 1, "step": step})
    now[0] += 1.1 * demo._STALL
    with pytest.raises(errors.Failure, match="job job-a is queued and has shown no progress for 3m00s"):
        patience(job, {"epoch": 1, "step": 4})
