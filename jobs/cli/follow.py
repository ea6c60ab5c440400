"""`watch`, `logs`, `wait`: being there while a job goes on."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from jobs.cli import arguments, errors, live, output, service

if TYPE_CHECKING:
    from jobs.store import Job

_POLL = 0.5  # seconds between two looks at a log or at the store

EXIT_OF = {"succeeded": errors.OK, "failed": errors.FAILED, "cancelled": errors.CANCELLED}


@click.command()
@arguments.job_argument()
def watch(job: str) -> None:
    """Watch a job live.

    Shows a line for each epoch and how far the running one is, until the job has ended. Ctrl-C stops watching
    and leaves the job alone. The exit code is the job's: 0 succeeded, 1 failed, 5 cancelled.
    """
    watch_to_the_end(service.store().job(job))


def watch_to_the_end(job: Job) -> NoReturn:
    """Show a job until it has ended, then exit with its code."""
    try:
        ended = live.show(job.id)
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
@arguments.job_argument()
@click.option("--follow", "-f", is_flag=True, help="Go on printing until the job has ended.")
@click.option("--attempt", type=click.IntRange(1), help="The log of this attempt instead of the newest.")
def logs(job: str, follow: bool, attempt: int | None) -> None:
    """Print a job's log.

    Ctrl-C stops following and leaves the job alone.
    """
    store, settings = service.store(), service.settings()
    found = store.job(job)
    if attempt is not None and attempt > found.attempt:
        raise errors.NotFound(f"job {found.id} has no attempt {attempt}; its newest is {found.attempt}")
    if not found.attempt and not follow:
        raise errors.NotFound(f"job {found.id} is {found.state} and has no log yet; -f waits for it")
    try:
        for text in _log_text(found, attempt) if follow else [_log_now(found, attempt)]:
            click.echo(text, nl=False)
    except KeyboardInterrupt:
        detached(found.id)
    if follow:
        ended = store.job(found.id)
        number = attempt or ended.attempt
        where = (
            f"its log is {settings.attempt_log(found.id, number)}" if number else "it never had an attempt"
        )
        output.talk(f"job {found.id} {ended.state}; {where}")


def _log_now(job: Job, attempt: int | None) -> str:
    path = service.settings().attempt_log(job.id, attempt or job.attempt)
    if not path.exists():
        raise errors.NotFound(
            f"{path}: no such log; attempt {attempt or job.attempt} ran on another node or never began"
        )
    return path.read_text(encoding="utf-8", errors="replace")


def _log_text(job: Job, attempt: int | None) -> Iterator[str]:
    """What is in the log, then what is added, through every further attempt unless one was asked for."""
    store, settings = service.store(), service.settings()
    number, offset, said = attempt or max(job.attempt, 1), 0, False
    letters = codecs.getincrementaldecoder("utf-8")(
        "replace"
    )  # the end of what is there may be half a letter
    while True:
        now = store.job(job.id)
        path = settings.attempt_log(job.id, number)
        # Looked at before the file is read: what an attempt wrote before its end must not be missed.
        ended = now.state.final or now.attempt > number
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                added = file.read()
            offset += len(added)
            if text := letters.decode(added):
                yield text
        elif not said:
            said = True
            output.talk(f"job {job.id} is {now.state}; waiting for the log of attempt {number}")
        if ended:
            if attempt is not None or now.attempt <= number:
                return
            number, offset, said = number + 1, 0, False
            letters.reset()
        else:
            time.sleep(_POLL)


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
