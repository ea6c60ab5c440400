"""Processes of a test, forked from one that has imported everything: each is there in milliseconds.

`Nursery` starts that one process, the mother, and asks it for children. A child calls one function of
`tests.chaos.roles`, in a session of its own, and belongs to no test process: it dies when it is killed, when
it is done, or when the nursery is closed, which leaves none behind.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent.parent


class Nursery:
    """The mother process and its socket; `close` ends it and all of its children."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tvc", dir="/tmp"))  # a socket needs a short path
        self.address = str(self.folder / "mother")
        self._mother = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.forking", self.address],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # whatever ends the tests, it stays to end its children
        )
        assert self._mother.stdout is not None
        assert self._mother.stdout.readline() == b"ready\n"

    def spawn(self, role: str, arguments: Mapping[str, Any], log: Path) -> int:
        """See `spawn`."""
        return spawn(self.address, role, arguments, log)

    def close(self) -> None:
        assert self._mother.stdin is not None and self._mother.stdout is not None
        self._mother.stdin.close()  # its sign to end
        self._mother.wait(30)
        self._mother.stdout.close()
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()


def spawn(address: str, role: str, arguments: Mapping[str, Any], log: Path) -> int:
    """Start `role(arguments)` of tests.chaos.roles in a new process; its output goes to `log`. Its pid."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(60)
        asking.connect(address)
        asking.sendall(json.dumps({"role": role, "arguments": arguments, "log": str(log)}).encode())
        asking.shutdown(socket.SHUT_WR)
        return int(asking.recv(64))


def gone(pid: int) -> bool:
    """Whether a child is no more (the mother buries its dead at once)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def _mother(address: str) -> None:
    roles = importlib.import_module("tests.chaos.roles")
    children: set[int] = set()
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    with selectors.DefaultSelector() as waiting:
        for source in (listening.fileno(), reading, sys.stdin.fileno()):
            waiting.register(source, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            ready = {key.fd for key, _ in waiting.select()}
            if reading in ready:
                os.read(reading, 4096)
                _bury(children)
            if sys.stdin.fileno() in ready:
                for child in children:
                    os.kill(child, signal.SIGKILL)
                return
            if listening.fileno() in ready:
                asking, _ = listening.accept()
                # Whoever asks may be killed while it does, or before it hears the answer.
                with asking, contextlib.suppress(OSError, ValueError):
                    order = json.loads(asking.makefile("rb").read())
                    child = os.fork()
                    if child == 0:
                        listening.close()
                        asking.close()
                        _child(roles, order)
                    children.add(child)
                    asking.sendall(str(child).encode())


def _bury(children: set[int]) -> None:
    for child in list(children):
        if os.waitpid(child, os.WNOHANG)[0]:
            children.discard(child)


def _child(roles: Any, order: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = getattr(roles, order["role"])(order["arguments"]) or 0
    except BaseException:  # noqa: BLE001 - it goes to the log, as an interpreter would write it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _mother(sys.argv[1])
