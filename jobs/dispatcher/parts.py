"""What the dispatcher is handed, and what it sees of the cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from jobs.failures import Failures
from jobs.scheduling import Node
from jobs.service import CLAIM_LEASE

State = Literal["alive", "dead", "unknown"]
Places = tuple[tuple[str, int], ...]  # machines, and how many ranks are on each


def who() -> str:
    """Who this dispatcher is in the history: several may be at work at once."""
    return f"dispatcher {socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True)
class Capacity:
    """What the cluster has, and what of it nobody uses."""

    total_cpus: float
    total_gpus: float
    free_cpus: float
    free_gpus: float
    nodes: tuple[Node, ...] = ()  # the machines; none if only the sums are known
    placed: Mapping[str, Places] = field(default_factory=dict)  # of the attempts whose ranks are, by name


@dataclass(frozen=True)
class Timings:
    """Seconds."""

    rest: float = 1.0  # longest wait for the bell between two passes
    reconcile: float = 5.0  # between two comparisons of the queue with the store; more if there is much of it
    claim_lease: float = CLAIM_LEASE  # that a claim holds before the attempt renews it
    cancel_grace: float = 30.0  # that an attempt has to stop by itself after a cancel, or to make way
    silence: float = 60.0  # without a sign of life after which an attempt that is there is killed
    start_timeout: float = 120.0  # in which the ranks of an attempt must have started
    think: float = 5.0  # after which the order is looked at again although nothing has happened


class Launcher(Protocol):
    """How attempts are started and ended: `cluster.launching`, or a test's.

    Its verbs raise RuntimeError if the cluster does not answer.
    """

    def start(
        self, name: str, function: Callable[[dict[str, Any]], object], arguments: Mapping[str, Any]
    ) -> object:
        """Start `function(arguments)` under a name; starting a name twice finds the first."""

    def stop(self, name: str) -> object:
        """Kill what runs under that name, and wait until it is gone."""

    def names(self) -> set[str]:
        """What runs; raises if the cluster does not answer."""


class Snapshot:
    """Which attempts are alive, asked of the cluster once, when the first answer is needed."""

    def __init__(self, launcher: Launcher, failures: Failures):
        self._launcher = launcher
        self._failures = failures
        self._asked = False
        self._names: set[str] | None = None

    def state(self, name: str) -> State:
        """Alive or dead; unknown if the cluster does not answer."""
        if not self._asked:
            self._asked = True
            try:
                self._names = self._launcher.names()
                self._failures.worked("asking the cluster for attempts")
            except RuntimeError as error:
                self._failures.failed("asking the cluster for attempts", error)
        if self._names is None:
            return "unknown"
        return "alive" if name in self._names else "dead"
