"""The whole local stack on a disk that fills up under it, Ray's head included, and has room again later."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.store import JobState, Store
from jobs.store.states import ACTIVE

from ..home import open_home
from ..marks import takes_minutes
from .ground import until
from .oracle import problems
from .stack import SLOW, Service

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(3600),
    takes_minutes,
]

_MEGABYTES = 256


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small disk of its own. Only root may mount one."""
    folder = Path(tempfile.mkdtemp(prefix="td-", dir="/tmp"))  # Ray's sockets need a short path
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_MEGABYTES}m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
    folder.rmdir()


def fill(disk: Path) -> Path:
    """Leave no byte free; the file that takes the room."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def test_a_disk_that_fills_up_under_all_of_the_stack_loses_nothing(disk: Path):
    with open_home(disk) as home:
        service = Service(home)
        service.up()
        store = Store(service.settings.database_url)
        service.submit("full", 1, 2, "before")
        until(lambda: store.job("before").state.final, "the first job to end", SLOW, 0.1)
        service.submit("full", 2, 200, "meanwhile")
        until(lambda: store.checkpoints("meanwhile"), "a checkpoint", SLOW, 0.05)
        ballast = fill(disk)
        # Its checkpoint finds no room, and its end cannot be recorded: it leaves when its patience is over.
        until(lambda: not service.processes("attempt", "rank"), "the attempt to leave", SLOW, 0.1)
        assert store.attempts("meanwhile")[0].state in ACTIVE
        said = home.failing("submit", str(home.folder / "before.yaml"), "--id", "refused", code=4)
        assert len(said.splitlines()) == 1, said
        ballast.unlink()
        service.up()
        until(lambda: store.job("meanwhile").state.final, "the job to end", SLOW, 0.1)
        assert store.job("meanwhile").state is JobState.SUCCEEDED
        assert store.attempts("meanwhile")[1].resumed_from is not None
        service.submit("full", 3, 2, "after")
        until(lambda: store.job("after").state.final, "the last job to end", SLOW, 0.1)
        want = {version.model: version.version for version in store.served()}
        until(lambda: service.serves() == want, "what is promoted to be served", SLOW, 0.2)
        assert problems(store, service.settings, service.expected, served=service.served()) == []
        store.close()
