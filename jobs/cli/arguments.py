"""Arguments that several commands share, with their completion."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobs.cli import errors

if TYPE_CHECKING:
    from jobs.config import JobConfig

Command = TypeVar("Command", bound=Callable[..., Any])

_MOST = 2**31 - 1  # the largest number that every database takes, and larger than any that makes sense

_PRESET = re.compile(r"[a-z0-9._-]+")


def config_argument(command: Command) -> Command:
    """`CONFIG [--set KEY=VALUE]...`: handed to `load` as `config` and `overrides`."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key, such as training.epochs=3; may be repeated.",
    )(command)
    return click.argument("config", type=click.Path(), shell_complete=_complete_config)(command)


def load(config: str, overrides: Iterable[str]) -> JobConfig:
    """The config of that file or shipped name; ConfigError names the key, the reason and the nearest key."""
    from jobs.config import load, presets, resolve

    if not resolve(config).exists() and _PRESET.fullmatch(config):
        known = sorted(path.stem for path in presets().glob("*.yaml"))
        raise errors.Wrong(
            f"{config}: no such file, and no shipped config of that name{errors.nearest(config, known)}; "
            f"shipped are {', '.join(known)}"
        )
    return load(config, overrides)


def count(least: int = 1) -> click.IntRange:
    """The type of a number from `least` on."""
    return click.IntRange(least, _MOST)


def limit_option(what: str, default: int | None = 50) -> Callable[[Command], Command]:
    """`--limit`: at most so many; without a default, `what` tells it."""
    shown = default is not None
    return click.option(
        "--limit", default=default, show_default=shown, type=count(), help=f"At most so many{what}."
    )


def seed_option(what: str) -> Callable[[Command], Command]:
    """`--seed`, 0 by default."""
    return click.option("--seed", type=count(0), default=0, show_default=True, help=what)


def job_argument(many: bool = False) -> Callable[[Command], Command]:
    """`JOB` (or `JOB...`): the id of a job or the beginning of one, completed from the store."""
    if many:
        return click.argument("jobs", metavar="JOB...", nargs=-1, required=True, shell_complete=complete_job)
    return click.argument("job", metavar="JOB", shell_complete=complete_job)


def model_argument(command: Command) -> Command:
    """`MODEL`: a model name, completed from the store."""
    return click.argument("model", metavar="MODEL", shell_complete=_complete_model)(command)


def _complete_config(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    from jobs.config import presets

    names = [path.stem for path in presets().glob(f"{incomplete}*.yaml")] if "/" not in incomplete else []
    return [CompletionItem(name, help="shipped") for name in sorted(names)] + [
        CompletionItem(incomplete, type="file")
    ]


def complete_job(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    from jobs.cli import service

    with service.quiet():
        return [
            CompletionItem(job.id, help=f"{job.name}, {job.state}")
            for job in service.store().jobs(limit=200)
            if job.id.startswith(incomplete)
        ]
    return []


def _complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from jobs.cli import service

    with service.quiet():
        return [model.name for model in service.store().models() if model.name.startswith(incomplete)]
    return []
