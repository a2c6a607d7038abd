"""Keys that wait: how many, for whom, until when, and whatever happens between a reservation and its delivery."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any
from uuid import UUID

import msgspec
import pytest
from tests.kms.fakes import Fails, FakeClock, FakeNetwork, FakeSealer, FakeStore, make_book, make_context

from trenza.base.errors import (
    ConflictError,
    NotEnoughKeyError,
    RemoteProtocolError,
    StoreUnavailableError,
    UnauthorisedError,
    UnknownKeyError,
)
from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Nanoseconds
from trenza.core.delivery import DeliveredKey, KeyFacts
from trenza.core.policy import Policy, SaeEntry, SignedBook
from trenza.core.recipe import LOCAL
from trenza.core.strand import Origin, Supply
from trenza.kms.context import Settings
from trenza.kms.ports import Change, Delete, Table
from trenza.kms.waiting import WaitingKeys, decode_facts, encode_facts

ONE, OTHER, FAR, FAR2, FAR3 = (SaeId(name) for name in ("one", "other", "far", "far2", "far3"))
POLICY = Policy("local", (LOCAL.name,))
BOOK = msgspec.structs.replace(
    make_book("ab", []),
    saes=(
        *(SaeEntry(sae, NodeId("a")) for sae in (ONE, OTHER)),
        *(SaeEntry(sae, NodeId("b")) for sae in (FAR, FAR2, FAR3)),
    ),
)
SETTINGS = Settings(stock_target=2, waiting_keys_max=34)
"""So that four keys may wait for a pair, sixteen of another node, and seventeen of either side in all."""
LIFETIME = 100.0
BYTES = bytes(range(32))


class World:
    """One node's waiting keys."""

    def __init__(self, before: World | None = None) -> None:
        self.clock = before.clock if before else FakeClock()
        self.store = before.store.after_crash() if before else FakeStore()
        self.sealer = before.sealer if before else FakeSealer()
        self.ctx = make_context(
            NodeId("a"),
            FakeNetwork(),
            clock=self.clock,
            settings=SETTINGS,
            store=self.store,
            sealer=self.sealer,
            book=BOOK,
        )
        self.keys = WaitingKeys(self.ctx)

    async def keep(
        self, number: int, *, initiator: SaeId = ONE, target: SaeId = OTHER, ready: bool = True, behind: int = 0
    ) -> UUID:
        """Place the key of that number, with its ID, drawn where the clock is so many seconds behind."""
        now = Nanoseconds(self.clock.now() - behind * 1_000_000_000)
        facts = KeyFacts(LOCAL.name, (Origin.LOCAL,), None, "256-bit", 0, now, now + int(LIFETIME * 1e9))
        key_id = UUID(int=number)
        await self.keys.keep(initiator, target, key_id.bytes, Secret.of(BYTES), facts)
        if ready:
            await self.keys.make_ready(key_id.bytes, [target])
        return key_id

    async def deliver(self, key_id: UUID) -> DeliveredKey:
        return await self.keys.deliver(key_id, OTHER, policy=POLICY, tls_group="")

    def is_empty(self) -> bool:
        """Tell whether nothing is left in memory, on disk or in the keyring, and nothing is counted."""
        everything = (len(self.keys), self.store.tables[Table.WRAPPED], self.sealer.keys, +self.keys._counts)
        return not any(everything)


def told(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


# --- how many


def test_only_so_many_keys_wait_for_a_pair_and_a_delivery_makes_room() -> None:
    async def story() -> None:
        world = World()
        keys = [await world.keep(number) for number in range(world.keys.most)]
        assert (len(keys), world.keys.room(ONE, OTHER)) == (4, 0)
        with pytest.raises(NotEnoughKeyError, match="too many keys wait to be fetched") as refusal:
            await world.keep(99)
        assert refusal.value.details == ({"available": 0}, {"requested": 1})
        assert len(world.sealer.keys) == 4
        await world.keep(100, initiator=OTHER, target=ONE)  # the other direction has room of its own
        world.keys.reserve(keys[0], ONE, OTHER)
        assert bytes((await world.deliver(keys[0])).key.view()) == BYTES
        assert world.keys.room(ONE, OTHER) == 1
        await world.keep(99)

    told(story())


def test_keys_that_are_being_placed_at_once_are_counted_before_they_are_sealed() -> None:
    async def story() -> None:
        world = World()
        tries = [world.keep(number, ready=False) for number in range(9)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(one, NotEnoughKeyError) for one in results) == 5
        assert len(world.keys) == len(world.sealer.keys) == 4

    told(story())


def test_another_node_places_only_so_many_whatever_the_number_of_its_saes() -> None:
    async def story() -> None:
        world = World()
        pairs = [(initiator, target) for initiator in (FAR, FAR2, FAR3) for target in (ONE, OTHER)]
        places = [pair for pair in pairs for _ in range(4)]
        for number, (initiator, target) in enumerate(places[:16]):
            await world.keep(number, initiator=initiator, target=target)
        initiator, target = places[16]
        assert world.keys.room(initiator, target) == 4
        with pytest.raises(NotEnoughKeyError):
            await world.keep(16, initiator=initiator, target=target)
        await world.keep(17)  # this node's own SAEs lose nothing

    told(story())


def test_only_so_many_keys_of_all_pairs_wait_and_neither_side_takes_the_others_room() -> None:
    async def story() -> None:
        world = World()
        many = [SaeId(f"sae{number}") for number in range(6)]
        saes = (*BOOK.saes, *(SaeEntry(sae, NodeId("a")) for sae in many), SaeEntry(SaeId("third"), NodeId("c")))
        world.ctx.set_book(msgspec.structs.replace(BOOK, version=2, saes=saes), SignedBook(b"", b""))
        for number in range(17):
            await world.keep(number, initiator=many[number // 4], target=ONE)
        with pytest.raises(NotEnoughKeyError):
            await world.keep(17, initiator=many[5], target=ONE)
        pairs = [(initiator, target) for initiator in (FAR, FAR2, FAR3) for target in (ONE, OTHER)]
        for number in range(16):  # another node has its room all the same
            initiator, target = pairs[number // 4]
            await world.keep(100 + number, initiator=initiator, target=target)
        await world.keep(200, initiator=SaeId("third"))
        with pytest.raises(NotEnoughKeyError):  # a third node has its own share, but all others together have no more
            await world.keep(201, initiator=SaeId("third"))
        await world.keys.destroy(UUID(int=0).bytes)
        await world.keep(17, initiator=many[5], target=ONE)

    told(story())


def test_a_key_that_cannot_be_kept_is_not_counted_and_leaves_nothing() -> None:
    async def story() -> None:
        world = World()
        world.store.fail_next = Fails.BEFORE
        with pytest.raises(StoreUnavailableError):
            await world.keep(1)
        assert world.is_empty()

    told(story())


def test_the_count_survives_a_restart() -> None:
    async def story() -> None:
        world = World()
        for number in range(3):
            await world.keep(number, ready=False)
        again = World(world)
        await again.keys.load()
        assert (len(again.keys), again.keys.room(ONE, OTHER)) == (3, 1)
        await again.keys.drop_all()
        assert again.is_empty()

    told(story())


# --- whose


def test_no_other_initiator_places_a_key_under_an_id_that_is_in_use() -> None:
    async def story() -> None:
        world = World()
        key_id = await world.keep(1)
        for initiator, target in ((ONE, OTHER), (FAR, OTHER), (FAR, ONE)):
            with pytest.raises(ConflictError):
                await world.keep(1, initiator=initiator, target=target)
        assert world.keys.owner_of(key_id.bytes) == ONE
        assert world.keys.owner_of(bytes(16)) is None
        with pytest.raises(UnauthorisedError):
            world.keys.reserve(key_id, FAR, OTHER)

    told(story())


# --- from reservation to delivery


def test_a_key_is_reserved_once_and_can_be_given_back() -> None:
    async def story() -> None:
        world = World()
        early = await world.keep(2, ready=False)
        key_id = await world.keep(1)
        world.keys.reserve(key_id, ONE, OTHER)
        for unknown in (key_id, early, UUID(int=77)):  # taken, not yet ready, not here
            with pytest.raises(UnknownKeyError):
                world.keys.reserve(unknown, ONE, OTHER)
        world.keys.release(key_id, OTHER)
        world.keys.reserve(key_id, ONE, OTHER)
        await world.deliver(key_id)
        world.keys.release(key_id, OTHER)
        assert not world.keys.holds(key_id, OTHER)

    told(story())


def test_an_expired_key_is_destroyed_even_if_a_reservation_was_never_given_back() -> None:
    async def story() -> None:
        world = World()
        key_id = await world.keep(1)
        world.keys.reserve(key_id, ONE, OTHER)
        await world.keys.tidy()
        assert world.keys.holds(key_id, OTHER)
        world.clock.advance(LIFETIME + 1)
        await world.keys.tidy()
        assert world.is_empty()
        with pytest.raises(UnknownKeyError):
            await world.deliver(key_id)

    told(story())


def test_a_key_whose_second_phase_never_comes_is_destroyed() -> None:
    async def story() -> None:
        world = World()
        await world.keep(1, ready=False)
        world.clock.advance(31.0)
        await world.keys.tidy()
        assert world.is_empty()

    told(story())


def test_a_key_that_was_drawn_where_the_clock_is_behind_has_as_long_until_its_second_phase() -> None:
    async def story() -> None:
        world = World()
        key_id = await world.keep(1, ready=False, behind=50)
        beside = WaitingKeys(world.ctx)  # another instance of the node, and what it has read
        await beside.refresh()
        for keys in (world.keys, beside):
            world.clock.advance(10.0)
            await keys.tidy()
            assert keys.holds(key_id, OTHER)
        await world.keys.make_ready(key_id.bytes, [OTHER])
        assert bytes((await world.deliver(key_id)).key.view()) == BYTES

    told(story())


def test_a_key_that_became_ready_while_its_row_was_read_is_ready() -> None:
    async def story() -> None:
        world = World()
        key_id = await world.keep(1, ready=False)
        scan = world.store.scan

        async def meanwhile(table: Table, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
            found = await scan(table, prefix)
            await world.keys.make_ready(key_id.bytes, [OTHER])
            return found

        world.store.scan = meanwhile  # type: ignore[method-assign]
        await world.keys.refresh()
        world.keys.reserve(key_id, ONE, OTHER)

    told(story())


def test_a_key_that_is_read_while_it_is_placed_is_counted_once() -> None:
    async def story() -> None:
        world = World()

        async def meanwhile(_changes: object) -> None:
            world.store.on_commit = None
            await world.keys.refresh()

        world.store.on_commit = meanwhile
        key_id = await world.keep(1)
        assert world.keys.room(ONE, OTHER) == world.keys.most - 1
        world.keys.reserve(key_id, ONE, OTHER)
        await world.deliver(key_id)
        assert world.is_empty()

    told(story())


@pytest.mark.parametrize("turns", [0, 1])
def test_a_key_that_is_void_before_its_delivery_is_durable_is_unknown(turns: int) -> None:
    async def story() -> None:
        world = World()
        key_id = await world.keep(1)
        world.keys.reserve(key_id, ONE, OTHER)
        delivery = asyncio.ensure_future(world.deliver(key_id))
        for _ in range(turns):
            await asyncio.sleep(0)
        await world.keys.destroy(key_id.bytes)
        with pytest.raises(UnknownKeyError):
            await delivery
        assert world.is_empty()
        assert not world.store.ledger

    told(story())


def test_a_key_that_is_void_while_its_delivery_becomes_durable_breaks_nothing() -> None:
    async def story() -> None:
        world = World()
        key_id = await world.keep(1)
        world.keys.reserve(key_id, ONE, OTHER)

        async def void(changes: object) -> None:
            world.store.on_commit = None
            await world.keys.destroy(key_id.bytes)

        world.store.on_commit = void
        assert (await world.deliver(key_id)).key_id == key_id
        assert world.is_empty()

    told(story())


def test_a_key_whose_delivery_is_doubtful_is_never_delivered() -> None:
    async def story() -> None:
        world = World()
        key_id = await world.keep(1)
        world.keys.reserve(key_id, ONE, OTHER)
        world.store.fail_next = Fails.AFTER
        with pytest.raises(StoreUnavailableError):
            await world.deliver(key_id)
        assert world.is_empty()
        assert world.ctx.counters["keys_doubtful"] == 1

    told(story())


def test_a_key_that_is_void_while_it_is_made_ready_does_not_come_back() -> None:
    async def story() -> None:
        world = World()
        key_id = await world.keep(1, ready=False)

        async def void(changes: list[Change]) -> None:
            if not any(isinstance(change, Delete) for change in changes):
                await world.keys.destroy(key_id.bytes)

        world.store.on_commit = void
        with pytest.raises(UnknownKeyError):
            await world.keys.make_ready(key_id.bytes, [OTHER])
        assert world.is_empty()

    told(story())


# --- facts


def test_facts_travel_whole_and_nothing_else_is_taken_for_them() -> None:
    facts = KeyFacts("wrapped", (Origin.PQC, Origin.QKD), Supply.WARM, "256-bit", 3, 5, 9)
    assert decode_facts(encode_facts(facts)) == facts
    for body in (b"", b"\x90", encode_facts(facts)[:-1]):
        with pytest.raises(RemoteProtocolError, match="not the facts"):
            decode_facts(body)
