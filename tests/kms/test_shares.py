"""Who may be given a key now: rates, quotas, floors and shares of one node, and what of it survives a restart."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.kms.fakes import Fails, FakeClock, FakeNetwork, FakeStore, make_book, make_context

from trenza.base.errors import LimitedError, NotEnoughKeyError, StoreUnavailableError
from trenza.base.names import NodeId, SaeId, TenantId
from trenza.base.units import Bits
from trenza.core.policy import Book, Policy, Rule, SaeEntry, SignedBook, TenantEntry
from trenza.core.priority import Priority
from trenza.kms.context import Settings
from trenza.kms.shares import SAVE_EVERY, Asked, Shares
from trenza.kms.slots import Pair

A, B = NodeId("a"), NodeId("b")
HYBRID = ("hybrid-catkdf",)
BANK = TenantId("bank")
DAY = 86_400
LATE_IN_THE_DAY = 3_600  # the clock begins an hour before a UTC midnight
KEY = Asked.of(1, Bits(256), full=True, slots_per_key=1)
LOCAL_KEY = Asked.of(1, Bits(256))


class World:
    """One node, with stock that a test sets, and pairs x1-y1, x2-y2… of a policy each; the y's are far."""

    def __init__(self, *policies: Policy, tenants: tuple[TenantEntry, ...] = (), before: World | None = None) -> None:
        self.clock = (
            before.clock if before else FakeClock(1_800_000_000 // DAY * DAY * 10**9 - LATE_IN_THE_DAY * 10**9)
        )
        self.store = before.store.after_crash() if before else FakeStore()
        self.stock = {True: 10_000, False: 10_000}
        self.looks = 0
        self.ctx = make_context(
            A,
            FakeNetwork(),
            clock=self.clock,
            settings=Settings(stock_target=2_048),
            store=self.store,
            book=self.book_of(1, *policies, tenants=tenants),
        )
        self.shares = Shares(self.ctx, stock_of=self.stock_of)

    @staticmethod
    def book_of(version: int, *policies: Policy, tenants: tuple[TenantEntry, ...] = ()) -> Book:
        tenant = tenants[0].name if tenants else TenantId("default")
        numbers = range(1, len(policies) + 1)
        return msgspec.structs.replace(
            make_book("ab", []),
            version=version,
            saes=(
                *(SaeEntry(SaeId(f"x{number}"), A, tenant=tenant) for number in numbers),
                *(SaeEntry(SaeId(f"y{number}"), B) for number in numbers),
            ),
            policies=policies,
            rules=tuple(Rule((SaeId(f"x{n}"), SaeId(f"y{n}")), policies[n - 1].name) for n in numbers),
            tenants=tenants,
        )

    def stock_of(self, peer: NodeId, full: bool) -> int:
        assert peer == B
        self.looks += 1
        return self.stock[full]

    def pair(self, number: int = 1) -> Pair:
        book = self.ctx.book
        initiator, target = book.sae_by_name[SaeId(f"x{number}")], book.sae_by_name[SaeId(f"y{number}")]
        policy = book.policy_between(initiator.name, target.name)
        assert policy is not None
        return Pair(initiator, target, policy)

    def admit(self, pair: Pair, asked: Asked = KEY) -> None:
        self.shares.admit(pair, asked, self.clock.elapsed())

    def gets(self, pair: Pair, asked: Asked = KEY) -> bool:
        try:
            self.admit(pair, asked)
        except (LimitedError, NotEnoughKeyError):
            return False
        return True

    def count(self, pair: Pair, asked: Asked = KEY, *, most: int = 100_000) -> int:
        """Ask until the first refusal; return how often it went well."""
        given = 0
        while given < most and self.gets(pair, asked):
            given += 1
        return given

    def install(self, book: Book) -> None:
        self.ctx.set_book(book, SignedBook(b"", b""))


# --- plenty


def test_a_pair_without_terms_is_not_limited_while_there_is_plenty():
    world = World(Policy("p", HYBRID), Policy("q", HYBRID))
    assert world.count(world.pair(), most=5_000) == 5_000


def test_the_stock_is_not_counted_for_every_key():
    world = World(Policy("p", HYBRID))
    pair = world.pair()
    world.count(pair, most=1_000)
    assert world.looks == 1
    world.clock.advance(0.1)
    world.admit(pair)
    assert world.looks == 2


# --- rates


def test_a_pair_gets_its_burst_at_once_and_its_rate_in_the_long_run():
    world = World(Policy("p", HYBRID, max_keys_per_second=2.0, burst=5))
    pair = world.pair()
    assert world.count(pair) == 5
    given = 0
    for _ in range(100):
        world.clock.advance(0.25)
        given += world.count(pair)
    assert given == 50


def test_requests_that_come_together_get_no_more_than_one_after_the_other():
    world = World(Policy("p", HYBRID, max_keys_per_second=2.0, burst=5))
    pair, now = world.pair(), world.clock.elapsed()
    assert not world.shares.grants(pair, KEY, now, times=6)
    assert world.shares.grants(pair, KEY, now, times=4)
    assert world.shares.grants(pair, KEY, now)
    assert not world.shares.grants(pair, KEY, now)
    world.clock.advance(2.5)
    assert world.count(pair) == 5


def test_a_refusal_says_when_to_come_again():
    world = World(Policy("p", HYBRID, max_keys_per_second=0.25))
    pair = world.pair()
    world.admit(pair)
    with pytest.raises(LimitedError, match="try again later") as refused:
        world.admit(pair)
    assert refused.value.retry_after == pytest.approx(4.0)
    world.clock.advance(4.0)
    world.admit(pair)
    assert world.ctx.counters["requests_over_rate"] == 1


def test_a_large_request_is_served_and_paid_back():
    world = World(Policy("p", HYBRID, max_keys_per_second=10.0))
    pair = world.pair()
    world.admit(pair, Asked.of(100, Bits(256), full=True, slots_per_key=1))
    world.clock.advance(9.0)
    assert not world.gets(pair)
    world.clock.advance(0.2)
    assert world.gets(pair)


def test_two_directions_and_two_pairs_have_a_rate_each():
    world = World(*(Policy(name, HYBRID, max_keys_per_second=1.0) for name in "pq"))
    assert [world.count(world.pair(number)) for number in (1, 2)] == [1, 1]


def test_all_pairs_of_a_tenant_have_one_rate_together():
    world = World(Policy("p", HYBRID), Policy("q", HYBRID), tenants=(TenantEntry(BANK, max_keys_per_second=3.0),))
    one, other = world.pair(1), world.pair(2)
    assert (world.count(one, most=2), world.count(other)) == (2, 1)


def test_the_initiators_tenant_counts_and_not_the_targets():
    world = World(Policy("p", HYBRID), tenants=(TenantEntry(BANK, max_keys_per_second=1.0),))
    pair = world.pair()  # x1 is the bank's, y1 is not
    assert world.count(Pair(pair.target, pair.initiator, pair.policy), LOCAL_KEY, most=50) == 50


def test_local_keys_have_the_same_rates_and_no_floor():
    world = World(Policy("p", ("local",), max_keys_per_second=3.0))
    world.stock = {True: 0, False: 0}
    assert world.count(world.pair(), LOCAL_KEY) == 3
    assert world.looks == 0


# --- quotas


def test_a_tenant_has_so_many_bits_a_day_until_midnight():
    world = World(Policy("p", HYBRID), tenants=(TenantEntry(BANK, max_bits_per_day=1_000),))
    pair = world.pair()
    assert world.count(pair) == 3
    assert world.gets(pair, Asked.of(1, Bits(232), full=True, slots_per_key=1))  # to the last bit
    with pytest.raises(LimitedError, match="quota of this day") as refused:
        world.admit(pair)
    assert refused.value.retry_after == pytest.approx(LATE_IN_THE_DAY)
    world.clock.advance(LATE_IN_THE_DAY)
    assert world.count(pair) == 3
    assert world.ctx.counters["requests_over_quota"] == 2 + 1


def test_what_came_to_nothing_is_given_back():
    tenants = (TenantEntry(BANK, max_bits_per_day=256, max_keys_per_second=1.0),)
    world = World(Policy("p", HYBRID, max_keys_per_second=1.0), tenants=tenants)
    pair = world.pair()
    for _ in range(3):
        world.admit(pair)
        world.shares.give_back(pair, KEY, world.clock.elapsed())
    assert world.gets(pair)
    assert not world.gets(pair)


def test_a_quota_survives_a_restart_as_far_as_it_was_stored():
    async def play() -> None:
        terms = (TenantEntry(BANK, max_bits_per_day=2_560),)
        world = World(Policy("p", HYBRID), tenants=terms)
        assert world.count(world.pair(), most=4) == 4
        world.clock.advance(SAVE_EVERY)
        await world.shares.save_if_due()
        assert world.count(world.pair(), most=2) == 2  # a crash forgets these
        again = World(Policy("p", HYBRID), tenants=terms, before=world)
        await again.shares.load()
        assert again.count(again.pair()) == 6

    asyncio.run(play())


def test_a_quota_of_yesterday_is_not_counted_today():
    async def play() -> None:
        terms = (TenantEntry(BANK, max_bits_per_day=2_560),)
        world = World(Policy("p", HYBRID), tenants=terms)
        world.count(world.pair())
        await world.shares.save()
        world.clock.advance(LATE_IN_THE_DAY)
        again = World(Policy("p", HYBRID), tenants=terms, before=world)
        await again.shares.load()
        assert again.count(again.pair()) == 10

    asyncio.run(play())


def test_a_clock_set_back_over_midnight_gives_no_second_quota():
    world = World(Policy("p", HYBRID), tenants=(TenantEntry(BANK, max_bits_per_day=2_560),))
    world.clock.advance(LATE_IN_THE_DAY + 1.0)
    assert world.count(world.pair()) == 10
    world.clock.advance(-2.0)
    assert world.count(world.pair()) == 0
    world.clock.advance(2.0)
    assert world.count(world.pair()) == 0
    world.clock.advance(DAY)
    assert world.count(world.pair()) == 10


def test_a_clock_that_was_far_ahead_takes_no_quota_of_the_days_between():
    world = World(Policy("p", HYBRID), tenants=(TenantEntry(BANK, max_bits_per_day=2_560),))
    world.clock.advance(30 * DAY)
    assert world.count(world.pair()) == 10
    world.clock.advance(-30 * DAY)
    assert world.count(world.pair()) == 10


def test_quotas_are_stored_once_a_minute_and_only_if_something_was_used():
    async def play() -> None:
        world = World(Policy("p", HYBRID), tenants=(TenantEntry(BANK, max_bits_per_day=10_000),))
        world.clock.advance(SAVE_EVERY)
        await world.shares.save_if_due()
        assert not world.store.history
        for _ in range(3):
            world.admit(world.pair())
            await world.shares.save_if_due()
        assert len(world.store.history) == 1
        world.clock.advance(SAVE_EVERY)
        await world.shares.save_if_due()
        assert len(world.store.history) == 2

    asyncio.run(play())


def test_what_could_not_be_stored_is_stored_next_time():
    async def play() -> None:
        world = World(Policy("p", HYBRID), tenants=(TenantEntry(BANK, max_bits_per_day=10_000),))
        world.admit(world.pair())
        world.store.fail_next = Fails.BEFORE
        with pytest.raises(StoreUnavailableError):
            await world.shares.save()
        await world.shares.save()
        assert len(world.store.history) == 1

    asyncio.run(play())


# --- floors and shares


def test_what_is_left_is_kept_for_the_emergency_class():
    world = World(Policy("p", HYBRID), Policy("rescue", HYBRID, priority=Priority.EMERGENCY))
    world.stock[True] = 300
    ordinary, rescue = world.pair(1), world.pair(2)
    assert world.count(ordinary) == 300 - 2_048 // 8
    with pytest.raises(NotEnoughKeyError, match="kept for higher priority") as refused:
        world.admit(ordinary)
    assert refused.value.details == ()  # how much is kept is nobody's business
    assert world.count(rescue, most=2_048 // 8) == 2_048 // 8


def test_every_class_that_the_book_uses_keeps_a_floor_from_those_below():
    classes = (Priority.BULK, Priority.NORMAL, Priority.HIGH)
    world = World(*(Policy(str(one), HYBRID, priority=one) for one in classes))
    world.stock[True] = 1_000
    given = [world.count(world.pair(number), most=64 if number == 3 else 2_000) for number in (1, 2, 3)]
    assert given == [1_000 - 2 * 64, 64, 64]


def test_a_floor_of_strands_with_qkd_is_none_of_strands_without():
    world = World(Policy("p", ("exchange-catkdf",)), Policy("rescue", HYBRID, priority=Priority.EMERGENCY))
    world.stock[False] = 10
    assert world.count(world.pair(1), Asked.of(1, Bits(256), full=False, slots_per_key=1), most=10) == 10


def test_two_pairs_of_a_class_share_what_is_scarce():
    world = World(Policy("p", HYBRID), Policy("q", HYBRID))
    greedy, other = world.pair(1), world.pair(2)
    world.stock[True] = 500  # below the low-water mark
    assert world.count(greedy) < 10
    with pytest.raises(NotEnoughKeyError, match="shared among those who ask") as refused:
        world.admit(greedy)
    assert refused.value.retry_after is not None
    assert world.gets(other)
    assert world.ctx.counters["requests_beyond_share"] >= 1


def test_of_what_is_scarce_requests_that_come_together_get_no_more_than_one_after_the_other():
    world = World(Policy("p", HYBRID), Policy("q", HYBRID))
    greedy, now = world.pair(1), world.clock.elapsed()
    world.stock[True] = 500  # below the low-water mark
    assert not world.shares.grants(greedy, KEY, now, times=10)
    granted = sum(world.shares.grants(greedy, KEY, now) for _ in range(10))
    assert granted == 1


def test_of_a_quota_and_above_a_floor_requests_that_come_together_are_counted_each():
    tenants = (TenantEntry(BANK, max_bits_per_day=4 * 256),)
    world = World(Policy("p", HYBRID), Policy("rescue", HYBRID, priority=Priority.EMERGENCY), tenants=tenants)
    world.stock[True] = 2_048 // 8 + 3
    pair, now = world.pair(), world.clock.elapsed()
    assert not world.shares.grants(pair, KEY, now, times=5), "more than the quota"
    assert not world.shares.grants(pair, KEY, now, times=4), "less than the floor would be left"
    assert world.shares.grants(pair, KEY, now, times=3)
    assert not world.shares.grants(pair, KEY, now)
    world.stock[True] = 10_000
    world.clock.advance(1.0)
    assert world.count(pair) == 1, "what was left of the quota"


def test_several_requests_are_admitted_all_or_none():
    world = World(Policy("p", HYBRID, max_keys_per_second=5.0), Policy("q", HYBRID, max_keys_per_second=1.0))
    one, other = world.pair(1), world.pair(2)
    world.admit(other)
    with pytest.raises(LimitedError):
        world.shares.admit_all([(one, KEY), (other, KEY)], world.clock.elapsed())
    assert world.count(one) == 5


def test_who_asks_without_wanting_to_hear_why_is_refused_alike_and_not_counted():
    world = World(Policy("p", HYBRID, max_keys_per_second=1.0, burst=2), Policy("rescue", HYBRID, priority=7))
    pair = world.pair()
    assert [world.shares.grants(pair, KEY, world.clock.elapsed()) for _ in range(3)] == [True, True, False]
    world.clock.advance(2.0)
    world.stock[True] = 100  # all of it kept for the emergency class
    assert not world.shares.grants(pair, KEY, world.clock.elapsed())
    assert not world.ctx.counters
    world.stock[True] = 1_000
    world.clock.advance(0.1)
    assert world.count(pair) == 2  # what was refused cost nothing


# --- a new book


def test_a_new_book_has_its_own_rates_and_floors_and_forgives_nothing():
    world = World(Policy("p", HYBRID, max_keys_per_second=1.0, burst=4))
    assert world.count(world.pair()) == 4
    slower, rescue = Policy("p", HYBRID, max_keys_per_second=1.0, burst=2), Policy("r", HYBRID, priority=7)
    world.install(world.book_of(2, slower, rescue))
    world.stock[True] = 2_048 // 8
    pair = world.pair()
    assert not world.gets(pair)
    world.clock.advance(10.0)
    with pytest.raises(NotEnoughKeyError, match="kept for higher"):
        world.admit(pair)
    world.stock[True] = 1_000
    world.clock.advance(1.0)
    assert world.count(pair) == 2
