"""`watch`, `wait`: being there while a job goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from jobs.cli import arguments, errors, live, output, service, sweeps

if TYPE_CHECKING:
    from jobs.store import Job

EXIT_OF = {"succeeded": errors.OK, "failed": errors.FAILED, "cancelled": errors.CANCELLED}


@click.command()
@arguments.job_argument()
def watch(job: str) -> None:
    """Watch a job live.

    Shows a line for each epoch and how far the running one is, until the job has ended; of a sweep what
    happens to its children. Ctrl-C stops watching
    and leaves the job alone. The exit code is the job's: 0 succeeded, 1 failed, 5 cancelled.
    """
    watch_to_the_end(service.store().job(job))


def watch_to_the_end(job: Job) -> NoReturn:
    """Show a job until it has ended, then exit with its code."""
    try:
        ended = live.show(job.id) if job.trials is None else sweeps.watch(job.id)
    except KeyboardInterrupt:
        detached(job.id)
    raise click.exceptions.Exit(EXIT_OF[ended.state])


def detached(job: str) -> NoReturn:
    """Say that the job goes on without its watcher, and exit."""
    output.talk(
        f"\nno longer watching; job {job} goes on\n"
        f"  watch again: textvae-jobs watch {job}\n"
        f"  stop it:     textvae-jobs cancel {job}"
    )
    raise click.exceptions.Exit(errors.INTERRUPTED)


@click.command()
@arguments.job_argument(many=True)
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up after so long (exit 124)."
)
@output.json_option
def wait(jobs: tuple[str, ...], timeout: float | None, as_json: bool) -> None:
    """Wait until jobs have ended.

    The exit code is the worst of theirs: 1 if one failed, else 5 if one was cancelled, else 0.
    """
    store = service.store()
    wait_for([store.job(job).id for job in jobs], timeout, as_json)


def wait_for(ids: Sequence[str], timeout: float | None, as_json: bool) -> NoReturn:
    """Wait for jobs, print how each ended, and exit with the worst code."""
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        waiter = service.service()
        ended = [
            waiter.wait(job, None if deadline is None else max(0.0, deadline - time.monotonic()))
            for job in ids
        ]
    except KeyboardInterrupt:
        output.talk("\nno longer waiting; the jobs go on")
        raise click.exceptions.Exit(errors.INTERRUPTED) from None
    late = [job for job in ended if not job.state.final]
    if as_json:
        output.emit_json(ended)
    else:
        for job in ended:
            click.echo(
                f"{job.id}  {job.state}" + (f"  {output.shorten(job.error, 300)}" if job.error else "")
            )
    if late:
        output.talk(f"error: {len(late)} of {len(ended)} jobs had not ended after {timeout:g} s; they go on")
        raise click.exceptions.Exit(errors.TIMED_OUT)
    states = {str(job.state) for job in ended}
    worst = next(state for state in ("failed", "cancelled", "succeeded") if state in states)
    raise click.exceptions.Exit(EXIT_OF[worst])
