"""A real Ray on this machine: a head that wants a token, nodes beside it, and small reviews to train on."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from jobs.settings import Settings


@dataclass(frozen=True)
class LocalRay:
    """Where the session's Ray is, and the token that it wants."""

    address: str
    token_path: Path
    temp_dir: Path
    environment: dict[str, str]  # for processes that should find it

    def settings(self, home: Path, redis_url: str) -> Settings:
        """Those of a service on this Ray whose database and artifacts are in its new home."""
        settings = Settings(
            home=home,
            database_url=f"sqlite:///{home / 'textvae.db'}",
            storage=str(home / "storage"),
            redis_url=redis_url,
            ray_address=self.address,
            token_path=self.token_path,
        )
        settings.create_home()
        return settings


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def start_ray(folder: Path, environment: dict[str, str], arguments: list[str]) -> subprocess.Popen[bytes]:
    """`ray start --block` in a process group of its own, which `end_ray` ends."""
    ray = Path(sys.executable).parent / "ray"
    with (folder / "start.log").open("ab") as log:
        return subprocess.Popen(
            [str(ray), "start", "--block", "--disable-usage-stats", *arguments],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end_ray(process: subprocess.Popen[bytes]) -> None:
    """End a Ray that start_ray started, with all its processes."""
    import psutil

    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=3)
    for each in alive:
        with suppress(psutil.NoSuchProcess):  # it ended just now
            each.kill()
    process.wait(10)


def start_head(folder: Path, cpus: int) -> tuple[LocalRay, subprocess.Popen[bytes]]:
    """A head that wants a token; with a dashboard, as the service has one."""
    token_path = folder / "token"
    token_path.write_text(secrets.token_hex(32))
    token_path.chmod(0o600)
    port, *others = free_ports(6)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    names = (
        "object-manager-port",
        "node-manager-port",
        "ray-client-server-port",
        "metrics-export-port",
        "dashboard-port",
    )
    process = start_ray(
        folder,
        environment,
        [
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            *(f"--{name}={other}" for name, other in zip(names, others, strict=True)),
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--num-cpus={cpus}",
            "--object-store-memory=150000000",
            f"--temp-dir={folder}",
        ],
    )
    return LocalRay(f"127.0.0.1:{port}", token_path, folder, environment), process


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="tv", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def await_head(head: LocalRay, process: subprocess.Popen[bytes]) -> None:
    """Wait until a head takes connections: a node that comes before does not wait for long."""
    port = int(head.address.rpartition(":")[2])
    deadline = time.monotonic() + 240
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((head.temp_dir / "start.log").read_text()) from None
            time.sleep(0.2)


def start_node(head: LocalRay) -> subprocess.Popen[bytes]:
    """One more node of a CPU, on this machine."""
    arguments = [f"--address={head.address}", "--node-ip-address=127.0.0.1", "--num-cpus=1"]
    return start_ray(head.temp_dir, head.environment, [*arguments, "--object-store-memory=150000000"])


def write_reviews(path: Path, count: int = 160) -> Path:
    """Reviews that show their label, drawn by a fixed seed, as a Parquet file."""
    import random

    import pyarrow as pa
    from pyarrow import parquet

    draw = random.Random(0)
    words = (["bad", "awful", "poor", "dull", "boring"], ["good", "great", "lovely", "fine", "brilliant"])
    neutral = ["the", "a", "film", "plot", "actor", "scene", "it", "was", "and", "very", "of"]
    labels = [number % 2 for number in range(count)]

    def text(label: int) -> str:
        length = draw.randint(3, 20)
        return " ".join(draw.choice(words[label] if draw.random() < 0.3 else neutral) for _ in range(length))

    texts = [text(label) for label in labels]
    parquet.write_table(pa.table({"text": texts, "label": labels}), path)
    return path
