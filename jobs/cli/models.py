"""`models`: the versions of each model name, which of them is served, and what was served before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.cli import arguments, errors, output, service

if TYPE_CHECKING:
    from jobs.store import Version

_reason = click.option("--reason", default="", help="Why; it is recorded.")


@click.group()
def models() -> None:
    """List, inspect, promote and export model versions.

    A job whose checkpoint beats the served version of its model name makes a new version by itself.
    """


@models.command("list")
@output.json_option
def list_models(as_json: bool) -> None:
    """List the models and the version of each that is served."""
    store = service.store()
    found, served = store.models(), {version.model: version for version in store.served()}
    if as_json:
        output.emit_json(
            [
                {"name": m.name, "current": m.current, "versions": m.versions, "served": served.get(m.name)}
                for m in found
            ]
        )
        return
    if not found:
        output.talk("no models yet: a job makes the first version of its model when it records a checkpoint")
        return
    rows = []
    for model in found:
        now = served.get(model.name)
        rows.append(
            (
                model.name,
                model.current,
                len(model.versions),
                now and now.metric,
                now and output.number(now.value),
                now and now.job,
                now and output.when(now.created),
            )
        )
    output.table(
        ("model", "served", "versions", "metric", "value", "job", "made"),
        rows,
        right=("served", "versions", "value"),
    )


@models.command()
@arguments.model_argument
@output.json_option
def show(model: str, as_json: bool) -> None:
    """Show the versions of a model and every change of the served one."""
    store = service.store()
    versions, promotions = store.versions(model), store.promotions(model)
    current = next((m.current for m in store.models() if m.name == model), None)
    if as_json:
        output.emit_json({"name": model, "current": current, "versions": versions, "promotions": promotions})
        return
    output.table(
        ("version", "", "metric", "value", "job", "sha-256", "made"),
        [
            (
                v.version,
                "served" if v.version == current else None,
                v.metric,
                output.number(v.value),
                v.job,
                v.digest[:12],
                output.when(v.created),
            )
            for v in versions
        ],
        right=("value",),
    )
    output.heading("promotions")
    output.table(
        ("at", "version", "what", "by", "reason"),
        [
            (output.when(p.at), p.version, "rolled back" if p.rollback else "promoted", p.by, p.reason)
            for p in promotions
        ],
        right=("version",),
        wrap="reason",
    )


@models.command()
@arguments.model_argument
@click.argument("version", type=arguments.count())
@_reason
@output.json_option
def promote(model: str, version: int, reason: str, as_json: bool) -> None:
    """Serve this version of a model."""
    _told(service.service().promote(model, version, reason=reason), as_json)


@models.command()
@arguments.model_argument
@_reason
@output.json_option
def rollback(model: str, reason: str, as_json: bool) -> None:
    """Serve the version that was served before."""
    _told(service.service().rollback(model, reason=reason), as_json)


def _told(version: Version, as_json: bool) -> None:
    if as_json:
        output.emit_json(version)
        return
    click.echo(f"{version.model}  version {version.version}")
    if service.settings().redis_url is None:
        output.talk("recorded; it is served once the service is up: textvae-jobs up")
    else:
        output.talk("recorded; the served model follows in a moment: textvae-jobs status")


@models.command()
@arguments.model_argument
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--version", type=arguments.count(), help="This version instead of the served one.")
@output.json_option
def export(model: str, folder: Path, version: int | None, as_json: bool) -> None:
    """Copy a version's files to a new FOLDER, verified.

    It holds safetensors and JSON; textvae.predict.Predictor.load(folder) reads it without the service.
    """
    if folder.exists():
        raise errors.Wrong(f"{folder} exists; name a folder that does not")
    found = service.store().version(model, version)

    from textvae.artifacts import Artifacts

    settings = service.settings()
    _copy(Artifacts(settings.storage).fetch(found.location, settings.cache), folder, found.digest)
    if as_json:
        output.emit_json(
            {"model": model, "version": found.version, "folder": folder.absolute(), "digest": found.digest}
        )
    else:
        click.echo(folder)
        output.talk(f"{model} version {found.version}, SHA-256 {found.digest[:12]}, of job {found.job}")


def _copy(source: Path, target: Path, digest: str) -> None:
    """Copy a checkpoint, whole and verified or not at all."""
    import shutil
    import tempfile

    from textvae.checkpoint import verify

    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=f".{target.name}.") as beside:
            shutil.copytree(source, Path(beside) / "copy")
            verify(Path(beside) / "copy", digest=digest)
            (Path(beside) / "copy").rename(target)
    except OSError as error:
        raise errors.Failure(f"{target} cannot be written: {error.strerror or error}") from error
