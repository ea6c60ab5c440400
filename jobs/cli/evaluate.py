"""`evaluate`: the field's metrics of a job's best checkpoint, or of any checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobs.cli import arguments, checkpoints, errors, output, progress, service
from textvae.evaluate.arguments import OPTIONS, PARTS, parts

if TYPE_CHECKING:
    from jobs.cli.checkpoints import Found

Command = TypeVar("Command", bound=Callable[..., Any])


def _numbers(command: Command) -> Command:
    """An option for each number of the evaluation."""
    for name, default, text in reversed(OPTIONS):
        command = click.option(
            "--" + name.replace("_", "-"),
            type=float if isinstance(default, float) else int,
            default=default,
            show_default="all" if default is None else True,
            help=text + ".",
        )(command)
    return command


@click.command()
@checkpoints.argument
@click.option(
    "--data",
    type=click.Choice(("train", "validation", "test")),
    default="validation",
    show_default=True,
    help="Which of its config's reviews.",
)
@click.option(
    "--parts",
    "names",
    default=",".join(PARTS),
    show_default=True,
    metavar="NAMES",
    help="Groups of metrics, with commas between.",
)
@_numbers
@click.option("--device", help="cpu, cuda or cuda:1. Default: the first GPU if there is one.")
@click.option("--threads", type=arguments.count(), help="CPU threads. Default: PyTorch's.")
@click.option(
    "--output",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the record there as JSON.",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="Make it a record for docs/results: with git revision, hardware and training time.",
)
@click.option(
    "--hardware", metavar="TEXT", help="What it was trained on, for --preset. Default: this machine."
)
@output.json_option
def evaluate(
    what: str,
    data: str,
    names: str,
    device: str | None,
    threads: int | None,
    file: Path | None,
    preset: str | None,
    hardware: str | None,
    as_json: bool,
    **numbers: Any,
) -> None:
    """Measure a model: likelihood, latent, sentiment, text, samples, transfer.

    The reviews are those that the checkpoint's own config names; the figures of a language model (latent:
    none) are its likelihood alone. Importance weighting with K = 500 is what takes longest: --samples and
    --weighted-reviews say how much of it, --parts what is measured at all.
    """
    found = checkpoints.find(what)
    record = _measure(found, data, names, numbers, device, threads)
    told = record
    if preset is not None:
        from textvae.evaluate.records import with_provenance

        told = with_provenance(record, preset, hardware=hardware)
    if file is not None:
        from textvae.evaluate.records import write

        write(file, told)
        output.talk(f"written to {file}")
    if as_json:
        output.emit_json(told)
        return
    from textvae.evaluate import showing

    rows = [(group, metric, value, remark) for group, metric, value, remark in showing.rows(record)]
    output.table(("group", "metric", "value", "remark"), rows, right=("value",), wrap="remark")
    for line in showing.left_out(record):
        output.talk(line)


def _measure(
    found: Found,
    data: str,
    names: str,
    numbers: dict[str, Any],
    device: str | None,
    threads: int | None,
) -> dict[str, Any]:
    import torch

    from textvae.devices import DeviceError, choose
    from textvae.evaluate import EvaluationError, Options
    from textvae.evaluate.records import of_checkpoint

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with progress.bars() as tell:
            return of_checkpoint(
                found.folder,
                data_folder=service.settings().data,
                part=data,
                options=Options(parts=parts(names), **numbers),
                digest=found.digest,
                device=choose(device),
                progress=tell,
                training_seconds=_seconds(found),
            )
    except (EvaluationError, DeviceError) as error:
        raise errors.Wrong(str(error)) from error


def _seconds(found: Found) -> float | None:
    """What the job's recorded epochs took, for checkpoints that do not say it themselves."""
    if found.job is None:
        return None
    return sum(report.seconds for report in service.store().reports(found.job.id)) or None
