"""`verify`: whether the parts of the service agree, and what to do where they do not."""

from __future__ import annotations

import os

import click

from cluster import stack
from jobs.cli import errors, output, service


@click.command()
@click.option("--repair", is_flag=True, help="Repair what can be repaired without losing anything.")
@output.json_option
def verify(repair: bool, as_json: bool) -> None:
    """Compare database, Redis, cluster and artifacts.

    Reads every recorded checkpoint and model version whole, so it takes as long as reading them takes. The
    database counts as the truth. It may be called while the service is at work. The exit code is 1 if
    something disagrees that was not repaired.
    """
    settings = service.settings()
    local = stack.read(settings.home)
    if local is not None and settings.ray_address == local.ray_address:
        os.environ.update(stack.ON_LOOPBACK)  # before ray is imported

    from jobs import verify as verifying
    from jobs import wiring
    from textvae.artifacts import ArtifactError, Artifacts
    from textvae.checkpoint import CheckpointError
    from textvae.checkpoint import verify as check

    parts = verifying.Parts(
        service=service.service(),
        artifacts=Artifacts(settings.storage),
        check=check,
        broken=(CheckpointError, ArtifactError),
        cache=settings.cache,
        cluster=wiring.RayLauncher(settings) if settings.ray_address is not None else None,
        server=wiring.server(settings),
        redis=settings.redis_url is not None,
    )
    found = verifying.verify(parts, repair=repair)
    left = [one for one in found if not one.repaired]
    if as_json:
        output.emit_json({"ok": not left, "disagreements": found})
    elif found:
        rows = [(one.kind, one.what, one.detail, _repair(one)) for one in found]
        output.table(("kind", "what", "found", "repair"), rows, wrap="found")
    for part, known in (
        ("Redis", parts.redis),
        ("Ray", parts.cluster is not None),
        ("Serve", parts.server is not None),
    ):
        if not known:
            output.talk(f"{part} is not running: not compared")
    if not found:
        output.talk("all agree")
    elif not repair and any(one.repair for one in found):
        output.talk("repair what can be repaired with: textvae-jobs verify --repair")
    raise click.exceptions.Exit(errors.FAILED if left else errors.OK)


def _repair(one: object) -> str:
    from jobs.verify import Disagreement

    assert isinstance(one, Disagreement)
    if one.repair is None:
        return output.NONE
    return f"done: {one.repair}" if one.repaired else one.repair
