"""Evaluation records: of a checkpoint and the data of its own config, with where and when, in a file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from textvae import checkpoint
from textvae.evaluate.errors import EvaluationError
from textvae.evaluate.evaluation import Options, evaluate
from textvae.evaluate.reading import Progress
from textvae.sources import prepare
from textvae.sources.permutation import key_of

DATA = ("train", "validation", "test")

# Keys of the objective that are younger than stored records, with what a config without them does. A config
# that says just that has the key of the records that lack them: its new seeds stay in their row.
_YOUNGER: dict[str, object] = {"pretraining_token_drop": 0.0, "sentiment_after_epochs": 0}


def of_checkpoint(
    folder: Path,
    *,
    data_folder: Path,
    part: str = "validation",
    options: Options | None = None,
    digest: str | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    training_seconds: float | None = None,
) -> dict[str, Any]:
    """The record (see `evaluate`) of a checkpoint over a part of the data that its config names.

    part: train, validation or test. training_seconds: what the checkpoint does not know, if it is older than
    that entry. Raises CheckpointError, SourceError, EvaluationError.
    """
    if part not in DATA:
        raise EvaluationError(f"the part must be one of {', '.join(DATA)}, not {part}")
    saved = checkpoint.load(folder, digest=digest, optimizer=False)
    corpus = prepare(saved.config.data, data_folder, seed=saved.config.seed, progress=progress)
    record = evaluate(
        folder,
        getattr(corpus, part),
        part=part,
        training=corpus.train,
        labelled=corpus.labelled,
        options=options,
        digest=saved.digest,
        device=device,
        progress=progress,
    )
    if record["checkpoint"]["training_seconds"] is None:
        record["checkpoint"]["training_seconds"] = training_seconds
    return record


def with_provenance(
    record: dict[str, Any], preset: str, *, hardware: str | None = None, now: datetime | None = None
) -> dict[str, Any]:
    """A record for docs/results: preset, seed, git revision, hardware, training wall time, evaluation.

    hardware: what the model was trained on, in words; by default this machine. The folder that the data lay
    in is left out: it says nothing of the result, and much of whose machine it was.
    """
    config = {**record["config"], "data": {**record["config"]["data"], "folder": None}}
    record = {**record, "config": config}
    return {
        "preset": preset,
        "seed": record["config"]["seed"],
        "date": (now or datetime.now(UTC)).date().isoformat(),
        "git": revision(Path(__file__).parent),
        "hardware": hardware or this_machine(),
        "training_seconds": record["checkpoint"]["training_seconds"],
        "config_key": f"{key_of(_without_seed(record['config'])):016x}",
        "evaluation": record,
    }


def _without_seed(config: dict[str, Any]) -> str:
    """What seeds of one preset have in common, as text, whichever version wrote them down."""
    data = {k: v for k, v in config["data"].items() if k != "folder"}
    objective = {k: v for k, v in config["objective"].items() if (k, v) not in _YOUNGER.items()}
    return json.dumps({**config, "seed": None, "data": data, "objective": objective}, sort_keys=True)


def revision(folder: Path) -> str | None:
    """The git revision of the code in `folder`, `+` behind it if it was changed since; None outside git."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def this_machine() -> str:
    """`2 CPU cores (AMD EPYC 7763), 16 GB`, and its first GPU if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = [
            line
            for line in information.read_text("utf-8", "replace").splitlines()
            if line.startswith("model name")
        ]
        name = models[0].partition(":")[2].strip() if models else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    text = f"{cores} CPU core{'' if cores == 1 else 's'} ({name}), {memory:.0f} GB"
    if torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name(0)}"
    return text


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON; the file appears whole or not at all. OSError if the disk refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
