"""Step time of one rank under Ray against the same loop without Ray, in one invocation.

    python benchmarks/train.py [--rounds 3] [--epochs 4] [--reviews 2000]

Trains the model of configs/quickstart.yaml on made-up reviews: textvae.train alone in a process, then an
attempt on a Ray that is started for this and ended after it, in turns. Within each epoch but the first, a
warm-up, the time from the first progress to the last is divided by the steps between. Prints the ratio of
the fastest epochs, which are the least disturbed ones (every epoch has the same work), and that of the
medians, for the clock and for the CPU time of the process that trains.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from cluster import launching, training
from textvae.config import without_service


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each of the two trains")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each training; the first warms up")
    parser.add_argument("--reviews", type=int, default=2000)
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs must be at least 2: the first one warms up")
    folder = Path(tempfile.mkdtemp(prefix="tvbench", dir="/tmp"))  # Ray's sockets need a short path
    try:
        measure(folder, options.rounds, options.epochs, options.reviews)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Cost:
    """What a step of one epoch cost, in milliseconds."""

    wall: float
    cpu: float


def measure(folder: Path, rounds: int, epochs: int, reviews: int) -> None:
    """Train in turns, and print what came of it."""
    config = quickstart(folder, epochs, reviews)
    head, address, token = start_ray(folder)
    alone: list[Cost] = []
    on_ray: list[Cost] = []
    waits: list[float] = []
    try:
        connect(address, token, head)
        for number in range(1, rounds + 1):
            a = without_ray(folder, number)
            b, wait = with_ray(folder, config, number)
            alone += a
            on_ray += b
            waits.append(wait)
            print(f"round {number}: without Ray {shown(a)}, with Ray {shown(b)}", flush=True)
    finally:
        launching.disconnect()
        end(head)
    print(f"all {len(alone)} epochs of each: without Ray {shown(alone)}, with Ray {shown(on_ray)}")
    for name in ("wall", "cpu"):
        for what, of in (("fastest", min), ("median", statistics.median)):
            with_it, without = (of([getattr(c, name) for c in costs]) for costs in (on_ray, alone))
            print(f"step with Ray / without, {name}, {what} epoch: {with_it / without:.3f}")
    print(f"from fit() to the rank's first word: median {statistics.median(waits):.1f} s")


def shown(costs: list[Cost]) -> str:
    """Medians as text."""
    wall, cpu = (statistics.median(getattr(cost, name) for cost in costs) for name in ("wall", "cpu"))
    return f"{wall:.1f} ms a step ({cpu:.1f} ms of CPU)"


def costs(progress: list[dict[str, Any]]) -> list[Cost]:
    """The cost of each epoch but the first, from messages with epoch, step, at and cpu (seconds)."""
    found = []
    for epoch in sorted({each["epoch"] for each in progress})[1:]:
        of_epoch = [each for each in progress if each["epoch"] == epoch]
        first, last = of_epoch[0], of_epoch[-1]
        steps = last["step"] - first["step"]
        if steps < 10:
            raise SystemExit("the epochs are too short to be measured: raise --reviews")
        wall, cpu = ((last[name] - first[name]) * 1000 / steps for name in ("at", "cpu"))
        found.append(Cost(wall, cpu))
    return found


def quickstart(folder: Path, epochs: int, count: int) -> dict[str, Any]:
    """The quickstart's config, on `count` made-up reviews of 5 to 40 words."""
    preset = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
    mapping = yaml.safe_load(preset.read_text("utf-8"))
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(8000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]  # as often as words of a language
    with (folder / "reviews.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join(draw.choices(words, weights, k=draw.randint(5, 40)))
            file.write(json.dumps({"text": text, "label": number % 2}) + "\n")
    mapping["data"] = {"source": "files", "train": [str(folder / "reviews.jsonl")]}
    mapping["training"]["epochs"] = epochs
    mapping["resources"] = {"ranks": 1, "cpus_per_rank": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(mapping))
    return without_service(mapping).model_dump(mode="json")


def without_ray(folder: Path, number: int) -> list[Cost]:
    """The cost of each epoch but the first, trained in a process without Ray."""
    program = "import sys, train; train.alone(*sys.argv[1:])"
    arguments = [str(folder / "config.yaml"), str(folder / "data"), str(folder / f"alone-{number}")]
    # As many threads as Ray gives a rank of one CPU, so that both compute alike.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    answer = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, check=True, stdout=subprocess.PIPE
    )
    return costs(json.loads(answer.stdout))


def alone(config: str, data: str, output: str) -> None:
    """What that process does: train, and print its progress as JSON."""
    import torch

    from textvae.config import load
    from textvae.train import Progress, run

    torch.set_num_threads(1)
    seen: list[dict[str, Any]] = []

    class Hooks:
        def progress(self, progress: Progress) -> None:
            now = {"at": time.monotonic(), "cpu": time.process_time()}
            seen.append({"epoch": progress.epoch, "step": progress.step, **now})

        def stop(self) -> bool:
            return False

        def checkpoint(self, folder: Path, *_: object) -> None:
            shutil.rmtree(folder)

        def epoch(self, report: object) -> None:
            pass

    run(load(config), data_folder=Path(data), scratch=Path(output), hooks=Hooks())
    print(json.dumps(seen))


def with_ray(folder: Path, config: dict[str, Any], number: int) -> tuple[list[Cost], float]:
    """The same of an attempt with one rank, and the seconds from fit() to the rank's first word."""
    from train import attempt  # this file, under the name by which the attempt imports it

    said = folder / f"ray-{number}.jsonl"
    fit = {
        "config": config,
        "ranks": 1,
        "cpus_per_rank": 1,
        "gpus_per_rank": 0,
        "data_folder": str(folder / "data"),
        "storage": str(folder / "storage"),
        "prefix": f"round-{number}",
        "resume": None,
        "ray_storage": str(folder / "ray"),
        "name": f"round-{number}",
    }
    environment = {"PYTHONPATH": str(Path(__file__).parent)}
    launching.start(f"round-{number}", attempt, {"said": str(said), "fit": fit}, environment=environment)
    while launching.state(f"round-{number}", timeout=30) != "dead":
        time.sleep(0.2)
    messages = [json.loads(line) for line in said.read_text().splitlines()]
    if messages[-1]["kind"] != "result":
        raise SystemExit(f"the attempt did not finish: {messages[-1]}")
    first = next(each["at"] for each in messages if each["kind"] == "log")
    return costs([each for each in messages if each["kind"] == "progress"]), first


def attempt(arguments: dict[str, Any]) -> None:
    """What the attempt does: train, and write down the messages with the time and the rank's CPU time."""
    began = time.monotonic()
    ranks: list[psutil.Process] = []

    def cpu() -> float:
        if not ranks:
            raylet = psutil.Process().parent()
            ranks.extend(
                p for p in (raylet.children() if raylet else []) if "RayTrainWorker" in p.cmdline()[0]
            )
        used = ranks[0].cpu_times()
        return used.user + used.system

    with Path(arguments["said"]).open("w", encoding="utf-8") as file:

        def take(message: dict[str, Any]) -> dict[str, Any]:
            used = cpu() if message["kind"] == "progress" else 0.0
            file.write(json.dumps({"at": time.monotonic() - began, "cpu": used, **message}) + "\n")
            file.flush()
            return {"stop": False}

        result = training.fit(on_message=take, **arguments["fit"])
        take({"kind": "result", "status": result.status})


def start_ray(folder: Path) -> tuple[subprocess.Popen[bytes], str, Path]:
    """A head with 2 CPUs in a process group of its own, its address and its token."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    sockets = [socket.socket() for _ in range(6)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    names = (
        "port",
        "object-manager-port",
        "node-manager-port",
        "ray-client-server-port",
        "metrics-export-port",
        "dashboard-port",
    )
    with (folder / "ray.log").open("wb") as log:
        head = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "ray"),
                *("start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"),
                *("--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--temp-dir={folder}"),
                *(f"--{name}={port}" for name, port in zip(names, ports, strict=True)),
            ],
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return head, f"127.0.0.1:{ports[0]}", token


def connect(address: str, token: Path, head: subprocess.Popen[bytes]) -> None:
    """Become a driver of the head as soon as it answers."""
    deadline = time.monotonic() + 90
    while True:
        try:
            return launching.connect(address, token_path=token)
        except launching.ClusterError:
            if head.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def end(head: subprocess.Popen[bytes]) -> None:
    """End the head and everything that it started."""
    family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    head.terminate()
    _, alive = psutil.wait_procs(family, timeout=3)
    for each in alive:
        each.kill()
    head.wait()


if __name__ == "__main__":
    main()
