"""Training on Ray without the service, as a script of one's own does it: what `latency.py` measures against.

`python benchmarks/bare.py ARGUMENTS` takes one step of textvae.train on TorchTrainer's ranks, with Ray
Train's own settings, and writes when it got where to the file that ARGUMENTS (JSON) names.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def stamp(file: str, stage: str) -> None:
    """Add a line: this stage is reached now, by this process."""
    with Path(file).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"stage": stage, "at": time.time(), "pid": os.getpid()}) + "\n")


def loop(arguments: dict[str, Any]) -> None:
    """What every rank runs: training until its first step is done."""
    import ray.train

    from textvae.config import Config
    from textvae.parsing import parse
    from textvae.train import run

    context = ray.train.get_context()
    rank = context.get_world_rank()
    say = (lambda stage: stamp(arguments["stamps"], stage)) if rank == 0 else lambda stage: None
    say("rank begins")

    class Hooks:
        def progress(self, progress: object) -> None: ...

        def stop(self) -> bool:
            say("first step")
            return True

        def checkpoint(self, *_: object) -> None: ...

        def epoch(self, report: object) -> None: ...

    with tempfile.TemporaryDirectory() as scratch:
        run(
            parse(Config, arguments["config"]),
            data_folder=Path(arguments["data"]),
            scratch=Path(scratch),
            hooks=Hooks(),
            rank=rank,
            world_size=context.get_world_size(),
        )


def main() -> None:
    """Train, on the cluster of RAY_ADDRESS."""
    arguments = json.loads(sys.argv[1])
    stamp(arguments["stamps"], "python is up")
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    stamp(arguments["stamps"], "imports")
    ray.init(log_to_driver=False)
    stamp(arguments["stamps"], "connected")
    trainer = TorchTrainer(
        loop,
        train_loop_config=arguments,
        scaling_config=ScalingConfig(num_workers=arguments["ranks"]),
        run_config=RunConfig(name=arguments["name"], storage_path=arguments["ray_storage"]),
    )
    stamp(arguments["stamps"], "fit")
    trainer.fit()


if __name__ == "__main__":
    main()
