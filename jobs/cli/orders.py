"""`hold`, `release`, `requeue`, `drain`: what keeps jobs from starting, and what lets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from jobs.cli import arguments, output, service

if TYPE_CHECKING:
    from jobs.store import Job


@click.command()
@arguments.job_argument(many=True)
@output.json_option
def hold(jobs: tuple[str, ...], as_json: bool) -> None:
    """Keep jobs from starting until they are released.

    An attempt that is under way goes on; if it ends badly, the next one waits for the release.
    """
    _each(jobs, as_json, service.service().hold, lambda job: "held")


@click.command()
@arguments.job_argument(many=True)
@output.json_option
def release(jobs: tuple[str, ...], as_json: bool) -> None:
    """Let held jobs start."""
    _each(jobs, as_json, service.service().release, lambda job: f"released; it is {job.state}")


@click.command()
@arguments.job_argument(many=True)
@output.json_option
def requeue(jobs: tuple[str, ...], as_json: bool) -> None:
    """Put jobs back into the queue, wherever they are.

    A running one writes a checkpoint, makes way and goes on from there when its turn comes again, which uses
    up none of its attempts. One that waits for its next retry waits no more. A failed or cancelled one is
    retried.
    """
    _each(
        jobs,
        as_json,
        service.service().requeue,
        _requeued,
    )


def _requeued(job: Job) -> str:
    if job.cancel_requested is not None:
        return "is being cancelled, and stays so"
    return "makes way, with a checkpoint" if job.state == "running" else "queued again"


@click.command()
@click.option("--off", is_flag=True, help="Start jobs again.")
@output.json_option
def drain(off: bool, as_json: bool) -> None:
    """Finish what is under way, and start nothing new.

    Holds for every dispatcher, also for one that starts later, until `drain --off`. Jobs can be submitted,
    and wait.
    """
    store, actions = service.store(), service.service()
    before = store.draining()
    now = actions.drain(on=not off)
    running = store.running()
    if as_json:
        output.emit_json({"draining": now, "running": [job.id for job in running]})
        return
    if off:
        click.echo("jobs start again" if before else "it was not drained")
        return
    since = f"drained since {output.when(before.since)}, by {before.by}" if before else "nothing new starts"
    under_way = f"{output.several(len(running), 'job')} under way" if running else "nothing is under way"
    click.echo(f"{since}; {under_way}")


def _each(
    jobs: tuple[str, ...], as_json: bool, act: Callable[[str], Job], said: Callable[[Job], str]
) -> None:
    store = service.store()
    # Every id is looked up before anything is changed, so that a mistyped one changes nothing.
    ids = [store.job(job).id for job in jobs]
    after = [act(id) for id in ids]
    if as_json:
        output.emit_json(after)
        return
    for job in after:
        click.echo(f"{job.id}  {said(job)}")
