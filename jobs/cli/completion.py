"""`completion`: the script that teaches a shell to complete commands, options and job ids."""

from __future__ import annotations

import click

from jobs.cli.lazy import PROGRAM

_VARIABLE = "_TEXTVAE_JOBS_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: eval "$(textvae-jobs completion bash)"        in ~/.bashrc
    zsh:  eval "$(textvae-jobs completion zsh)"         in ~/.zshrc
    fish: textvae-jobs completion fish | source         in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, _VARIABLE).source())
