"""What a watcher sees of a job: a line for each thing that happens, and how far the running epoch is.

The lines come from the store, which is the truth; only the bar comes from Redis, and is missing without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from jobs.cli import output, service
from jobs.cli.jobs import REPORT_COLUMNS, report_row, step_of_epoch, waits_for

if TYPE_CHECKING:
    from rich.progress import Progress

    from jobs.store import Event, Job

_POLL = 0.5  # seconds between two looks at the store
_EASE = 20  # times as long as looking why a job waits took, it is not looked at again
_WIDTH = 10


def show(job: str, *, check: Callable[[Job, Mapping[str, Any] | None], None] | None = None) -> Job:
    """Show a job until it has ended; returns it as it is then.

    `check` is called at each look with the job and its newest live progress, and may raise.
    """
    store = service.store()
    look = 0.0
    newest: Mapping[str, Any] | None = None
    with _screen() as screen:
        story = _Story(screen.say)
        for progress in service.live_progress(job):
            if progress is not None:
                newest = progress
                screen.progress(progress)
            if time.monotonic() < look:
                continue
            # The state first: whatever was recorded before it is then seen below.
            now = store.job(job)
            story.tell(now)
            if now.state.final:
                screen.progress(None)
                story.end(now)
                return now
            if check is not None:
                check(now, newest)
            look = time.monotonic() + _POLL
    raise AssertionError("live progress has no end")


class _Story:
    """Says each thing once, in order."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._event = 0
        self._reports: set[tuple[int, int]] = set()  # attempt and epoch
        self._headed = False
        self._reason: str | None = None
        self._ask_again = 0.0  # when to ask why it waits, if nothing happens before

    def tell(self, job: Job) -> None:
        """Say what is new."""
        store, told = service.store(), self._event
        for event in store.events(job.id, after=self._event):
            self._event = event.id
            text = sentence(event)
            if text:
                self._say(text)
        for report in store.reports(job.id):
            if (report.attempt, report.epoch) in self._reports:
                continue
            self._reports.add((report.attempt, report.epoch))
            if not self._headed:
                self._headed = True
                self._say(_line(REPORT_COLUMNS))
            self._say(_line(report_row(report)))
        began = time.monotonic()
        if self._event == told and began < self._ask_again:
            return
        reason = waits_for(job)
        # That may read the whole queue: it must not take more than a small part of the time.
        self._ask_again = began + _EASE * (time.monotonic() - began)
        if reason and reason != self._reason:
            self._say(f"waits for {reason}")
        self._reason = reason

    def end(self, job: Job) -> None:
        """Say how it ended."""
        text = f"job {job.id} {output.styled(str(job.state))}"
        self._say(text + (f": {job.error}" if job.error and job.state == "failed" else ""))


def _line(cells: tuple[object, ...]) -> str:
    return "".join(str(cell).rjust(_WIDTH) for cell in cells)


def sentence(event: Event) -> str | None:
    """An event in words; None for those that another line already tells."""
    detail = event.detail
    if event.kind == "claimed":
        how_many = f" {detail['ranks']}" if "ranks" in detail else ""
        return f"attempt {event.attempt} starts its{how_many} ranks"
    if event.kind == "started":
        return f"attempt {event.attempt} trains"
    if event.kind == "finished" and detail.get("state") not in ("succeeded", "cancelled", "preempted"):
        why = detail.get("error") or detail.get("cause") or "no reason recorded"
        return f"attempt {event.attempt} {detail.get('state')}: {output.shorten(str(why), 300)}"
    if event.kind == "requeued":
        return "queued for another attempt, from its newest checkpoint"
    if event.kind == "yield-requested":
        why = f" ({detail['reason']})" if detail.get("reason") else ""
        return f"asked to make way by {event.actor}{why}; it writes a checkpoint and waits again"
    if event.kind == "preempted" and detail.get("cause") == "resized":
        return "made way for itself; it goes on from its newest checkpoint with more ranks"
    if event.kind == "preempted":
        return "made way; it goes on from its newest checkpoint when its turn comes"
    if event.kind == "held":
        return f"held by {event.actor}"
    if event.kind == "released":
        return f"released by {event.actor}"
    if event.kind == "cancelled" and detail.get("because"):
        return f"cancelled with job {detail['because']}, which it comes after"
    if event.kind == "cancel-requested":
        return f"cancelled by {event.actor}; it writes a checkpoint and stops"
    if event.kind == "stop-requested":
        return f"stopped early, as {detail.get('reason')}"
    if event.kind == "enough":
        return f"makes no more children: {detail.get('reason')}"
    if event.kind == "retried":
        return f"queued again by {event.actor}"
    if event.kind == "version":
        return f"made version {detail.get('version')} of model {detail.get('model')}"
    return None


class _Screen:
    """Lines, in a pipe: the bar is for eyes only."""

    def say(self, line: str) -> None:
        """Print a line."""
        click.echo(line)

    def progress(self, progress: Mapping[str, Any] | None) -> None:
        """Show how far the running epoch is; None takes the bar away."""


class _Terminal(_Screen):
    """Lines above a bar that stays below."""

    def __init__(self, shown: Progress):
        self._shown = shown
        self._task = shown.add_task("", total=None, visible=False, epoch="", said="")

    def say(self, line: str) -> None:
        from rich.text import Text

        # Through the bar's own console, which moves the bar out of the way.
        self._shown.console.print(Text.from_ansi(line), soft_wrap=True)

    def progress(self, progress: Mapping[str, Any] | None) -> None:
        if progress is None:
            self._shown.update(self._task, visible=False)
            return
        step, steps = step_of_epoch(progress)
        self._shown.update(
            self._task,
            visible=True,
            completed=step,
            total=steps,
            epoch=f"{progress['epoch']}/{progress['epochs']}",
            said=f"{step}/{steps} steps, loss {output.number(progress['loss'])}, "
            f"{progress['reviews_per_second']:.0f} reviews/s",
        )


@contextmanager
def _screen() -> Iterator[_Screen]:
    if not output.terminal():
        yield _Screen()
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(30), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=output.console(), transient=True) as shown:
        yield _Terminal(shown)
