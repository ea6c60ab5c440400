"""Groups that import a command's module only when that command is called, so that help stays instant."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from jobs.cli import errors

PROGRAM = "textvae-jobs"


class Entry(NamedTuple):
    """A command that is not loaded yet."""

    module: str  # below jobs.cli
    attribute: str
    help: str  # the first sentence of its help, which a test compares


class LazyGroup(click.Group):
    """A group whose commands stand in a table, under headings."""

    def __init__(self, *args: Any, entries: dict[str, dict[str, Entry]], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.headings = entries
        self.entries = {name: entry for group in entries.values() for name, entry in group.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(f"jobs.cli.{entry.module}"), entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.entries and not name.startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"no command {name!r}{errors.nearest(name, self.entries)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for name in self.entries)
        for heading, entries in self.headings.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), entry.help) for name, entry in entries.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=entry.help)
            for name, entry in self.entries.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


class Root(LazyGroup):
    """The program: expected errors become one line and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        # Always called by its own name, also as `python -m jobs`: usage lines and completion depend on it.
        if not standalone_mode:
            return super().main(args, PROGRAM, complete_var, standalone_mode=False, **extra)
        code = self._run(args, complete_var, extra)
        try:
            if sys.stdout is not None:  # None: the caller has closed it
                sys.stdout.flush()
        except OSError:
            # It was told of already. Python would try again on its way out, and say so in its own words.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the process ends with it
        sys.exit(code)

    def _run(self, args: Sequence[str] | None, complete_var: str | None, extra: dict[str, Any]) -> int:
        try:
            code = super().main(args, PROGRAM, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            return errors.report(error)
        except click.Abort:
            click.echo("interrupted", err=True)
            return errors.INTERRUPTED
        except Exception as error:
            failure = errors.translate(error)
            if failure is None:
                raise
            return errors.report(failure)
        return code if isinstance(code, int) else errors.OK

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code).rjust(3), text) for code, text in errors.EXIT_CODES.items()])
        super().format_epilog(ctx, formatter)
