"""`demo`: the whole road in one command, each step told, timed and checked."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.cli import errors, output, service, stack
from textvae.urls import masked

if TYPE_CHECKING:
    from jobs.config import JobConfig
    from jobs.store import Job, Version

_STALL = 180.0  # seconds without any sign of progress after which training counts as stuck
_SERVED = 120.0  # seconds in which a promoted version must be served
_LOG_LINES = 20

REVIEWS = (
    "A warm, funny and beautifully acted film.",
    "Two hours of my life that I will never get back: dull, loud and badly written.",
    "The actors are lovely, but the story never comes alive.",
)


@click.command()
@click.option("--keep", is_flag=True, help="Leave the service up at the end.")
@click.option(
    "--output",
    "folder",
    default="demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder of the pictures.",
)
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    help="The home folder of the demo's own service.  [default: OUTPUT/home]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the config; may be repeated.",
)
def demo(keep: bool, folder: Path, home: Path | None, overrides: tuple[str, ...]) -> None:
    """Walk the whole road: from real reviews to a served model.

    Brings a service up in a home folder of its own, fetches real reviews, submits configs/quickstart.yaml,
    shows it train, asks the served model over HTTP, draws the curves and the latent space, and takes the
    service down again. Your own service is left alone.
    """
    from jobs.config import load

    config = load("configs/quickstart.yaml", overrides)
    service.move_to(home or folder / "home")
    began = time.monotonic()
    steps = _Steps(7 if keep else 8)
    with stack.signals_as_exit():
        try:
            _walk(steps, folder, config, keep)
        except BaseException:
            if keep:
                output.talk(f"what is up stays up; take it down with: {_command('down')}")
            else:
                stack.end()
            raise
        if keep:
            output.heading("the service stays up")
            for verb in ("status", 'predict "A lovely film."', "down"):
                click.echo(f"  {_command(verb)}")
        else:
            with steps("take the service down"):
                stack.end()
    click.echo(f"\nthe whole road took {output.duration(time.monotonic() - began)}")


def _walk(steps: _Steps, folder: Path, config: JobConfig, keep: bool) -> None:
    from jobs.config import default_owner

    with steps("bring the service up: Redis, Ray, the dispatcher, the HTTP server"):
        stack.describe(
            stack.bring_up(cpus=None, dashboard_port=stack.DASHBOARD_PORT, serve_port=stack.SERVE_PORT)
        )
    with steps("fetch real reviews"):
        _fetch(config)
    with steps("submit configs/quickstart.yaml"):
        _cancel_earlier()
        job = service.service().submit(config, owner=default_owner()).job
        click.echo(f"job {job.id}: model {config.name}, {output.several(config.resources.min_ranks, 'rank')}")
    with steps("train", job):
        _train(job)
    with steps("serve the best checkpoint", job):
        version = _wait_until_served(job)
    with steps("ask the served model over HTTP"):
        _ask(config.name)
    with steps("draw the curves and the latent space"):
        from jobs.cli import plot

        curves, latent = plot.draw(service.store().job(job.id), folder)
    _where(job, version, curves, latent, keep)


class _Steps:
    """Numbers, times and names the steps; an error inside one becomes one that says which step failed."""

    def __init__(self, total: int):
        self._total = total
        self._number = 0

    @contextmanager
    def __call__(self, title: str, job: Job | None = None) -> Iterator[None]:
        self._number += 1
        began = time.monotonic()
        number = f"[{self._number}/{self._total}]"
        output.heading(f"{number} {title}")
        try:
            yield
        except Exception as error:
            raise self._failure(title, error, job) from error
        click.echo(click.style(f"{number} done in {output.duration(time.monotonic() - began)}", dim=True))

    def _failure(self, title: str, error: Exception, job: Job | None) -> errors.Failure:
        failure = error if isinstance(error, click.ClickException) else errors.translate(error)
        if failure is None:  # nobody foresaw it: whoever mends it needs all there is
            output.talk("".join(traceback.format_exception(error)))
            failure = errors.Failure(f"{type(error).__name__}: {error}")
        _print_log(job)
        return errors.Failure(
            f"step {self._number} of {self._total} ({title}) failed: {failure.format_message()}"
        )


def _print_log(job: Job | None) -> None:
    """Print the end of the log that tells most: the attempt's, else the dispatcher's."""
    settings = service.settings()
    number = service.store().job(job.id).attempt if job else 0
    logs = [settings.attempt_log(job.id, number)] if job and number else []
    log = next((log for log in [*logs, stack.log_of(settings.home, "dispatcher")] if log.exists()), None)
    if log is not None:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        output.talk(f"\nthe end of {log}:\n" + "\n".join(f"  {line}" for line in lines) + "\n")


def _fetch(config: JobConfig) -> None:
    from jobs.cli import progress
    from textvae.sources import prepare

    with progress.bars() as tell:
        corpus = prepare(config.data, service.settings().data, seed=config.seed, progress=tell)
    click.echo(
        f"{config.data.source}: {len(corpus.train):,} training, {len(corpus.validation):,} validation and "
        f"{len(corpus.test):,} test reviews in {corpus.folder}"
    )


def _cancel_earlier() -> None:
    """Cancel what a demo that was interrupted left unfinished in this home: it would go first."""
    from jobs.store import JobState

    for job in service.store().jobs([JobState.QUEUED, JobState.RUNNING]):
        service.service().cancel(job.id)
        click.echo(f"job {job.id} of an earlier demo is cancelled")


def _train(job: Job) -> None:
    from jobs.cli import live

    ended = live.show(job.id, check=_Patience())
    if ended.state != "succeeded":
        raise errors.Failure(f"job {job.id} {ended.state}" + (f": {ended.error}" if ended.error else ""))


class _Patience:
    """Raises once a job has shown nothing new for too long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: object = None
        self._since = clock()

    def __call__(self, job: Job, progress: Mapping[str, Any] | None) -> None:
        seen = (job.state, job.attempt, progress and (progress.get("epoch"), progress.get("step")))
        now = self._clock()
        if seen != self._seen:
            self._seen, self._since = seen, now
        elif now - self._since > _STALL:
            raise errors.Failure(
                f"job {job.id} is {job.state} and has shown no progress for {output.duration(_STALL)}"
            )


def _wait_until_served(job: Job) -> Version:
    """The version of the job's model that is served, once the HTTP server says so."""
    from jobs.cli import http

    version = service.store().version(job.name)
    http.wait_until_served(job.name, version.version, _SERVED)
    click.echo(f"model {version.model} version {version.version}, of job {version.job}, is served")
    return version


def _ask(model: str) -> None:
    from jobs.cli import http, predict

    answer = http.ask("/v1/sentiment", {"model": model, "texts": list(REVIEWS)})
    predict.show(list(REVIEWS), answer)
    again = http.ask("/v1/reconstruct", {"model": model, "texts": [REVIEWS[0]]})
    samples = http.ask("/v1/sample", {"model": model, "n": 2, "seed": 1, "temperature": 0.6})
    line = http.ask("/v1/interpolate", {"model": model, "a": REVIEWS[0], "b": REVIEWS[1], "steps": 5})
    for title, given in (
        (f"reconstruction of: {REVIEWS[0]}", http.texts(again)),
        ("two samples of the latent space", http.texts(samples)),
        ("from the first review to the second in five steps", http.texts(line)),
    ):
        output.heading(title)
        for text in given:
            click.echo(f"  {output.shorten(text, 160) or '(nothing)'}")


def _where(job: Job, version: Version, curves: Path, latent: Path, keep: bool) -> None:
    settings = service.settings()
    storage = masked(settings.storage)
    now = service.store().job(job.id)
    pairs: list[tuple[str, object]] = [
        ("curves", curves),
        ("latent space", latent),
        ("home", settings.home),
        ("database", masked(settings.database_url)),
        ("log", settings.attempt_log(now.id, now.attempt)),
        ("checkpoints", f"{storage}/jobs/{now.id}"),
        (
            "model version",
            f"{version.model} version {version.version} in {storage}/{version.location}",
        ),
        (version.metric, output.number(version.value)),
    ]
    if keep:
        pairs += [("dashboard", settings.dashboard_url), ("served model", f"{settings.serve_url}/docs")]
    output.heading("where everything is")
    output.fields(pairs)


def _command(verb: str) -> str:
    return f"TEXTVAE_HOME={service.settings().home} textvae-jobs {verb}"
