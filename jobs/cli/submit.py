"""`submit`: from a YAML file to a job in the queue."""

from __future__ import annotations

import json

import click

from jobs.cli import arguments, errors, output, service


@click.command()
@arguments.config_argument
@click.option("--name", help="The model name, instead of the config's.")
@click.option(
    "--priority", default=0, show_default=True, type=click.IntRange(-1000, 1000), help="Higher goes first."
)
@click.option("--id", "job_id", metavar="ID", help="The job's id: submitting it again makes no second job.")
@click.option("--follow", is_flag=True, help="Watch the job; the exit code is the job's.")
@click.option("--wait", "wait_", is_flag=True, help="Wait until it has ended; the exit code is the job's.")
@output.json_option
def submit(
    config: str,
    overrides: tuple[str, ...],
    name: str | None,
    priority: int,
    job_id: str | None,
    follow: bool,
    wait_: bool,
    as_json: bool,
) -> None:
    """Submit a config as a job.

    CONFIG is a YAML file or the name of a shipped config: quickstart, imdb, seed. Prints the job's id.
    """
    if follow and (wait_ or as_json):
        raise errors.Wrong("--follow shows the job to a person; take it without --wait and --json")
    from jobs.cli import follow as following
    from jobs.config import default_owner

    # Quoted, as an override's value is YAML: a model may be called 2024.
    loaded = arguments.load(config, [*overrides, f"name={json.dumps(name)}"] if name else overrides)
    done = service.service().submit(loaded, owner=default_owner(), priority=priority, id=job_id)
    job = done.job
    if not as_json:
        click.echo(job.id)
    elif not wait_:
        output.emit_json(output.plain(job) | {"created": done.created, "queued": done.queued})
    if not done.created:
        output.talk(f"job {job.id} was submitted before; it is {job.state}")
    elif not done.queued:
        output.talk(f"the job is recorded and starts once the service is up ({done.problem})")
    elif not (follow or wait_):
        output.talk(f"watch it with: textvae-jobs watch {job.id}")
    if follow:
        following.watch_to_the_end(job)
    if wait_:
        following.wait_for([job.id], None, as_json)
