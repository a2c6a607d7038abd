"""Shares of a scarce lot, with simulated clients: nobody starves, nothing lies idle, and plenty limits nobody."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trenza.base.names import TenantId
from trenza.core.policy import TenantEntry
from trenza.core.priority import Priority
from trenza.core.share import Lot, Verdict

NORMAL, EMERGENCY, BULK = Priority.NORMAL, Priority.EMERGENCY, Priority.BULK
OURS = TenantEntry(TenantId("ours"))
STEP = 0.1  # between looks


def make_lot(*, floors=(0,) * 8, rivals=(9,) * 8, low_water=512):
    return Lot(floors, rivals, low_water)


@dataclass
class Client:
    """A pair that wants so many keys a second, of one slot each."""

    name: str
    wants: float
    tenant: TenantEntry = OURS
    priority: int = NORMAL
    at_once: int = 1
    got: int = 0
    refused: int = 0
    owing: float = field(default=0.0, repr=False)

    def ask(self, lot: Lot, seconds: float, now: float, left: int) -> int:
        """Ask for what came due in `seconds`; return what was taken of the `left` slots that there are."""
        self.owing = min(self.owing + self.wants * seconds, self.wants)  # who is refused tries again for a second
        taken = 0
        while self.owing >= self.at_once and left - taken >= self.at_once:
            if lot.draw(self.name, self.priority, self.at_once, now, self.tenant) is not Verdict.GRANTED:
                self.refused += 1
                break
            self.owing -= self.at_once
            taken += self.at_once
        self.got += taken
        return taken


def run(lot: Lot, clients: list[Client], *, seconds: float, refill: float, stock: int = 2_048, start: float = 0.0):
    """Play: slots come in lumps of half a second, as segments do. Return what is left."""
    left, due = float(stock), 0.0
    for step in range(int(seconds / STEP)):
        now = start + step * STEP
        due += refill * STEP
        if step % 5 == 4:
            left, due = min(left + due, 4_096), 0.0
        lot.look(int(left), now)
        for client in clients:  # the greedy one always first
            left -= client.ask(lot, STEP, now, int(left))
    return left


def test_while_there_is_plenty_nobody_is_limited():
    greedy, small = Client("greedy", 900.0), Client("small", 10.0)
    run(make_lot(), [greedy, small], seconds=60, refill=1_000)
    assert greedy.refused == small.refused == 0


def test_a_greedy_pair_does_not_starve_a_small_one():
    greedy, small = Client("greedy", 10_000.0), Client("small", 30.0)  # given half of what is refilled suffices it
    run(make_lot(), [greedy, small], seconds=120, refill=100)
    assert small.got >= 0.99 * 30 * 120
    assert greedy.got >= 0.95 * 70 * 120  # and what the small one does not want is not lost to the greedy one


def test_two_greedy_pairs_share_alike():
    one, other = Client("one", 10_000.0), Client("other", 5_000.0)
    run(make_lot(), [one, other], seconds=300, refill=100)
    assert one.got + other.got >= 100 * 290
    early = 2_048  # whoever is first takes what lies above the low-water mark
    assert abs(one.got - other.got) <= early + 0.1 * other.got


@pytest.mark.parametrize("at_once", [1, 16, 128])
def test_large_requests_gain_nothing(at_once):
    large, small = Client("large", 10_000.0, at_once=at_once), Client("small", 10_000.0)
    lot = make_lot()
    run(lot, [large, small], seconds=60, refill=100)  # the stock of the beginning is gone by then
    before = large.got, small.got
    run(lot, [large, small], seconds=300, refill=100, stock=300, start=60.0)
    gained = large.got - before[0], small.got - before[1]
    assert gained[0] == pytest.approx(gained[1], rel=0.15, abs=2 * at_once)


def test_tenants_share_by_weight_and_their_pairs_alike():
    bank = TenantEntry(TenantId("bank"), weight=3)
    clients = [
        Client("ours", 10_000.0),
        Client("bank 1", 10_000.0, bank),
        Client("bank 2", 10_000.0, bank),
    ]
    lot = make_lot()
    run(lot, clients, seconds=60, refill=200)
    before = [client.got for client in clients]
    run(lot, clients, seconds=300, refill=200, stock=300, start=60.0)
    ours, first, second = (client.got - was for client, was in zip(clients, before, strict=True))
    assert (first + second) / ours == pytest.approx(3.0, rel=0.1)
    assert first == pytest.approx(second, rel=0.1)


def test_whoever_comes_later_finds_a_key():
    greedy, late = Client("greedy", 10_000.0), Client("late", 5.0)
    lot = make_lot()
    left = run(lot, [greedy], seconds=120, refill=50)
    assert left >= 100
    run(lot, [greedy, late], seconds=10, refill=50, stock=int(left), start=120.0)
    assert late.refused == 0
    assert late.got >= 49


def test_what_is_left_of_a_stock_that_is_not_refilled_is_stretched_and_still_used():
    greedy, late = Client("greedy", 10_000.0), Client("late", 5.0)
    lot = make_lot()
    left = run(lot, [greedy], seconds=10, refill=0)
    assert 200 <= left < 512
    left = run(lot, [greedy, late], seconds=20, refill=0, stock=int(left), start=10.0)
    assert late.got >= 90
    assert left < 120


def test_a_pair_without_rivals_may_take_all():
    alone = Client("alone", 10_000.0)
    assert run(make_lot(rivals=(1,) * 8), [alone], seconds=2, refill=0) == 0
    assert alone.refused == 0


def test_lower_classes_do_not_touch_the_floor_of_higher_ones():
    floors = (256,) * 7 + (0,)
    ordinary, urgent = Client("ordinary", 10_000.0), Client("urgent", 1_000.0, priority=EMERGENCY)
    lot = make_lot(floors=floors, rivals=(1,) * 8)
    left = run(lot, [ordinary], seconds=5, refill=0)
    assert left == 256
    assert lot.draw("ordinary", NORMAL, 1, 5.0, OURS) is Verdict.KEPT
    assert run(lot, [ordinary, urgent], seconds=5, refill=0, stock=256, start=5.0) == 0
    assert (urgent.got, urgent.refused) == (256, 0)


def test_higher_classes_take_what_they_need_and_lower_ones_share_the_rest():
    urgent = Client("urgent", 60.0, priority=EMERGENCY)
    bulk = [Client("bulk 1", 10_000.0, priority=BULK), Client("bulk 2", 10_000.0, priority=BULK)]
    lot = make_lot(floors=(256,) * 7 + (0,))
    run(lot, [*bulk, urgent], seconds=60, refill=100)
    before = [client.got for client in (urgent, *bulk)]
    run(lot, [*bulk, urgent], seconds=300, refill=100, stock=400, start=60.0)
    high, one, other = (client.got - was for client, was in zip((urgent, *bulk), before, strict=True))
    assert high >= 0.99 * 60 * 300
    assert one + other >= 0.9 * 40 * 300
    assert one == pytest.approx(other, rel=0.1)


def test_who_falls_silent_in_debt_pays_back_all_the_same():
    lot = make_lot()
    lot.look(600, 0.0)
    assert lot.draw("large", NORMAL, 400, 0.0, OURS) is Verdict.GRANTED
    for second in range(1, 15):
        lot.look(200, float(second))
    assert lot.draw("large", NORMAL, 1, 15.0, OURS) is Verdict.BEYOND_SHARE
    assert 0 < lot.wait("large") <= 10


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 64), st.booleans()), max_size=60))
def test_the_count_goes_down_by_what_is_granted_and_up_by_what_is_given_back(asked):
    lot = make_lot(floors=(70, 60, 50, 40, 30, 20, 10, 0))
    lot.look(900, 0.0)
    out = 0
    for number, (priority, slots, comes_back) in enumerate(asked):
        who = f"{priority} {number % 3}"
        if lot.draw(who, priority, slots, number / 10, OURS) is Verdict.GRANTED:
            assert lot.stock >= lot.floors[priority]
            if comes_back:
                lot.give_back(who, priority, slots)
            else:
                out += slots
    assert (lot.stock, sum(lot.drawn)) == (900 - out, out)
