"""How long the command line takes to answer: `python benchmarks/cli.py`.

Measures whole processes, as a user waits for them: median and worst of several repeats, on a home folder with
1,000 recorded jobs. Promised: --help within 0.3 s, list within 0.5 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs.config import load
from jobs.store import Store

COMMANDS: tuple[tuple[list[str], float | None], ...] = (
    (["--help"], 0.3),
    (["list"], 0.5),
    (["list", "--limit", "1000"], 0.5),
    (["list", "--limit", "1000", "--json"], 0.5),
    (["submit", "--help"], None),
    (["show", "job-0999"], None),
    (["models", "list"], None),
    (["status"], None),
    (["config", "schema", "--markdown"], None),
)


def main() -> None:
    """Print a line for each command; exit 1 if one is slower than promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="jobs to record")
    parser.add_argument("--repeats", type=int, default=15, help="measurements of each command")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        record(Path(home), arguments.jobs)
        environment = os.environ | {"TEXTVAE_HOME": home}
        slow = False
        print(f"{'command':40}{'median s':>10}{'worst s':>10}{'promised':>10}")
        for words, promised in COMMANDS:
            took = [seconds(words, environment) for _ in range(arguments.repeats + 1)][1:]
            median = statistics.median(took)
            slow = slow or (promised is not None and median > promised)
            limit = "" if promised is None else f"{promised:.1f}"
            print(f"{' '.join(words):40}{median:10.3f}{max(took):10.3f}{limit:>10}")
    sys.exit(1 if slow else 0)


def record(home: Path, jobs: int) -> None:
    """Put jobs into the store of a home folder, straight: the queue is not what is measured."""
    store = Store(f"sqlite:///{home / 'textvae.db'}")
    config = load("quickstart").model_dump(mode="json")
    for number in range(jobs):
        store.add_job(
            f"job-{number:04}",
            config=config,
            name="quickstart",
            owner="benchmark",
            priority=0,
            ranks=2,
            cpus=2,
            gpus=0,
        )
    store.close()


def seconds(words: list[str], environment: dict[str, str]) -> float:
    """How long one command takes, from the start of its process to its end."""
    program = Path(sys.executable).with_name("textvae-jobs")
    began = time.perf_counter()
    subprocess.run([program, *words], env=environment, capture_output=True, check=False)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
