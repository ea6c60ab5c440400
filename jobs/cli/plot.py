"""`plot`: a job's curves, and its validation reviews in the latent space of its best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.cli import arguments, errors, output, service

if TYPE_CHECKING:
    from jobs.store import Job

_REVIEWS = 2000  # at most so many are projected; more would only cover each other


@click.command()
@arguments.job_argument()
@click.option(
    "--output", "folder", type=click.Path(file_okay=False, path_type=Path), help="Default: plots/JOB."
)
@output.json_option
def plot(job: str, folder: Path | None, as_json: bool) -> None:
    """Draw a job's curves and its latent space as PNG.

    Each point of the latent space is a validation review, seen by the job's best checkpoint.
    """
    found = service.store().job(job)
    curves, latent = draw(found, folder or Path("plots") / found.id)
    if as_json:
        output.emit_json({"job": found.id, "curves": curves.absolute(), "latent": latent.absolute()})
    else:
        click.echo(curves)
        click.echo(latent)


def draw(job: Job, folder: Path) -> tuple[Path, Path]:
    """Write curves.png and latent.png to `folder`; returns both paths."""
    from jobs.config import from_mapping
    from jobs.store import best_of

    store, settings = service.store(), service.settings()
    config = from_mapping(store.config(job.id))
    reports, checkpoints = store.reports(job.id), store.checkpoints(job.id)
    best = best_of(checkpoints, config.select.mode)
    if not reports or best is None:
        raise errors.Failure(f"job {job.id} is {job.state} and has recorded no epoch to draw yet")

    import numpy as np

    from textvae import plots
    from textvae.artifacts import Artifacts
    from textvae.predict import Predictor
    from textvae.sources import prepare

    folder.mkdir(parents=True, exist_ok=True)
    curves, latent = folder / "curves.png", folder / "latent.png"
    plots.curves(
        [output.plain(report) for report in reports], curves, title=f"{job.name}: training of job {job.id}"
    )
    corpus = prepare(config.data, settings.data, seed=config.seed)
    reviews = corpus.validation.read(np.arange(min(len(corpus.validation), _REVIEWS)))
    predictor = Predictor.load(Artifacts(settings.storage).fetch(best.location, settings.cache))
    direction, bias = predictor.model.sentiment_direction()
    plots.projection(
        predictor.embed(reviews.texts),
        reviews.labels,
        latent,
        direction=direction.cpu().numpy(),
        bias=float(bias),
        title=f"{job.name}: validation reviews in the latent space",
    )
    return curves, latent
