"""Part `ray`: a step of one rank on Ray against the same step without Ray.

Both train the quickstart's model on the same reviews from the same seed, so that their steps are the same,
number by number. Both processes stay alive; each takes a few steps while the other waits at a gate, which
hangs on the stop() that textvae.train asks after every step. What is compared is the same steps' time.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil

from cluster import launching, training
from speed.ours import CONFIGS, Say
from speed.turns import ratio
from textvae.config import without_service
from textvae.parsing import read_yaml

WITHIN = 0.03
_ROOT = Path(__file__).parent.parent
_WARM_UP = 2  # turns
_PATIENCE = 180.0  # seconds until somebody who should come to the gate counts as lost
# Where a process finds the gate, and under which of the two names it goes there.
_GATE, _NAME = "SPEED_GATE", "SPEED_NAME"
ALONE, ON_RAY = "without Ray", "on Ray"


@dataclass(frozen=True)
class Cost:
    """What a turn took, in seconds a step."""

    wall: float
    cpu: float  # of all threads of the process that trains, from one end of its turn to the other


def compare(rounds: int, steps: int, say: Say) -> dict[str, Any]:
    """`rounds` pairs of turns of `steps` steps each, and whether the medians differ by more than 3 %."""
    folder = Path(tempfile.mkdtemp(prefix="tvbench", dir="/tmp"))  # Ray's sockets need a short path
    try:
        costs = _measure(folder, rounds, steps, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result: dict[str, Any] = {
        "steps a turn": steps,
        "wanted": f"within {WITHIN:.0%}",
        "sides": {},
        "ratios": {},
    }
    for name, each in costs.items():
        result["sides"][name] = {
            f"ms a step, {kind}, {what}": 1000 * of([getattr(cost, kind) for cost in each])
            for kind in ("wall", "cpu")
            for what, of in (("median", statistics.median), ("best turn", min))
        }
    for kind in ("wall", "cpu"):
        ours, theirs = ([getattr(cost, kind) for cost in costs[name]] for name in (ON_RAY, ALONE))
        of_kind = ratio(ours, theirs, best=min)
        result["ratios"][kind] = {**of_kind.as_dict(), "decided": decided(of_kind.low, of_kind.high)}
    return result


def decided(low: float, high: float) -> str:
    """What an interval of the ratio with Ray / without says of the 3 %."""
    if high <= 1 + WITHIN:
        return "within 3 %"
    return "more than 3 %" if low > 1 + WITHIN else "not decided"


def _measure(folder: Path, rounds: int, steps: int, say: Say) -> dict[str, list[Cost]]:
    config = _quickstart(folder, rounds, steps)
    environment = {_GATE: str(folder / "gate"), "PYTHONPATH": str(_ROOT)}
    with socket.socket(socket.AF_UNIX) as gate, contextlib.ExitStack() as ends:
        gate.bind(environment[_GATE])  # in a folder that is ours alone
        gate.listen()
        gate.settimeout(_PATIENCE)
        say("starting Ray")
        head, address, token = _start_ray(folder)
        ends.callback(_end, head)
        _connect(address, token, head)
        ends.callback(launching.disconnect)
        alone = subprocess.Popen(
            [sys.executable, "-c", "import sys; from speed import on_ray; on_ray.alone(sys.argv[1])", folder],
            # As many threads as Ray gives a rank of one CPU, so that both compute alike.
            env={**os.environ, **environment, _NAME: ALONE, "OMP_NUM_THREADS": "1"},
        )
        ends.callback(alone.kill)
        fit = {
            "config": config,
            "ranks": 1,
            "cpus_per_rank": 1,
            "gpus_per_rank": 0,
            "data_folder": str(folder / "data"),
            "storage": str(folder / "storage"),
            "prefix": "measured",
            "resume": None,
            "ray_storage": str(folder / "ray"),
            "name": "measured",
        }
        said = folder / "said.jsonl"
        arguments = {"fit": fit, "said": str(said)}
        launching.start("measured", attempt, arguments, environment={**environment, _NAME: ON_RAY})
        try:
            costs = alternate(gate, rounds, steps, say)
            alone.wait(_PATIENCE)
            while launching.state("measured", timeout=30) != "dead":
                time.sleep(0.2)
            messages = [json.loads(line) for line in said.read_text("utf-8").splitlines()]
            if messages[-1] != {"kind": "result", "status": "stopped"} or alone.returncode != 0:
                raise EOFError(f"without Ray: exit {alone.returncode}")
        except (EOFError, TimeoutError) as error:
            heard = said.read_text("utf-8")[-2000:] if said.exists() else "nothing"
            raise SystemExit(f"one of the two did not finish ({error}); the attempt said: {heard}") from error
        return costs


def alternate(gate: socket.socket, rounds: int, steps: int, say: Say) -> dict[str, list[Cost]]:
    """Let the two through in turns, A B B A, and then tell them to stop."""
    with contextlib.ExitStack() as ends:
        doors: dict[str, TextIO] = {}
        while len(doors) < 2:
            connection = ends.enter_context(gate.accept()[0])
            connection.settimeout(_PATIENCE)
            door: TextIO = ends.enter_context(connection.makefile("rw", encoding="utf-8"))
            doors[_hear(door)] = door
        costs: dict[str, list[Cost]] = {ALONE: [], ON_RAY: []}
        say(f"{rounds} rounds of {steps} steps")
        for number in range(-_WARM_UP, rounds):
            for name in (ALONE, ON_RAY) if number % 2 else (ON_RAY, ALONE):
                _tell(doors[name], steps)
                cost = Cost(*_hear(doors[name]))
                if number >= 0:
                    costs[name].append(cost)
        for door in doors.values():
            _tell(door, 0)
    return costs


def _tell(door: TextIO, what: object) -> None:
    door.write(json.dumps(what) + "\n")
    door.flush()


def _hear(door: TextIO) -> Any:
    line = door.readline()
    if not line:
        raise EOFError("it left the gate")
    return json.loads(line)


class Gate:
    """Wraps the hooks of textvae.train.run: after so many steps it says what they cost, and waits."""

    def __init__(self, hooks: Any, address: str, name: str):
        self.hooks = hooks
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            self.door = connection.makefile("rw", encoding="utf-8")
        _tell(self.door, name)
        self.steps = self.left = 0
        self.wall = self.cpu = 0.0
        self.stopping = False

    def stop(self) -> bool:
        """The hooks' own answer, or the gate's."""
        answer = bool(self.hooks.stop())
        self.left -= 1
        if self.left <= 0 and not self.stopping:
            if self.steps:
                wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
                _tell(self.door, (wall / self.steps, cpu / self.steps))
            self.steps = self.left = _hear(self.door)
            if self.steps == 0:
                self.stopping = True
                self.door.close()
            self.wall, self.cpu = time.perf_counter(), time.process_time()
        return answer or self.stopping

    def __getattr__(self, name: str) -> Any:
        return getattr(self.hooks, name)


def gated(run: Callable[..., Any]) -> Callable[..., Any]:
    """textvae.train.run with a gate in its hooks."""

    def through_the_gate(*arguments: Any, hooks: Any, **options: Any) -> Any:
        return run(*arguments, hooks=Gate(hooks, os.environ[_GATE], os.environ[_NAME]), **options)

    return through_the_gate


def alone(folder: str) -> None:
    """What the process without Ray does."""
    import torch

    from textvae import heap
    from textvae.config import load
    from textvae.train import run

    class Hooks:
        def progress(self, progress: object) -> None:
            pass

        def stop(self) -> bool:
            return False

        def checkpoint(self, folder: Path, *_: object) -> None:
            shutil.rmtree(folder)

        def epoch(self, report: object) -> None:
            pass

    torch.set_num_threads(1)
    path = Path(folder)
    config = load(path / "config.yaml")
    heap.settle(config)  # as the rank on Ray does
    gated(run)(config, data_folder=path / "data", scratch=path / "alone", hooks=Hooks())


def rank(arguments: dict[str, Any]) -> None:
    """What the rank on Ray runs: the service's own, but for the gate."""
    training.run = gated(training.run)  # type: ignore[attr-defined]
    training._rank(arguments)


def attempt(arguments: dict[str, Any]) -> None:
    """What the attempt does: the service's own, its messages written down."""
    training._rank = rank
    with Path(arguments["said"]).open("w", encoding="utf-8") as file:

        def take(message: dict[str, Any]) -> dict[str, Any]:
            file.write(json.dumps(message) + "\n")
            file.flush()
            return {"stop": False}

        result = training.fit(on_message=take, **arguments["fit"])
        take({"kind": "result", "status": result.status})


def _quickstart(folder: Path, rounds: int, steps: int) -> dict[str, Any]:
    """The quickstart's config, on made-up reviews of 5 to 40 words, enough to stay within the first epoch.

    At an epoch's end reviews are validated and a checkpoint is written: no turn should hold that.
    """
    mapping = read_yaml(CONFIGS / "quickstart.yaml")
    count = mapping["training"]["batch_size"] * (steps * (_WARM_UP + rounds) + 10)
    count += count // 5  # a tenth is held out for validation
    made_up_sentences(folder / "reviews.jsonl", count)
    mapping["data"] = {"source": "files", "train": [str(folder / "reviews.jsonl")]}
    mapping["resources"] = {"ranks": 1, "cpus_per_rank": 1}
    (folder / "config.yaml").write_text(json.dumps(mapping), "utf-8")  # JSON is YAML, too
    return without_service(mapping).model_dump(mode="json")


def made_up_sentences(path: Path, count: int) -> None:
    """So many labelled reviews of 5 to 40 made-up words, as often as words of a language."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(8000)]
    weights = [1 / (place + 1) for place in range(len(words))]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join(draw.choices(words, weights, k=draw.randint(5, 40)))
            file.write(json.dumps({"text": text, "label": number % 2}) + "\n")


def _start_ray(folder: Path) -> tuple[subprocess.Popen[bytes], str, Path]:
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


def _connect(address: str, token: Path, head: subprocess.Popen[bytes]) -> None:
    """Become a driver of the head as soon as it answers."""
    deadline = time.monotonic() + 90
    while True:
        try:
            return launching.connect(address, token_path=token)
        except launching.ClusterError:
            if head.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _end(head: subprocess.Popen[bytes]) -> None:
    """End the head and everything that it started."""
    family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    head.terminate()
    _, alive = psutil.wait_procs(family, timeout=3)
    for each in alive:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended just now
            each.kill()
    head.wait()
