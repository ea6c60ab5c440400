"""`list`, `show`, `cancel`, `retry`: what is recorded of jobs, and what may be changed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from jobs.cli import arguments, errors, output, service, sweeps
from textvae.urls import masked

if TYPE_CHECKING:
    from jobs.store import Attempt, Checkpoint, Job, Report
    from jobs.why import Why

_STATES = ("queued", "running", "succeeded", "failed", "cancelled")


@click.command("list")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(_STATES), help="Only this state; may be repeated."
)
@click.option("--owner", help="Only this owner's jobs.")
@arguments.limit_option(" jobs")
@click.option(
    "--sweep",
    metavar="JOB",
    shell_complete=arguments.complete_job,
    help="The children of this sweep instead.",
)
@click.option("--children", is_flag=True, help="The children of sweeps too, each in a line of its own.")
@output.json_option
def list_jobs(
    states: tuple[str, ...],
    owner: str | None,
    limit: int,
    sweep: str | None,
    children: bool,
    as_json: bool,
) -> None:
    """List the jobs, newest first.

    A sweep is one line, that says how many of its children have ended.
    """
    parent = None if sweep is None else _sweep(service.store().job(sweep)).id
    found = service.newest_jobs(states, owner, limit, parent=parent, children=children)
    if as_json:
        output.emit_json(found)
        return
    if not found:
        output.talk("no jobs" if not states and not owner else "no such jobs")
        return
    now = datetime.now(UTC)
    sweeping = [job.id for job in found if job.trials is not None]
    tally = service.store().tally(sweeping) if sweeping else {}
    output.table(
        ("job", "model", "state", "owner", "priority", "attempt", "ranks", "waited", "ran", "submitted"),
        [
            (
                job.id,
                job.name,
                state_of(job)
                if job.trials is None
                else f"{state_of(job)} {tally[job.id].ended}/{job.trials}",
                job.owner,
                job.priority,
                job.attempt if job.trials is None else None,
                output.ranks(job.ranks, job.max_ranks) if job.trials is None else None,
                output.duration(waited(job, now)),
                output.duration(ran(job, now)),
                output.when(job.created),
            )
            for job in found
        ],
        right=("priority", "attempt", "ranks", "waited", "ran"),
    )
    if len(found) == limit:
        output.talk(f"these are the newest {limit}; --limit shows more")


@click.command()
@arguments.job_argument()
@click.option("--config", "only_config", is_flag=True, help="Print the job's whole config instead, as YAML.")
@output.json_option
def show(job: str, only_config: bool, as_json: bool) -> None:
    """Show a job: state, attempts, metrics, checkpoints.

    Of a sweep it shows every child with its parameters, and the best of them.
    """
    store = service.store()
    found = store.job(job)
    config = store.config(found.id)
    if only_config:
        if as_json:
            output.emit_json(config)
            return
        import yaml

        click.echo(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=110), nl=False)
        return
    if found.trials is not None:
        sweeps.show(found, waits_for(found), limits(found), as_json)
        return
    attempts, reports, checkpoints = (
        store.attempts(found.id),
        store.reports(found.id),
        store.checkpoints(found.id),
    )
    log = str(service.settings().attempt_log(found.id, found.attempt)) if found.attempt else None
    reason = waits_for(found)
    progress = service.progress(found.id) if found.state == "running" else None
    if as_json:
        output.emit_json(
            {
                "job": found,
                "waits_for": reason,
                "progress": progress,
                "log": log,
                "attempts": attempts,
                "reports": reports,
                "checkpoints": checkpoints,
                "config": config,
            }
        )
        return
    _show_fields(found, config, reason, progress, log)
    _show_attempts(attempts, checkpoints)
    _show_reports(reports)
    _show_checkpoints(checkpoints, config)


@click.command()
@arguments.job_argument(many=True)
@output.json_option
def cancel(jobs: tuple[str, ...], as_json: bool) -> None:
    """Cancel jobs; each keeps a last checkpoint.

    A queued job ends at once; a running one writes a checkpoint and stops. A sweep makes no more children,
    and those that it has are cancelled.
    """
    store, actions = service.store(), service.service()
    # Every id is looked up before anything is cancelled, so that a mistyped one changes nothing.
    before = [store.job(job) for job in jobs]
    after = [actions.cancel(job.id) for job in before]
    if as_json:
        output.emit_json(after)
        return
    for was, job in zip(before, after, strict=True):
        if was.state.final:
            click.echo(f"{job.id}  was {job.state} already")
        else:
            stops = "stops" if job.trials is None else "stops: each of its running children does"
            click.echo(f"{job.id}  {job.state if job.state.final else f'{stops}, with a checkpoint'}")


@click.command()
@arguments.job_argument()
@output.json_option
def retry(job: str, as_json: bool) -> None:
    """Queue a failed or cancelled job again.

    It goes on from its newest good checkpoint. Of a sweep the failed and cancelled children are queued again,
    but not those that were stopped early; one of these can be retried by itself.
    """
    done = service.service().retry(job)
    if as_json:
        output.emit_json(done.job)
        return
    click.echo(done.job.id)
    if done.queued:
        output.talk(f"queued again; watch it with: textvae-jobs watch {done.job.id}")
    else:
        output.talk(f"it is recorded and starts once the service is up ({done.problem})")


def _sweep(job: Job) -> Job:
    if job.trials is None:
        raise errors.Wrong(f"job {job.id} is no sweep" + (f"; {job.parent} is" if job.parent else ""))
    return job


def state_of(job: Job) -> str:
    """The job's state in a word."""
    if job.state == "running" and job.cancel_requested:
        return "cancelling" if job.stopped is None else "stopping"
    if job.state == "cancelled" and job.stopped:
        return "stopped early"
    if job.state == "running" and job.yield_requested:
        return "yielding"
    return "held" if job.state == "queued" and job.held else str(job.state)


def waited(job: Job, now: datetime) -> float:
    """Seconds from submission to the first attempt, or until now."""
    return ((job.started or job.finished or now) - job.created).total_seconds()


def ran(job: Job, now: datetime) -> float | None:
    """Seconds from the first attempt to the end, or until now."""
    return ((job.finished or now) - job.started).total_seconds() if job.started else None


def waits_for(job: Job) -> str | None:
    """What keeps a queued job from starting, in words; None for any other."""
    found = why_of(job)
    return None if found is None else in_words(found)


def why_of(job: Job) -> Why | None:
    """Why a queued job does not start; None for any other."""
    if job.state != "queued":
        return None
    from jobs.why import why

    up = service.settings().redis_url is not None
    return why(
        service.store(),
        job,
        up=up,
        cluster=service.cluster() if up else None,
        reason=service.scheduler() if up else None,
    )


def in_words(found: Why) -> str:
    """What a job waits for, and until when as far as anyone can tell."""
    if found.starts is None:
        return found.text
    left = (found.starts - datetime.now(UTC)).total_seconds()
    if found.blocked == "not-before":
        return f"{found.text}, at {output.when(found.starts)}, in {output.duration(left)}"
    sure = "at the latest" if found.guaranteed else "an estimate"
    return f"{found.text}; it may start at {output.when(found.starts)}, in {output.duration(left)} ({sure})"


def _show_fields(
    job: Job, config: Any, reason: str | None, progress: dict[str, Any] | None, log: str | None
) -> None:
    now = datetime.now(UTC)
    pairs: list[tuple[str, object]] = [
        ("job", job.id),
        ("model", job.name),
        ("state", state_of(job)),
        ("owner", job.owner),
        ("priority", job.priority),
        *limits(job),
        ("submitted", output.when(job.created)),
        ("waited", output.duration(waited(job, now))),
        ("ran", output.duration(ran(job, now))),
    ]
    if reason:
        pairs.append(("waits for", reason))
    if progress:
        pairs.append(("now", describe_progress(progress)))
    if job.error:
        pairs.append(("error", job.error))
    pairs.append(("config", summary(config)))
    pairs.append(("log", log))
    output.fields(pairs)


def limits(job: Job) -> list[tuple[str, object]]:
    """What holds of a job and not of most: a hold, what it comes after, a time limit, failures so far."""
    found: list[tuple[str, object]] = []
    if job.held is not None:
        found.append(("held", f"since {output.when(job.held)}"))
    if job.parent is not None:
        found.append(("sweep", job.parent))
    others = service.store().dependencies(job.id)
    if others:
        told = (f"{d.on_job} ({d.state}{', any end will do' if d.any else ''})" for d in others)
        found.append(("after", ", ".join(told)))
    if job.time_limit is not None:
        found.append(("time limit", output.duration(job.time_limit)))
    used, retry = [], job.retry
    if job.errors_used:
        used.append(f"{job.errors_used} of {retry.max_attempts} attempts used up by errors")
    if job.infrastructure_used:
        used.append(
            f"{job.infrastructure_used} failures of infrastructure in a row, {retry.max_infrastructure} "
            "of which are retried"
        )
    if used:
        found.append(("failures", "; ".join(used)))
    return found


def summary(config: Any) -> str:
    """A config in two lines."""
    data, vocabulary, model = config["data"], config["vocabulary"], config["model"]
    training, resources = config["training"], config["resources"]
    return (
        f"{data['source']}, {vocabulary['size']:,} {vocabulary['kind']}, "
        f"objective {config['objective']['kind']}, latent {model['latent']}, "
        f"{output.several(training['epochs'], 'epoch')}, batch {training['batch_size']}, "
        f"seed {config['seed']}\n"
        f"{_ranks(resources['ranks'])}, each with "
        f"{output.needs(resources['cpus_per_rank'], resources['gpus_per_rank'])}"
    )


def _ranks(ranks: int | Mapping[str, int]) -> str:
    if isinstance(ranks, Mapping):
        return f"{output.ranks(ranks['min'], ranks['max'])} ranks, as many as there is room for"
    return output.several(ranks, "rank")


def describe_progress(progress: Mapping[str, Any]) -> str:
    """`epoch 2 of 8, step 130 of 141, loss 3.21, 812 reviews/s`."""
    step, steps = step_of_epoch(progress)
    return (
        f"epoch {progress['epoch']} of {progress['epochs']}, step {step} of {steps}, "
        f"loss {output.number(progress['loss'])}, {progress['reviews_per_second']:.0f} reviews/s"
    )


def step_of_epoch(progress: Mapping[str, Any]) -> tuple[int, int]:
    """Steps done of the running epoch, and how many it has; live progress counts them over all epochs."""
    each = int(progress["steps"]) // int(progress["epochs"])
    return int(progress["step"]) - (int(progress["epoch"]) - 1) * each, each


def _show_attempts(attempts: list[Attempt], checkpoints: list[Checkpoint]) -> None:
    if not attempts:
        return
    names = {
        checkpoint.id: f"{checkpoint.name} of attempt {checkpoint.attempt}" for checkpoint in checkpoints
    }
    now = datetime.now(UTC)
    output.heading("attempts")
    output.table(
        ("attempt", "state", "host", "ranks", "opened", "took", "resumed from", "cause", "whose", "error"),
        [
            (
                a.number,
                a.state,
                a.host,
                a.ranks,
                output.when(a.opened),
                output.duration(((a.finished or now) - a.opened).total_seconds()),
                names.get(a.resumed_from, str(a.resumed_from)) if a.resumed_from is not None else None,
                a.cause,
                a.cause.kind if a.cause else None,
                output.shorten(a.error, 200) if a.error else None,
            )
            for a in attempts
        ],
        right=("ranks", "took"),
        wrap="error",
    )


# The first loss is that of training; all the rest is of the validation reviews.
REPORT_COLUMNS = ("epoch", "loss", "val loss", "tok acc", "sent acc", "kl", "units", "took", "tokens/s")


def report_row(report: Report) -> tuple[object, ...]:
    """The cells of one epoch under REPORT_COLUMNS."""
    train, validation = report.train, report.validation
    return (
        report.epoch,
        output.number(train.get("loss")),
        output.number(validation.get("loss")),
        percent(validation.get("token_accuracy")),
        percent(validation.get("sentiment_accuracy")),
        output.number(validation.get("kl")),
        output.number(validation.get("active_units")),
        output.duration(report.seconds),
        f"{report.tokens_per_second:,.0f}",
    )


def percent(share: float | None) -> str:
    """`83.1%`."""
    return output.NONE if share is None else f"{share * 100:.1f}%"


def _show_reports(reports: list[Report]) -> None:
    if reports:
        output.heading("epochs (accuracies, KL and active units on the validation reviews)")
        output.table(REPORT_COLUMNS, [report_row(report) for report in reports], right=REPORT_COLUMNS)


def _show_checkpoints(checkpoints: list[Checkpoint], config: Any) -> None:
    if not checkpoints:
        return
    from jobs.store import best_of

    select, storage = config["select"], masked(service.settings().storage).rstrip("/")
    top = best_of(checkpoints, select["mode"])
    output.heading(f"checkpoints (* the best by {select['metric']})")
    output.table(
        ("checkpoint", "attempt", "epoch", "step", select["metric"], "sha-256", "where"),
        [
            (
                ("* " if top and c.id == top.id else "  ") + c.name,
                c.attempt,
                c.epoch,
                c.step,
                output.number(c.value),
                c.digest[:12],
                f"{storage}/{c.location}",
            )
            for c in checkpoints
        ],
        right=("attempt", "epoch", "step", select["metric"]),
    )
