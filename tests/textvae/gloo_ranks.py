"""One of several ranks that train together over gloo: started by test_train_ranks.py, once for each rank."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from textvae import train
from textvae.batches import Batch
from textvae.checkpoint import Position
from textvae.config import Config
from textvae.parsing import parse
from textvae.vocabulary import PAD


class Hooks:
    """Stops after one step, or before a batch of validation, counted over all epochs."""

    def __init__(self, stop_at: int | None, in_validation: int | None):
        self.stop_at, self.in_validation = stop_at, in_validation
        self.steps = self.validated = 0
        self.between = False  # an epoch is over, the next one has not begun

    def progress(self, progress: train.Progress) -> None:
        pass

    def stop(self) -> bool:
        if not torch.is_grad_enabled():  # as it is in a validation alone
            self.validated += 1
            return self.validated == self.in_validation
        if self.between:
            self.between = False
            return False
        self.steps += 1
        return self.steps == self.stop_at

    def checkpoint(self, folder: Path, digest: str, position: Position, report: train.Report | None) -> None:
        pass

    def epoch(self, report: train.Report) -> None:
        self.between = True


def noting(file: Path, step: Callable[..., Any]) -> Callable[..., Any]:
    """_Loop._step that first appends the real token ids of each review it takes, and its epoch, to `file`."""

    def noted(self: Any, batch: Batch, *more: Any) -> Any:
        with file.open("a") as lines:
            for row in batch.tokens.tolist():
                lines.write(json.dumps([self.position.epoch, *(id for id in row if id != PAD)]) + "\n")
        return step(self, batch, *more)

    return noted


def main(rank: int, world_size: int, port: int, jobs: list[dict[str, Any]]) -> None:
    """Train each of `jobs` in turn."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    for job in jobs:
        if "read" in job:
            train._Loop._step = noting(Path(f"{job['read']}-{rank}"), train._Loop._step)  # type: ignore[method-assign]
        train.run(
            parse(Config, job["config"]),
            data_folder=Path(job["data"]),
            scratch=Path(job["scratch"]),
            hooks=Hooks(job.get("stop_at"), job.get("in_validation")),
            rank=rank,
            world_size=world_size,
            max_ranks=job.get("max_ranks"),
            resume=Path(job["resume"]) if "resume" in job else None,
        )
        dist.barrier()  # rank 0 may still write what the next one resumes from
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
