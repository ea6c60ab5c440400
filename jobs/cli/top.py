"""`top`: the whole service at a glance, as it changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from jobs.cli import arguments, output, service
from jobs.cli.jobs import percent, step_of_epoch

if TYPE_CHECKING:
    from jobs.scheduling import Explainer, Reason
    from jobs.store import Queued, Running

_RUNNING = ("job", "model", "owner", "priority", "ranks", "state", "epoch", "done", "loss", "ran", "left")
_WAITING = ("job", "model", "owner", "priority", "needs", "waited", "position", "starts", "waits for")
_SHARES = ("owner", "running", "waiting", "cpus", "gpus", "used")


@click.command()
@click.option("--once", is_flag=True, help="Print it once, and leave.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.5, max=3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Look again so often.",
)
@arguments.limit_option(" jobs that wait", 15)
@output.json_option
def top(once: bool, every: float, limit: int, as_json: bool) -> None:
    """Show live what runs, what waits, and what the cluster has.

    Jobs that wait stand in the order in which they go, with what keeps them; a ~ marks an estimated start.
    In a pipe, or with --once or --json, it is printed once. Ctrl-C leaves.
    """
    if as_json:
        output.emit_json(look(limit))
    elif once or not output.terminal():
        for show in _parts(look(limit)):
            show()
    else:
        _live(every, limit)


def look(limit: int) -> dict[str, Any]:
    """Everything that `top` shows, as plain values."""
    store = service.store()
    running, waiting = store.running(), store.queued()
    progress, explain = _from_redis(running, waiting)
    now = store.clock().timestamp()
    order = {} if explain is None else {job.id: n for n, job in enumerate(explain.order)}
    waiting.sort(key=lambda job: (job.id not in order, order.get(job.id, 0)))
    drain = store.draining()
    return {
        "cluster": service.cluster(),
        "draining": drain,
        "running": [_running(job, progress.get(job.id), now) for job in running],
        "waiting": [
            _waiting(job, None if explain is None else explain.reason(job.id), now) for job in waiting[:limit]
        ],
        "waiting_in_all": len(waiting),
        "owners": _owners(running, waiting, explain.used if explain is not None else {}),
    }


def _from_redis(
    running: list[Running], waiting: list[Queued]
) -> tuple[dict[str, dict[str, Any]], Explainer | None]:
    """Live progress, and what a dispatcher saw of the queue in the last minute; nothing without Redis."""
    from jobs.outlook import explainer
    from jobs.queue import QueueUnavailable
    from jobs.scheduling import read_policy

    try:
        progress = service.queue().progress([job.id for job in running])
        seen = service.queue().outlook()
    except QueueUnavailable:
        return {}, None
    if seen is None:
        return progress, None
    policy = read_policy(service.settings().scheduling_file)
    return progress, explainer(service.store(), seen, policy, progress, running=running, waiting=waiting)


def _running(job: Running, progress: Mapping[str, Any] | None, now: float) -> dict[str, Any]:
    from jobs.outlook import ends_at

    current = progress if progress is not None and progress.get("attempt") == job.attempt else None
    ends = ends_at(job, current)
    return {
        "job": job.id,
        "model": job.name,
        "owner": job.owner,
        "priority": job.priority,
        "attempt": job.attempt,
        "ranks": job.ranks,
        "cpus": job.cpus,
        "gpus": job.gpus,
        "state": "cancelling"
        if job.cancel_requested
        else "making way"
        if job.yield_requested
        else str(job.state),
        "progress": current,
        "seconds": now - job.opened.timestamp(),
        "left": None if ends is None else max(0.0, ends - now),
    }


def _waiting(job: Queued, reason: Reason | None, now: float) -> dict[str, Any]:
    return {
        "job": job.id,
        "model": job.name,
        "owner": job.owner,
        "priority": job.priority,
        "ranks": job.ranks,
        "cpus": job.cpus,
        "gpus": job.gpus,
        "seconds": now - job.created.timestamp(),
        "why": reason,
        "starts_in": None if reason is None or reason.starts is None else max(0.0, reason.starts - now),
    }


def _owners(running: list[Running], waiting: list[Queued], used: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each owner has, the most active first."""
    names = {job.owner for job in running} | {job.owner for job in waiting} | set(used)
    rows = [
        {
            "owner": name,
            "running": sum(job.owner == name for job in running),
            "waiting": sum(job.owner == name for job in waiting),
            "cpus": sum(job.cpus for job in running if job.owner == name),
            "gpus": sum(job.gpus for job in running if job.owner == name),
            "cpu_seconds": used[name].cpu_seconds if name in used else None,
            "gpu_seconds": used[name].gpu_seconds if name in used else None,
        }
        for name in names
    ]
    return sorted(rows, key=lambda row: (-row["running"], -row["waiting"], row["owner"]))


def _parts(seen: Mapping[str, Any]) -> list[Callable[[], None]]:
    """What prints it, part by part."""
    shown = [lambda: click.echo(_headline(seen))]
    if seen["running"]:
        rows = [_running_row(job) for job in seen["running"]]
        shown.append(lambda: output.heading("running"))
        shown.append(
            lambda: output.table(_RUNNING, rows, right=("priority", "ranks", "done", "loss", "ran", "left"))
        )
    if seen["waiting"]:
        more = seen["waiting_in_all"] - len(seen["waiting"])
        waiting = [_waiting_row(job) for job in seen["waiting"]]
        shown.append(lambda: output.heading("waiting" + (f" ({more} more)" if more else "")))
        shown.append(
            lambda: output.table(
                _WAITING, waiting, right=("priority", "waited", "position", "starts"), wrap="waits for"
            )
        )
    if seen["owners"]:
        owners = [_owner_row(owner) for owner in seen["owners"]]
        shown.append(lambda: output.heading("owners (used: decayed, as shares are computed)"))
        shown.append(
            lambda: output.table(_SHARES, owners, right=("running", "waiting", "cpus", "gpus", "used"))
        )
    return shown


def _headline(seen: Mapping[str, Any]) -> str:
    cluster = seen["cluster"]
    if cluster is None:
        told = "no dispatcher has said anything of the cluster within the last minute"
    else:
        told = _used("CPUs", cluster["total_cpus"], cluster["free_cpus"])
        if cluster["total_gpus"]:
            told += f", {_used('GPUs', cluster['total_gpus'], cluster['free_gpus'])}"
    text = f"{told}; {len(seen['running'])} running, {seen['waiting_in_all']} waiting"
    return text + ("; draining: nothing new starts" if seen["draining"] else "")


def _used(what: str, total: float, free: float) -> str:
    return f"{max(0.0, total - free):g} of {total:g} {what} in use"


def _running_row(job: Mapping[str, Any]) -> tuple[object, ...]:
    progress = job["progress"]
    epoch = done = loss = None
    if progress and progress.get("epochs"):
        step, steps = step_of_epoch(progress)
        epoch = f"{progress['epoch']}/{progress['epochs']}, {percent(step / steps if steps else None)}"
        done = percent(progress["step"] / progress["steps"] if progress["steps"] else None)
        loss = output.number(progress["loss"])
    return (
        job["job"],
        job["model"],
        job["owner"],
        job["priority"],
        job["ranks"],
        job["state"],
        epoch,
        done,
        loss,
        output.duration(job["seconds"]),
        output.duration(job["left"]),
    )


def _waiting_row(job: Mapping[str, Any]) -> tuple[object, ...]:
    reason = job["why"]
    starts = None
    if job["starts_in"] is not None:
        starts = ("" if reason.guaranteed else "~") + output.duration(job["starts_in"])
    return (
        job["job"],
        job["model"],
        job["owner"],
        job["priority"],
        f"{job['cpus']:g} CPU" + (f", {job['gpus']:g} GPU" if job["gpus"] else ""),
        output.duration(job["seconds"]),
        None if reason is None else reason.position,
        starts,
        None if reason is None else f"{reason.blocked}: {reason.text}",
    )


def _owner_row(owner: Mapping[str, Any]) -> tuple[object, ...]:
    used = None
    if owner["cpu_seconds"] is not None:
        used = f"{owner['cpu_seconds'] / 3600:.1f} CPU-h"
        if owner["gpu_seconds"]:
            used += f", {owner['gpu_seconds'] / 3600:.1f} GPU-h"
    return (
        owner["owner"],
        owner["running"],
        owner["waiting"],
        f"{owner['cpus']:g}",
        f"{owner['gpus']:g}",
        used,
    )


def _live(every: float, limit: int) -> None:
    """Again and again, on a screen of its own, until Ctrl-C."""
    console = output.console()
    try:
        with console.screen(hide_cursor=True):
            while True:
                began = time.monotonic()
                parts = _parts(look(limit))
                console.clear()
                click.echo(datetime.now(UTC).astimezone().strftime("%H:%M:%S  "), nl=False)
                for show in parts:
                    show()
                took = time.monotonic() - began
                # Where ten thousand jobs wait a look takes long; it must not take all of the time.
                time.sleep(max(every, 4 * took))
    except KeyboardInterrupt:
        return
