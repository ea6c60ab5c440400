"""`backup` and `restore`: the database and what it names, to a folder and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.cli import errors, output, service
from textvae.urls import masked

if TYPE_CHECKING:
    from jobs.backup import Tools


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--artifacts-only", is_flag=True, help="Leave the database out: it is copied by its own tools.")
@output.json_option
def backup(folder: Path, artifacts_only: bool, as_json: bool) -> None:
    """Copy the database and every artifact that it names.

    FOLDER must not exist. The service may be at work. Not among what is copied: reviews (data/), logs, Redis.
    A PostgreSQL database is copied by its own tools, such as pg_dump; then take --artifacts-only. The exit
    code is 1 if an artifact that is recorded could not be read.
    """
    from jobs import backup as backups

    made = backups.backup(
        service.store(),
        service.settings(),
        folder.absolute(),
        _tools(),
        artifacts_only=artifacts_only,
        progress=_tell,
    )
    if as_json:
        output.emit_json(made)
    else:
        database = "the database and " if made.database else ""
        click.echo(f"{made.folder}: {database}{output.several(made.artifacts, 'artifact')}")
    for name in made.missing:
        output.talk(f"{name} is recorded, but could not be read; see textvae-jobs verify")
    raise click.exceptions.Exit(errors.FAILED if made.missing else errors.OK)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@output.json_option
def restore(folder: Path, as_json: bool) -> None:
    """Make a new home of a backup.

    TEXTVAE_HOME must be empty or not there. Jobs that were under way go on from their newest checkpoints once
    the service is up; see that the service that was backed up is not.
    """
    from jobs import backup as backups

    done = backups.restore(folder.absolute(), service.settings(), _tools(), progress=_tell)
    if as_json:
        output.emit_json(done)
        return
    where = service.settings().home if done.database else masked(service.settings().storage)
    click.echo(
        f"{where}: as of {output.when(done.created)}, with {output.several(done.artifacts, 'artifact')}"
    )
    if done.database:
        output.talk("start the service with: textvae-jobs up")


def _tools() -> Tools:
    from jobs.backup import Tools
    from textvae.artifacts import ArtifactError, Artifacts
    from textvae.checkpoint import CheckpointError, verify

    return Tools(open=Artifacts, check=verify, broken=(ArtifactError, CheckpointError))


def _tell(name: str, done: int, total: int) -> None:
    if output.terminal():
        output.talk(f"{done + 1}/{total} {name}")
