"""``harvester completion``: a script for the shell's own completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from harvester.cli.output import print_text

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print a completion script; load it with `eval "$(harvester completion bash)"`."""
    from harvester.cli.root import root

    kind = get_completion_class(shell)
    if kind is None:  # click knows all three
        raise click.UsageError(f"{shell}: click has no completion for this shell")
    print_text(kind(root, {}, "harvester", "_HARVESTER_COMPLETE").source())
