"""What the dispatcher is told of a Ray cluster, from what Ray says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster import launching
from jobs.dispatcher import Capacity
from jobs.scheduling import Node
from jobs.settings import Settings
from jobs.wiring import RayLauncher

PLACED = {"one-1": (("a", 2), ("b", 1))}


@pytest.fixture
def two_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray of two machines; of one all CPUs are in use, and Ray then does not name them."""
    nodes = {
        "a": ({"CPU": 4.0}, {"memory": 1.0}),
        "b": ({"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 1.0}),
    }
    monkeypatch.setattr(launching, "connect", lambda *_, **__: None)
    monkeypatch.setattr(launching, "nodes", lambda: nodes)
    monkeypatch.setattr(launching, "placements", lambda: PLACED)


def test_of_each_machine_it_is_known_what_it_has_what_is_free_and_who_is_there(
    two_machines: None, settings: Settings
):
    capacity = RayLauncher(replace(settings, ray_address="here:1")).capacity()
    assert capacity == Capacity(12, 2, 3, 1, (Node(0, 0, 4, 0, "a"), Node(3, 1, 8, 2, "b")), PLACED)


def test_a_cluster_that_can_grow_has_machines_that_nobody_knows(two_machines: None, settings: Settings):
    capacity = RayLauncher(replace(settings, ray_address="here:1", max_cpus=16)).capacity()
    assert capacity == Capacity(16, 2, 7, 1)


def test_what_attempts_have_left_is_asked_of_ray_and_given_back(
    two_machines: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    given: list[str] = []
    monkeypatch.setattr(launching, "leftovers", lambda: {"placement group a1": True})
    monkeypatch.setattr(launching, "give_back", lambda: given.append("all"))
    launcher = RayLauncher(replace(settings, ray_address="here:1"))
    assert launcher.leftovers() == {"placement group a1": True}
    launcher.give_back()
    assert given == ["all"]
