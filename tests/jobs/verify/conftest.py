from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from jobs.service import Service
from jobs.settings import Settings
from jobs.verify import Disagreement, Kind, Parts, verify
from textvae import checkpoint
from textvae.artifacts import ArtifactError, Artifacts
from textvae.checkpoint import CheckpointError

from ..trained import train

__all__ = ["train"]


@dataclass
class Cluster:
    """A cluster on which attempts stand for themselves."""

    alive: set[str] = field(default_factory=set)
    left: dict[str, bool] = field(default_factory=dict)  # by attempts that are gone; what can be given back

    def names(self) -> set[str]:
        return set(self.alive)

    def stop(self, name: str) -> None:
        self.alive.discard(name)

    def leftovers(self) -> dict[str, bool]:
        return dict(self.left)

    def give_back(self) -> None:
        self.left = {what: removable for what, removable in self.left.items() if not removable}


@dataclass
class Server:
    """Serves what it is told to."""

    serves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def apply(self, desired: Mapping[str, Mapping[str, Any]]) -> None:
        self.serves = desired

    def current(self) -> Mapping[str, Mapping[str, Any]]:
        return self.serves


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def parts(service: Service, settings: Settings, cluster: Cluster, server: Server) -> Parts:
    """Parts that agree: a dispatcher looks at the cluster."""
    service.queue.publish_cluster({"total_cpus": 4})
    return Parts(
        service=service,
        artifacts=Artifacts(settings.storage),
        check=checkpoint.verify,
        broken=(CheckpointError, ArtifactError),
        cache=settings.cache,
        cluster=cluster,
        server=server,
    )


def refuse(number: int, words: str) -> Callable[..., Any]:
    """Whatever it is asked to do, the disk refuses."""

    def refuses(*_: object) -> None:
        raise OSError(number, words)

    return refuses


def kinds(found: list[Disagreement]) -> list[Kind]:
    return [one.kind for one in found]


def repaired(parts: Parts, *expected: Kind) -> None:
    """Exactly these disagreements are found, repaired, and not found any more."""
    assert kinds(verify(parts)) == list(expected)
    found = verify(parts, repair=True)
    assert kinds(found) == list(expected)
    assert all(one.repaired for one in found), found
    assert verify(parts) == []
