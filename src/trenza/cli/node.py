"""`trenza node` and `trenza devices`: one part of a network alone in this process, as on a real site.

SIGTERM or Ctrl-C stops it in good order, a second one ends it. SIGHUP reads a node's configuration anew.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import click

from trenza.app.build import RunningNode, build_node
from trenza.app.config import load_device_host_config, load_node_config
from trenza.app.process import (
    end_with_input,
    forbid_core_dumps,
    loop_factory,
    raise_file_limit,
    spare_what_stays,
)
from trenza.base.errors import TrenzaError, UnavailableError
from trenza.base.names import NodeId
from trenza.cli import suggest
from trenza.cli.keeping import backup, make_key, restore
from trenza.cli.options import FindSite, json_option, network_options
from trenza.cli.output import show_json
from trenza.cli.signals import stop_on_signals
from trenza.wire.management import Reloaded

_FILES: Final = 8_192
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_TOLD: Final = "What it is told at its start (TOML)."
_until_input_ends = click.option(
    "--until-input-ends",
    is_flag=True,
    help="End at once when the standard input does, as it does with whoever started this process.",
)
_LOG = logging.getLogger("trenza")


@click.group(invoke_without_command=True)
@click.option("--config", "config_file", type=_FILE, help=_TOLD)
@_until_input_ends
@click.pass_context
def node(ctx: click.Context, config_file: Path | None, until_input_ends: bool) -> None:
    """Run one node from its configuration.

    Everything the node says goes to the error stream, one line per event. SIGHUP lets it read its configuration anew.
    """
    if ctx.invoked_subcommand is not None:
        return
    if config_file is None:
        raise click.UsageError("Missing option '--config': the file that says what this node is.", ctx)
    _serve(lambda: _run_node(config_file), until_input_ends=until_input_ends)


for _command in (backup, restore, make_key):
    node.add_command(_command)


@node.command()
@click.argument("node", required=False, shell_complete=suggest.nodes)
@network_options
@json_option
def reload(node: str | None, find_site: FindSite, as_json: bool) -> None:
    """Let NODE, or every node, read its configuration anew.

    Links come and go, new connections get the new certificates, settings and a newer policy book are followed.
    """
    from trenza.cli.doors import Doors  # no node that starts waits for it

    async def ask() -> dict[NodeId, Reloaded | TrenzaError]:
        async with Doors(find_site().ready()) as doors:
            nodes = None if node is None else [doors.check(node)]
            return await doors.ask_all("/v1/reload", Reloaded, nodes=nodes, method="POST")

    answers = asyncio.run(ask())
    for answer in answers.values():
        if isinstance(answer, TrenzaError):
            raise answer
    changed = {name: answer.changed for name, answer in answers.items() if isinstance(answer, Reloaded)}
    if as_json:
        show_json({"nodes": changed})
        return
    for name, what in changed.items():
        click.echo(f"{name}: {', '.join(what) or 'nothing changed'}")


@click.command()
@click.option("--config", "config_file", type=_FILE, required=True, help=_TOLD)
@_until_input_ends
def devices(config_file: Path, until_input_ends: bool) -> None:
    """Run emulated QKD devices from their configuration."""
    _serve(lambda: _run_devices(config_file), until_input_ends=until_input_ends)


def _serve(story: Callable[[], Coroutine[Any, Any, None]], *, until_input_ends: bool) -> None:
    if until_input_ends:
        end_with_input()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    forbid_core_dumps()
    raise_file_limit(_FILES)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(story())
        except OSError as error:
            raise UnavailableError(f"the operating system refused: {error}") from error


async def _run_node(file: Path) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    running = await build_node(load_node_config(file), source=file)
    try:
        await running.start()
        spare_what_stays()
        reloads = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloads.set)
        _LOG.info("node %s is open", running.name)
        await _first_of(running.serve_forever(), _reload_when(reloads, running), stop.wait())
    finally:
        _LOG.info("node %s stops", running.name)
        await running.stop()


async def _run_devices(file: Path) -> None:
    from trenza.app.devices import build_devices  # no node that starts waits for it

    stop = asyncio.Event()
    stop_on_signals(stop)
    host = await build_devices(load_device_host_config(file))
    try:
        _LOG.info("%d %s of emulated devices open", len(host.pairs), "pair" if len(host.pairs) == 1 else "pairs")
        await stop.wait()
    finally:
        await host.stop()


async def _reload_when(asked: asyncio.Event, running: RunningNode) -> None:
    while True:
        await asked.wait()
        asked.clear()
        try:
            _LOG.info("reloaded: %s", ", ".join(await running.reload()))
        except TrenzaError as error:
            _LOG.error("not reloaded: %s", error.message)
        spare_what_stays()


async def _first_of(*stories: Coroutine[Any, Any, Any]) -> None:
    """Return when one of them ends, with its error if it failed; the others are cancelled."""
    tasks = [asyncio.ensure_future(story) for story in stories]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
