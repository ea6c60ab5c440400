"""Attempts as plain processes: stands for `cluster.launching` where a test kills hundreds of them.

It keeps the promises that the service builds on: an attempt outlives whoever started it, a name is there for
as long as its process is, starting a name twice finds the first, and ranks end with their attempt. The kernel
knows who lives: each process holds a lock on the file of its name, which no kind of death leaves behind.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs.dispatcher import Capacity

from .forking import gone, spawn

_LOCK = "hhlli"  # struct flock: type, whence, start, length, pid
_OTHER = (".out", ".lost", ".scratch")  # what is there beside attempts and ranks


class Processes:
    """The launcher. `folder` holds the names; `order` goes to every attempt beside its own arguments."""

    def __init__(self, folder: Path, mother: str, order: Mapping[str, Any], *, cpus: float = 4):
        self._folder = folder
        self._mother = mother
        self._order = dict(order)
        self._cpus = cpus
        folder.mkdir(parents=True, exist_ok=True)

    def start(
        self, name: str, function: Callable[[dict[str, Any]], object], arguments: Mapping[str, Any]
    ) -> bool:
        """Start the attempt, unless it is there; False if it is."""
        if holder(self._folder / name):
            return False
        path, log = self._folder / name, self._folder / f"{name}.out"
        pid = spawn(self._mother, "attempt", {**self._order, **arguments, "name": str(path)}, log)
        while not holder(path) and not gone(pid):
            time.sleep(0.002)
        return True

    def stop(self, name: str) -> None:
        """Kill the attempt and its ranks, and wait until they are gone."""
        deadline = time.monotonic() + 10
        while living := [path for path in self._family(name) if holder(path)]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} was told to die 10 s ago and is not gone")
            for path in living:
                kill(path, signal.SIGKILL)
            time.sleep(0.005)

    def names(self) -> set[str]:
        """The attempts that are there, but for those that the cluster has lost sight of."""
        there = {name for name in self.living() if not name.endswith(".rank")}
        return {name for name in there if not (self._folder / f"{name}.lost").exists()}

    def lose(self, name: str) -> None:
        """Take the attempt for dead from now on, as a cluster does whose node does not answer."""
        (self._folder / f"{name}.lost").touch()

    def living(self) -> set[str]:
        """The attempts and ranks that are there, whatever the cluster thinks."""
        there = (path for path in self._folder.iterdir() if path.suffix not in _OTHER)
        return {path.name for path in there if holder(path)}

    def ranks(self) -> set[str]:
        """The ranks that are there."""
        return {path.name for path in self._folder.glob("*.rank") if holder(path)}

    def capacity(self) -> Capacity:
        """Free is whatever the attempts that are there do not use, one CPU each."""
        return Capacity(self._cpus, 0, max(0.0, self._cpus - len(self.names())), 0)

    def _family(self, name: str) -> list[Path]:
        return [self._folder / name, self._folder / f"{name}.rank"]


def hold(path: Path) -> bool:
    """Be the process of that name, until death; False if another one is."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    return True


def holder(path: Path) -> int:
    """The pid of the process of that name; 0 if there is none."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        question = struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_LOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    finally:
        os.close(descriptor)
    return 0 if kind == fcntl.F_UNLCK else int(pid)


def kill(path: Path, number: signal.Signals) -> bool:
    """Send a signal to the process of that name; whether there was one."""
    pid = holder(path)
    if not pid:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
