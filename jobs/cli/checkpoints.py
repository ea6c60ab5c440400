"""`JOB|CHECKPOINT`: the best checkpoint of a job, or a checkpoint's folder on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobs.cli import arguments, errors, service, sweeps

if TYPE_CHECKING:
    from jobs.store import Job

Command = TypeVar("Command", bound=Callable[..., Any])

_MANIFEST = "manifest.json"  # textvae.checkpoint.MANIFEST, without loading torch; a test compares them


@dataclass(frozen=True)
class Found:
    """A checkpoint that the command line names."""

    folder: Path  # on this machine
    title: str  # what pictures are headed with: a model name, or the folder and the one that it is in
    digest: str | None  # what the record says that its manifest must hash to
    job: Job | None


def argument(command: Command) -> Command:
    """`JOB|CHECKPOINT`, handed over as `what`; ids of jobs and folders are completed."""
    return click.argument("what", metavar="JOB|CHECKPOINT", shell_complete=_complete)(command)


def find(what: str) -> Found:
    """The checkpoint that `what` names, fetched if it is elsewhere.

    A folder that holds a checkpoint is that one; anything else is a job's id or its beginning. Raises Failure
    if the job has no checkpoint yet, Wrong for a folder that holds none.
    """
    folder = Path(what)
    if (folder / _MANIFEST).is_file():
        folder = folder.absolute()
        return Found(folder, f"{folder.parent.name}/{folder.name}".lstrip("/"), None, None)
    if folder.is_dir() or "/" in what:
        raise errors.Wrong(_no_checkpoint(folder))
    job = service.store().job(what)
    return of(job)


def of(job: Job) -> Found:
    """The best checkpoint of a job, or of the best child of a sweep."""
    if job.trials is not None:
        best_child = sweeps.best_child(job)
        if best_child is None:
            raise errors.Failure(f"job {job.id} is a sweep, no child of which has succeeded yet")
        job = best_child
    from jobs.config import from_mapping
    from jobs.store import best_of

    store, settings = service.store(), service.settings()
    checkpoints = store.checkpoints(job.id)
    best = best_of(checkpoints, from_mapping(store.config(job.id)).select.mode)
    if best is None:
        raise errors.Failure(f"job {job.id} is {job.state} and has recorded no checkpoint yet")

    from textvae.artifacts import Artifacts

    folder = Artifacts(settings.storage).fetch(best.location, settings.cache)
    return Found(folder, job.name, best.digest, job)


def _no_checkpoint(folder: Path) -> str:
    if not folder.exists():
        return f"{folder}: no such folder"
    within = sorted(path.parent.name for path in folder.glob(f"*/{_MANIFEST}") if path.parent.name[0] != ".")
    if within:
        return f"{folder} is not a checkpoint, but holds some: name {folder / within[-1]}"
    return f"{folder} is not a checkpoint: it has no {_MANIFEST}"


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    return [*arguments.complete_job(ctx, param, incomplete), CompletionItem(incomplete, type="dir")]
