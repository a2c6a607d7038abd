"""Finding what a key ID names: whose it is, and what it costs to ask."""

from __future__ import annotations

import asyncio
from uuid import UUID

import msgspec
import pytest
from tests.kms.pair_world import A, B, PairWorld, a_book, lived

from trenza.base.errors import UnavailableError, UnknownKeyError
from trenza.base.names import SaeId
from trenza.base.units import Bits
from trenza.core.keyid import IdKeys, IdMacs, KeyAddress
from trenza.core.policy import Policy, Rule, SaeEntry
from trenza.core.provenance import DoubtfulRecord
from trenza.core.recipe import HYBRID_CATKDF
from trenza.kms.id_keys import IdKeyRing, IdKeySet
from trenza.kms.journal import Journal
from trenza.kms.ports import Sealed
from trenza.kms.slots import Found, HeldReel, Owner, Pair, Slots

MINE, THEIRS = IdKeys(bytes(32), bytes([1]) * 32), IdKeys(bytes([2]) * 32, bytes([3]) * 32)


class Counting:
    """A book that counts how often all its pairs are looked through."""

    def __init__(self, book) -> None:
        self._book, self.walks = book, 0

    def __getattr__(self, name):
        return getattr(self._book, name)

    def pairs_of_node(self, node):
        self.walks += 1
        return self._book.pairs_of_node(node)


class World:
    """Node A, whose SAE a shares keys with very many SAEs of node B."""

    def __init__(self, version: int = 5) -> None:
        self.world = PairWorld()
        self.ctx = self.world.a.ctx
        self.follow(version)
        ring = IdKeyRing(self.ctx)
        ring._sets[B] = [IdKeySet(bytes(16), self.ctx.clock.now(), MINE, THEIRS, Sealed(0, b""))]
        self.slots = Slots(self.ctx, id_keys=ring, pools=self.world.a.pools, journal=Journal(self.ctx))

    def follow(self, version: int, policy: str = "hybrid-catkdf") -> None:
        far = [SaeEntry(SaeId(f"b{number}"), B) for number in range(5_000)]
        self.policy = Policy("p", (policy,))
        book = msgspec.structs.replace(
            a_book(),
            version=version,
            saes=(SaeEntry(SaeId("a"), A), *far),
            policies=(self.policy,),
            rules=tuple(Rule((SaeId("a"), one.name), "p") for one in far),
        )
        self.book = Counting(book)
        self.ctx.set_book(self.book, None)

    def issued_to(self, target: str) -> UUID:
        saes = self.ctx.book.sae_by_name
        pair = Pair(saes[SaeId("a")], saes[SaeId(target)], self.policy)
        address = KeyAddress(1, 2, pair.handle, Bits(256), 0)
        return UUID(int=IdMacs(MINE).seal(address.pack(), pair.binding))

    def owner(self, key_id: UUID) -> Owner | None:
        return self.slots.owner(key_id)


def test_a_genuine_id_names_its_pair_among_very_many_some_of_one_handle() -> None:
    world = World()
    for number in (0, 7, 4_999):
        owner = world.owner(world.issued_to(f"b{number}"))
        assert owner is not None
        assert (owner.pair.initiator.name, owner.pair.target.name, owner.issued_here) == ("a", f"b{number}", True)


def test_invented_ids_do_not_make_a_node_look_through_its_whole_book() -> None:
    world = World()
    for number in range(300):
        assert world.owner(UUID(int=number, version=4)) is None
    assert world.book.walks <= 1


def test_whose_an_id_is_follows_the_book() -> None:
    world = World()
    former = world.issued_to("b1")
    assert world.owner(former) is not None
    world.follow(6, "its")
    assert world.owner(former) is None
    assert world.owner(world.issued_to("b1")) is not None


def test_when_one_of_several_keys_cannot_be_made_the_others_are_wiped(monkeypatch) -> None:
    made = []
    real = HeldReel.key

    def spied(reel, *args):
        made.append(real(reel, *args))
        return made[-1]

    monkeypatch.setattr(HeldReel, "key", spied)

    async def story(world: PairWorld) -> None:
        book = world.a.ctx.book
        pair = Pair(book.sae_by_name[SaeId("B1")], book.sae_by_name[SaeId("A1")], book.policies[0])
        found = []
        for number in (1, 2):
            await world.fill(8, number=number, strands=b"s")
            await world.b.get_window(8)
            window = world.a.pair.held[number - 1]
            reel = HeldReel(B, window, HYBRID_CATKDF, Bits(256), pair.policy)
            assert window.reserve(range(1))
            found.append(Found(UUID(int=number), pair, reel, 0))
        commit = world.a.store.commit

        async def then_drop(changes) -> None:  # another story drops the second segment meanwhile
            monkeypatch.setattr(world.a.store, "commit", commit)
            await commit(changes)
            await world.a.pools.drop_segment(world.a.pair.segments[bytes([2]) * 16])

        monkeypatch.setattr(world.a.store, "commit", then_drop)
        slots = Slots(world.a.ctx, id_keys=IdKeyRing(world.a.ctx), pools=world.a.pools, journal=Journal(world.a.ctx))
        with pytest.raises(UnavailableError):
            await slots.deliver(found, tls_group="")
        assert len(made) == 1
        assert not any(made[0])

    lived(story)


class Fetch:
    """One key that B has issued, found at A and about to be delivered."""

    def __init__(self, world: PairWorld, journal: Journal) -> None:
        self.store, self.journal, self.world = world.a.store, journal, world
        self.slots = Slots(world.a.ctx, id_keys=IdKeyRing(world.a.ctx), pools=world.a.pools, journal=journal)
        book = world.a.ctx.book
        self.pair = Pair(book.sae_by_name[SaeId("B1")], book.sae_by_name[SaeId("A1")], book.policies[0])
        (self.window,) = world.a.pair.held.values()

    def found(self) -> Found:
        assert self.window.reserve(range(3, 4))
        reel = HeldReel(B, self.window, HYBRID_CATKDF, Bits(256), self.pair.policy)
        return Found(UUID(int=1), self.pair, reel, 3)

    def doubts(self) -> list[DoubtfulRecord]:
        return [
            msgspec.msgpack.decode(one.body, type=DoubtfulRecord)
            for one in self.store.ledger
            if one.kind == "doubtful"
        ]

    async def given_up_during_its_commit(self) -> None:
        """Deliver, and end the request when the mark is durable and nothing has left."""
        durable = asyncio.Event()

        async def then_wait(_changes: object) -> None:
            durable.set()
            await asyncio.Event().wait()

        self.store.on_commit = then_wait
        request = asyncio.create_task(self.slots.deliver([self.found()], tls_group=""))
        await durable.wait()
        self.store.on_commit = None
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request


def test_a_delivery_that_is_given_up_during_its_commit_is_doubtful() -> None:
    async def story(world: PairWorld) -> None:
        await world.fill(8, strands=b"s")
        await world.b.get_window(8)
        fetch = Fetch(world, Journal(world.a.ctx))
        await fetch.given_up_during_its_commit()
        assert world.a.ctx.counters["keys_doubtful"] == 1
        assert not fetch.window.reserve(range(3, 4))  # nobody gets it in this life
        await fetch.journal.flush()
        (doubt,) = fetch.doubts()
        assert (doubt.deed, doubt.peer, doubt.window, doubt.slots) == ("delivered", B, 0, {3})
        await world.a.restart()
        assert len(fetch.doubts()) == 1  # and the next life need not say so again

    lived(story)


def test_where_instances_share_the_store_it_says_whether_a_delivery_that_was_given_up_is_done() -> None:
    async def story(world: PairWorld) -> None:
        await world.fill(8, strands=b"s")
        await world.b.get_window(8)
        world.a.ctx.shared = world.a.store  # type: ignore[assignment]  # that it is shared is all that is asked
        fetch = Fetch(world, Journal(world.a.ctx))
        await fetch.given_up_during_its_commit()
        with pytest.raises(UnknownKeyError):  # asked for again, wherever: the mark is there
            await fetch.slots.deliver([fetch.found()], tls_group="")
        await fetch.journal.flush()
        assert [doubt.slots for doubt in fetch.doubts()] == [{3}]

    lived(story)


def test_a_key_whose_strands_are_gone_when_its_delivery_is_durable_is_doubtful() -> None:
    async def story(world: PairWorld) -> None:
        await world.fill(8, strands=b"s")
        await world.b.get_window(8)
        journal = Journal(world.a.ctx)
        fetch = Fetch(world, journal)
        found, commit = fetch.found(), world.a.store.commit

        async def then_drop(changes) -> None:
            world.a.store.commit = commit  # type: ignore[method-assign]
            await commit(changes)
            await world.a.pools.drop_segment(world.a.segment)

        world.a.store.commit = then_drop  # type: ignore[method-assign]
        with pytest.raises(UnavailableError):
            await fetch.slots.deliver([found], tls_group="")
        await journal.flush()
        assert [doubt.slots for doubt in fetch.doubts()] == [{3}]

    lived(story)
