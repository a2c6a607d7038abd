"""Who owns a relay altogether still has no hybrid key (design decisions 1, 2 and 11).

The adversary has one relay's disk with its keyring and node key, its memory at many moments, all traffic of the whole
network as if TLS were broken, and the policy book. Told everything else that goes into a key but the strands, the
same program computes every key that is made of QKD bits alone, and none that the end nodes braided.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import types
from collections.abc import Awaitable, Callable, Iterable, Iterator

import msgspec
from tests.simulation.acts import fetch, issue, node_of
from tests.simulation.networks import network

from trenza.adapters.agreement import X448MlKem1024
from trenza.adapters.keyring import KeyringSealer
from trenza.base.errors import AuthenticationError
from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Bits
from trenza.core.binding import BindingInfo
from trenza.core.combine import combine
from trenza.core.delivery import DeliveredKey
from trenza.core.recipe import Recipe, recipe_named
from trenza.core.segment import OpenSegment
from trenza.core.strand import NO_EXCHANGE, Bundle, Origin
from trenza.kms.node import Node
from trenza.kms.pads import BlockRow
from trenza.kms.ports import Sealed, Table
from trenza.lab.loop import run
from trenza.lab.machine import Machine
from trenza.lab.network import LabNetwork, LabPeers
from trenza.lab.plan import SMALL
from trenza.lab.process import Process
from trenza.lab.standins import LabAgreement, SeededEntropy
from trenza.lab.world import World
from trenza.wire.peer import PeerMessage, Relay, decode

RELAY = NodeId("B")
NET = network("ABC", "AB BC", {"A1 C1": "default", "A2 C2": "raw", "B1 C1": "default"})
STRAND = 32
STEP = 16
"""Strands lie at multiples of 32 in blocks and segments, and behind digests of 48."""

_NOT_THE_PROCESS = (
    types.ModuleType,
    type,
    types.FunctionType,
    asyncio.AbstractEventLoop,
    asyncio.Future,
    random.Random,
    LabNetwork,
    LabPeers,
    Process,
    contextvars.Context,
    asyncio.Handle,
    World,
)
"""Where a walk of the object graph would leave the relay's process for the lab around it and the other nodes."""


def leaves_the_process(one: object) -> bool:
    return isinstance(one, _NOT_THE_PROCESS)


class Adversary:
    """Collects material, and tries all of it."""

    def __init__(self) -> None:
        self.heard: set[bytes] = set()
        self.dumped: set[bytes] = set()
        self.found: set[bytes] = set()

    @property
    def material(self) -> set[bytes]:
        return self.heard | self.dumped | self.found

    # --- what can be had

    def hear(self, _sender: NodeId, _receiver: NodeId, body: bytes) -> None:
        """Listen to a decrypted message: every string of bytes in it, and the whole."""
        self.heard.add(body)
        self._keep(msgspec.to_builtins(decode(body), builtin_types=(bytes,)))

    def _keep(self, value: object) -> None:
        match value:
            case bytes() | bytearray():
                self.heard.add(bytes(value))
            case dict():
                for each in value.values():
                    self._keep(each)
            case list() | tuple():
                for each in value:
                    self._keep(each)

    def dump(self, node: Node, *roots: object) -> None:
        """Take everything of 16 bytes and more that the relay's process holds in memory, frames of its tasks too."""
        seen: set[int] = set()
        waiting = [node, *(task.get_coro() for task in node.tasks._tasks.values()), *roots]
        while waiting:
            one = waiting.pop()
            if id(one) in seen or leaves_the_process(one):
                continue
            seen.add(id(one))
            if isinstance(one, bytes | bytearray | memoryview):
                self.dumped.add(bytes(one))
            elif isinstance(one, int) and one.bit_length() > 120:
                length = -(-one.bit_length() // (8 * STRAND)) * STRAND
                self.dumped |= {one.to_bytes(length, "big"), one.to_bytes(length, "little")}
            else:
                waiting += gc.get_referents(one)

    async def search_disk(self, machine: Machine) -> None:
        """Open everything on the disk that the node's own keyring and key open."""
        copy = machine.copy()
        opened = copy.opened()
        store = opened.inner
        sealer = KeyringSealer.in_memory(
            node_key=Secret.of(machine.node_key), entropy=SeededEntropy("adversary"), image=copy.keyring
        )
        self.found.add(machine.node_key)
        for table in Table:
            for key, value in await store.scan(table):
                self.found |= {key, value}
        for key, value in await store.scan(Table.LINK_BLOCK):
            row = msgspec.msgpack.decode(value, type=BlockRow)
            named = ("trenza link block v1", row.link, row.sender, row.reserve, key, row.units, row.epoch)
            try:
                bits = await sealer.unseal(Sealed(row.handle, row.box), associated=msgspec.msgpack.encode(named))
            except AuthenticationError:
                continue  # erased
            self.found.add(bytes(bits.view()))
        opened.abandon()

    # --- what can be made of it

    def strands(self) -> Iterator[bytes]:
        """Yield every different string of 32 bytes that lies where a strand may lie."""
        seen = {bytes(STRAND)}
        for blob in self.material:
            for at in range(0, len(blob) - STRAND + 1, STEP):
                strand = blob[at : at + STRAND]
                if strand not in seen:
                    seen.add(strand)
                    yield strand

    def crack(self, recipe: Recipe, facts: Facts, *, is_it: Callable[[Secret], bool]) -> Secret | None:
        """Try every strand as the QKD strand, and what is known of the others: nothing."""
        nothing = bytes([1]) * STRAND  # `combine` takes no zeros
        for strand in self.strands():
            for other in (nothing, strand):
                guess = Bundle(
                    {origin: Secret.of(strand if origin is Origin.QKD else other) for origin in recipe.origins}
                )
                key = combine(
                    [guess], recipe=recipe, transcript=facts.transcript, info=facts.info, size=facts.info.size
                )
                if is_it(key):
                    return key
        return None


class Facts(msgspec.Struct):
    """What the adversary is told: everything that goes into a key but the strands."""

    info: BindingInfo
    transcript: object


async def opened(node: Node, key: DeliveredKey) -> tuple[OpenSegment, int, Facts]:
    """Return, with the end node's own knowledge, the segment and slot of a key, and what else it is made of."""
    told = await node.explain.key(key.key_id)
    record = told.events[0].record
    segment = await node.pools.strands.opened(NodeId("C"), record.segment)
    recipe = recipe_named(record.recipe)
    info = BindingInfo(
        recipe=recipe,
        initiator_node=NodeId("A"),
        target_node=NodeId("C"),
        initiator_sae=SaeId(record.initiator),
        target_sae=SaeId(record.target),
        key_id=key.key_id.bytes,
        policy_digest=record.policy_digest,
        provenance_digest=told.segment_digest,
        size=Bits(record.size),
    )
    transcript = segment.transcript if Origin.PQC in recipe.origins else NO_EXCHANGE
    return segment, record.slots[0], Facts(info, transcript)


def spied(adversary: Adversary, world: World) -> Callable[[NodeId, PeerMessage], Awaitable[PeerMessage]]:
    """Return the relay's handler, with its disk read before it works and its memory dumped while it does."""
    node = world.node(RELAY)
    handle = node.handle

    async def handler(peer: NodeId, message: PeerMessage) -> PeerMessage:
        if isinstance(message, Relay):  # blocks are erased soon after they are used up
            await adversary.search_disk(world.machines[RELAY])
        working = asyncio.create_task(handle(peer, message))
        try:
            while isinstance(message, Relay) and not working.done():
                adversary.dump(node, working.get_coro())
                await asyncio.wait([working], timeout=0.0004)
            return await working
        finally:
            working.cancel()

    return handler


async def attacked(agreement: Callable[[SeededEntropy], object]) -> tuple[World, Adversary, list[DeliveredKey]]:
    """Run a network under the adversary's eyes until both kinds of keys were made."""
    world = World(NET, seed=5, settings=SMALL, agreement=agreement)
    adversary = Adversary()
    world.network.listen = adversary.hear
    world.set_disk_delay(0.001, 0.003)
    await world.start_all()
    world.network.handlers[RELAY] = spied(adversary, world)
    for _ in range(8):
        await asyncio.sleep(1.0)
        adversary.dump(world.node(RELAY))
        await adversary.search_disk(world.machines[RELAY])
    await world.until_ready()
    keys = [*await issue(world, "A1", "C1", number=2), *await issue(world, "A2", "C2", number=2)]
    for caller, initiator, some in (("C1", "A1", keys[:2]), ("C2", "A2", keys[2:])):
        await fetch(world, caller, initiator, [key.key_id for key in some])
    adversary.dump(world.node(RELAY))
    await adversary.search_disk(world.machines[RELAY])
    return world, adversary, keys


def strands_of(segment: OpenSegment, slot: int) -> dict[Origin, bytes]:
    origins = (Origin.CLASSICAL, Origin.PQC, Origin.QKD)
    bundle = segment.bundle(slot, origins)
    return {origin: bytes(bundle.strand(origin).view()) for origin in origins}


def holds(material: set[bytes], wanted: Iterable[bytes]) -> list[bool]:
    return [any(one in blob for blob in material) for one in wanted]


def test_a_relay_knows_the_qkd_strand_and_yet_no_hybrid_key_while_qkd_alone_is_open_to_it() -> None:
    async def story() -> None:
        world, adversary, keys = await attacked(lambda _: X448MlKem1024())
        node = node_of(world, "A1")
        for key in keys:
            segment, slot, facts = await opened(node, key)
            assert segment.facts.known_to == (RELAY,)
            strands = strands_of(segment, slot)
            qkd = strands[Origin.QKD]
            assert qkd in set(adversary.strands())  # the attack is real
            assert holds(adversary.dumped, [qkd]) == holds(adversary.found, [qkd]) == [True]
            assert holds(adversary.heard, [qkd]) == [False]  # nobody but the relay has it
            assert holds(adversary.material, (strands[Origin.CLASSICAL], strands[Origin.PQC])) == [False, False]
            cracked = adversary.crack(facts.info.recipe, facts, is_it=lambda guess, key=key: guess == key.key)
            if key.facts.recipe == "qkd-only":
                assert cracked == key.key  # the positive control: the same program, the same relay
            else:
                assert cracked is None
                assert holds(adversary.material, [bytes(key.key.view())]) == [False]
        await world.stop_all()

    run(story())


def test_with_the_classical_and_the_post_quantum_strand_given_away_the_same_program_cracks_the_hybrid_key() -> None:
    async def story() -> None:
        world, adversary, keys = await attacked(LabAgreement)
        key = keys[0]
        segment, slot, facts = await opened(node_of(world, "A1"), key)
        strands = strands_of(segment, slot)
        known = {origin: Secret.of(strands[origin]) for origin in (Origin.CLASSICAL, Origin.PQC)}

        def key_with(strand: bytes) -> Secret:
            bundle = Bundle({**known, Origin.QKD: Secret.of(strand)})
            info, size = facts.info, facts.info.size
            return combine([bundle], recipe=info.recipe, transcript=facts.transcript, info=info, size=size)

        cracked = [strand for strand in adversary.strands() if key_with(strand) == key.key]
        assert cracked == [strands[Origin.QKD]]  # so only those two strands stood in its way
        await world.stop_all()

    run(story())
