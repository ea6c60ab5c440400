"""A checkpoint is a folder of safetensors and JSON, with a manifest that says what each file must hash to.

    model.safetensors      weights, by parameter name; with training.averaging, their average
    optimizer.safetensors  Adam's moments, as `<parameter index>.<name>`; with training.averaging, the weights
                           that the next step begins with, as `weights.<parameter name>`
    config.json            the textvae.config.Config that trained it
    vocabulary.json        text <-> token ids
    state.json             position, metrics, the optimizer's settings, sums of an epoch in progress
    manifest.json          the SHA-256 of every other file; its own SHA-256 is the checkpoint's digest

Nothing in it is a pickle, so loading one runs no code of whoever wrote it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from textvae.config import Config
from textvae.parsing import ConfigError, parse
from textvae.vocabulary import Vocabulary

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
CONFIG = "config.json"
VOCABULARY = "vocabulary.json"
STATE = "state.json"
MANIFEST = "manifest.json"
FILES = (MODEL, OPTIMIZER, CONFIG, VOCABULARY, STATE)
FORMAT = 1
_WEIGHTS = "weights."


class CheckpointError(RuntimeError):
    """A folder is not the checkpoint that it should be: a file is missing, torn or changed."""


class CheckpointUnreadable(CheckpointError, OSError):
    """A file of a checkpoint cannot be read now: the disk or the network fails, permissions are missing.

    It may be good, so whoever would delete it, or record that it is gone, must not go by this.
    """


@dataclass(frozen=True)
class Position:
    """How far training has come."""

    epoch: int = 0  # epochs completed
    step: int = 0  # optimizer steps taken since the beginning
    batch: int = 0  # steps taken in the epoch in progress
    ranks: int = 0  # in whose layout (textvae.batches) the last of them was read; 0 if none, or unknown


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory, all tensors on CPU."""

    folder: Path  # where it was read
    config: Config
    vocabulary: Vocabulary
    model_state: dict[str, torch.Tensor]
    optimizer_state: dict[str, Any]
    position: Position
    metrics: dict[str, Any]
    digest: str
    sums: dict[str, Any] = field(default_factory=dict)  # of an epoch in progress; empty at an epoch's end
    training_weights: dict[str, torch.Tensor] = field(default_factory=dict)  # if model_state is an average

    def give_weights(self, model: torch.nn.Module) -> None:
        """Load its weights into a model of its config and vocabulary.

        Raises CheckpointError if they do not fit: its files are whole, but not of one training.
        """
        try:
            model.load_state_dict(self.model_state)
        except RuntimeError as error:
            first = str(error).splitlines()[1:2] or [str(error)]
            raise CheckpointError(
                f"{self.folder}: its weights do not fit its config and its vocabulary of "
                f"{self.vocabulary.size} tokens: {first[0].strip()}"
            ) from error


@dataclass(frozen=True)
class Saved:
    """What must be known of a checkpoint to decide whether it is kept."""

    name: str
    step: int
    metrics: Mapping[str, float | None] = field(
        default_factory=dict
    )  # of the validation reviews, if evaluated


def to_keep(
    checkpoints: Iterable[Saved], keep_last: int, metric: str, mode: Literal["max", "min"]
) -> set[str]:
    """The names to keep: the newest `keep_last` by step, and the best by a metric of the validation reviews.

    Of equally good ones the oldest is the best, as when each is compared with the best so far. A checkpoint
    without the metric (one written by a stop in mid-epoch), or with NaN, is never the best.
    """
    by_age = sorted(checkpoints, key=lambda saved: saved.step)
    keep = {saved.name for saved in by_age[-keep_last:]} if keep_last > 0 else set()
    best: tuple[float, str] | None = None
    for saved in by_age:
        value = saved.metrics.get(metric)
        if value is None or math.isnan(value):
            continue
        if best is None or (value > best[0] if mode == "max" else value < best[0]):
            best = (value, saved.name)
    return keep | {best[1]} if best else keep


def saved_in(parent: Path) -> list[Saved]:
    """The checkpoints that are folders of `parent`, oldest first; folders without a manifest are passed over.

    Nothing is verified here. One that does not say how far it had come, being damaged, is the oldest, at
    step -1.
    """
    found = []
    for manifest in parent.glob(f"*/{MANIFEST}"):
        if manifest.parent.name.startswith("."):
            continue
        try:
            state = json.loads((manifest.parent / STATE).read_text("utf-8"))
            step, metrics = int(state["position"]["step"]), dict(state["metrics"].get("validation") or {})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            step, metrics = -1, {}
        found.append(Saved(manifest.parent.name, step, metrics))
    return sorted(found, key=lambda saved: (saved.step, saved.name))


def save(
    folder: Path,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Config,
    vocabulary: Vocabulary,
    position: Position,
    metrics: Mapping[str, Any],
    sums: Mapping[str, Any] | None = None,
    training_weights: Mapping[str, torch.Tensor] | None = None,
) -> str:
    """Write a checkpoint at `folder` and return its digest; the folder appears whole or not at all.

    It is written to a temporary sibling, synced to disk, then renamed. An older folder of that name is
    replaced. `sums` are what an epoch in progress has accumulated, so that a resumed epoch reports whole
    metrics; `training_weights` are what training goes on from where the model holds an average. Raises
    OSError if the disk refuses (full, read-only); nothing half-written stays behind.
    """
    tensors, settings = _flatten(optimizer.state_dict())
    tensors |= {_WEIGHTS + name: value for name, value in (training_weights or {}).items()}
    state = {
        "position": asdict(position),
        "metrics": dict(metrics),
        "optimizer": settings,
        "sums": dict(sums or {}),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.mkdir()
        save_file({k: _portable(v) for k, v in model.state_dict().items()}, partial / MODEL)
        save_file({k: _portable(v) for k, v in tensors.items()}, partial / OPTIMIZER)
        _write_json(partial / CONFIG, config.model_dump(mode="json"))
        (partial / VOCABULARY).write_text(vocabulary.to_json(), encoding="utf-8")
        _write_json(partial / STATE, state)
        files = {name: sha256(partial / name) for name in FILES}
        _write_json(partial / MANIFEST, {"format": FORMAT, "files": files})
        for name in (*FILES, MANIFEST):
            sync(partial / name)
        digest = sha256(partial / MANIFEST)
        publish(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return digest


def load(folder: Path | str, *, digest: str | None = None, optimizer: bool = True) -> Checkpoint:
    """Read and verify the checkpoint at `folder`.

    With a `digest` (from the database) the manifest must have it; every file must hash to what the manifest
    says. `optimizer=False` leaves its tensors unread, for those who only predict. Raises CheckpointError
    naming the file at fault.
    """
    folder = Path(folder)
    manifest = verify(folder, digest=digest)
    try:
        config = parse(Config, json.loads((folder / CONFIG).read_text("utf-8")), str(folder / CONFIG))
        vocabulary = Vocabulary.from_json((folder / VOCABULARY).read_text("utf-8"))
        state = json.loads((folder / STATE).read_text("utf-8"))
        tensors = load_file(folder / OPTIMIZER) if optimizer else {}
        apart = [name for name in tensors if name.startswith(_WEIGHTS)]
        training_weights = {name.removeprefix(_WEIGHTS): tensors.pop(name) for name in apart}
        return Checkpoint(
            folder=folder,
            config=config,
            vocabulary=vocabulary,
            model_state=load_file(folder / MODEL),
            optimizer_state=_unflatten(tensors, state["optimizer"]) if optimizer else {},
            position=Position(**state["position"]),
            metrics=state["metrics"],
            digest=manifest,
            sums=state["sums"],
            training_weights=training_weights,
        )
    except (ConfigError, SafetensorError, ValueError, KeyError, TypeError) as error:
        # The hashes agree, so this is what was written: by another version, or not by us.
        raise CheckpointError(f"{folder}: not a checkpoint this version can read: {error}") from error


def verify(folder: Path, *, digest: str | None = None) -> str:
    """Check every file against the manifest, and that against `digest`; returns the digest.

    Raises CheckpointError, which is CheckpointUnreadable where a file is not known to be wrong.
    """
    found = _hash_or_raise(folder / MANIFEST)
    if digest is not None and found != digest:
        raise CheckpointError(
            f"{folder / MANIFEST}: its SHA-256 is {found}, the record says {digest}: "
            "not the checkpoint that was recorded"
        )
    for name, expected in read_manifest(folder / MANIFEST).items():
        actual = _hash_or_raise(folder / name)
        if actual != expected:
            raise CheckpointError(
                f"{folder / name}: its SHA-256 is {actual}, the manifest says {expected}: torn or changed"
            )
    return found


def read_manifest(path: Path) -> dict[str, str]:
    """The SHA-256 of each file that the manifest at `path` names; CheckpointError if it is not one."""
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise _unread(path, error) from error


def parse_manifest(content: bytes, origin: str) -> dict[str, str]:
    """The SHA-256 of each file that a manifest names; CheckpointError, naming `origin`, if it is none."""
    try:
        manifest = json.loads(content)
        version, files = manifest["format"], dict(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{origin}: not a checkpoint's manifest") from error
    if version != FORMAT:
        raise CheckpointError(f"{origin}: format {version!r}; this version reads format {FORMAT}")
    if set(files) != set(FILES):
        raise CheckpointError(f"{origin}: names {sorted(files)}, not {sorted(FILES)}")
    return files


def sha256(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file or folder durable: its content survives a power cut once this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, folder: Path) -> None:
    """Rename a finished folder into place, durably; an older folder of that name is replaced."""
    sync(partial)
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        # rename(2) replaces only an empty folder: step the old one aside first.
        aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.old"
        folder.rename(aside)
        partial.rename(folder)
        shutil.rmtree(aside)
    sync(folder.parent)


def sweep(parent: Path) -> None:
    """Remove what a killed process left half-written beside its checkpoints."""
    with contextlib.suppress(FileNotFoundError):
        for path in parent.iterdir():
            if path.name.startswith(".") and path.suffix in (".partial", ".old"):
                shutil.rmtree(path, ignore_errors=True)


def _hash_or_raise(path: Path) -> str:
    try:
        return sha256(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; the checkpoint is not whole") from error
    except OSError as error:
        raise _unread(path, error) from error


def _unread(path: Path, error: OSError) -> CheckpointError:
    """What is said of a file that cannot be opened, or not be read to its end."""
    wrong = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    kind = CheckpointError if wrong else CheckpointUnreadable
    return kind(f"{path}: cannot be read: {error.strerror or error}")


def _portable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _flatten(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state_dict as named tensors and plain JSON values."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                values[f"{index}.{name}"] = value
    return tensors, {"values": values, "groups": state["param_groups"]}


def _unflatten(tensors: Mapping[str, torch.Tensor], settings: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **settings["values"]}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = [  # JSON knows no tuples (betas)
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in settings["groups"]
    ]
    return {"state": state, "param_groups": groups}
