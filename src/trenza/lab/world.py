"""A scenario brought to life in the lab: nodes, devices, links, and machines that crash or go back in time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from trenza.adapters.keyring import KeyringSealer
from trenza.app.scenario import Link, Scenario
from trenza.base.errors import TrenzaError
from trenza.base.names import LinkId, NodeId
from trenza.base.secret import Secret
from trenza.base.units import Bits, BitsPerSecond, Decibel, Seconds
from trenza.core.policy import SignedBook, bytes_to_sign, message_of
from trenza.kms.context import Context, LinkEnd, Settings
from trenza.kms.node import Node
from trenza.kms.ports import Change, KeyAgreement
from trenza.lab.disk import LabDisk
from trenza.lab.history import History, Sent, Trouble
from trenza.lab.loop import VirtualClock
from trenza.lab.machine import Copy, GroupAnchor, LabDevice, Machine
from trenza.lab.network import LabNetwork, LabPeers, Weather
from trenza.lab.process import Process
from trenza.lab.standins import LabAgreement, LabNotary, LabSigner, SeededEntropy
from trenza.lab.volume import Volume, VolumeSlots, VolumeStore
from trenza.qkd.emulator.pair import EmulatedPair
from trenza.qkd.emulator.settings import End, KeyLimits, PairSettings
from trenza.qkd.physics.devices import DEVICE_CLASSES
from trenza.wire.peer import Relay

LIMITS = KeyLimits(default_size=Bits(256), min_size=Bits(64), max_size=Bits(65_536), max_keys_per_request=128)


_PATIENCE = 10.0
"""Seconds after which a process that is to stop is killed."""


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
        self.fired: Counter[str] = Counter()  # faults by kind
        self.lost: list[str] = []  # durable commits that a crash took back: always a bug
        self.failures: dict[NodeId, BaseException] = {}  # processes that fell over by themselves: always a bug
        self.chance = random.Random(f"world {seed}")  # noqa: S311 - histories must repeat
        self.network = LabNetwork(
            random.Random(f"network {seed}"),  # noqa: S311
            self._note_relay,
            self._note_failure,
            self.fired,
        )
        self.clock = VirtualClock(asyncio.get_running_loop())  # the lab's own: true time
        self._clones = 0
        self.notary = LabNotary(f"notary {seed}")
        self.settings = settings or Settings()
        self.officer = MLDSA65PrivateKey.from_seed_bytes(seed.to_bytes(32, "big"))
        self.book = self.sign_book(version=1)
        self.pairs = {link.name: self._pair(link) for link in scenario.links}
        self.homes = {sae.name: sae.node for sae in scenario.saes}
        self.machines = {
            node.name: Machine(
                node.name,
                bytes(SeededEntropy(f"node key {seed} {node.name}").token(32)),
                VirtualClock(asyncio.get_running_loop()),
            )
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

    def set_disk_delay(self, least: float, most: float) -> None:
        """Let every disk take that many seconds a commit group."""
        for machine in self.machines.values():
            machine.health.delay = (least, most)

    def set_clock(self, name: NodeId, skew: Seconds, drift: float) -> None:
        """Give a machine a clock that is off; before its first start."""
        self.machines[name].clock = VirtualClock(asyncio.get_running_loop(), skew=skew, drift=drift)

    def set_weather(self, weather: Weather) -> None:
        self.network.weather = weather

    def nodes(self) -> list[tuple[str, Node]]:
        """Return all that run, by what histories call them."""
        return [(name, one.node) for name, one in self.machines.items() if one.node is not None]

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
        volume = Volume(None if machine.disk is None else machine.disk.files)
        process = Process(
            machine.place, fatal_step=machine.fatal_step, on_death=lambda: self._die(machine, "a step of its own")
        )
        machine.fatal_step = 0
        store = LabDisk(
            VolumeStore.open(volume),
            chance=random.Random(f"disk {life}"),  # noqa: S311
            health=machine.health,
            observe=partial(self._note_commit, machine),
            on_group=machine.anchor.note,
            commits=machine.commits,
            death=machine.death,
            on_death=lambda: self._die(machine, str(machine.death)),
            fired=self.fired,
        )
        self._settle(machine, store)
        peers = LabPeers(self.network, name)
        slots = VolumeSlots(volume, lambda: asyncio.sleep(store.pause()))
        sealer = KeyringSealer(slots, node_key=Secret.of(machine.node_key), entropy=entropy)
        context = Context(
            name=name,
            store=store,
            sealer=sealer,
            peers=peers,
            clock=machine.clock,
            entropy=entropy,
            signer=LabSigner(self.notary, name),
            verifier=self.notary,
            agreement=self.agreement(entropy),
            settings=replace(self.settings),
            officer=self.officer.public_key().public_bytes_raw(),
            preshared={peer: Secret.of(secret) for peer, secret in preshared.items()},
            place=machine.digest_of_place(),
        )
        for link in self.scenario.links_of(name):
            one, other = link.ends
            end, peer = (End.A, other) if name == one else (End.B, one)
            device = LabDevice(self.pairs[link.name].end(end), is_mute=partial(self._is_mute, machine, link.name))
            context.links[link.name] = LinkEnd(link.name, peer, device)
        node = Node(context, anchor=machine.anchor)
        loaded = asyncio.Event()
        machine.store, machine.peers, machine.process = store, peers, process
        machine.main = process.spawn(self._live(machine, process, node, loaded, answers=answers), name=f"node {name}")
        machine.main.add_done_callback(partial(self._note_end, machine, process))
        machine.main.add_done_callback(lambda _: loaded.set())  # it may die before its first step
        await loaded.wait()

    def _settle(self, machine: Machine, store: LabDisk) -> None:
        """Find out what of the last life's doubtful commits is there; what was answered must be."""
        doubt, machine.doubt = machine.doubt, None
        if doubt is None:
            return
        found = store.counter() - doubt.durable
        if found < 0:
            self.lost.append(f"{machine.place} lost {-found} commits that were answered")
        for changes in doubt.tried[: max(0, found)]:
            self._note_commit(machine, changes)

    def _is_mute(self, machine: Machine, link: LinkId) -> bool:
        if link not in machine.mute:
            return False
        self.fired["device mute"] += 1
        return True

    def _note_commit(self, machine: Machine, changes: Sequence[Change]) -> None:
        self.history.note_commit(self.clock.elapsed(), machine.name, changes)

    async def _live(
        self, machine: Machine, process: Process, node: Node, loaded: asyncio.Event, *, answers: bool
    ) -> None:
        """Be the process: load, answer the network, and run until killed."""
        try:
            await node.start(self.book)
        finally:
            loaded.set()
        if process.dead:
            return  # killed at the last moment
        machine.node = node  # until here nobody can reach it
        machine.handler = lambda peer, message: process.spawn(node.handle(peer, message))
        if answers:
            self.network.attached.pop(machine.name, None)
            self.network.handlers[machine.name] = machine.handler
        await node.run()

    def _note_end(self, machine: Machine, process: Process, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if process.dead or error is None:
            return
        if isinstance(error, TrenzaError):  # as where the disk fails while it starts: whoever supervises tries again
            self.history.add(Trouble(self.clock.elapsed(), f"{machine.place} cannot start: {error.code}"))
            self._kill(machine)
            return
        self._note_failure(machine.name, error)

    def _note_failure(self, name: NodeId, error: BaseException) -> None:
        self.failures.setdefault(name, error)

    def _die(self, machine: Machine, where: str) -> None:
        self.history.add(Trouble(self.clock.elapsed(), f"{machine.place} dies at {where}"))
        self.fired["death at a commit" if machine.death else "death at an await"] += 1
        machine.death = None
        self._kill(machine)

    async def start_all(self) -> None:
        for name in sorted(self.machines):
            await self.start(name)

    def kill(self, name: NodeId) -> None:
        """Kill the process at this instant: what was committed stays, everything else is gone, nobody is told.

        What still unwinds can neither write nor be heard.
        """
        self._kill(self.machines[name])

    def _kill(self, machine: Machine, *, power: bool = False) -> list[asyncio.Task[object]]:
        if machine.handler is not None and self.network.handlers.get(machine.name) is machine.handler:
            del self.network.handlers[machine.name]
        return machine.end(power=power)

    async def stop(self, name: NodeId) -> None:
        """Stop a node in good order, as a service manager does; it may take some seconds."""
        machine = self.machines[name]
        if machine.main is not None:
            machine.main.cancel()
            await asyncio.wait([machine.main], timeout=_PATIENCE)
        await self._crash(machine)

    async def crash(self, name: NodeId, *, power: bool = False) -> None:
        """Kill the process and wait until nothing of it is left; with `power`, the whole machine goes down."""
        await self._crash(self.machines[name], power=power)

    async def _crash(self, machine: Machine, *, power: bool = False) -> None:
        await asyncio.gather(*self._kill(machine, power=power), return_exceptions=True)

    def restore(self, name: NodeId, copy: Copy) -> None:
        """Put an old copy of the data directory in place of the present one; the node must be down."""
        machine = self.machines[name]
        assert machine.process is None, "crash it first"
        machine.disk, machine.doubt = copy, None

    def restore_whole(self, name: NodeId, copy: Copy, anchor: tuple[bytes, int] | None) -> None:
        """Put a snapshot of a whole virtual machine in place, its anchor too, and boot it; the node must be down."""
        self.restore(name, copy)
        self.lose_anchor(name)
        if anchor is not None:
            self.machines[name].anchor.remember(*anchor)

    def lose_anchor(self, name: NodeId) -> None:
        """Boot the machine: what was remembered outside the data directory is gone; the node must be down."""
        assert self.machines[name].process is None, "crash it first"
        self.machines[name].anchor = GroupAnchor()
        self.machines[name].boots += 1

    async def start_clone(self, name: NodeId, *, anchor_too: bool, cut_off: bool = False) -> Machine:
        """Start a second process on a copy of a living node's disk; the network still brings messages to the first.

        Args:
            name: of the node.
            anchor_too: whether the copy brought the anchor along, as a snapshot of a whole virtual machine does.
            cut_off: whether neither is heard from the moment of the copy on, until one of them is attached.
        """
        original = self.machines[name]
        self._clones += 1
        if cut_off:
            self.network.handlers.pop(name, None)
            self.network.attached[name] = None
        clone = Machine(name, original.node_key, original.clock, disk=original.copy(), tag=f"clone {self._clones}")
        known = original.anchor.recall()
        if anchor_too and known is not None:
            clone.anchor.remember(*known)
        await self._boot(clone, preshared=self._installed(name), answers=False)
        return clone

    async def stop_clone(self, clone: Machine) -> None:
        """End a clone; the original is heard again if it lives."""
        await self._crash(clone)
        original = self.machines[clone.name]
        if original.node is not None:
            self.attach(original)
        else:
            self.network.attached.pop(clone.name, None)

    async def start_impostor(self, name: NodeId) -> Machine:
        """Start a stranger who answers and signs in a node's name, as a broken certificate authority allows.

        It has a disk of its own and nothing that was installed by hand; the node itself must be down.
        """
        assert self.machines[name].node is None, "crash it first"
        impostor = Machine(name, bytes(32), self.clock, tag="impostor")
        await self._boot(impostor, preshared={})
        return impostor

    async def stop_impostor(self, impostor: Machine) -> None:
        await self._crash(impostor)

    def attach(self, machine: Machine) -> None:
        """Let the network bring messages to this process of a node, and cut every other of that name off."""
        assert machine.handler is not None
        assert machine.peers is not None
        self.network.handlers[machine.name] = machine.handler
        self.network.attached[machine.name] = machine.peers

    async def stop_all(self) -> None:
        for name in sorted(self.machines):
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
