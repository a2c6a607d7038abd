"""A whole network in one process, for trying things and for tests: every node, every device, and real connections.

Nodes share memory with nobody: whatever one says to another, to a device or to an application crosses a mutually
authenticated TLS socket of the loopback, so this is `trenza node` many times over and not a shortcut beside it.
A node that fails is started again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from trenza.app.build import RunningNode, build_node
from trenza.app.config import load_device_host_config, load_node_config
from trenza.app.devices import DeviceHost, build_devices
from trenza.app.network_files import NetworkFiles, Ports
from trenza.app.process import forbid_core_dumps, raise_file_limit
from trenza.app.readiness import Direction, directions_of, missing_in
from trenza.app.scenario_model import Scenario
from trenza.app.state_directory import StateDirectory
from trenza.app.view import LinkView, NetworkView, NodeView, PoolView
from trenza.base.errors import InvalidRequestError, TrenzaError, UnavailableError
from trenza.base.names import NodeId
from trenza.base.units import Bits, BitsPerSecond, Seconds
from trenza.core.pads import UNIT_BYTES

__all__ = ["LinkView", "Network", "NetworkView", "NodeView", "PoolView"]

_READY_WITHIN_S: Final = 180.0
_LOOK_EVERY_S: Final = 0.1
_TELL_EVERY_S: Final = 1.0
_RESTART_AFTER_S: Final = 1.0
_FILES_WANTED: Final = 65_536
_LOG = logging.getLogger(__name__)

Progress = Callable[[str], None]


class Network:
    """A running network. Made by `start`; ended by `stop`."""

    def __init__(self, scenario: Scenario, state: StateDirectory) -> None:
        self.scenario = scenario
        self._state = state
        self._ports = Ports()
        self._files = NetworkFiles(scenario, state, self._ports)
        self._directions = directions_of(scenario)
        self._starting = {node.name: asyncio.Lock() for node in scenario.nodes}
        self._since = time.monotonic()
        self.nodes: dict[NodeId, RunningNode] = {}
        self.devices = DeviceHost()

    @classmethod
    async def start(cls, scenario: Scenario, *, state: Path, progress: Progress, fresh: bool = True) -> Self:
        """Start all of a scenario's network, and return when its applications can get keys.

        Args:
            scenario: what to start.
            state: directory for all files; made if absent.
            progress: told what the start is doing now.
            fresh: begin with new keys and certificates; otherwise go on from what the directory holds.

        Raises:
            UnavailableError: a network runs there already, or this one did not get ready; it says what is missing.
            TrenzaError, OSError: something cannot be opened.
        """
        forbid_core_dumps()
        raise_file_limit(_FILES_WANTED)
        network = cls(scenario, StateDirectory(state))
        try:
            await network._start(progress, fresh=fresh)
        except BaseException:
            await network.stop()
            raise
        return network

    async def _start(self, progress: Progress, *, fresh: bool) -> None:
        names = [node.name for node in self.scenario.nodes]
        if fresh or not self._state.may_go_on(names):
            progress("making keys and certificates")
            self._state.clear()
            await asyncio.to_thread(self._files.write)
        elif any(load_node_config(self._state.node_config(name)).database for name in names):
            raise InvalidRequestError("the network's memory of its last run is in PostgreSQL: add --processes")
        progress(f"starting {2 * len(self.scenario.links)} QKD devices")
        self.devices = await build_devices(load_device_host_config(self._state.devices))
        for number, name in enumerate(names, 1):
            progress(f"opening nodes: {number} of {len(names)}")
            self.nodes[name] = await self._opened(name)
        for running in self.nodes.values():
            await running.start()
        await self._until_ready(progress)
        self._since = time.monotonic()
        self._state.tell_ready(msgspec.json.encode(self.ready_document()))

    async def _opened(self, name: NodeId) -> RunningNode:
        path = self._state.node_config(name)
        return await build_node(load_node_config(path), source=path)

    async def _until_ready(self, progress: Progress) -> None:
        deadline, told = time.monotonic() + _READY_WITHIN_S, 0.0
        while missing := self._missing():
            for running in self.nodes.values():
                running.raise_failure()
            now = time.monotonic()
            if now > deadline:
                troubles = sorted(
                    {text for running in self.nodes.values() for text in running.node.troubles.values()}
                )
                waiting = ", ".join(str(direction) for direction in missing)
                raise UnavailableError(f"the network is not ready: no keys for {waiting} ({'; '.join(troubles)})")
            if now - told >= _TELL_EVERY_S:
                told = now
                done = len(self._directions) - len(missing)
                progress(f"filling pools: {done} of {len(self._directions)} ready, waiting for {missing[0]}")
            await asyncio.sleep(_LOOK_EVERY_S)

    def _missing(self) -> list[Direction]:
        return missing_in(self._directions, {name: running.node for name, running in self.nodes.items()})

    # --- while it lives

    async def run(self, stop: asyncio.Event) -> None:
        """Keep every node alive until `stop` is set."""
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(self._keep(name)) for name in self.nodes]
            await stop.wait()
            for keeper in keepers:
                keeper.cancel()

    async def _keep(self, name: NodeId) -> None:
        """Start a node again whenever it has ended."""
        while True:
            try:
                await self.nodes[name].serve_forever()
            except Exception:  # noqa: BLE001 - whatever it was, the node is started again and the log says why
                _LOG.exception("node %s failed and is started again", name)
            async with self._starting[name]:
                if not self.nodes[name].is_running:
                    await self._restart(name)

    async def restart(self, name: NodeId) -> None:
        """Stop a node in good order and start it again from its files."""
        async with self._starting[name]:
            await self._restart(name)

    async def _restart(self, name: NodeId) -> None:
        await self.nodes[name].stop()
        while True:
            try:
                self.nodes[name] = await self._started(name)
            except (TrenzaError, OSError):
                _LOG.exception("node %s could not be started; trying again", name)
                await asyncio.sleep(_RESTART_AFTER_S)
            else:
                return

    async def _started(self, name: NodeId) -> RunningNode:
        running = await self._opened(name)
        try:
            await running.start()
        except BaseException:
            await running.stop()
            raise
        return running

    async def stop(self) -> None:
        """Stop everything in good order; may be called twice."""
        nodes = list(self.nodes.values())
        await asyncio.gather(*(running.leave() for running in nodes))
        await asyncio.gather(*(running.stop() for running in nodes))
        await self.devices.stop()
        self._ports.release()
        self._state.release()

    # --- what can be seen

    def ready_document(self) -> dict[str, Any]:
        """Return where everything is; `nodes` and `saes` are a public contract, whatever is added beside them."""
        return self._files.ready_document({name: running.config for name, running in self.nodes.items()})

    def view(self) -> NetworkView:
        """Return the network as it is now."""
        counters: Counter[str] = Counter()
        handshakes: Counter[str] = Counter()
        messages = 0
        for running in self.nodes.values():
            counters.update(running.node.ctx.counters)
            for door, statistics in running.tls_statistics().items():
                if not door.startswith("to "):  # each handshake once, where it was accepted
                    handshakes.update(statistics.completed)
            messages += sum(one.messages_out for all_ in running.message_counters().values() for one in all_)
        for statistics in self.devices.statistics():
            handshakes.update(statistics.completed)
        return NetworkView(
            scenario=self.scenario.name,
            title=self.scenario.title,
            elapsed=Seconds(time.monotonic() - self._since),
            nodes=tuple(self._node_view(name) for name in self.nodes),
            links=self._link_views(),
            pools=self._pool_views(),
            keys_issued=counters["keys_issued"],
            keys_delivered=counters["keys_delivered"],
            segments_filled=counters["segments_filled"],
            relays=counters["relays_carried"] + counters["relays_passed_on"],
            handshakes=dict(handshakes),
            messages=messages,
            counters=dict(counters),
        )

    def _node_view(self, name: NodeId) -> NodeView:
        running = self.nodes[name]
        site = next(node for node in self.scenario.nodes if node.name == name)
        partners = running.node.partners()
        return NodeView(
            name=name,
            title=site.title or name,
            region=site.region,
            operator=site.operator,
            running=running.is_running,
            sessions=sum(running.node.sessions.has_lease(peer) for peer in partners),
            partners=len(partners),
            troubles=tuple(f"{task}: {text}" for task, text in sorted(running.node.troubles.items())),
        )

    def _link_views(self) -> tuple[LinkView, ...]:
        found = []
        for link in self.scenario.links:
            reading = self.devices.pairs[link.name].observe()
            stock = [self.nodes[end].node.pads.stream(link.name, end).available() for end in link.ends]
            first, second = (Bits(units * UNIT_BYTES * 8) for units in stock)
            rate = BitsPerSecond(reading.secret_bits_per_second)
            stored = Bits(reading.stored_bits)
            found.append(LinkView(link.name, link.ends, reading.state.value, rate, stored, (first, second)))
        return tuple(found)

    def _pool_views(self) -> tuple[PoolView, ...]:
        found: dict[tuple[NodeId, NodeId], PoolView] = {}
        for one in self._directions:
            first, second = sorted((one.issuer, one.target))
            if (first, second) in found:
                continue
            node = self.nodes[first].node
            stock = [
                self.nodes[near].node.pools.issuable(far, full=one.full)
                + node.pools.ungranted(second, near, full=one.full)
                for near, far in ((first, second), (second, first))
            ]
            target = node.ctx.settings.stock_target
            found[first, second] = PoolView((first, second), one.recipe, (stock[0], stock[1]), target)
        return tuple(found.values())
