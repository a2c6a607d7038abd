"""`trenza up`: a whole emulated network in this process, or a process for each node of it, until Ctrl-C.

Starts what the scenario says, prints the two `curl` lines with which an application gets its first key, and shows
the network as it lives. The first Ctrl-C or SIGTERM stops it in good order (exit status 0), the second ends it.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from trenza.app.network import Network
from trenza.app.process import loop_factory
from trenza.app.process_network import ProcessNetwork
from trenza.app.scenario import Scenario, load_scenario
from trenza.cli import suggest
from trenza.cli.first_key import first_key_lines
from trenza.cli.options import state_dir_option
from trenza.cli.output import counted
from trenza.cli.screen import Screen, screen_for
from trenza.cli.signals import stop_on_signals
from trenza.cli.state import check_writable, forget, remember, state_home, write_whole

_TRENZA: Final = (sys.executable, "-P", "-m", "trenza.cli")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


@click.command()
@click.argument("scenario", shell_complete=suggest.scenarios)
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write where everything is to this file, once all of it is ready.",
)
@state_dir_option
@click.option(
    "--processes", is_flag=True, help="Run every node as a process of its own, started again whenever it ends."
)
@click.option(
    "--store",
    type=click.Choice(["sqlite", "postgres"]),
    help="Where the nodes' memory is: on this disk, or in PostgreSQL (with --processes).  [default: sqlite]",
)
@click.option(
    "--database-address",
    type=click.Path(dir_okay=False, path_type=Path),
    help="For PostgreSQL: the file with its address, mode 0600 (docs/reference/postgres.md).",
)
@click.option("--resume", is_flag=True, help="Go on with the keys, certificates and ledgers of the last run there.")
@click.option("--live/--no-live", default=None, help="Show the network as it lives.  [default: on a terminal]")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def up(
    scenario: str,
    ready_file: Path | None,
    state_dir: Path | None,
    processes: bool,
    store: str | None,
    database_address: Path | None,
    resume: bool,
    live: bool | None,
    quiet: bool,
) -> None:
    """Start a whole emulated network, and keep it until Ctrl-C.

    SCENARIO is a file, or the name of one that comes with Trenza (`trenza scenario list`). A start begins with new
    keys and certificates, unless it resumes. Each message between nodes, devices and applications crosses a mutually
    authenticated TLS connection, so what you try here is what runs on real sites.
    """
    _check_store(store, database_address, processes=processes, resume=resume)
    found = load_scenario(scenario)
    if ready_file is not None:
        check_writable(ready_file)
    state = (state_dir or state_home() / directory_name(found.name)).absolute()
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)  # of an earlier run: whoever waits for it must not find that one
    screen = screen_for(live=live, quiet=quiet)
    address = None if database_address is None else database_address.absolute()
    start = _Start(
        found, state, ready_file, screen, fresh=not resume, processes=processes, store=store, database=address
    )
    remember(state)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(start.run())
    finally:
        forget(state)


def _check_store(store: str | None, address: Path | None, *, processes: bool, resume: bool) -> None:
    """Refuse what does not fit together."""
    if store == "postgres" and not processes:
        raise click.UsageError("--store postgres needs --processes: each node is an instance by itself")
    if store == "postgres" and address is None and not resume:
        raise click.UsageError("--store postgres needs --database-address: the file that says where PostgreSQL is")
    if address is not None and store != "postgres":
        raise click.UsageError("--database-address needs --store postgres")


def directory_name(scenario: str) -> str:
    """Return the name of a scenario's state directory."""
    return _UNSAFE.sub("-", scenario).strip(".-") or "network"


@dataclass(frozen=True, slots=True)
class _Start:
    """One life of a network."""

    scenario: Scenario
    state: Path
    ready_file: Path | None
    screen: Screen
    fresh: bool
    processes: bool
    store: str | None
    database: Path | None

    async def run(self) -> None:
        stop = asyncio.Event()
        stop_on_signals(stop)
        network = await self._started(stop)
        if network is None:
            self.screen.say("stopped before it was ready")
            return
        try:
            remember(self.state)  # again: another start may have tidied up while there was no directory yet
            document = network.ready_document()
            self._tell(document)
            async with asyncio.TaskGroup() as group:
                group.create_task(network.run(stop))
                group.create_task(self.screen.watch(network.view, stop))
        finally:
            self.screen.say("stopping")
            await network.stop()
            if self.ready_file is not None:
                self.ready_file.unlink(missing_ok=True)
        self.screen.say("stopped")

    async def _started(self, stop: asyncio.Event) -> Network | ProcessNetwork | None:
        """Return the network when it is ready; None where it was stopped before."""
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(stop.wait())
        with self.screen.starting(self.scenario.title):
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
        return None if starting.cancelled() else starting.result()

    def _start(self) -> Coroutine[Any, Any, Network | ProcessNetwork]:
        if not self.processes:
            return Network.start(self.scenario, state=self.state, progress=self.screen.progress, fresh=self.fresh)
        return ProcessNetwork.start(
            self.scenario,
            state=self.state,
            progress=self.screen.progress,
            command=_TRENZA,
            said=self.screen.forward,
            changed=self._write_ready_file,
            fresh=self.fresh,
            store=self.store,
            database=self.database,
        )

    def _write_ready_file(self, document: dict[str, Any]) -> None:
        if self.ready_file is not None:
            write_whole(self.ready_file, msgspec.json.encode(document))

    def _tell(self, document: dict[str, Any]) -> None:
        self._write_ready_file(document)
        nodes, links = counted(len(self.scenario.nodes), "node"), counted(len(self.scenario.links), "link")
        self.screen.say(f"ready: {nodes}, {links}; files in {self.state}")
        lines = first_key_lines(self.scenario, document)
        if lines is not None:
            self.screen.paste(lines)
