"""`trenza completion`: what a shell needs to complete our commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: trenza completion bash > ~/.local/share/bash-completion/completions/trenza
    zsh:  trenza completion zsh > ~/.zfunc/_trenza     (with ~/.zfunc in fpath, before compinit)
    fish: trenza completion fish > ~/.config/fish/completions/trenza.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "trenza", "_TRENZA_COMPLETE").source())
