"""`config check` and `config schema`: what a config says, before anything is submitted."""

from __future__ import annotations

from typing import Any

import click

from jobs.cli import arguments, output, sweeps


@click.group()
def config() -> None:
    """Check a config, or print the reference of its keys."""


@config.command()
@arguments.config_argument
@output.json_option
def check(config: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print a config with its defaults, its parameter count and the memory it expects.

    CONFIG is a YAML file or the name of a shipped one: quickstart, imdb-cpu, imdb, seed, sweep. Of a sweep
    every child is checked, and told, unless only Optuna can say what it will be.
    """
    loaded = arguments.load(config, overrides)
    resolved: dict[str, Any] = loaded.model_dump(mode="json")
    sweep = None if loaded.sweep is None else sweeps.plan(sweeps.checked(loaded))

    # Only a config that is right is worth the second that importing torch takes.
    from textvae.memory import expected_memory, parameter_count

    training, resources = loaded.training_config(), loaded.resources
    parameters = parameter_count(training)
    device = "cuda" if resources.gpus_per_rank else "cpu"
    # With more ranks each has less to hold.
    memory = expected_memory(training, ranks=resources.min_ranks, device=device)
    if as_json:
        output.emit_json(
            {
                "config": resolved,
                "parameters": parameters,
                "ranks": resolved["resources"]["ranks"],
                "expected_memory_bytes_per_rank": memory,
            }
            | ({} if sweep is None else {"sweep": sweep})
        )
        return

    import yaml

    click.echo(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=110).rstrip())
    ranks = output.ranks(resources.min_ranks, resources.max_ranks)
    each = "the one rank" if ranks == "1" else f"each of the {ranks} ranks"
    for line in sweep or ():
        click.echo(f"# {line}")
    click.echo(f"# parameters: {output.count(parameters)}")
    click.echo(f"# expected memory: {output.size(memory)} for {each}")


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON Schema, for editors and programs.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the reference that README.md holds.")
def schema(as_json: bool, as_markdown: bool) -> None:
    """Print every key of a config: its type, default and meaning."""
    from jobs.cli import reference

    if as_json:
        from jobs.config import JobConfig

        output.emit_json(JobConfig.model_json_schema())
    elif as_markdown:
        click.echo(reference.markdown(), nl=False)
    else:
        for part in reference.parts():
            output.heading(f"{part.title.replace('`', '')}: {part.about.splitlines()[0]}")
            output.table(
                reference.COLUMNS, [(k.key, k.type, k.default, k.meaning) for k in part.keys], wrap="meaning"
            )
