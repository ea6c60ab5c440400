"""`plot`: a job's curves, and validation reviews in the latent space of its best checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.cli import arguments, checkpoints, errors, output, progress, service

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jobs.cli.checkpoints import Found
    from jobs.cli.progress import Tell
    from jobs.store import Job
    from textvae.plots import Seen

_REVIEWS = 2000  # more would only cover each other
_REPORTS = "reports.jsonl"  # what `python -m textvae` writes beside its checkpoints
_PICTURES = ("curves", "latent", "tsne", "lda", "kl", "histograms")


@click.command()
@checkpoints.argument
@click.option(
    "--output",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the pictures go. Default: plots/JOB.",
)
@click.option(
    "--reviews",
    type=arguments.count(2),
    default=_REVIEWS,
    show_default=True,
    help="Validation reviews to show, if there are so many.",
)
@arguments.seed_option("Seed of every random choice.")
@output.json_option
def plot(what: str, folder: Path | None, reviews: int, seed: int, as_json: bool) -> None:
    """Draw a job's curves and its latent space as PNG.

    Each point of the latent space is a validation review, seen by the job's best checkpoint or by the given
    CHECKPOINT: on principal components, by t-SNE, and along the axis that tells sentiment best, with numbers
    that say whether two regions separate by sentiment. Then KL per dimension, lengths and losses.
    """
    found = checkpoints.find(what)
    folder = folder or Path("plots") / (found.job.id if found.job else found.folder.name)
    pictures, numbers = _draw_all(found, folder, reviews, seed)
    if as_json:
        paths = {name: path.absolute() if path else None for name, path in pictures.items()}
        job = found.job.id if found.job else None
        output.emit_json({"job": job, "checkpoint": found.folder, **paths, "numbers": numbers})
        return
    for path in pictures.values():
        if path is not None:
            click.echo(path)
    if numbers["separation"] is not None:
        output.talk(numbers["separation"]["answer"])


def draw(job: Job, folder: Path) -> tuple[Path, Path]:
    """Write curves.png and latent.png of a job to `folder`; returns both paths."""
    found = checkpoints.of(job)
    curves = _curves(found, folder)
    if curves is None:
        raise errors.Failure(f"job {job.id} is {job.state} and has recorded no epoch to draw yet")
    seen = _see(found, _REVIEWS, 0, tell=None)

    from textvae import plots

    told = plots.separation(seen.means, seen.labels, direction=seen.direction, bias=seen.bias)
    figure = plots.principal_components(
        seen,
        title=f"{found.title}: validation reviews in the latent space",
        caption=told.answer if told else "",
    )
    return curves, plots.save(figure, folder / "latent.png")


def _draw_all(
    found: Found, folder: Path, reviews: int, seed: int
) -> tuple[dict[str, Path | None], dict[str, Any]]:
    """Write every picture that can be drawn; returns their paths, None for the others, and the numbers."""
    pictures: dict[str, Path | None] = dict.fromkeys(_PICTURES)
    numbers: dict[str, Any] = dict.fromkeys(("reviews", "kl", "active_units", "separation"))
    # First what may fail, so that no folder with a part of the pictures is left.
    with progress.bars() as tell:
        seen = _see(found, reviews, seed, tell)
    numbers["reviews"] = len(seen)
    pictures["curves"] = _curves(found, folder)
    if pictures["curves"] is None:
        output.talk(f"no curves: there is no {_REPORTS} beside {found.folder}")

    from textvae import plots

    def save(name: str, figure: Figure) -> None:
        pictures[name] = plots.save(figure, folder / f"{name}.png")

    title = f"{found.title}: validation reviews"
    save("histograms", plots.histograms(seen, title=f"{title}, lengths and losses"))
    if seen.latent == 0:
        output.talk("this model is a language model without a latent: there is no latent space to draw")
        return pictures, numbers
    save("kl", plots.kl_per_dimension(seen, title=f"{title}, KL per latent dimension"))
    numbers |= {"kl": float(seen.kl.sum()), "active_units": int(seen.active.sum())}
    told = plots.separation(seen.means, seen.labels, direction=seen.direction, bias=seen.bias, seed=seed)
    if told is None:
        output.talk("too few labelled reviews of each class to say whether two regions separate by sentiment")
    else:
        numbers["separation"] = dataclasses.asdict(told) | {"verdict": told.verdict, "answer": told.answer}
        save(
            "lda",
            plots.discriminant(
                seen,
                seed=seed,
                title=f"{title} along the axis that tells sentiment best",
                caption="The axis is found by linear discriminant analysis (LDA) on half of the labelled "
                "reviews; those shown are the others.",
            ),
        )
    answer = told.answer if told else ""
    save(
        "latent",
        plots.principal_components(seen, title=f"{title} on their principal components", caption=answer),
    )
    near = f" Of ten nearest neighbours {told.neighbour_accuracy:.1%} vote right." if told else ""
    caption = f"Near in the picture is near in the latent space; axes and wide distances mean nothing.{near}"
    save("tsne", plots.neighbourhoods(seen, seed=seed, title=f"{title} by t-SNE", caption=caption))
    return pictures, numbers


def _curves(found: Found, folder: Path) -> Path | None:
    """Write curves.png of a job's reports, or of those beside a checkpoint; None if there are none."""
    if found.job is not None:
        reports = [output.plain(report) for report in service.store().reports(found.job.id)]
        title = f"{found.title}: training of job {found.job.id}"
    else:
        path = found.folder.parent / _REPORTS
        reports = _read_reports(path) if path.is_file() else []
        title = f"{found.folder.parent.name}: training"
    if not reports:
        return None

    from textvae import plots

    return plots.save(plots.curves(reports, title=title), folder / "curves.png")


def _read_reports(path: Path) -> list[dict[str, Any]]:
    """The reports that `python -m textvae` wrote; of an epoch reported twice, the later one."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [report for _, report in sorted({int(line["epoch"]): line for line in lines}.items())]
    except (ValueError, KeyError, TypeError) as error:
        raise errors.Wrong(f"{path}: not the reports of a training: {error}") from error


def _see(found: Found, reviews: int, seed: int, tell: Tell | None) -> Seen:
    """What the checkpoint sees in validation reviews of its own data."""
    import numpy as np

    from textvae import plots
    from textvae.predict import Predictor
    from textvae.sources import prepare

    predictor = Predictor.load(found.folder, digest=found.digest)
    config = predictor.config
    corpus = prepare(config.data, service.settings().data, seed=config.seed, progress=tell)
    shown = corpus.validation.read(np.arange(min(len(corpus.validation), reviews)))
    if len(shown) < 2:
        raise errors.Wrong(f"there are {len(shown)} validation reviews; pictures need at least 2")
    return plots.see(predictor, shown, seed=seed, progress=tell)
