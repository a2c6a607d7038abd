"""`trenza ps` and `trenza down`: the networks that run on this machine, and stopping one."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Final

import click

from trenza.base.errors import UnavailableError
from trenza.cli import suggest
from trenza.cli.options import json_option, state_dir_option
from trenza.cli.output import console, show_json, table
from trenza.cli.state import RunningNetwork, none_runs, running_in, running_networks, the_network

_PAUSE_S: Final = 0.1


@click.command()
@state_dir_option
@json_option
def ps(state_dir: Path | None, as_json: bool) -> None:
    """List the networks that run on this machine."""
    found = [(_row(network), network) for network in running_networks(state_dir)]
    if as_json:
        show_json({"networks": [one | {"processes": _processes(network)} for one, network in found]})
        return
    if not found:
        told = none_runs(state_dir)
        click.echo(f"{told[0].upper()}{told[1:]}. Start one with: trenza up two-nodes")
        return
    columns = ("name", "state", "nodes ", "pid ", "since", "directory")
    console().print(table(columns, [[one[column.strip()] for column in columns] for one, _ in found]))


@click.command()
@click.argument("name", required=False, shell_complete=suggest.running)
@state_dir_option
@click.option(
    "--timeout", type=click.FloatRange(0), default=30.0, show_default=True, metavar="SECONDS", help="Then give up."
)
@json_option
def down(name: str | None, state_dir: Any, timeout: float, as_json: bool) -> None:
    """Stop a network that `trenza up` started, and wait until it has.

    Its files stay where they are. NAME may be left out where only one network runs.
    """
    network = the_network(name, state_dir)
    os.kill(network.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while running_in(network.state) is not None:
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"network {network.name} (process {network.pid}) still runs after {timeout:g} s: "
                f"look at what it prints, or end it with `kill -9 {network.pid}`"
            )
        time.sleep(_PAUSE_S)
    if as_json:
        show_json({"name": network.name, "pid": network.pid, "stopped": True})
    else:
        click.echo(f"Network {network.name} stopped.")


def _row(network: RunningNetwork) -> dict[str, Any]:
    ready = network.site.ready_file.is_file()
    return {
        "name": network.name,
        "state": "ready" if ready else "starting",
        "nodes": len(network.site.ready().nodes) if ready else 0,
        "pid": network.pid,
        "since": network.since.isoformat(timespec="seconds"),
        "directory": str(network.state),
    }


def _processes(network: RunningNetwork) -> dict[str, int]:
    """Return the nodes that are processes of their own."""
    if not network.site.ready_file.is_file():
        return {}
    return {name: doors.pid for name, doors in network.site.ready().nodes.items() if doors.pid is not None}
