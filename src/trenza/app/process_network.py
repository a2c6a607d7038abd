"""A whole network of this machine, each node a process of its own beside one for the emulated devices.

The same files, doors and readiness as `app.network`, which runs it all in one process; here every node is
`trenza node`, as on a real site, and dies alone. Whoever dies is started again (`app.supervisor`), and nobody
outlives this process.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from trenza.app.config import NodeConfig, load_node_config
from trenza.app.network_database import NetworkDatabase, kept_address
from trenza.app.network_files import NetworkFiles, Ports
from trenza.app.process import forbid_core_dumps
from trenza.app.readiness import directions_of, missing_by_status
from trenza.app.scenario_model import Scenario
from trenza.app.state_directory import StateDirectory, change_ready
from trenza.app.status_view import view_of
from trenza.app.supervisor import Lifeline, Supervised
from trenza.app.view import NetworkView
from trenza.app.watch import Watch
from trenza.base.errors import UnavailableError
from trenza.base.names import NodeId
from trenza.wire.management import NodeStatus

DEVICES: Final = "QKD devices"  # no node's name has a space in it
_OPEN_WITHIN_S: Final = 120.0
_READY_WITHIN_S: Final = 300.0
_LOOK_EVERY_S: Final = 0.1
_ASK_EVERY_S: Final = 0.25
_TELL_EVERY_S: Final = 1.0
_STOP_WITHIN_S: Final = 12.0
_STARTING_PER_CPU: Final = 2

Progress = Callable[[str], None]
Said = Callable[[str, str], None]
"""Told which process says what, a line at a time."""

Changed = Callable[[dict[str, Any]], None]
"""Given the ready document anew whenever a process was started again."""


class ProcessNetwork:
    """A running network of processes. Made by `start`; ended by `stop`."""

    def __init__(
        self, scenario: Scenario, state: StateDirectory, *, command: Sequence[str], said: Said, changed: Changed
    ) -> None:
        self.scenario = scenario
        self._state = state
        self._command = tuple(command)
        self._said = said
        self._changed = changed
        self._ports = Ports()
        self._files = NetworkFiles(scenario, state, self._ports)
        self._directions = directions_of(scenario)
        self._lifeline = Lifeline()
        self._configs: dict[NodeId, NodeConfig] = {}
        self._nodes: dict[NodeId, Supervised] = {}
        self._devices = self._supervised(DEVICES, "devices", state.devices)
        self._watch: Watch | None = None
        self._told: dict[NodeId, NodeStatus | None] = {}
        self._looked_at = asyncio.Event()
        self._since = time.monotonic()

    @classmethod
    async def start(
        cls,
        scenario: Scenario,
        *,
        state: Path,
        progress: Progress,
        command: Sequence[str],
        said: Said,
        changed: Changed,
        fresh: bool = True,
        store: str | None = None,
        database: Path | None = None,
    ) -> Self:
        """Start all of a scenario's network, and return when its applications can get keys.

        Args:
            scenario: what to start.
            state: directory for all files; made if absent.
            progress: told what the start is doing now.
            command: how this machine calls `trenza`.
            said: told what the processes print.
            changed: given the ready document whenever a process was started again.
            fresh: begin with new keys and certificates; otherwise go on from what the directory holds.
            store: "sqlite" or "postgres"; None for that of the last run where it goes on, else SQLite.
            database: the file that says where PostgreSQL is.

        Raises:
            InvalidRequestError: the last run's memory is elsewhere than asked for.
            UnavailableError: a network runs there already, a process ended at its start, or the network did not get
                ready; it says what and why.
            TrenzaError, OSError: something cannot be opened.
        """
        forbid_core_dumps()
        network = cls(scenario, StateDirectory(state), command=command, said=said, changed=changed)
        try:
            await network._write_files(progress, fresh=fresh, store=store, database=database)
            await network._start(progress)
        except BaseException:
            await network.stop()
            raise
        return network

    async def _write_files(
        self, progress: Progress, *, fresh: bool, store: str | None, database: Path | None
    ) -> None:
        names = [node.name for node in self.scenario.nodes]
        if not fresh and self._state.may_go_on(names):
            self._configs = {name: load_node_config(self._state.node_config(name)) for name in names}
            kept = kept_address(list(self._configs.values()), database, store=store)
            if kept is not None:
                await NetworkDatabase(kept, self.scenario, self._state).check_kept()
            return
        if database is not None:
            progress("making schemas")
            await NetworkDatabase(database, self.scenario, self._state).prepare()
        progress("making keys and certificates")
        self._state.clear()
        self._files.database = database
        await asyncio.to_thread(self._files.write)
        self._configs = {name: load_node_config(self._state.node_config(name)) for name in names}

    async def _start(self, progress: Progress) -> None:
        names = list(self._configs)
        self._watch = Watch(self._files.operator, self._configs)
        progress(f"starting {2 * len(self.scenario.links)} QKD devices")
        await self._devices.start()
        await self._open_all(names, progress)
        await self._until_ready(progress)
        self._since = time.monotonic()
        self._state.tell_ready(msgspec.json.encode(self.ready_document()))

    def _supervised(self, name: str, kind: str, config: Path) -> Supervised:
        return Supervised(
            name,
            (*self._command, kind, "--config", str(config), "--until-input-ends"),
            self._lifeline,
            said=lambda line: self._said(name, line),
            restarted=lambda how: self._note_restart(name, how),
        )

    async def _open_all(self, names: Sequence[NodeId], progress: Progress) -> None:
        """Start the nodes, a few at a time: their starts share this machine's processors."""
        room = asyncio.Semaphore(_STARTING_PER_CPU * (os.cpu_count() or 1))
        opened = 0

        async def start(name: NodeId) -> None:
            nonlocal opened
            async with room:
                await self._open(name)
            opened += 1
            progress(f"opening nodes: {opened} of {len(names)}")

        starts = [asyncio.create_task(start(name)) for name in names]
        try:
            await asyncio.gather(*starts)
        finally:
            for one in starts:
                one.cancel()
            await asyncio.wait(starts)

    async def _open(self, name: NodeId) -> None:
        assert self._watch is not None
        process = self._nodes[name] = self._supervised(name, "node", self._state.node_config(name))
        await process.start()
        deadline = time.monotonic() + _OPEN_WITHIN_S
        while not await self._watch.is_open(name):
            await self._refuse_ended()
            if time.monotonic() > deadline:
                raise UnavailableError(f"node {name} did not open its doors: {process.last_words()}")
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _refuse_ended(self) -> None:
        """Raise if a process has ended: at the first start that is a mistake to be told, not to be tried again."""
        for process in (self._devices, *self._nodes.values()):
            if process.has_ended:
                how, why = await process.ended(), process.last_words()
                raise UnavailableError(f"the process of {process.name} {how} at its start: {why}")

    async def _until_ready(self, progress: Progress) -> None:
        assert self._watch is not None
        deadline, told = time.monotonic() + _READY_WITHIN_S, 0.0
        missing = list(self._directions)
        while missing:
            await self._refuse_ended()
            self._told.update(await self._watch.statuses(dict.fromkeys(one.issuer for one in missing)))
            missing = missing_by_status(self._directions, self._told)
            now = time.monotonic()
            if missing and now > deadline:
                troubles = sorted({text for one in self._told.values() if one for text in one.troubles.values()})
                waiting = ", ".join(str(direction) for direction in missing)
                raise UnavailableError(f"the network is not ready: no keys for {waiting} ({'; '.join(troubles)})")
            if missing and now - told >= _TELL_EVERY_S:
                told = now
                done = len(self._directions) - len(missing)
                progress(f"filling pools: {done} of {len(self._directions)} ready, waiting for {missing[0]}")
            await asyncio.sleep(_ASK_EVERY_S if missing else 0)

    # --- while it lives

    async def run(self, stop: asyncio.Event) -> None:
        """Keep every process alive until `stop` is set."""
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(one.keep()) for one in (self._devices, *self._nodes.values())]
            keepers.append(group.create_task(self._look()))
            await stop.wait()
            for keeper in keepers:
                keeper.cancel()

    def _note_restart(self, name: str, how: str) -> None:
        """Say it, and let every reader of the ready documents find the process that lives now."""
        self._said(name, how)
        if name == DEVICES:
            return
        node = NodeId(name)
        try:
            change_ready(
                self._state.ready_file, lambda document: document["nodes"][node].update(pid=self._nodes[node].pid)
            )
            self._changed(self.ready_document())
        except OSError as error:  # a full disk ends no network
            self._said(name, f"is another process now, and the ready document does not say so: {error}")

    async def _look(self) -> None:
        """Ask the nodes how they are, as often as somebody looks and not more often than that does no harm."""
        assert self._watch is not None
        pause = max(_TELL_EVERY_S, 0.05 * len(self._nodes))
        while True:
            self._told = await self._watch.statuses(self._nodes)
            self._looked_at.clear()
            await asyncio.sleep(pause)
            await self._looked_at.wait()

    async def stop(self) -> None:
        """Stop everything in good order and in bounded time; may be called twice."""
        nodes = list(self._nodes.values())
        for process, in_time in zip(
            nodes, await asyncio.gather(*(one.stop(within=_STOP_WITHIN_S) for one in nodes)), strict=True
        ):
            if not in_time:
                self._said(process.name, f"did not stop in {_STOP_WITHIN_S:g} s and was killed")
        await self._devices.stop(within=_STOP_WITHIN_S)
        self._lifeline.close()
        if self._watch is not None:
            await self._watch.aclose()
        self._ports.release()
        self._state.release()

    # --- what can be seen

    def ready_document(self) -> dict[str, Any]:
        """Return where everything is, and which process each node is now."""
        document = self._files.ready_document(self._configs)
        for name, process in self._nodes.items():
            document["nodes"][name]["pid"] = process.pid
        return document

    def view(self) -> NetworkView:
        """Return the network as its nodes told it last."""
        self._looked_at.set()
        return view_of(
            self.scenario,
            self._told,
            self._directions,
            since=self._since,
            restarts={name: process.restarts for name, process in self._nodes.items()},
            running={name for name, process in self._nodes.items() if process.is_running},
        )
