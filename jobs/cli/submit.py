"""`submit`: from a YAML file to a job in the queue."""

from __future__ import annotations

import json
from datetime import datetime

import click

from jobs.cli import arguments, errors, output, service


@click.command()
@arguments.config_argument
@click.option("--name", help="The model name, instead of the config's.")
@click.option(
    "--priority", default=0, show_default=True, type=click.IntRange(-1000, 1000), help="Higher goes first."
)
@click.option("--id", "job_id", metavar="ID", help="The job's id: submitting it again makes no second job.")
@click.option(
    "--after",
    metavar="JOB[,JOB]",
    multiple=True,
    shell_complete=arguments.complete_job,
    help="Start only after these jobs have succeeded; it is cancelled if one ends otherwise.",
)
@click.option(
    "--after-any",
    metavar="JOB[,JOB]",
    multiple=True,
    shell_complete=arguments.complete_job,
    help="Start only after these jobs have ended, however they end.",
)
@click.option(
    "--not-before",
    metavar="TIME",
    help="Start no earlier: 18:00, +2h, 2030-01-31T18:00, in your own time zone if it names none.",
)
@click.option(
    "--time-limit",
    metavar="LENGTH",
    help="Stop an attempt that has trained for so long, such as 90m or 2h30m; the config's time_limit.",
)
@click.option("--hold", is_flag=True, help="Hold it: it does not start until `release`.")
@click.option("--follow", is_flag=True, help="Watch the job; the exit code is the job's.")
@click.option("--wait", "wait_", is_flag=True, help="Wait until it has ended; the exit code is the job's.")
@output.json_option
def submit(
    config: str,
    overrides: tuple[str, ...],
    name: str | None,
    priority: int,
    job_id: str | None,
    after: tuple[str, ...],
    after_any: tuple[str, ...],
    not_before: str | None,
    time_limit: str | None,
    hold: bool,
    follow: bool,
    wait_: bool,
    as_json: bool,
) -> None:
    """Submit a config as a job.

    CONFIG is a YAML file or the name of a shipped config: quickstart, imdb, seed, sweep. Prints the job's id.
    A config with a section `sweep` is one job with many children, of which the best is served.
    """
    if follow and (wait_ or as_json):
        raise errors.Wrong("--follow shows the job to a person; take it without --wait and --json")
    from jobs.cli import follow as following
    from jobs.config import default_owner

    # Quoted, as an override's value is YAML: a model may be called 2024.
    options = {"name": name, "time_limit": time_limit}
    given = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    loaded = arguments.load(config, [*overrides, *given])
    done = service.service().submit(
        loaded,
        owner=default_owner(),
        priority=priority,
        id=job_id,
        after=_listed(after),
        after_any=_listed(after_any),
        not_before=None if not_before is None else _moment(not_before),
        held=hold,
    )
    job = done.job
    if not as_json:
        click.echo(job.id)
    elif not wait_:
        output.emit_json(output.plain(job) | {"created": done.created, "queued": done.queued})
    if not done.created:
        output.talk(f"job {job.id} was submitted before; it is {job.state}")
    elif done.job.held:
        output.talk(f"it is held; let it start with: textvae-jobs release {job.id}")
    elif not done.queued:
        output.talk(f"the job is recorded and starts once the service is up ({done.problem})")
    elif not (follow or wait_):
        if job.trials is not None:
            output.talk(f"a sweep of {job.trials} children; compare them with: textvae-jobs show {job.id}")
        output.talk(f"watch it with: textvae-jobs watch {job.id}")
    if follow:
        following.watch_to_the_end(job)
    if wait_:
        following.wait_for([job.id], None, as_json)


def _listed(given: tuple[str, ...]) -> list[str]:
    """`--after a,b --after c` as three."""
    return list(dict.fromkeys(job for part in given for job in part.split(",") if job))


def _moment(text: str) -> datetime:
    from jobs.durations import LOCAL, moment

    try:
        return moment(text, datetime.now(LOCAL))
    except ValueError as error:
        raise errors.Wrong(f"--not-before: {error}") from error
