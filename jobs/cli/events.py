"""`events`: the history of a job, or of everything, as it was written and as it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from jobs.cli import arguments, errors, output, service

if TYPE_CHECKING:
    from jobs.store import Event

_POLL = 0.5  # seconds between two looks
_COLUMNS = ("event", "at", "job", "attempt", "what", "by", "detail")
_WIDTHS = (7, 19, 10, 7, 16, 14)


@click.command()
@click.argument("job", metavar="[JOB]", required=False, shell_complete=arguments.complete_job)
@click.option("--follow", "-f", is_flag=True, help="Go on printing what happens, until Ctrl-C.")
@click.option("--after", metavar="EVENT", type=arguments.count(0), help="Only what came after this event.")
@arguments.limit_option(", the newest; 50 without JOB and --after, else all", None)
@output.json_option
def events(job: str | None, follow: bool, after: int | None, limit: int | None, as_json: bool) -> None:
    """Show what happened: to a job, or to all of them.

    Of a sweep it shows what happened to its children too.
    Every change is one event, and none is ever changed or removed. With --follow, --json prints one object a
    line. Following one job ends when the job has ended.
    """
    store = service.store()
    id = store.job(job).id if job is not None else None
    if limit is None and id is None and after is None:
        limit = 50
    found = store.events(id, after=after or 0, limit=limit, newest=True, children=True)
    if not follow:
        if as_json:
            output.emit_json(found)
        elif found:
            output.table(_COLUMNS, [_row(event) for event in found], right=("event",), wrap="detail")
        else:
            output.talk("no events")
        return
    try:
        if not as_json:
            click.echo(_line([name.upper() for name in _COLUMNS]))
        for event in _follow(id, found, found[-1].id if found else after or 0):
            if as_json:
                click.echo(json.dumps(output.plain(event), ensure_ascii=False))
            else:
                click.echo(_line(_row(event)))
    except KeyboardInterrupt:
        raise click.exceptions.Exit(errors.INTERRUPTED) from None


def _follow(job: str | None, found: list[Event], last: int) -> Iterator[Event]:
    store = service.store()
    yield from found
    while True:
        # The state first: whatever was recorded before it is then seen below.
        ended = job is not None and store.job(job, exact=True).state.final
        for event in store.events(job, after=last, children=True):
            last = event.id
            yield event
        if ended:
            return
        time.sleep(_POLL)


def _row(event: Event) -> tuple[object, ...]:
    return (
        event.id,
        output.when(event.at),
        event.job,
        event.attempt,
        event.kind,
        event.actor,
        detail_of(event),
    )


def _line(cells: list[str] | tuple[object, ...]) -> str:
    texts = [output.NONE if cell is None or cell == "" else str(cell) for cell in cells]
    padded = [text.ljust(width) for text, width in zip(texts, _WIDTHS, strict=False)]
    return "  ".join([*padded, texts[-1]]).rstrip()


def detail_of(event: Event) -> str:
    """What an event tells besides its kind, in one line: `state lost, cause died`."""
    told = [(name, value) for name, value in event.detail.items() if value not in (None, "", [], {})]
    return output.shorten(", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in told), 200)


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        from jobs.sweeps.space import told

        return told(value)
    if isinstance(value, list):
        return " ".join(map(str, value))
    return output.number(value) if isinstance(value, float) else str(value)
