"""The command line, `textvae-jobs`: the table of its commands. Each is imported when it is called."""

from __future__ import annotations

import click

from jobs.cli.lazy import Entry, Root

_COMMANDS = {
    "Service": {
        "up": Entry("stack", "up", "Bring the service up on this machine."),
        "down": Entry("stack", "down", "Take the service down."),
        "drain": Entry("orders", "drain", "Finish what is under way, and start nothing new."),
        "status": Entry("stack", "status", "Show the parts of the service and what they do."),
        "doctor": Entry("doctor", "doctor", "Check the settings and every part."),
        "verify": Entry("verify", "verify", "Compare database, Redis, cluster and artifacts."),
        "backup": Entry("backup", "backup", "Copy the database and every artifact that it names."),
        "restore": Entry("backup", "restore", "Make a new home of a backup."),
        "demo": Entry("demo", "demo", "Walk the whole road: from real reviews to a served model."),
    },
    "Jobs": {
        "submit": Entry("submit", "submit", "Submit a config as a job."),
        "list": Entry("jobs", "list_jobs", "List the jobs, newest first."),
        "top": Entry("top", "top", "Show live what runs, what waits, and what the cluster has."),
        "show": Entry("jobs", "show", "Show a job: state, attempts, metrics, checkpoints."),
        "watch": Entry("follow", "watch", "Watch a job live."),
        "logs": Entry("logs", "logs", "Print a job's log."),
        "wait": Entry("follow", "wait", "Wait until jobs have ended."),
        "cancel": Entry("jobs", "cancel", "Cancel jobs; each keeps a last checkpoint."),
        "retry": Entry("jobs", "retry", "Queue a failed or cancelled job again."),
        "requeue": Entry("orders", "requeue", "Put jobs back into the queue, wherever they are."),
        "hold": Entry("orders", "hold", "Keep jobs from starting until they are released."),
        "release": Entry("orders", "release", "Let held jobs start."),
        "why": Entry("why", "why", "Say why a job does not start, or how it ended."),
        "events": Entry("events", "events", "Show what happened: to a job, or to all of them."),
        "usage": Entry("usage", "usage", "Show CPU-hours and GPU-hours by user, or by job."),
        "evaluate": Entry(
            "evaluate", "evaluate", "Measure a model: likelihood, latent, sentiment, text, samples, transfer."
        ),
        "plot": Entry("plot", "plot", "Draw a job's curves and its latent space as PNG."),
    },
    "Models": {
        "models": Entry("models", "models", "List, inspect, promote and export model versions."),
        "explore": Entry("explore", "explore", "Look around in the latent space of a checkpoint."),
        "predict": Entry("predict", "predict", "Ask the served model for the sentiment of texts."),
    },
    "Data and configs": {
        "data": Entry("data", "data", "Fetch and describe the reviews."),
        "config": Entry("config", "config", "Check a config, or print the reference of its keys."),
        "completion": Entry("completion", "completion", "Print the completion script of a shell."),
    },
}


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"textvae-jobs {version('textvae-jobs')}")
        ctx.exit()


main = Root(
    name="textvae-jobs",
    entries=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Train sentiment text VAEs on a shared cluster and serve the best.\n\n"
    "A job is one submitted config. JOB is a job's id or the beginning of one.",
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_print_version,
            help="Print the version.",
        )
    ],
)
