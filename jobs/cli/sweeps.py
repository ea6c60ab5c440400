"""What the commands show of a sweep: its children side by side, the best of them, what happens to them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from jobs.cli import output, service

if TYPE_CHECKING:
    from jobs.config import JobConfig
    from jobs.store import Event, Job, Tally, Trial
    from jobs.sweeps.space import Space

_POLL = 0.5  # seconds between two looks at the store


def show(job: Job, reason: str | None, more: Sequence[tuple[str, object]], as_json: bool) -> None:
    """Show a sweep: how far it is, its best child, and all of them with their parameters.

    `reason` is what it waits for, `more` what else holds of it as of any job.
    """
    from jobs.config import from_mapping
    from jobs.store import best_trial
    from jobs.sweeps.space import Space

    store = service.store()
    given = store.config(job.id)
    space = Space(from_mapping(given))
    trials = store.trials(job.id, space.config.select.mode)
    best = best_trial(trials, space.config.select.mode)
    if as_json:
        output.emit_json(
            {
                "job": job,
                "waits_for": reason,
                "space": [str(axis) for axis in space.axes],
                "best": best and {**output.plain(best), "served": served(best.job, job.name)},
                "children": trials,
                "config": given,
            }
        )
        return
    metric = space.config.select.metric
    pairs: list[tuple[str, object]] = [
        ("sweep", job.id),
        ("model", job.name),
        ("state", job.state if not (job.cancel_requested and not job.state.final) else "cancelling"),
        ("owner", job.owner),
        ("priority", job.priority),
        *more,
        ("submitted", output.when(job.created)),
        ("search", describe(space)),
        ("children", _states(job, trials)),
    ]
    if reason:
        pairs.append(("waits for", reason))
    if job.error:
        pairs.append(("error", job.error))
    pairs.append(("best", None if best is None else _best(best, job, metric)))
    output.fields(pairs)
    if trials:
        output.heading(f"children (* the best of those that succeeded, by {metric})")
        table(space, trials, best)


def table(space: Space, trials: Sequence[Trial], best: Trial | None) -> None:
    """Every child in a line, its parameters in columns."""
    from jobs.sweeps.space import shown

    keys = [axis.key for axis in space.axes]
    metric = space.config.select.metric
    now = datetime.now(UTC)
    output.table(
        ("child", "state", "epochs", metric, "ran", *keys, "why"),
        [
            (
                ("* " if best is not None and trial.job == best.job else "  ") + trial.job,
                state_of(trial),
                trial.epochs,
                output.number(trial.value),
                output.duration(
                    ((trial.finished or now) - trial.started).total_seconds() if trial.started else None
                ),
                *(shown(trial.parameters[key]) for key in keys),
                output.shorten(trial.error or trial.stopped or "", 200),
            )
            for trial in trials
        ],
        right=("epochs", metric, "ran", *keys),
        wrap="why",
    )


def state_of(trial: Trial) -> str:
    """A child's state in a word or two."""
    if trial.stopped is not None and trial.state == "cancelled":
        return "stopped early"
    if trial.state == "running" and trial.cancel_requested:
        return "stopping" if trial.stopped else "cancelling"
    return "held" if trial.state == "queued" and trial.held else str(trial.state)


def describe(space: Space) -> str:
    """`grid of 6 children, 2 at once: model.latent: 8, 16; ...`, in lines."""
    sweep = space.sweep
    head = f"{sweep.search}, {output.several(space.size, 'child').replace('childs', 'children')}"
    if sweep.at_once < space.size:
        head += f", {sweep.at_once} at once"
    if sweep.early_stopping is not None:
        head += (
            f"; those behind are stopped ({sweep.early_stopping.rule}, after {sweep.early_stopping.grace} "
        )
        head += "epoch)" if sweep.early_stopping.grace == 1 else "epochs)"
    return "\n".join([head, *(str(axis) for axis in space.axes)])


def progress(job: Job, tally: Tally) -> str:
    """`5 of 9 made: 1 queued, 2 running, 2 succeeded`."""
    told = ", ".join(f"{n} {state}" for state, n in sorted(tally.states.items()))
    return f"{tally.made} of {job.trials} made" + (f": {told}" if told else "")


def _states(job: Job, trials: Sequence[Trial]) -> str:
    counts = Counter(state_of(trial) for trial in trials)
    told = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    return f"{len(trials)} of {job.trials} made" + (f": {told}" if told else "")


def _best(best: Trial, job: Job, metric: str) -> str:
    from jobs.sweeps.space import told

    return (
        f"{best.job}: {metric} {output.number(best.value)} with {told(best.parameters)}\n"
        f"{served(best.job, job.name)['text']}"
    )


def served(job: str, model: str) -> dict[str, Any]:
    """Which version of its model a job made, if any, and whether that is the served one."""
    from jobs.store import NotFound

    store = service.store()
    try:
        versions = store.versions(model)
        current = store.version(model)
    except NotFound:
        return {"version": None, "current": None, "text": f"no version of {model} is served yet"}
    own = [version.version for version in versions if version.job == job]
    if current.job == job:
        text = f"served as version {current.version} of {model}"
    elif own:
        text = f"made version {own[0]} of {model}; served is version {current.version}, of job {current.job}"
    else:
        text = f"not served: version {current.version} of {model}, of job {current.job}, is no worse"
    return {"version": own[0] if own else None, "current": current.version, "text": text}


def best_child(job: Job) -> Job | None:
    """The best child of a sweep, of those that have succeeded."""
    from jobs.config import from_mapping
    from jobs.store import best_trial

    store = service.store()
    mode = from_mapping(store.config(job.id)).select.mode
    best = best_trial(store.trials(job.id, mode), mode)
    return None if best is None else store.job(best.job, exact=True)


def watch(job: str) -> Job:
    """Say what happens to a sweep's children until it has ended; returns it as it is then."""
    from jobs.config import from_mapping

    store = service.store()
    metric = from_mapping(store.config(job)).select.metric
    last, reason = 0, None
    while True:
        # The state first: whatever was recorded before it is then seen below.
        now = store.job(job, exact=True)
        for event in store.events(job, after=last, children=True):
            last = event.id
            line = _line(event, job, metric)
            if line is not None:
                click.echo(line)
        if now.state.final:
            best = best_child(now)
            told = f"; the best child is {best.id}, {served(best.id, now.name)['text']}" if best else ""
            error = f": {now.error}" if now.error else ""
            click.echo(f"sweep {job} {output.styled(str(now.state))}{error}{told}")
            return now
        waits = _waits_for(now)
        if waits and waits != reason:
            click.echo(f"waits for {waits}")
        reason = waits
        time.sleep(_POLL)


def _waits_for(job: Job) -> str | None:
    from jobs.cli.jobs import waits_for

    return waits_for(job)


def _line(event: Event, sweep: str, metric: str) -> str | None:
    """An event of a sweep or of one of its children, in words."""
    from jobs.cli.live import sentence
    from jobs.sweeps.space import told

    detail = event.detail
    if event.kind == "child":
        return f"{detail['child']}  {told(detail['parameters'])}"
    if event.job == sweep:
        return sentence(event)
    say: dict[str, Callable[[], str]] = {
        "checkpointed": lambda: (
            f"checkpoint {detail['name']}"
            + ("" if detail.get("value") is None else f": {metric} {output.number(detail['value'])}")
        ),
        "succeeded": lambda: "succeeded",
        "failed": lambda: "failed",
        "cancelled": lambda: "has stopped",
    }
    text = say[event.kind]() if event.kind in say else sentence(event)
    return None if text is None else f"{event.job}  {text}"


def checked(config: JobConfig) -> Space:
    """The space of a sweep whose children have been checked. Raises ConfigError."""
    from jobs.sweeps.search import checked

    return checked(config)


def plan(space: Space) -> list[str]:
    """What a sweep is going to try, in lines."""
    from jobs.sweeps.search import planned
    from jobs.sweeps.space import told

    lines = describe(space).splitlines()
    return lines + [f"child {n}: {told(each)}" for n, each in enumerate(planned(space), start=1)]
