"""How fast the served model answers, against the same model behind a bare uvicorn, in one go.

    python benchmarks/serve.py [--seconds 4] [--texts 4] [--clients 1 16 64]

A model of the quickstart's sizes with random weights answers POST /v1/sentiment with a few reviews each,
once through Ray Serve on a local stack of its own, once through uvicorn alone: the same FastAPI application
and the same batches, so the difference is what Serve costs. The load comes from another process. On few cores
load, proxy and model take them from each other; the ratios say more than the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import serving, stack
from cluster.stack import parts, processes

MODEL = "benchmark"
WORDS = "the a film plot actor scene it was and very of good great dull"


@dataclass(frozen=True)
class Measured:
    """One load on one server."""

    requests: int
    failed: int
    seconds: float
    p50: float  # ms
    p99: float  # ms

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def main() -> None:
    """Measure both servers and print a table."""
    options = argparse.ArgumentParser(
        description="requests a second of the served model, with and without Ray"
    )
    options.add_argument("--seconds", type=float, default=4, help="of each measurement (default: 4)")
    options.add_argument("--texts", type=int, default=4, help="reviews in a request (default: 4)")
    options.add_argument(
        "--clients", type=int, nargs="+", default=[1, 16, 64], help="at once (default: 1 16 64)"
    )
    options.add_argument("--model", type=Path, help="a checkpoint's folder (default: random weights)")
    options.add_argument("--load", nargs=2, metavar=("URL", "CLIENTS"), help=argparse.SUPPRESS)
    options.add_argument("--uvicorn", nargs=2, metavar=("PORT", "VERSION"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.load:
        print(json.dumps(asyncio.run(load(given.load[0], int(given.load[1]), given.seconds, given.texts))))
    elif given.uvicorn:
        run_uvicorn(int(given.uvicorn[0]), json.loads(given.uvicorn[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="textvae-benchmark-") as folder:
            compare(Path(folder), given)


def compare(folder: Path, given: argparse.Namespace) -> None:
    """Measure one server after the other, never both at once."""
    version = {"version": 1, **(at(given.model) if given.model else random_model(folder / "model"))}
    try:
        began = time.monotonic()
        up = stack.up(
            folder / "home", dispatcher=None, dashboard_port=parts.free_port(), serve_port=parts.free_port()
        )
        print(f"stack up in {time.monotonic() - began:.1f} s", file=sys.stderr)
        where: dict[str, Any] = {"dashboard_url": up.dashboard_url, "token": up.token()}
        port = int(up.serve_url.rsplit(":", 1)[1])
        serving.apply({MODEL: version}, http_port=port, **where)
        serving.wait({MODEL: version}, serve_url=up.serve_url, **where)
        with_ray = {clients: measure(up.serve_url, clients, given) for clients in given.clients}
    finally:
        stack.down(folder / "home")
    port = parts.free_port()
    argv = [sys.executable, __file__, "--uvicorn", str(port), json.dumps(version)]
    process = processes.start("uvicorn", argv, os.environ, folder / "uvicorn.log")
    try:
        url = f"http://127.0.0.1:{port}"
        parts.wait_for(
            "uvicorn",
            lambda: parts.serve_answers(url),
            process=process,
            log=folder / "uvicorn.log",
            timeout=60,
        )
        bare = {clients: measure(url, clients, given) for clients in given.clients}
    finally:
        processes.end([process])
    show(with_ray, bare, given.texts)


def show(with_ray: dict[int, Measured], bare: dict[int, Measured], texts: int) -> None:
    """Print both, and what Serve costs."""
    print(f"POST /v1/sentiment with {texts} reviews")
    heads = ("clients", "server", "requests/s", "reviews/s", "p50 ms", "p99 ms", "failed")
    print("".join(f"{head:>{width}}" for head, width in zip(heads, (8, 12, 12, 11, 9, 9, 8), strict=True)))
    for clients, ray in with_ray.items():
        for name, measured in (("Ray Serve", ray), ("uvicorn", bare[clients])):
            print(
                f"{clients:>8}{name:>12}{measured.rate:>12.0f}{measured.rate * texts:>11.0f}"
                f"{measured.p50:>9.1f}{measured.p99:>9.1f}{measured.failed:>8}"
            )
        print(f"{'':>8}{'ratio':>12}{ray.rate / bare[clients].rate:>12.2f}")


def measure(url: str, clients: int, given: argparse.Namespace) -> Measured:
    """Load a server from another process; a short load before it counts for nothing."""
    argv = [sys.executable, __file__, "--texts", str(given.texts), "--load", url, str(clients), "--seconds"]
    subprocess.run([*argv, "1"], check=True, capture_output=True)
    told = subprocess.run([*argv, str(given.seconds)], check=True, capture_output=True, text=True).stdout
    return Measured(**json.loads(told))


async def load(url: str, clients: int, seconds: float, texts: int) -> dict[str, Any]:
    """`clients` that each ask again as soon as they are answered."""
    import aiohttp  # comes with Ray; its client takes a third of the CPU that httpx takes

    draw = random.Random(0)
    bodies = [{"texts": [review(draw) for _ in range(texts)]} for _ in range(200)]
    times: list[float] = []
    failed = 0
    end = time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal failed
        while (asked := time.perf_counter()) < end:
            async with session.post(f"{url}/v1/sentiment", json=draw.choice(bodies)) as answer:
                await answer.read()
            failed += answer.status != 200
            times.append(time.perf_counter() - asked)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        took = time.perf_counter() - began
    times.sort()
    return {
        "requests": len(times),
        "failed": failed,
        "seconds": took,
        "p50": times[len(times) // 2] * 1000,
        "p99": times[int(len(times) * 0.99)] * 1000,
    }


def review(draw: random.Random) -> str:
    """A made-up review of one to five sentences' length."""
    return " ".join(draw.choices(WORDS.split(), k=draw.randint(15, 80)))


def random_model(folder: Path) -> dict[str, str]:
    """A model of the quickstart's sizes with random weights; where it is, and its digest."""
    import torch

    from jobs.config import load
    from textvae import checkpoint, vocabulary
    from textvae.model import TextVAE

    config = load("configs/quickstart.yaml").training_config()
    draw = random.Random(1)
    words = vocabulary.build(config.vocabulary, [review(draw) for _ in range(500)])
    torch.manual_seed(0)
    model = TextVAE(config, words.size)
    digest = checkpoint.save(
        folder,
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        config=config,
        vocabulary=words,
        position=checkpoint.Position(),
        metrics={},
    )
    return {"location": str(folder), "digest": digest}


def at(folder: Path) -> dict[str, str]:
    """Where a checkpoint is, and its digest."""
    from textvae import checkpoint

    return {"location": str(folder.resolve()), "digest": checkpoint.verify(folder)}


def run_uvicorn(port: int, version: dict[str, Any]) -> None:
    """The same application without Ray."""
    import uvicorn

    from cluster.serving.app import create
    from cluster.serving.models import Models

    async def run() -> None:
        models = Models()
        await models.serve({MODEL: version})
        await uvicorn.Server(
            uvicorn.Config(create(models), host="127.0.0.1", port=port, log_level="warning", access_log=False)
        ).serve()

    asyncio.run(run())


if __name__ == "__main__":
    main()
