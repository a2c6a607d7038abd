"""The pools' windows: what is held for how long, whatever answers and clocks do."""

from __future__ import annotations

import pytest
from tests.kms.fakes import Fails
from tests.kms.pair_world import A, B, PairWorld, any_strands, lived, slots_in

from trenza.base.errors import StoreUnavailableError
from trenza.base.units import Seconds, nanoseconds
from trenza.wire.peer import WindowAnswer, WindowRequest


def test_a_window_whose_grant_seemed_lost_is_open_again_once_its_issuer_speaks_of_it():
    async def story(world: PairWorld) -> None:
        await world.fill(32)
        session = world.b.ctx.session(A)
        answer = await world.b.say(WindowRequest(session.id, True, 9, (), 0, 8))
        assert isinstance(answer, WindowAnswer)
        world.clock.advance(11.0)  # B's disk is slow, and its beats are not
        await world.a.pools.granting.note_marks(B, world.b.marks())
        assert world.a.pair.held[answer.grants[0].window].closed is not None
        assert await world.b.pools.taking.accept(A, answer.grants) == []
        await world.a.pools.granting.note_marks(B, world.b.marks())
        world.clock.advance(3_601.0)  # longer than a key may wait; nobody has asked for one
        await world.a.pools.granting.note_marks(B, world.b.marks())
        ages = {True: Seconds(86_400.0), False: Seconds(86_400.0)}
        await world.a.pools.tidy(B, key_lifetime=nanoseconds(Seconds(3_600.0)), max_age=ages)
        ((number, slot),) = await world.b.issue(1)
        assert world.a.pair.held[number].reserve(range(slot, slot + 1))
        await world.a.restart()
        assert world.a.pair.held[number].closed is None

    lived(story)


def test_a_window_of_a_former_life_stays_closed_whatever_is_said_of_it():
    async def story(world: PairWorld) -> None:
        await world.fill(32)
        await world.b.get_window(8)
        marks = world.b.marks()
        await world.b.restart()
        world.meet()
        world.a.pools.granting.renew_incarnation(B)
        await world.a.pools.granting.note_marks(B, marks)
        assert world.a.pair.held[marks[0].window].closed is not None

    lived(story)


def test_who_speaks_of_a_window_now_and_then_does_not_open_and_close_it_each_time():
    async def story(world: PairWorld) -> None:
        await world.fill(32)
        await world.b.get_window(8)
        marks = world.b.marks()
        commits = len(world.a.store.history)
        for _ in range(100):
            world.clock.advance(0.5)
            await world.a.pools.granting.note_marks(B, ())
            await world.a.pools.granting.note_marks(B, marks)
        assert len(world.a.store.history) - commits <= 2 * 5
        world.clock.advance(3_600.0)
        assert len(world.a.pair.held.over(world.clock.now())) == 0

    lived(story)


@pytest.mark.parametrize("how", Fails)
@pytest.mark.parametrize("dies", [False, True])
def test_a_disk_that_takes_no_grant_costs_no_slot(how, dies):
    async def story(world: PairWorld) -> None:
        await world.fill(32)
        for _ in range(3):  # the peer asks again and again
            world.a.store.fail_next = how
            with pytest.raises(StoreUnavailableError):
                await world.a.pools.granting.grant(B, full=True, slots=8, accept=any_strands)
        if dies:
            await world.a.restart()
            world.meet()
        grants = await world.a.pools.granting.grant(B, full=True, slots=32, accept=any_strands)
        granted = slots_in(tuple((one.first, one.count) for one in grants))
        if not dies:
            assert granted == set(range(32))
        assert sum(one.count for one in grants) == len(granted)
        await world.a.restart()
        held = [slot for one in world.a.pair.held.values() for slot in range(one.first, one.first + one.count)]
        assert len(held) == len(set(held))
        assert not set(held) & slots_in(world.a.segment.mine.ranges)

    lived(story)


@pytest.mark.parametrize("how", Fails)
def test_a_disk_that_takes_no_window_costs_one_of_them_and_no_more_is_asked_for_meanwhile(how):
    async def story(world: PairWorld) -> None:
        await world.fill(32)
        answer = await world.b.say(WindowRequest(world.b.ctx.session(A).id, True, 9, (), 0, 8))
        assert isinstance(answer, WindowAnswer)
        world.b.store.fail_next = how
        with pytest.raises(StoreUnavailableError):
            await world.b.pools.taking.accept(A, answer.grants)
        for _ in range(3):  # what goes before each question
            world.b.store.fail_next = Fails.BEFORE
            with pytest.raises(StoreUnavailableError):
                await world.b.pools.taking.open_next(A, full=True, accept=any_strands)
        await world.b.pools.taking.open_next(A, full=True, accept=any_strands)
        commits = len(world.b.store.history)
        await world.b.pools.taking.open_next(A, full=True, accept=any_strands)
        assert len(world.b.store.history) == commits
        await world.b.get_window(32)
        assert world.b.issuable() == set(range(8, 32))

    lived(story)
