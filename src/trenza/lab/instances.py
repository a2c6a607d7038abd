"""Nodes of several instances in the lab: production's instances over one database, each a process that may die.

Real are the instance (who leads, what a second serves, the front before both) and all it is made of but its
surroundings: sockets, certificates, crypto between nodes and the server are the lab's, as everywhere here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, cast

from trenza.adapters.anchor import MemoryAnchor
from trenza.app.instances import Beside, Instance, Nobody
from trenza.app.leading import Leading
from trenza.app.scenario import Scenario
from trenza.base.errors import TrenzaError
from trenza.base.names import NodeId
from trenza.base.units import Seconds
from trenza.kms import rows
from trenza.kms.context import Context, LinkEnd, Settings
from trenza.kms.node import Node
from trenza.kms.ports import Change, Peers, Put, Table
from trenza.lab.database import LabPostgres
from trenza.lab.history import Forgot, Trouble
from trenza.lab.loop import VirtualClock, VirtualLoop
from trenza.lab.machine import LabDevice
from trenza.lab.network import Handler, LabPeers
from trenza.lab.process import Process
from trenza.lab.shared_store import LabDatabase, LabServer
from trenza.lab.standins import LabSigner, SeededEntropy
from trenza.lab.world import World
from trenza.qkd.emulator.settings import End
from trenza.wire.peer import PeerMessage

if TYPE_CHECKING:
    from trenza.app.config import NodeConfig
    from trenza.app.leading import Surroundings
    from trenza.app.memory import Database, Memory

_INSTANCES = 2
_STOPS_WITHIN = 10.0
_UNWINDS_WITHIN = 0.1


@dataclass(slots=True)
class Seat:
    """One instance's machine, and the process on it while there is one."""

    place: str  # as histories call it
    clock: VirtualClock
    anchor: MemoryAnchor = field(default_factory=MemoryAnchor)
    lives: int = 0
    process: Process | None = None
    instance: LabInstance | None = None  # None: nobody listens
    server: LabServer | None = None
    handler: Handler | None = None  # answers the network while it leads
    peers: list[LabPeers] = field(default_factory=list)


@dataclass(slots=True)
class Pod:
    """One node of several instances."""

    name: NodeId
    node_key: bytes = field(repr=False)
    postgres: LabPostgres
    seats: list[Seat]
    epoch: int | None = None  # of the last life that was made durable

    def living(self) -> list[Seat]:
        return [seat for seat in self.seats if seat.instance is not None]

    def lead(self) -> Seat | None:
        """Return the instance that leads, or believes so."""
        leading = [seat for seat in self.living() if seat.instance is not None and seat.instance.leading is not None]
        return leading[0] if leading else None


class InstancesWorld(World):
    """A scenario's network in which some nodes are several instances."""

    def __init__(self, scenario: Scenario, *, seed: int, settings: Settings | None = None) -> None:
        super().__init__(scenario, seed=seed, settings=settings)
        self.pods: dict[NodeId, Pod] = {}
        for name in sorted(self.machines)[::2]:
            machine = self.machines.pop(name)
            postgres = LabPostgres(
                chance=random.Random(f"database {seed} {name}"),  # noqa: S311 - histories must repeat
                observe=partial(self._note_shared, name),
                fired=self.fired,
            )
            clocks = [VirtualClock(asyncio.get_running_loop()) for _ in range(_INSTANCES)]
            seats = [Seat(f"{name}/{number}", clock) for number, clock in enumerate(clocks, 1)]
            self.pods[name] = Pod(name, machine.node_key, postgres, seats)

    @property
    def names(self) -> list[NodeId]:
        """Return all nodes, of one instance or several."""
        return sorted([*self.machines, *self.pods])

    def _note_shared(self, name: NodeId, changes: Sequence[Change]) -> None:
        pod, now = self.pods[name], self.clock.elapsed()
        for change in changes:
            if isinstance(change, Put) and (change.table, change.key) == (Table.META, rows.SELF):
                epoch = rows.decode(change.value, rows.SelfRow).epoch
                if pod.epoch not in {None, epoch}:  # nobody could vouch for what was there: all of it is dropped
                    self.history.add(Forgot(now, name))
                pod.epoch = epoch
        self.history.note_commit(now, name, changes)

    def set_clock(self, name: NodeId, skew: Seconds, drift: float) -> None:
        if name in self.machines:
            super().set_clock(name, skew, drift)
            return
        for seat in self.pods[name].seats:
            seat.clock = VirtualClock(asyncio.get_running_loop(), skew=skew, drift=drift)

    # --- processes

    async def start_all(self) -> None:
        await super().start_all()
        for name in sorted(self.pods):
            for seat in self.pods[name].seats:
                self.start_instance(self.pods[name], seat)

    async def stop_all(self) -> None:
        await super().stop_all()
        for name in sorted(self.pods):
            for seat in self.pods[name].seats:
                await self.kill_instance(seat)

    def start_instance(self, pod: Pod, seat: Seat) -> None:
        """Start a process on a machine that has none."""
        assert seat.process is None
        seat.lives += 1
        seat.process = process = Process(seat.place, on_death=lambda: None, keeps_all=True)
        main = process.spawn(self._serve(pod, seat, process), name=f"instance {seat.place}")
        main.add_done_callback(partial(self._note_ended, seat, process))

    async def _serve(self, pod: Pod, seat: Seat, process: Process) -> None:
        entropy = SeededEntropy(f"entropy {self.seed} {seat.place} {seat.lives}")
        seat.server = server = LabServer(pod.postgres, seat.place)
        house = _House(self, pod, seat, process, entropy)
        database = LabDatabase(
            house.config,
            server,
            name=seat.place,
            clock=seat.clock,
            entropy=entropy,
            anchor=seat.anchor,
            node_key=pod.node_key,
        )
        instance = LabInstance(house, database)
        await instance.open()
        life = instance.start()
        seat.instance = instance
        await asyncio.wait([life])
        if not life.cancelled():
            life.result()

    def _note_ended(self, seat: Seat, process: Process, main: asyncio.Task[None]) -> None:
        error = None if main.cancelled() else main.exception()
        if process.dead:
            return
        if isinstance(error, TrenzaError):  # whoever supervises starts it again
            self.history.add(Trouble(self.clock.elapsed(), f"{seat.place} ends: {error.code}"))
        elif error is not None:
            self._note_failure(NodeId(seat.place), error)
        self._end(seat)

    def _end(self, seat: Seat) -> None:
        process, seat.process, seat.instance = seat.process, None, None
        if process is None:
            return
        if seat.server is not None:
            seat.server.is_dead = True
        for peers in seat.peers:
            peers.dead = True
        seat.peers.clear()
        if seat.handler is not None:
            self.deafen(seat.handler)
        self.thaw(process)
        process.die()

    async def kill_instance(self, seat: Seat) -> None:
        """Kill the process at this instant; return when nothing of it is left."""
        process = seat.process
        self._end(seat)
        while process is not None and (unwinding := process.die()):  # some begin others while they unwind
            await asyncio.wait(unwinding, timeout=_UNWINDS_WITHIN)

    async def stop_instance(self, seat: Seat) -> None:
        """Stop it in good order, as a service manager does."""
        process, instance = seat.process, seat.instance
        if process is not None and instance is not None:
            ending = process.spawn(_stopped(instance), name=f"end of {seat.place}")
            await asyncio.wait([ending], timeout=_STOPS_WITHIN)
        await self.kill_instance(seat)

    def freeze(self, process: Process) -> None:
        cast("VirtualLoop", asyncio.get_running_loop()).freeze(process)

    def thaw(self, process: Process) -> None:
        cast("VirtualLoop", asyncio.get_running_loop()).thaw(process)

    # --- the network

    def listen(self, pod: Pod, seat: Seat, process: Process, node: Node) -> Handler:
        """Let peers reach an instance that leads; whoever began to last is who they reach."""

        def handler(peer: NodeId, message: PeerMessage) -> asyncio.Task[PeerMessage]:
            return process.spawn(node.handle(peer, message))

        self.network.handlers[pod.name] = seat.handler = handler
        return handler

    def deafen(self, handler: Handler) -> None:
        """Close the door of an instance that leads no more, if peers still reach it there."""
        for name, listening in list(self.network.handlers.items()):
            if listening is handler:
                del self.network.handlers[name]

    def missing(self) -> list[str]:
        found = super().missing()
        for pod in self.pods.values():
            lead = pod.lead()
            if lead is None or len(pod.living()) < len(pod.seats):
                found.append(f"{pod.name} has not all its instances yet")
                continue
            assert lead.instance is not None
            node = lead.instance.node
            found += [
                f"{pod.name} to {peer}"
                for peer in node.partners()
                for full in (True, False)
                if node.demand.wanted(peer, full=full) and not node.pools.issuable(peer, full=full)
            ]
        return found

    def nodes(self) -> list[tuple[str, Node]]:
        seats = [seat for pod in self.pods.values() for seat in pod.seats]
        found = [(seat.place, seat.instance.node) for seat in seats if seat.instance is not None]
        return [*super().nodes(), *found]


async def _stopped(instance: Instance) -> None:
    await instance.end()
    await instance.close()


class _Config:
    """All that an instance reads of its configuration itself."""

    def __init__(self, name: NodeId, settings: Settings) -> None:
        self.name = name
        self._settings = settings

    def kms_settings(self) -> Settings:
        return self._settings


@dataclass(slots=True)
class _House:
    """What the roles of one process are made of."""

    world: InstancesWorld
    pod: Pod
    seat: Seat
    process: Process
    entropy: SeededEntropy

    @property
    def config(self) -> NodeConfig:
        return cast("NodeConfig", _Config(self.pod.name, replace(self.world.settings, window_seconds=Seconds(8.0))))

    def context(self, memory: Memory, peers: Peers) -> Context:
        world, name = self.world, self.pod.name
        return Context(
            name=name,
            store=memory.store,
            sealer=memory.sealer,
            peers=peers,
            clock=self.seat.clock,
            entropy=self.entropy,
            signer=LabSigner(world.notary, name),
            verifier=world.notary,
            agreement=world.agreement(self.entropy),
            settings=self.config.kms_settings(),
            officer=world.officer.public_key().public_bytes_raw(),
            place=memory.place,
            shared=memory.shared,
        )

    def links(self) -> dict[str, LinkEnd]:
        """Return this node's ends of its links."""
        found: dict[str, LinkEnd] = {}
        for link in self.world.scenario.links_of(self.pod.name):
            one, other = link.ends
            end, peer = (End.A, other) if self.pod.name == one else (End.B, one)
            found[link.name] = LinkEnd(link.name, peer, LabDevice(self.world.pairs[link.name].end(end)))
        return found


class LabInstance(Instance):
    """Production's instance, whose roles are made of the lab's parts."""

    def __init__(self, house: _House, database: Database) -> None:
        super().__init__(house.config, cast("Surroundings", None), database)
        self._house = house

    def _new_leading(self) -> Leading:
        return _Leading(self._house)

    def _new_beside(self) -> Beside:
        return _Beside(self._house, self._database)


class _Leading(Leading):
    """The stories that run, over the lab's network and devices."""

    def __init__(self, house: _House) -> None:
        super().__init__(house.config, cast("Surroundings", None))
        self._house = house

    async def _open(self, memory: Memory) -> None:
        house, world = self._house, self._house.world
        self._memory = memory
        peers = LabPeers(world.network, house.pod.name)
        house.seat.peers.append(peers)
        ctx = house.context(memory, peers)
        ctx.links.update(house.links())  # type: ignore[arg-type]  # names of links
        self.node = Node(ctx, anchor=memory.anchor)
        await self.node.start(world.book)
        self._opened.callback(world.deafen, world.listen(house.pod, house.seat, house.process, self.node))


class _Beside(Beside):
    """The stories that serve beside the lead."""

    def __init__(self, house: _House, database: Database) -> None:
        super().__init__(house.config, cast("Surroundings", None), database)
        self._house = house

    def _context(self, memory: Memory) -> Context:
        ctx = self._house.context(memory, Nobody())
        ctx.store = ctx.shared = self.store
        return ctx
