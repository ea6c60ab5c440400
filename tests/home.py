"""A home folder of its own, on which the installed command line is called as a user calls it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

PROGRAM = Path(sys.executable).with_name("textvae-jobs")


class Home:
    """A home folder of its own with ports of its own, and the program called on it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ports = [free_port(), free_port()]
        elsewhere = ("TEXTVAE_DATABASE_URL", "TEXTVAE_REDIS_URL", "TEXTVAE_STORAGE", "RAY_ADDRESS")
        self.environment = {name: text for name, text in os.environ.items() if name not in elsewhere}
        self.environment |= {"TEXTVAE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        self.up = [
            str(PROGRAM),
            "up",
            "--dashboard-port",
            str(self.ports[0]),
            "--serve-port",
            str(self.ports[1]),
            "--cpus",
            "2",
        ]

    def call(self, *words: str, code: int = 0, timeout: float = 120) -> str:
        """What the program prints on stdout; its exit code must be `code`."""
        return self._run(words, code, timeout).stdout

    def failing(self, *words: str, code: int, timeout: float = 120) -> str:
        """What the program says on stderr; its exit code must be `code`."""
        return self._run(words, code, timeout).stderr

    def _run(self, words: Sequence[str], code: int, timeout: float) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [PROGRAM, *words],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *words: str, **more: Any) -> Any:
        return json.loads(self.call(*words, "--json", **more))

    def processes(self) -> list[str]:
        """The command lines of all processes that belong to this home."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TEXTVAE_HOME") == self.environment["TEXTVAE_HOME"]:
                    found.append(" ".join(process.cmdline()))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def open_home(parent: Path = Path("/tmp")) -> Iterator[Home]:
    """A new home; whatever `up` started for it is taken down at the end, and must be gone then."""
    home = Home(Path(tempfile.mkdtemp(prefix="tv-", dir=parent)))  # Ray's sockets need a short path
    try:
        yield home
    finally:
        subprocess.run([PROGRAM, "down"], env=home.environment, timeout=120, check=False)
        left = home.processes()
        shutil.rmtree(home.folder, ignore_errors=True)
    assert left == []
