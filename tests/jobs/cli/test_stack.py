"""`up` in the foreground; with real parts it is walked by the end-to-end test."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cluster import stack as cluster_stack
from cluster.stack import PartStatus, Stack
from jobs.cli import errors, stack
from jobs.settings import Settings

Run = Callable[..., Result]


@pytest.fixture
def taken_down(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The homes that were taken down; nothing is really up in these tests."""
    homes: list[Path] = []
    log = stack.log_of(settings.home, "dispatcher")
    log.parent.mkdir(parents=True)
    log.write_text("started\n")
    monkeypatch.setattr(stack, "_POLL", 0.01)
    monkeypatch.setattr(stack, "bring_up", lambda **_: Stack("", "", "", "", None))
    monkeypatch.setattr(stack, "take_down", lambda: homes.append(settings.home))
    return homes


def parts(**states: str) -> list[PartStatus]:
    return [PartStatus(name, states.get(name, "running"), "") for name in cluster_stack.PARTS]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, errors.OK),
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGHUP, 128 + signal.SIGHUP),
    ],
)
def test_a_signal_takes_a_service_in_the_foreground_down(
    offline: Run, taken_down: list[Path], monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    # Whoever runs the tests may ignore the signal, as nohup does; then the service would, too.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    inherited = signal.signal(number, usual)

    def status(home: Path) -> list[PartStatus]:
        os.kill(os.getpid(), number)
        return parts()

    monkeypatch.setattr(cluster_stack, "status", status)
    try:
        assert offline("up").exit_code == code
    finally:
        after = signal.signal(number, inherited)
    assert len(taken_down) == 1
    assert after is usual


def test_a_service_in_the_foreground_tells_once_of_a_part_that_stopped(
    offline: Run, taken_down: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = [parts(), parts(dispatcher="stopped"), parts(dispatcher="stopped")]
    everything = dict.fromkeys(cluster_stack.PARTS, "stopped")
    monkeypatch.setattr(cluster_stack, "status", lambda home: looks.pop(0) if looks else parts(**everything))
    result = offline("up")
    assert result.exit_code == 0
    assert result.stdout.endswith("started\n")
    assert result.stderr.count("dispatcher is stopped; start it again from another terminal with:") == 1
    assert "the service was taken down from elsewhere" in result.stderr


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stack.signals_as_exit():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN


def test_a_busy_machine_gives_each_part_the_time_that_it_is_told(
    offline: Run, taken_down: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def bring_up(*, timeout: float, **_: object) -> Stack:
        asked.append(timeout)
        return Stack("", "", "", "", None)

    monkeypatch.setattr(stack, "bring_up", bring_up)
    for words in ([], ["--timeout", "600"]):
        assert offline("up", "--detach", *words).exit_code == errors.OK
    assert asked == [120.0, 600.0]
    assert offline("up", "--timeout", "0").exit_code == errors.USAGE
