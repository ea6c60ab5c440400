"""A real PostgreSQL for tests, on a socket in a folder of its own."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
import pytest

from jobs.store import Store


def programs() -> Path | None:
    """The folder of initdb and postgres: on the PATH, else the newest of Debian's; none without a server."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    installed = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in installed), key=lambda path: int(path.parent.name), default=None)


class PostgresqlServer:
    """One server for a session. It listens on a socket alone and syncs nothing: its data is for the bin."""

    def __init__(self, folder: Path, programs: Path):
        self._folder = folder
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to run as root; Debian's package brings the user that it should run as.
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._data = str(folder / "data")
        subprocess.run(
            [programs / "initdb", "-D", self._data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True,
            capture_output=True,
            cwd=folder,
            user=self._user,
        )
        self._numbers = itertools.count()
        self.start()
        self._run("CREATE DATABASE empty")
        Store(self._url("empty")).close()

    def start(self) -> None:
        """Start it, and wait until it answers; what was committed before is there."""
        options = ["listen_addresses=", "fsync=off", f"unix_socket_directories={self._folder}"]
        words = [word for option in options for word in ("-c", option)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *words],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                user=self._user,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                self._run("SELECT 1")
                break
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End the server, at once, as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    @property
    def running(self) -> bool:
        return self._process is not None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All of its processes are stopped while the block lasts. (Each is a process group of its own.)"""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        server.suspend()  # first, so that it starts no more of them
        processes = [*server.children(), server]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a database with our tables and nothing in them: a copy is quicker than to migrate."""
        name = f"test{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE empty")
        yield self._url(name)
        self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def empty(self) -> str:
        """The URL of a database with nothing in it at all; it goes with the server."""
        name = f"bare{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name}")
        return self._url(name)

    def _run(self, statement: str) -> None:
        with psycopg.connect(
            host=str(self._folder), user="tests", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://tests@/{name}?host={self._folder}"


def limited(url: str, **limits: str) -> str:
    """The URL with options of its user's own."""
    return f"{url}&options={quote(' '.join(f'-c {name}={value}' for name, value in limits.items()))}"


@contextmanager
def running() -> Iterator[PostgresqlServer]:
    """A server while the block lasts; where there is none a test is skipped, and fails in CI."""
    found = programs()
    if found is None:
        missing = "no PostgreSQL: install it, as `apt-get install postgresql` does"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    # A socket needs a short path, and its user one that it may enter.
    folder = Path(tempfile.mkdtemp(prefix="tvpg", dir="/tmp"))
    try:
        server = PostgresqlServer(folder, found)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
