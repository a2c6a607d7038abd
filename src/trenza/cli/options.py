"""Options that several commands share, and how --network and --state-dir name a network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")

state_dir_option = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="TRENZA_STATE_DIR",
    show_envvar=True,
    help="Where the network keeps its files.  [default: ~/.local/state/trenza/NAME]",
)


def network_options(command: _Command) -> _Command:
    """Add --network and --state-dir; the command is handed `network`, a network that runs."""

    @click.option("--network", "network_name", metavar="NAME", help="Which network, where several run.")
    @state_dir_option
    @functools.wraps(command)
    def with_network(*args: Any, network_name: str | None, state_dir: Path | None, **options: Any) -> Any:
        from trenza.cli.state import the_network

        return command(*args, network=the_network(network_name, state_dir), **options)

    return with_network  # type: ignore[return-value]
