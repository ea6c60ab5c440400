"""`logs`: what the attempts of a job have written, wherever they ran and whatever became of them."""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from jobs.cli import arguments, errors, output, service
from jobs.cli.follow import detached

if TYPE_CHECKING:
    from jobs.logs import Logs
    from jobs.store import Job

_MOST_BYTES = 2**62  # where a file can be read
_POLL = 0.5  # seconds between two looks at a log


@click.command()
@arguments.job_argument()
@click.option("--follow", "-f", is_flag=True, help="Go on printing until the job has ended.")
@click.option("--attempt", type=arguments.count(), help="The log of this attempt instead of the newest.")
@click.option(
    "--offset",
    default=0,
    type=click.IntRange(0, _MOST_BYTES),
    metavar="BYTES",
    help="Begin at this byte of the log.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one object a line: job, attempt, offset, next, at, text. The offset `next` goes on after it.",
)
def logs(job: str, follow: bool, attempt: int | None, offset: int, as_json: bool) -> None:
    """Print a job's log.

    The logs of attempts stay when these, Ray and their nodes are gone. Ctrl-C stops following and leaves the
    job alone.
    """
    store = service.store()
    found = store.job(job)
    if found.trials is not None:
        raise errors.NotFound(
            f"job {found.id} is a sweep and has no log; its children have: textvae-jobs logs {found.id}.1"
        )
    if attempt is not None and attempt > found.attempt:
        raise errors.NotFound(f"job {found.id} has no attempt {attempt}; its newest is {found.attempt}")
    if not found.attempt and not follow:
        raise errors.NotFound(f"job {found.id} is {found.state} and has no log yet; -f waits for it")
    from jobs.logs import Logs

    reader = Logs(store, service.settings())
    printer = _Printer(reader, found.id, as_json)
    try:
        if follow:
            for number, begin in growing(reader, found, attempt, offset):
                printer.go_on(number, begin)
        else:
            number = attempt or found.attempt
            if reader.size(found.id, number) is None:
                path = service.settings().attempt_log(found.id, number)
                raise errors.NotFound(
                    f"{path}: no such log; attempt {number} never began, or ran on another node, whose logs "
                    "a service on SQLite does not have"
                )
            printer.go_on(number, offset)
    except KeyboardInterrupt:
        detached(found.id)
    if follow:
        ended = store.job(found.id)
        number = attempt or ended.attempt
        where = f"its log is {_where(reader, ended, number)}" if number else "it never had an attempt"
        output.talk(f"job {found.id} {ended.state}; {where}")


class _Printer:
    """Prints what is new in the logs of a job: as it is, or each whole line as an object."""

    def __init__(self, reader: Logs, job: str, as_json: bool):
        self._reader = reader
        self._job = job
        self._as_json = as_json
        self._next: dict[int, int] = {}  # attempt -> byte after what is printed
        self._letters = codecs.getincrementaldecoder("utf-8")("replace")  # the end may be half a letter

    def go_on(self, attempt: int, begin: int) -> None:
        """Print what was added to the log of an attempt; the first time, from byte `begin` on."""
        if attempt not in self._next:
            self._next[attempt] = begin
            self._letters.reset()
        if self._as_json:
            for line in self._reader.lines(self._job, attempt, self._next[attempt]):
                self._next[attempt] = line.next
                click.echo(json.dumps(output.plain(line), ensure_ascii=False))
            return
        while added := self._reader.read(self._job, attempt, self._next[attempt]):
            self._next[attempt] += len(added)
            click.echo(self._letters.decode(added), nl=False)


def growing(reader: Logs, job: Job, attempt: int | None, offset: int) -> Iterator[tuple[int, int]]:
    """The attempt whose log may have grown, and where to begin in it: again and again, through every further
    attempt unless one was asked for, until the job has ended."""
    store = service.store()
    number, begin, said = attempt or max(job.attempt, 1), offset, False
    while True:
        now = store.job(job.id)
        # Looked at before the log is read: what an attempt wrote before its end must not be missed.
        ended = now.state.final or now.attempt > number
        if reader.size(job.id, number) is not None:
            yield number, begin
        elif not said:
            said = True
            output.talk(f"job {job.id} is {now.state}; waiting for the log of attempt {number}")
        if ended:
            if attempt is not None or now.attempt <= number:
                return
            number, begin, said = number + 1, 0, False
        else:
            time.sleep(_POLL)


def _where(reader: Logs, job: Job, attempt: int) -> str:
    path = service.settings().attempt_log(job.id, attempt)
    return str(path) if path.exists() or reader.size(job.id, attempt) is None else "in the database"
