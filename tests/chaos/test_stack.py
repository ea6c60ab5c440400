"""The whole local stack: its Ray head killed, and started again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from jobs.store import AttemptState, Cause, Store

from ..home import open_home
from .ground import until
from .oracle import problems
from .stack import Service

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.environ.get("TEXTVAE_CHAOS") != "all", reason="takes minutes: make chaos"),
]

SLOW = 600.0  # seconds after which something has failed, on whatever machine


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with open_home() as home:
        yield Service(home)


@pytest.fixture
def store(service: Service) -> Iterator[Store]:
    service.up()
    store = Store(service.settings.database_url)
    yield store
    store.close()


def check(service: Service, store: Store) -> None:
    """Everything that was submitted has ended as it must, and is served."""
    want = {version.model: version.version for version in store.served()}
    until(lambda: service.serves() == want, "what is promoted to be served", SLOW, 0.2)
    until(lambda: not service.processes("attempt", "rank"), "every process to end", 60, 0.2)
    assert problems(store, service.settings, service.expected, served=service.served()) == []


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
