"""The whole local stack: its Ray head frozen, killed, and started again; and a storm over all of it."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from jobs.store import AttemptState, Cause, JobState, Store

from ..home import open_home
from ..marks import takes_minutes
from .ground import until
from .oracle import problems
from .stack import SLOW, Service
from .stack_storm import WEIGHTS, Plan, StackStorm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600), takes_minutes]

SEED = int(os.environ.get("TEXTVAE_CHAOS_SEED", "1"))


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with open_home() as home:
        yield Service(home)


@pytest.fixture
def store(service: Service) -> Iterator[Store]:
    """Of a service that is up; pytest shows the logs of a test that fails."""
    service.up()
    store = Store(service.settings.database_url)
    yield store
    store.close()
    print("\n".join(f"{log}:\n{log.read_text()}" for log in service.settings.logs.rglob("*.log")))


def check(service: Service, store: Store) -> None:
    """Everything that was submitted has ended as it must, and is served."""
    want = {version.model: version.version for version in store.served()}
    until(lambda: service.serves() == want, "what is promoted to be served", SLOW, 0.2)
    until(lambda: not service.processes("attempt", "rank"), "every process to end", 60, 0.2)
    assert problems(store, service.settings, service.expected, served=service.served()) == []


def test_a_head_that_does_not_answer_is_not_dead(service: Service, store: Store):
    """Head and dashboard are frozen for a minute and a half, longer than any lease or patience."""
    service.submit("frozen", 1, 60, "frozen")
    until(lambda: store.checkpoints("frozen"), "a checkpoint", SLOW, 0.05)
    attempts = len(store.attempts("frozen"))
    stopped = service.signal(signal.SIGSTOP, "head", "dashboard")
    assert len(stopped) == 2
    try:
        service.submit("frozen", 2, 2, "meanwhile")
        thaw = time.monotonic() + 90
        while time.monotonic() < thaw:
            assert len(store.attempts("frozen")) == attempts
            assert store.job("frozen").state is not JobState.QUEUED
            time.sleep(0.5)
        assert not store.job("meanwhile").state.final
    finally:
        for process in stopped:
            process.send_signal(signal.SIGCONT)
    until(lambda: store.job("frozen").state.final, "the job to end", SLOW, 0.1)
    until(lambda: store.job("meanwhile").state.final, "the job that waited to end", SLOW, 0.1)
    assert len(store.attempts("frozen")) == attempts
    check(service, store)


def test_a_head_that_is_killed_is_started_again_by_up(service: Service, store: Store):
    service.submit("killed", 3, 60, "killed")
    until(lambda: store.checkpoints("killed"), "a checkpoint", SLOW, 0.05)
    number = store.job("killed").attempt
    assert len(service.signal(signal.SIGKILL, "head")) == 1
    until(lambda: not service.processes("raylet", "attempt", "rank"), "Ray to end", 60, 0.2)
    states = {part["name"]: part["state"] for part in service.home.json("status", code=4)["parts"]}
    assert states["ray"] == "stopped"
    assert store.attempts("killed")[-1].state is AttemptState.RUNNING  # nobody can tell that it is dead
    service.up()
    until(lambda: store.job("killed").state.final, "the job to end", SLOW, 0.1)
    lost, following, *_ = store.attempts("killed")[number - 1 :]
    assert (lost.state, lost.cause) == (AttemptState.LOST, Cause.DIED)
    assert following.resumed_from is not None
    check(service, store)


def test_a_storm_over_the_local_stack_loses_nothing(service: Service):
    service.up()
    plan = Plan(SEED, kills=40)
    storm = StackStorm(plan, service)
    try:
        journal = storm.rage()
    except AssertionError as error:
        raise AssertionError("\n".join([f"seed {SEED}", *storm.journal.lines, str(error)])) from error
    killed = dict(journal.killed)
    print(f"seed {SEED}: killed {killed}; {journal.calm:.0f} s in peace, settled in {journal.settled:.0f} s")
    assert not journal.found, "\n".join([f"seed {SEED}", *journal.lines, *journal.found])
    assert journal.killed == Counter(blow.kind for blow in plan.blows())
    assert set(journal.killed) == set(WEIGHTS)
