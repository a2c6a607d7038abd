"""What instances of one node say, and issue, while they do not know what another has come to know."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from tests.kms.fakes import FakeNetwork, make_context
from tests.kms.pair_world import A, B, PairWorld, a_book
from tests.kms.test_second import Beside, SharedStore

from trenza.base.errors import UnavailableError, UnknownKeyError
from trenza.base.names import SaeId
from trenza.base.units import Seconds
from trenza.kms import rows
from trenza.kms.deliver import Delivery
from trenza.kms.node import Node
from trenza.kms.ports import Delete, Put, Table
from trenza.kms.reign import LeaseRow, lease_key
from trenza.wire.peer import Presence

UNKNOWN = [UUID(int=7)]


async def refusal(delivery: Delivery) -> type[Exception]:
    try:
        await delivery.fetch(SaeId("A1"), SaeId("B1"), UNKNOWN, tls_group="x")
    except (UnknownKeyError, UnavailableError) as error:
        return type(error)
    raise AssertionError("there is no such key")


def test_a_second_that_has_not_seen_the_lead_in_force_calls_no_key_unknown() -> None:
    async def story() -> None:
        beside = Beside()
        await beside.begin()
        delivery = beside.second.node.delivery
        assert await refusal(delivery) is UnknownKeyError
        beside.second.under(2)  # another life of the node has begun, of which nothing is known yet
        assert await refusal(delivery) is UnavailableError

    asyncio.run(story())


def test_a_lead_whose_lease_has_ended_calls_no_key_unknown() -> None:
    async def story() -> None:
        store, world = SharedStore(), PairWorld()
        ctx = make_context(A, FakeNetwork(), clock=world.clock, store=store, book=a_book())
        ctx.shared = store
        node = Node(ctx, anchor=None)  # type: ignore[arg-type]  # nobody asks it
        node.fetching.look_again = node._look_again
        node.fetching.vouches = lambda _: True
        assert await refusal(node.delivery) is UnknownKeyError
        ctx.until = Seconds(0.0)
        assert await refusal(node.delivery) is UnavailableError

    asyncio.run(story())


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_second_issues_nothing_that_a_peer_has_dropped_with_its_epoch(epoch) -> None:
    async def story() -> None:
        beside = Beside()
        await beside.begin()
        world, store, pools = beside.world, beside.store, beside.second.node.pools
        await world.fill(8, number=2, issuer=A, strands=b"t")
        await world.a.get_window(8)

        async def tell(theirs: int) -> None:
            moment = await store.moment()
            row = LeaseRow(bytes(16), bytes(16), int((moment + 1e6) * 1e9), Presence(theirs, 1, bytes(16)), 0, 0)
            await store.commit([Put(Table.META, lease_key(B), rows.encode(row))])

        await tell(1)
        await beside.second.refresh(1)
        await pools.reserving.reserve(B, 8, full=True, accept=lambda _: True)
        (window,) = pools.pair(B).issuer
        assert window.in_hand == 8
        issuer_rows = await store.scan(Table.WINDOW, rows.ISSUER)
        await store.commit([Delete(Table.WINDOW, key) for key, _ in issuer_rows])  # the lead holds it no more
        await tell(epoch)
        await beside.second.refresh(1)
        assert len(list(pools.pair(B).issuer)) == (1 if epoch == 1 else 0)

    asyncio.run(story())
