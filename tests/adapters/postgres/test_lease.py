import asyncio
from contextlib import AsyncExitStack

import pytest

from trenza.adapters.postgres import Lease, PostgresStore
from trenza.base.clock import SystemClock
from trenza.base.entropy import SystemEntropy
from trenza.base.errors import ConflictError, FencedError, StoreUnavailableError
from trenza.base.units import Nanoseconds, Seconds
from trenza.kms.ports import Append, Expect, Insert, Put, Table

SEGMENT, WINDOW, DELIVERED = Table.SEGMENT, Table.WINDOW, Table.DELIVERED


class HandClock(SystemClock):
    """A machine's clock that a test turns; the database has its own."""

    def __init__(self) -> None:
        self.at = 100.0

    def elapsed(self) -> Seconds:
        return Seconds(self.at)


class Instance:
    """One process of the node: its store, its lease, its clock."""

    def __init__(self, store: PostgresStore, name: str, ttl: float) -> None:
        self.store = store
        self.clock = HandClock()
        self.lease = Lease(store.server, name=name, clock=self.clock, entropy=SystemEntropy(), ttl=Seconds(ttl))

    async def lead(self) -> None:
        assert await self.lease.acquire()
        self.store.under(self.lease.token)

    async def close(self) -> None:
        await self.lease.close()
        await self.store.close()


async def instance(memory, stack: AsyncExitStack, name: str, *, ttl: float = 60.0) -> Instance:
    made = Instance(await memory.store(), name, ttl)
    stack.push_async_callback(made.close)
    return made


async def end_the_lease(one: Instance) -> None:
    """Let the server's clock pass the end of whatever lease is there."""
    async with one.lease._line.connection() as connection:
        await connection.execute("UPDATE lead SET until = clock_timestamp()")


def story(tell):
    """Run an async test, and close in the end what it opened."""

    def run(memory) -> None:
        async def with_stack() -> None:
            async with AsyncExitStack() as stack:
                await tell(memory, stack)

        asyncio.run(with_stack())

    run.__name__ = tell.__name__
    return run


@story
async def test_one_instance_leads_and_the_others_see_who(memory, stack) -> None:
    a, b = [await instance(memory, stack, name) for name in "ab"]
    nobody = await b.lease.look()
    assert (nobody.token, nobody.name, nobody.is_free) == (0, None, True)
    await a.lead()
    assert a.lease.token > 0
    assert not await b.lease.acquire()
    assert b.lease.token == 0
    seen = await b.lease.look()
    assert seen.reign == seen.token
    assert (seen.token, seen.name, seen.is_mine, seen.is_free) == (a.lease.token, "a", False, False)
    assert 50 < seen.remaining <= 60
    assert seen.instances == ("a", "b")
    assert seen.lives == {a.lease.life, b.lease.life}
    assert (await a.lease.look()).is_mine


@story
async def test_a_commit_needs_the_token_of_the_lead_in_force(memory, stack) -> None:
    a, b = [await instance(memory, stack, name) for name in "ab"]
    await a.lead()
    with pytest.raises(FencedError):
        await b.store.commit([Put(WINDOW, b"w", b"b")])  # nobody told it of a lead
    b.store.under(a.lease.token)  # a second serves under the lead that it follows
    await asyncio.gather(a.store.commit([Put(WINDOW, b"w", b"a")]), b.store.commit([Insert(DELIVERED, b"d")]))
    assert await b.store.get(WINDOW, b"w") == b"a"


@story
async def test_when_a_lease_has_ended_another_takes_over_and_the_old_lead_never_writes_again(memory, stack) -> None:
    a, b = [await instance(memory, stack, name) for name in "ab"]
    await a.lead()
    await a.store.commit([Put(WINDOW, b"w", b"a")])
    old = a.lease.token
    await end_the_lease(b)  # given a lead that did not renew in time
    assert (await b.lease.look()).is_free
    await b.lead()
    assert b.lease.token > old
    head, counter = await b.store.head(), b.store.counter()
    for _ in range(2):
        with pytest.raises(FencedError):  # then what it commits is refused, and leaves nothing
            await a.store.commit([Put(WINDOW, b"w", b"late"), Append(Nanoseconds(1), "k", b"")])
    with pytest.raises(FencedError):
        await a.lease.renew()
    assert a.lease.token == 0
    assert (await b.store.head(), (await b.store.look()).counter) == (head, counter)
    await b.store.commit([Expect(WINDOW, b"w", b"a"), Put(WINDOW, b"w", b"b")])
    await end_the_lease(a)
    await a.lead()  # and when it leads again it does so under a token of its own
    assert a.lease.token > b.lease.token
    assert (b.lease.succeeded, a.lease.succeeded) == (old, b.lease.token)
    await a.store.commit([Expect(WINDOW, b"w", b"b"), Put(WINDOW, b"w", b"a again")])


@story
async def test_a_commit_that_was_queued_under_an_old_token_is_refused(memory, stack) -> None:
    a, b = [await instance(memory, stack, name) for name in "ab"]
    await a.lead()
    await end_the_lease(b)
    await b.lead()
    late = asyncio.create_task(a.store.commit([Put(SEGMENT, b"s", b"")]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    a.store.under(b.lease.token)  # the instance turns into a second while the commit waits
    with pytest.raises(FencedError):
        await late
    await a.store.commit([Put(SEGMENT, b"now", b"")])
    assert [key for key, _ in await a.store.scan(SEGMENT)] == [b"now"]


@story
async def test_of_two_that_want_the_lead_at_once_one_gets_it(memory, stack) -> None:
    instances = [await instance(memory, stack, f"i{n}") for n in range(5)]
    for _ in range(5):
        await end_the_lease(instances[0])
        got = await asyncio.gather(*(one.lease.acquire() for one in instances))
        assert sorted(got) == [False] * 4 + [True]


@story
async def test_a_lead_that_is_frozen_in_a_transaction_does_not_keep_the_others_out(memory, stack) -> None:
    a, b = [await instance(memory, stack, name) for name in "ab"]
    await a.lead()
    async with a.store.reading._line.connection() as frozen:
        await frozen.execute("SET idle_in_transaction_session_timeout = 200")
        await frozen.execute("BEGIN; SELECT 1 FROM store_state FOR UPDATE")  # given a lead that stops right here
        await frozen.execute("SELECT 1")
        await end_the_lease(b)
        await b.lead()  # then the server takes the lock from it
        await b.store.commit([Put(WINDOW, b"w", b"b")])
    with pytest.raises(FencedError):
        await a.store.commit([Put(WINDOW, b"w", b"a")])


@story
async def test_a_lease_that_ended_unnoticed_is_renewed_if_nobody_took_it(memory, stack) -> None:
    a, b = [await instance(memory, stack, name) for name in "ab"]
    await a.lead()
    await end_the_lease(b)
    await a.store.commit([Put(WINDOW, b"w", b"a")])  # the token decides, not the clock
    await a.lease.renew()
    assert not await b.lease.acquire()


@story
async def test_releasing_lets_another_lead_at_once_and_ends_the_old_token(memory, stack) -> None:
    a, b = [await instance(memory, stack, name) for name in "ab"]
    await a.lead()
    old = a.lease.token
    await a.lease.release()
    with pytest.raises(FencedError):
        await a.store.commit([Put(WINDOW, b"w", b"a")])
    free = await b.lease.look()
    assert (free.is_free, free.token > old, free.reign) == (True, True, old)
    await b.lead()
    assert b.lease.token > free.token
    assert b.lease.succeeded == old
    await a.lease.release()  # again, or by one that does not lead: nothing happens
    assert (await b.lease.look()).name == "b"


@story
async def test_a_lead_relies_on_its_lease_no_longer_than_it_was_given(memory, stack) -> None:
    a = await instance(memory, stack, "a", ttl=2.0)
    await a.lead()
    asked = a.clock.elapsed()
    assert a.lease.until == asked + 2.0
    a.clock.at += 1.9
    assert a.lease.until == asked + 2.0
    await a.lease.renew()
    assert a.lease.until == asked + 1.9 + 2.0


@story
async def test_a_restarted_process_of_the_same_name_waits_its_turn_and_then_fences_the_former(memory, stack) -> None:
    former, again = [await instance(memory, stack, "a") for _ in range(2)]
    await former.lead()
    assert not await again.lease.acquire()
    await end_the_lease(again)
    await again.lead()
    with pytest.raises(FencedError):
        await former.store.commit([Put(WINDOW, b"w", b"")])


@story
async def test_a_process_takes_over_at_once_from_one_that_it_knows_to_have_ended(memory, stack) -> None:
    former, again = [await instance(memory, stack, "a") for _ in range(2)]
    await former.lead()
    led = former.lease.token
    again.lease.inherit(b"another's life.")
    assert not await again.lease.acquire()
    again.lease.inherit(former.lease.life)
    await again.lead()
    assert again.lease.succeeded == led < again.lease.token
    with pytest.raises(FencedError):  # and should the proof have been wrong, it costs time only
        await former.store.commit([Put(WINDOW, b"w", b"")])


@story
async def test_where_others_serve_a_process_that_was_restarted_leaves_the_lead_to_whoever_comes_first(
    memory, stack
) -> None:
    former, again, beside = [await instance(memory, stack, name) for name in "aab"]
    await former.lead()
    await beside.lease.look()
    again.lease.inherit(former.lease.life)
    assert not await again.lease.acquire()


@story
async def test_a_database_that_went_back_in_time_gives_no_token_twice(memory, stack) -> None:
    a, b = [await instance(memory, stack, name) for name in "ab"]
    await a.lead()
    await end_the_lease(b)
    await b.lead()
    async with b.lease._line.connection() as connection:
        await connection.execute("UPDATE lead SET token = 0, holder = NULL, name = NULL, until = NULL")  # restored
    await a.lead()
    assert a.lease.token > b.lease.token
    with pytest.raises(FencedError):
        await b.store.commit([Put(WINDOW, b"w", b"")])


@story
async def test_two_seconds_reserve_from_one_window_without_overlap(memory, stack) -> None:
    lead, *seconds = [await instance(memory, stack, name) for name in "abc"]
    await lead.lead()
    await lead.store.commit([Put(WINDOW, b"w", (0).to_bytes(4, "big"))])

    async def reserve(second: Instance) -> list[int]:
        second.store.under((await second.lease.look()).token)
        firsts: list[int] = []
        while True:
            mark = await second.store.get(WINDOW, b"w")
            first = int.from_bytes(mark, "big")
            if first == 256:
                return firsts
            try:
                await second.store.commit(
                    [Expect(WINDOW, b"w", mark), Put(WINDOW, b"w", (first + 16).to_bytes(4, "big"))]
                )
            except ConflictError:
                continue
            firsts.append(first)

    reserved = await asyncio.gather(*map(reserve, seconds))
    assert sorted(reserved[0] + reserved[1]) == list(range(0, 256, 16))


@story
async def test_a_lease_tells_when_the_database_is_gone(memory, stack) -> None:
    a = await instance(memory, stack, "a")
    await a.lead()
    a.lease._line._server.settings = type(memory.settings)("postgresql:///x?host=/nowhere", memory.settings.schema)
    a.lease._line.drop()
    with pytest.raises(StoreUnavailableError):
        await a.lease.renew()
    assert a.lease.until > a.clock.elapsed()  # nobody else can have it before its time is over


@pytest.mark.slow
def test_a_lease_ends_two_seconds_after_the_last_renewal_by_the_servers_clock(memory) -> None:
    async def tell() -> None:
        async with AsyncExitStack() as stack:
            a, b = [await instance(memory, stack, name, ttl=2.0) for name in "ab"]
            await a.lead()
            while not await b.lease.acquire():
                remaining = (await b.lease.look()).remaining
                assert remaining <= 2.0
                await asyncio.sleep(max(0.01, remaining))
            b.store.under(b.lease.token)
            await b.store.commit([Put(WINDOW, b"w", b"b")])
            with pytest.raises(FencedError):
                await a.store.commit([Put(WINDOW, b"w", b"a")])

    asyncio.run(tell())
