"""The service as a user has it: `textvae-jobs up` in a home of its own, and its processes by kind."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import httpx
import psutil

from cluster import serving, stack
from cluster.stack import processes
from jobs.settings import Settings

from ..home import Home
from .oracle import Expected

# Of each kind of process, how its command line begins or what is in it.
_SIGNS = {
    "redis": ("redis-server",),
    "dispatcher": ("-m jobs.dispatcher",),
    "head": ("/gcs/gcs_server ",),
    "raylet": ("/raylet/raylet ",),
    "dashboard": ("/dashboard/dashboard.py ",),
    "attempt": ("ray::_Attempt",),
    "rank": ("ray::RayTrainWorker", "ray::_RayTrainWorker"),
    "replica": ("ray::ServeReplica",),
    "proxy": ("ray::ProxyActor",),
    "controller": ("ray::ServeController",),
}
_REVIEWS = 200

SLOW = 600.0  # seconds after which something has failed, on whatever machine


class Service:
    """A home's service; `folder` of the home holds the reviews and configs of its jobs."""

    def __init__(self, home: Home):
        self.home = home
        self.url = f"http://127.0.0.1:{home.ports[1]}"
        self.expected: list[Expected] = []  # all jobs that were submitted
        draw = random.Random(0)
        rows = ["text,label"]
        for number in range(_REVIEWS):
            feeling, label = ("a lovely warm film", 1) if number % 2 else ("a dull cold film", 0)
            rows.append(f"{feeling} number {draw.randrange(10)},{label}")
        (home.folder / "reviews.csv").write_text("\n".join(rows))

    def up(self) -> None:
        """What an operator does first, and whenever a part has died."""
        self.home.call(*self.home.up[1:], "--detach", "--timeout", "600", timeout=900)

    @property
    def settings(self) -> Settings:
        """Those of its commands."""
        return Settings.from_environment(self.home.environment).connected()

    def submit(self, model: str, seed: int, epochs: int, id: str) -> str:
        """Submit a job so small that an epoch of it takes a moment; its id."""
        path = self.home.folder / f"{id}.yaml"
        config = {
            "name": model,
            "seed": seed,
            "data": {"source": "files", "train": [str(self.home.folder / "reviews.csv")]},
            "vocabulary": {"kind": "words", "size": 60, "max_length": 12},
            "model": {"embedding": 8, "encoder_hidden": 8, "latent": 4, "decoder_hidden": 8},
            "training": {"epochs": epochs, "batch_size": 20, "keep_last": 2},
            "retry": {"max_attempts": 100, "max_infrastructure": 100, "backoff": 0},
        }
        path.write_text(json.dumps(config))  # JSON is YAML
        self.home.call("submit", str(path), "--id", id, timeout=300)
        self.expected.append(Expected(id, seed, epochs, real=True))
        return id

    def processes(self, *kinds: str) -> list[psutil.Process]:
        """Those of these kinds that live, the oldest first."""
        there = stack.read(Path(self.home.environment["TEXTVAE_HOME"]))
        if there is None:
            return []
        found = []
        for process in processes.family(there.processes, there.mark):
            try:
                words = " ".join(process.cmdline()) + " "
                if any(sign in words for kind in kinds for sign in _SIGNS[kind]):
                    found.append((process.create_time(), process.pid, process))
            except psutil.NoSuchProcess:
                continue
        return [process for _, _, process in sorted(found, key=lambda each: each[:2])]

    def signal(self, number: signal.Signals, *kinds: str) -> list[psutil.Process]:
        """Send a signal to all processes of these kinds; those that it reached."""
        reached = self.processes(*kinds)
        for process in reached:
            os.kill(process.pid, number)
        return reached

    def serves(self) -> dict[str, int]:
        """The version of each model that the HTTP server says it serves; none if it does not answer."""
        try:
            return {name: int(told["version"]) for name, told in serving.current(serve_url=self.url).items()}
        except serving.ServingError:
            return {}

    def served(self) -> dict[str, int]:
        """The version of each model that the HTTP server answers a question with."""
        versions = {}
        for name in self.serves():
            question = {"texts": ["a lovely warm film"], "model": name}
            answer = httpx.post(f"{self.url}/v1/sentiment", json=question, timeout=30, trust_env=False)
            versions[name] = int(answer.raise_for_status().json()["version"])
        return versions
