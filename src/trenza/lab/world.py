"""A scenario brought to life in the lab: nodes, devices, links, and machines that crash or go back in time."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from trenza.adapters.anchor import MemoryAnchor
from trenza.adapters.keyring import KeyringSealer
from trenza.adapters.sqlite import InlineStore
from trenza.app.scenario import Link, Scenario
from trenza.base.errors import DeviceUnavailableError, TrenzaError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.base.units import Bits, BitsPerSecond, Decibel
from trenza.core.policy import SignedBook, bytes_to_sign, message_of
from trenza.core.strand import Supply
from trenza.kms.context import Context, LinkEnd, Settings
from trenza.kms.node import Node
from trenza.kms.ports import DeviceLimits, KeyAgreement, RawKey
from trenza.lab.disk import DeathAt, LabDisk
from trenza.lab.history import History, Sent, Trouble
from trenza.lab.loop import VirtualClock
from trenza.lab.network import LabNetwork, LabPeers, Weather
from trenza.lab.standins import LabAgreement, LabNotary, LabSigner, SeededEntropy
from trenza.qkd.emulator.pair import DeviceEnd, EmulatedPair
from trenza.qkd.emulator.settings import End, KeyLimits, PairSettings
from trenza.qkd.physics.devices import DEVICE_CLASSES
from trenza.wire.peer import Relay

LIMITS = KeyLimits(default_size=Bits(256), min_size=Bits(64), max_size=Bits(65_536), max_keys_per_request=128)


class LabDevice:
    """A device end within reach of the hand: the LinkDevice port without a socket."""

    def __init__(self, end: DeviceEnd) -> None:
        self._end = end

    async def limits(self) -> DeviceLimits:
        limits = self._end.limits
        stored = self._end.stored_key_count(limits.default_size) * limits.default_size
        return DeviceLimits(Bits(stored), limits.max_keys_per_request, Bits(limits.max_size), Bits(limits.min_size))

    async def draw(self, *, number: int, size: Bits) -> list[RawKey]:
        return _raw(self._end.draw, number, size)

    async def fetch(self, key_ids: Sequence[UUID]) -> list[RawKey]:
        return _raw(self._end.fetch, key_ids)


def _raw(deed: object, *arguments: object) -> list[RawKey]:
    assert callable(deed)
    try:
        return [RawKey(key.key_id, key.secret, Supply(key.supply.value)) for key in deed(*arguments)]
    except TrenzaError as error:
        raise DeviceUnavailableError(error.message) from None


class GroupAnchor(MemoryAnchor):
    """An anchor that is told of every commit group once a life has named its store."""

    _identity: bytes | None = None

    def remember(self, identity: bytes, counter: int) -> None:
        self._identity = identity
        super().remember(identity, counter)

    def note(self, counter: int) -> None:
        if self._identity is not None:
            super().remember(self._identity, counter)


@dataclass(slots=True)
class Copy:
    """A copy of a machine's data directory."""

    store: bytes = field(repr=False)
    keyring: bytes = field(repr=False)


@dataclass(slots=True)
class Machine:
    """One node's machine: its disk, its anchor, and the process on it while there is one."""

    name: NodeId
    node_key: bytes = field(repr=False)
    anchor: GroupAnchor = field(default_factory=GroupAnchor)
    disk: Copy | None = None
    node: Node | None = None
    store: LabDisk | None = None
    peers: LabPeers | None = None
    sealer: KeyringSealer | None = None
    task: asyncio.Task[None] | None = None
    lives: int = 0
    commits: int = 0  # called so far, in all lives
    death: DeathAt | None = None
    tag: str = ""  # tells a clone's randomness from the original's

    def copy(self) -> Copy:
        """Take a copy of the data directory, as a backup does."""
        if self.store is None or self.sealer is None:
            assert self.disk is not None, "the machine was never started"
            return self.disk
        return Copy(self.store.inner.image(), self.sealer.image())


class World:
    """A scenario's whole network in virtual time."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        seed: int,
        settings: Settings | None = None,
        agreement: Callable[[SeededEntropy], KeyAgreement] = LabAgreement,
        preshared: Mapping[tuple[NodeId, NodeId], bytes] | None = None,
    ) -> None:
        """Make the network; nothing runs yet.

        Args:
            scenario: what there is.
            seed: of everything random.
            settings: of every node.
            agreement: makes a node's key agreement.
            preshared: (node, peer) -> the secret that was installed at `node` for `peer`; each end has its own entry.
        """
        self.scenario = scenario
        self.preshared = dict(preshared or {})
        self.seed = seed
        self.agreement = agreement
        self.history = History(seed)
        self.disk_delay = (0.0, 0.003)
        self.failures: dict[NodeId, BaseException] = {}  # processes that fell over by themselves: always a bug
        self.chance = random.Random(f"world {seed}")  # noqa: S311 - histories must repeat
        self.network = LabNetwork(random.Random(f"network {seed}"), self._note_relay)  # noqa: S311
        self.clock = VirtualClock(asyncio.get_running_loop())
        self.notary = LabNotary(f"notary {seed}")
        self.settings = settings or Settings()
        self.officer = MLDSA65PrivateKey.from_seed_bytes(seed.to_bytes(32, "big"))
        self.book = self.sign_book(version=1)
        self.pairs = {link.name: self._pair(link) for link in scenario.links}
        self.machines = {
            node.name: Machine(node.name, bytes(SeededEntropy(f"node key {seed} {node.name}").token(32)))
            for node in scenario.nodes
        }

    def sign_book(self, version: int, scenario: Scenario | None = None) -> SignedBook:
        """Have the key officer sign a book of `scenario` (the world's, if none is given); nodes that start get it."""
        named = scenario or self.scenario
        body = bytes_to_sign(named.book(version, {node.name: "lab:0" for node in self.scenario.nodes}))
        self.book = SignedBook(body, self.officer.sign(message_of(body)))
        return self.book

    def _pair(self, link: Link) -> EmulatedPair:
        settings = PairSettings(
            DEVICE_CLASSES[link.device_class],
            Decibel(link.loss_db),
            initial_stock=Bits(link.initial_stock_bits),
            time_factor=link.time_factor,
            fixed_rate=None if link.fixed_rate_bps is None else BitsPerSecond(link.fixed_rate_bps),
            limits=LIMITS,
        )
        return EmulatedPair(settings, clock=self.clock, entropy=SeededEntropy(f"device {self.seed} {link.name}"))

    def _note_relay(self, sender: NodeId, message: Relay) -> None:
        self.history.add(Sent(self.clock.elapsed(), sender, message))

    def set_weather(self, weather: Weather) -> None:
        self.network.weather = weather

    def node(self, name: str) -> Node:
        node = self.machines[NodeId(name)].node
        assert node is not None, f"{name} is down"
        return node

    # --- machines

    async def start(self, name: NodeId) -> None:
        """Start the process of a node on what its disk holds; returns when it is loaded, or has died."""
        await self._boot(self.machines[name], preshared=self._installed(name))

    def _installed(self, name: NodeId) -> dict[NodeId, bytes]:
        return {peer: secret for (node, peer), secret in self.preshared.items() if node == name}

    async def _boot(self, machine: Machine, *, preshared: dict[NodeId, bytes], answers: bool = True) -> None:
        machine.lives += 1
        name, life = machine.name, f"{self.seed} {machine.name} {machine.tag}{machine.lives}"
        entropy = SeededEntropy(f"entropy {life}")
        disk, note = machine.disk, machine.anchor.note
        inner = InlineStore(on_group=note) if disk is None else InlineStore.from_image(disk.store, on_group=note)
        store = LabDisk(
            inner,
            chance=random.Random(f"disk {life}"),  # noqa: S311
            delay=self.disk_delay,
            observe=lambda changes: self.history.note_commit(self.clock.elapsed(), name, changes),
            commits=machine.commits,
            death=machine.death,
            on_death=lambda: self._die(machine),
        )
        peers = LabPeers(self.network, name)
        image = b"" if disk is None else disk.keyring
        sealer = KeyringSealer.in_memory(node_key=Secret.of(machine.node_key), entropy=entropy, image=image)
        context = Context(
            name=name,
            store=store,
            sealer=sealer,
            peers=peers,
            clock=self.clock,
            entropy=entropy,
            signer=LabSigner(self.notary, name),
            verifier=self.notary,
            agreement=self.agreement(entropy),
            settings=replace(self.settings),
            officer=self.officer.public_key().public_bytes_raw(),
            preshared={peer: Secret.of(secret) for peer, secret in preshared.items()},
            place=sha256(f"place {name} {machine.tag}".encode()).digest()[:16],
        )
        for link in self.scenario.links_of(name):
            one, other = link.ends
            end, peer = (End.A, other) if name == one else (End.B, one)
            context.links[link.name] = LinkEnd(link.name, peer, LabDevice(self.pairs[link.name].end(end)))
        node = Node(context, anchor=machine.anchor)
        machine.store, machine.sealer, machine.peers = store, sealer, peers
        loaded = asyncio.Event()
        machine.task = asyncio.create_task(self._live(machine, node, loaded, answers=answers), name=f"node {name}")
        machine.task.add_done_callback(lambda task: self._note_end(name, task))
        await loaded.wait()

    async def _live(self, machine: Machine, node: Node, loaded: asyncio.Event, *, answers: bool) -> None:
        """Be the process: load, answer the network, and run until killed."""
        try:
            await node.start(self.book)
        finally:
            loaded.set()
        if machine.task is not asyncio.current_task():
            return  # killed at the last moment
        machine.node = node  # until here nobody can reach it
        if answers:
            self.network.attached.pop(machine.name, None)
            self.network.handlers[machine.name] = node.handle
        await node.run()

    def _note_end(self, name: NodeId, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and name not in self.failures:
            self.failures[name] = error

    def _die(self, machine: Machine) -> None:
        self.history.add(Trouble(self.clock.elapsed(), f"{machine.name} dies at {machine.death}"))
        self._kill(machine)

    async def start_all(self) -> None:
        for name in sorted(self.machines):
            await self.start(name)

    def kill(self, name: NodeId) -> asyncio.Task[None] | None:
        """Kill the process at this instant: what was committed stays, everything else is gone, nobody is told.

        Returns:
            The task that still unwinds; it can neither write nor be heard.
        """
        return self._kill(self.machines[name])

    def _kill(self, machine: Machine) -> asyncio.Task[None] | None:
        machine.disk = machine.copy()
        if machine.node is not None and self.network.handlers.get(machine.name) == machine.node.handle:
            del self.network.handlers[machine.name]
        task, store, peers = machine.task, machine.store, machine.peers
        machine.node = machine.store = machine.sealer = machine.peers = machine.task = None
        if store is not None:
            machine.commits = store.commits
            store.die()
        if peers is not None:
            peers.dead = True
        if task is not None:
            task.cancel()
        return task

    async def crash(self, name: NodeId) -> None:
        """Kill the process and wait until nothing of it is left."""
        await self._crash(self.machines[name])

    async def _crash(self, machine: Machine) -> None:
        task = self._kill(machine)
        if task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def restore(self, name: NodeId, copy: Copy) -> None:
        """Put an old copy of the data directory in place of the present one; the node must be down."""
        assert self.machines[name].node is None, "crash it first"
        self.machines[name].disk = copy

    def lose_anchor(self, name: NodeId) -> None:
        """Boot the machine: what was remembered outside the data directory is gone; the node must be down."""
        assert self.machines[name].node is None, "crash it first"
        self.machines[name].anchor = GroupAnchor()

    async def start_clone(self, name: NodeId, *, anchor_too: bool) -> Machine:
        """Start a second process on a copy of a living node's disk; the network still brings messages to the first.

        Args:
            name: of the node.
            anchor_too: whether the copy brought the anchor along, as a snapshot of a whole virtual machine does.
        """
        original = self.machines[name]
        clone = Machine(name, original.node_key, disk=original.copy(), tag="clone ")
        known = original.anchor.recall()
        if anchor_too and known is not None:
            clone.anchor.remember(*known)
        await self._boot(clone, preshared=self._installed(name), answers=False)
        return clone

    async def stop_clone(self, clone: Machine) -> None:
        await self._crash(clone)
        self.attach(self.machines[clone.name])

    async def start_impostor(self, name: NodeId) -> Machine:
        """Start a stranger who answers and signs in a node's name, as a broken certificate authority allows.

        It has a disk of its own and nothing that was installed by hand; the node itself must be down.
        """
        assert self.machines[name].node is None, "crash it first"
        impostor = Machine(name, bytes(32), tag="impostor ")
        await self._boot(impostor, preshared={})
        return impostor

    async def stop_impostor(self, impostor: Machine) -> None:
        await self._crash(impostor)

    def attach(self, machine: Machine) -> None:
        """Let the network bring messages to this process of a node, and cut every other of that name off."""
        assert machine.node is not None
        assert machine.peers is not None
        self.network.handlers[machine.name] = machine.node.handle
        self.network.attached[machine.name] = machine.peers

    async def stop_all(self) -> None:
        for name in sorted(self.machines):
            if self.machines[name].task is not None:
                await self.crash(name)

    async def until_ready(self, *, within: float = 60.0) -> None:
        """Wait until every pair of the book can issue in both directions."""
        async with asyncio.timeout(within):
            while missing := self.missing():
                del missing
                await asyncio.sleep(0.2)

    def missing(self) -> list[str]:
        """Return the directions in which nothing can be issued yet."""
        found: list[str] = []
        for machine in self.machines.values():
            node = machine.node
            if node is None:
                continue
            for peer in node.partners():
                found += [
                    f"{machine.name} to {peer}"
                    for full in (True, False)
                    if node.demand.wanted(peer, full=full) and not node.pools.issuable(peer, full=full)
                ]
        return found
