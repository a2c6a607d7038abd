"""What a shell may complete: networks, nodes, applications and scenarios by their names.

Reads files and asks nobody. Where nothing can be read, nothing is suggested: completion never complains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trenza.base.errors import TrenzaError

if TYPE_CHECKING:  # imported where it is needed: a shell waits for us
    from trenza.cli.state import Ready

Suggest = Callable[[click.Context, click.Parameter, str], list[str]]


def _suggesting(names: Callable[[dict[str, Any]], Iterable[str]]) -> Suggest:
    def suggest(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        try:
            return sorted(name for name in names(ctx.params) if name.startswith(incomplete))
        except (TrenzaError, OSError):
            return []

    return suggest


def _running(_given: dict[str, Any]) -> Iterable[str]:
    from trenza.cli.state import running_networks

    return (network.name for network in running_networks())


def _nodes(given: dict[str, Any]) -> Iterable[str]:
    return _ready(given).nodes


def _saes(given: dict[str, Any]) -> Iterable[str]:
    return _ready(given).saes


def _ready(given: dict[str, Any]) -> Ready:
    from trenza.cli.state import read_ready, the_network

    doors: Path | None = given.get("doors")
    if doors is not None:
        return read_ready(doors)
    return the_network(given.get("network_name"), given.get("state_dir")).site.ready()


def _scenarios(_given: dict[str, Any]) -> Iterable[str]:
    from trenza.app.scenario import known_scenarios

    return known_scenarios()


running = _suggesting(_running)
nodes = _suggesting(_nodes)
saes = _suggesting(_saes)
scenarios = _suggesting(_scenarios)
