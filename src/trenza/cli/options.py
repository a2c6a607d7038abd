"""Options that several commands share, and how --network and --state-dir name a network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from trenza.cli import suggest

if TYPE_CHECKING:  # what it imports takes longer than answering --help
    from trenza.cli.state import Site

FindSite = Callable[[], "Site"]
"""Finds the network that the options mean; raises TrenzaErrors where there is none."""

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
    """Add --network, --state-dir and --doors; the command is handed `find_site`, which finds what they mean."""

    @click.option(
        "--network",
        "network_name",
        metavar="NAME",
        help="Which network, where several run.",
        shell_complete=suggest.running,
    )
    @state_dir_option
    @click.option(
        "--doors",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        envvar="TRENZA_DOORS",
        show_envvar=True,
        help="A document like ready.json, for nodes that `trenza up` did not start.",
    )
    @functools.wraps(command)
    def with_network(
        *args: Any, network_name: str | None, state_dir: Path | None, doors: Path | None, **options: Any
    ) -> Any:
        def find_site() -> Site:
            from trenza.cli.state import Site, the_network

            if doors is not None:
                return Site(doors.stem, doors.absolute())
            return the_network(network_name, state_dir).site

        return command(*args, find_site=find_site, **options)

    return with_network  # type: ignore[return-value]
