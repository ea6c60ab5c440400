"""What an attempt of a chaos test trains: real ranks in processes of their own, with or without torch.

The stub's weights are a chain of hashes, one link a step, so that a step that was left out or taken twice
shows in them as it would in real weights. Real training is `textvae.train`, on one rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from textvae import checkpoint
from textvae.artifacts import Artifacts
from textvae.checkpoint import Position

from . import points
from .forking import spawn
from .launcher import hold

STEPS = 4  # of an epoch of the stub
METRIC = "sentiment_accuracy"

Say = Callable[[dict[str, Any]], dict[str, Any]]


class RankDied(RuntimeError):
    """The rank went away."""


class RankFailed(RuntimeError):
    """The rank said that it failed."""


@dataclass(frozen=True)
class Result:
    """What training returns: finished or stopped."""

    status: str


class Fit:
    """`cluster.training.fit` with a forked process for a rank, which talks over a socket of the attempt."""

    def __init__(self, mother: str, name: Path, order: Mapping[str, Any]):
        self._mother = mother
        self._name = name
        self._order = dict(order)

    def __call__(self, config: dict[str, Any], **given: Any) -> Result:
        address = f"\0textvae-{uuid.uuid4().hex}"  # the attempt's own path may be longer than an address
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(address)
            listening.listen(1)
            listening.settimeout(30)
            order = {
                **self._order,
                "config": config,
                "name": f"{self._name}.rank",
                "address": address,
                "storage": given["storage"],
                "prefix": given["prefix"],
                "resume": given["resume"],
                "data_folder": str(given["data_folder"]),
            }
            points.reach("launcher", "start the rank")
            spawn(self._mother, "rank", order, Path(f"{self._name}.out"))
            points.reach("launcher", "wait for the rank")
            try:
                talking, _ = listening.accept()
            except TimeoutError:
                raise RankDied("the rank did not start") from None
        try:
            with talking, talking.makefile("rw", encoding="utf-8") as lines:
                return _serve(lines, given["on_message"])
        except ConnectionError as error:
            raise RankDied("the rank died") from error


def _serve(lines: IO[str], on_message: Say) -> Result:
    for line in lines:
        message = json.loads(line)
        if message["kind"] == "end":
            return Result(message["status"])
        if message["kind"] == "failure":
            on_message({"kind": "log", "text": message["traceback"]})
            raise RankFailed(f"rank 0: {message['error']}")
        lines.write(json.dumps(on_message(message)) + "\n")
        lines.flush()
    raise RankDied("the rank died")


def train(order: Mapping[str, Any]) -> None:
    """What a rank does from its start to its end. It ends when its attempt is not there any more."""
    if not hold(Path(order["name"])):
        return
    with socket.socket(socket.AF_UNIX) as talking:
        talking.connect(order["address"])
        scratch = Path(tempfile.mkdtemp(suffix=".scratch", dir=Path(order["name"]).parent))
        with talking.makefile("rw", encoding="utf-8") as lines:

            def say(message: dict[str, Any]) -> dict[str, Any]:
                lines.write(json.dumps(message) + "\n")
                lines.flush()
                answer = lines.readline()
                if not answer:
                    os._exit(1)  # the attempt has gone, and what it said with it
                return dict(json.loads(answer))

            say({"kind": "log", "text": f"rank 0 is process {os.getpid()}"})
            work = _real if order["config"]["data"]["source"] == "files" else _stub
            try:
                end = {"kind": "end", "status": work(order, scratch, say)}
            except Exception as error:  # noqa: BLE001 - whatever it is, the attempt ends with it
                told = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
                end = {"kind": "failure", **told}
            lines.write(json.dumps(end) + "\n")
        shutil.rmtree(scratch)


def chain(seed: int, steps: int, state: str = "", done: int = 0) -> str:
    """The stub's weights after `steps` steps, going on from `state` after `done`."""
    for step in range(done + 1, steps + 1):
        state = hashlib.sha256(f"{state} {seed} {step}".encode()).hexdigest()
    return state


def value_of(seed: int, epoch: int) -> float:
    """The metric that the stub reports of an epoch; jobs of other seeds get other values."""
    return round(0.5 + (seed % 97) / 400 + epoch / 1000, 6)


def weights_of(folder: Path) -> dict[str, Any]:
    """What a checkpoint of the stub holds."""
    return dict(json.loads((folder / checkpoint.MODEL).read_text()))


def write(folder: Path, weights: Mapping[str, Any]) -> str:
    """A checkpoint of the stub, written as `textvae.checkpoint.save` writes one; its digest."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.partial"
    partial.mkdir()
    (partial / checkpoint.MODEL).write_text(json.dumps(weights))
    for name in checkpoint.FILES[1:]:
        (partial / name).write_text("{}")
    files = {name: checkpoint.sha256(partial / name) for name in checkpoint.FILES}
    (partial / checkpoint.MANIFEST).write_text(json.dumps({"format": checkpoint.FORMAT, "files": files}))
    for name in (*checkpoint.FILES, checkpoint.MANIFEST):
        checkpoint.sync(partial / name)
    digest = checkpoint.sha256(partial / checkpoint.MANIFEST)
    checkpoint.publish(partial, folder)
    return digest


def _stub(order: Mapping[str, Any], scratch: Path, say: Say) -> str:
    config, store = order["config"], Artifacts(order["storage"])
    seed, epochs = config["seed"], config["training"]["epochs"]
    done, state = 0, ""
    if order["resume"] is not None:
        name, digest = order["resume"]
        folder = store.fetch(name, scratch / "fetched")
        checkpoint.verify(folder, digest=digest)
        weights = weights_of(folder)
        done, state = weights["step"], weights["state"]
    while done < epochs * STEPS:
        time.sleep(order["pace"])
        state, done = chain(seed, done + 1, state, done), done + 1
        epoch = done // STEPS
        whole = done % STEPS == 0
        at = {"epoch": epoch + 1, "epochs": epochs, "step": done, "steps": epochs * STEPS}
        stop = say({"kind": "progress", **at, "loss": 1.0})
        while done == order["hold"] and not stop["stop"] and not Path(order["release"]).exists():
            time.sleep(0.01)
            stop = say({"kind": "log", "text": f"held at step {done} until told to stop"})
        if not whole and not stop["stop"]:
            continue
        folder = scratch / (f"epoch-{epoch:02}" if whole else f"step-{done:06}")
        digest = write(folder, {"step": done, "state": state})
        name = f"{order['prefix']}/{folder.name}"
        store.put(folder, name)
        shutil.rmtree(folder)
        metrics = {METRIC: value_of(seed, epoch)}
        report = {
            "epoch": epoch,
            "step": done,
            "seconds": 0.1,
            "tokens_per_second": 1.0,
            "train": metrics,
            "validation": metrics,
        }
        answer = say(
            {
                "kind": "checkpoint",
                "name": name,
                "digest": digest,
                "position": asdict(Position(epoch, done, done % STEPS)),
                "report": report if whole else None,
            }
        )
        if answer["stop"] and done < epochs * STEPS:
            return "stopped"
    return "finished"


class _Hooks:
    """textvae.train.Hooks over the socket."""

    def __init__(self, order: Mapping[str, Any], say: Say):
        self._store = Artifacts(order["storage"])
        self._prefix = order["prefix"]
        self._say = say
        self._stop = False
        self._between = False  # an epoch is over, the next one has not begun

    def progress(self, progress: Any) -> None:
        self._stop |= self._say({"kind": "progress", **asdict(progress)})["stop"]

    def stop(self) -> bool:
        import torch

        if not self._between and torch.is_grad_enabled():  # as it is not in a validation
            points.reach("step", "taken")
        self._between = False
        return self._stop

    def checkpoint(self, folder: Path, digest: str, position: Position, report: Any) -> None:
        name = f"{self._prefix}/{folder.name}"
        self._store.put(folder, name)
        shutil.rmtree(folder)
        told = None if report is None else asdict(report)
        message = {"name": name, "digest": digest, "position": asdict(position), "report": told}
        self._stop |= self._say({"kind": "checkpoint", **message})["stop"]

    def epoch(self, report: Any) -> None:
        """Nothing more is told of an epoch than with its checkpoint."""
        self._between = True


def _real(order: Mapping[str, Any], scratch: Path, say: Say) -> str:
    import torch

    from textvae.config import Config
    from textvae.parsing import parse
    from textvae.train import run

    torch.set_num_threads(1)
    hooks = _Hooks(order, say)
    resume, digest = None, None
    if order["resume"] is not None:
        name, digest = order["resume"]
        resume = Artifacts(order["storage"]).fetch(name, scratch / "fetched")
    outcome = run(
        parse(Config, order["config"]),
        data_folder=Path(order["data_folder"]),
        scratch=scratch,
        hooks=hooks,
        resume=resume,
        digest=digest,
    )
    return "finished" if outcome.finished else "stopped"


class _Keep:
    """textvae.train.Hooks that keep the last checkpoint."""

    def __init__(self) -> None:
        self.last: Path | None = None

    def progress(self, progress: Any) -> None:
        """Nobody looks."""

    def stop(self) -> bool:
        return False

    def checkpoint(self, folder: Path, digest: str, position: Position, report: Any) -> None:
        self.last = folder

    def epoch(self, report: Any) -> None:
        """Its checkpoint is enough."""


def uninterrupted(config: Mapping[str, Any], data_folder: Path, scratch: Path) -> dict[str, str]:
    """Train as a real job's config says, without any interruption; see `fingerprint`."""
    import torch

    from textvae.config import Config
    from textvae.parsing import parse
    from textvae.train import run

    hooks, threads = _Keep(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(parse(Config, dict(config)), data_folder=data_folder, scratch=scratch, hooks=hooks)
    finally:
        torch.set_num_threads(threads)
    assert hooks.last is not None
    return fingerprint(hooks.last)


def fingerprint(folder: Path) -> dict[str, str]:
    """The hashes of a checkpoint's weights and optimizer: equal only if every bit is."""
    return {name: checkpoint.sha256(folder / name) for name in (checkpoint.MODEL, checkpoint.OPTIMIZER)}
