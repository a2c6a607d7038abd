from __future__ import annotations

import asyncio

import pytest
from tests.kms.fakes import Fails, Fault
from tests.kms.pair_world import A, B, PairWorld, any_strands, slots_in

from trenza.base.errors import RefusedError, StoreUnavailableError, TrenzaError
from trenza.kms.ports import Table
from trenza.wire.peer import Cede, Leave, StockMark, WindowAnswer, WindowMark

SEGMENT = bytes([1]) * 16


def run(story) -> None:
    async def live() -> None:
        await story(PairWorld())

    asyncio.run(live())


def need(world: PairWorld, name: str, rate: float) -> None:
    """Let the other end believe that `name` issues so many slots a second."""
    other = world.b if name == A else world.a
    other.pair.peer_stock = StockMark(0, 0, rate, 0.0)


# --- by demand


def test_slots_that_only_the_other_could_issue_change_direction():
    async def story(world: PairWorld) -> None:
        await world.fill(32)  # given slots that A may grant to B, and B has no use for
        await world.a.cedes.step(B, 1)  # when A has nothing to issue
        assert world.a.issuable() == set(range(24, 32))  # then A has a window of them, from the upper end
        assert world.a.free() == (set(range(24)), set())
        assert world.b.free() == (set(), set(range(24)))
        (held,) = world.b.pair.held.values()
        assert (held.first, held.count, held.life) == (24, 8, world.a.ctx.presence.nonce)
        issued = await world.a.issue(3)
        assert issued == [(held.number, 24), (held.number, 25), (held.number, 26)]
        assert world.a.ctx.counters["slots_ceded_here"] == world.b.ctx.counters["slots_ceded_away"] == 8

    run(story)


def test_all_that_the_other_does_not_need_is_ceded_before_anything_is_refused():
    async def story(world: PairWorld) -> None:
        await world.fill(32)
        await world.fill(16, number=2, issuer=A)
        await world.a.get_window(16)
        issued = 0
        while keys := await world.a.issue(2):
            issued += len(keys)
            await world.a.cedes.step(B, 1)
        assert issued == 48
        assert world.a.pools.ungranted(B, B, full=True) == 0

    run(story)


def test_nothing_moves_while_this_node_has_enough():
    async def story(world: PairWorld) -> None:
        await world.fill(32)
        await world.fill(16, number=2, issuer=A)
        await world.a.cedes.step(B, 16)
        assert world.network.sent == []

    run(story)


def test_nothing_moves_while_nobody_asks_for_keys():
    async def story(world: PairWorld) -> None:
        await world.fill(32)
        await world.a.cedes.step(B)
        assert world.network.sent == []
        world.a.demand.note_issued(B, full=True, slots=1)  # somebody does
        world.clock.advance(0.1)
        await world.a.cedes.step(B)
        assert len(world.network.sent) == 1

    run(story)


@pytest.mark.parametrize(
    ("rate", "floor", "ceded"), [(0.0, 0, 8), (3.0, 0, 2), (3.2, 0, 0), (9.0, 0, 0), (0.0, 30, 2)]
)
def test_the_peer_keeps_what_it_needs_and_the_floor_of_its_higher_classes(rate, floor, ceded):
    async def story(world: PairWorld) -> None:
        await world.fill(32)
        need(world, B, rate)  # ten seconds of it are kept
        world.a.demand.floor_of = lambda _peer: floor
        await world.a.cedes.step(B, 1)
        assert len(world.a.issuable()) == ceded

    run(story)


def test_ceded_slots_do_not_travel_back():
    async def story(world: PairWorld) -> None:
        await world.fill(8)
        await world.a.cedes.step(B, 1)
        for _ in range(5):
            await world.b.cedes.step(A, 1)
            await world.a.cedes.step(B, 1)
        assert len(world.network.sent) == 1
        assert world.a.issuable() == set(range(8))

    run(story)


# --- lost and repeated


@pytest.mark.parametrize("fault", [Fault.DROP_REQUEST, Fault.DROP_ANSWER])
def test_what_had_no_answer_is_asked_for_again_and_comes_once(fault):
    async def story(world: PairWorld) -> None:
        await world.fill(8)
        world.network.faults = lambda *_: fault
        with pytest.raises(TrenzaError):
            await world.a.cedes.step(B, 1)
        assert world.a.free() == (set(), set())  # given up, and nobody's
        assert world.a.issuable() == set()
        world.network.faults = lambda *_: None
        await world.a.cedes.step(B, 1)
        assert world.a.issuable() == set(range(8))
        assert len(world.b.pair.held) == 1
        await world.a.cedes.step(B, 1)
        assert len(world.network.sent) == 2

    run(story)


def test_a_cede_that_arrives_twice_at_once_is_held_once():
    async def story(world: PairWorld) -> None:
        await world.fill(8)
        world.network.faults = lambda *_: Fault.DUPLICATE
        await world.a.cedes.step(B, 1)
        assert len(world.b.pair.held) == 1
        assert world.a.issuable() == set(range(8))

    run(story)


def test_a_renewed_session_of_the_same_lives_is_asked_again_and_another_life_is_not():
    async def story(world: PairWorld) -> None:
        await world.fill(16)
        for restarts in (False, True):
            world.network.faults = lambda *_: Fault.DROP_ANSWER
            with pytest.raises(TrenzaError):
                await world.a.cedes.step(B, 1)
            world.network.faults = lambda *_: None
            if restarts:
                await world.b.restart()
            world.meet()
            await world.a.cedes.step(B, 1)
            if not restarts:
                assert len(await world.a.issue(8)) == 8
        assert world.a.issuable() == set()
        assert world.a.ctx.counters["slots_lost_in_cede"] == 8

    run(story)


# --- crashes


@pytest.mark.parametrize("fails", Fails)
def test_slots_that_were_perhaps_given_up_are_granted_to_nobody(fails):
    async def story(world: PairWorld) -> None:
        await world.fill(8)
        world.a.store.fail_next = fails
        with pytest.raises(StoreUnavailableError):
            await world.a.cedes.step(B, 1)
        assert await world.a.pools.granting.grant(B, full=True, slots=8, accept=any_strands) == ()
        assert world.b.free() == (set(), set(range(8)))

    run(story)


@pytest.mark.parametrize("fails", Fails)
def test_slots_that_a_disk_did_not_take_the_giving_up_of_are_ceded_when_it_does_again(fails):
    async def story(world: PairWorld) -> None:
        await world.fill(8)
        for _ in range(3):  # a full disk, for longer than a question is waited for
            world.a.store.fail_next = fails
            with pytest.raises(StoreUnavailableError):
                await world.a.cedes.step(B, 1)
            assert not [one for one in world.network.sent if isinstance(one[2], Cede)]
            world.clock.advance(60.0)
        world.meet()  # the session was renewed meanwhile
        assert await world.a.cedes.step(B, 1) == 8
        assert world.a.issuable() == set(range(8))
        assert world.a.ctx.counters["slots_lost_in_cede"] == 0
        assert world.a.segment.users == 0

    run(story)


def test_a_segment_that_is_dropped_before_its_slots_are_given_up_does_not_come_back():
    async def story(world: PairWorld) -> None:
        await world.fill(8)
        world.a.store.fail_next = Fails.BEFORE
        with pytest.raises(StoreUnavailableError):
            await world.a.cedes.step(B, 1)
        await world.a.pools.drop_segment(world.a.segment)
        assert await world.a.cedes.step(B, 1) == 0
        assert not world.a.store.tables[Table.SEGMENT]

    run(story)


@pytest.mark.parametrize("fails", Fails)
def test_a_window_that_was_perhaps_held_is_not_answered(fails):
    async def story(world: PairWorld) -> None:
        await world.fill(8)
        world.b.store.fail_next = fails
        with pytest.raises(RefusedError):
            await world.a.cedes.step(B, 1)
        with pytest.raises(RefusedError):
            await world.a.say(Cede(world.a.ctx.session(B).id, SEGMENT, 0, 8))
        assert world.a.issuable() == set()

    run(story)


def test_a_node_that_dies_with_ceded_slots_never_gets_them_again():
    async def story(world: PairWorld) -> None:
        await world.fill(16)
        await world.a.cedes.step(B, 1)
        assert len(await world.a.issue(3)) == 3
        await world.a.restart()
        world.meet()
        assert world.a.issuable() == set()
        assert world.a.free() == (set(range(8)), set())
        with pytest.raises(RefusedError):  # its next life asks the same question
            await world.a.say(Cede(world.a.ctx.session(B).id, SEGMENT, 8, 8))

    run(story)


def test_a_window_held_for_ceded_slots_outlives_its_holder():
    async def story(world: PairWorld) -> None:
        await world.fill(16)
        await world.a.cedes.step(B, 1)
        await world.b.restart()
        (held,) = world.b.pair.held.values()
        assert (held.first, held.count) == (8, 8)
        assert world.b.free() == (set(), set(range(8)))

    run(story)


# --- a dishonest peer


@pytest.mark.parametrize(
    ("first", "count"), [(8, 8), (4, 8), (0, 4), (0, 16), (7, 1), (15, 2), (40, 1)], ids=lambda value: str(value)
)
def test_slots_that_are_not_the_peers_to_give_are_refused_and_nothing_is_consumed(first, count):
    async def story(world: PairWorld) -> None:
        await world.fill(16)
        await world.b.get_window(8)  # given that A has granted 0 to 7
        await world.a.cedes.step(B, 1)  # and ceded 8 to 15
        before = {table: dict(rows) for table, rows in world.b.store.tables.items()}
        if (first, count) == (8, 8):
            return  # the same question: the same answer
        with pytest.raises(RefusedError):
            await world.a.say(Cede(world.a.ctx.session(B).id, SEGMENT, first, count))
        assert world.b.store.tables == before
        assert world.b.ctx.counters["cedes_refused"] == 1
        assert world.b.issuable() == set(range(8))

    run(story)


def test_a_segment_of_nobody_and_slots_in_this_nodes_own_gift_are_refused():
    async def story(world: PairWorld) -> None:
        await world.fill(8, issuer=A)  # B may grant these
        session = world.a.ctx.session(B).id
        for message in (Cede(session, SEGMENT, 0, 8), Cede(session, bytes([7]) * 16, 0, 8)):
            with pytest.raises(RefusedError):
                await world.a.say(message)
        with pytest.raises(RefusedError):
            await world.a.say(Cede(bytes(16), SEGMENT, 0, 8))
        assert world.b.free() == (set(range(8)), set())

    run(story)


def test_an_answer_of_other_slots_is_not_believed():
    async def story(world: PairWorld) -> None:
        await world.fill(16)
        honest = world.b.handle

        async def lies(peer, message):
            answer = await honest(peer, message)
            assert isinstance(answer, WindowAnswer)
            (grant,) = answer.grants
            return WindowAnswer((type(grant)(grant.window, grant.segment, 0, 8),))

        world.network.handlers[B] = lies
        with pytest.raises(TrenzaError):
            await world.a.cedes.step(B, 1)
        assert world.a.issuable() == set()
        assert world.a.ctx.counters["slots_lost_in_cede"] == 8

    run(story)


# --- hand-back


def test_what_a_node_that_stops_has_not_issued_is_granted_again_under_a_fresh_number():
    async def story(world: PairWorld) -> None:
        await world.fill(16)
        await world.b.get_window(12)
        await world.b.pools.reserving.reserve(A, 8, full=True, accept=any_strands)
        issued = await world.b.issue(5)  # three more are reserved, and not issued
        await world.b.stop()
        assert world.a.free() == (set(range(5, 16)), set())
        assert world.a.ctx.counters["slots_handed_back"] == 7
        await world.b.restart()
        world.meet()
        assert world.b.free() == (set(), set(range(5, 16)))
        await world.b.get_window(16)
        again = await world.b.issue(11)
        assert {slot for _, slot in issued} | {slot for _, slot in again} == set(range(16))
        assert not {window for window, _ in issued} & {window for window, _ in again}
        old = world.a.pair.held[issued[0][0]]
        assert old.reserve(range(5))  # keys issued before can still be fetched
        assert not old.reserve(range(5, 6))

    run(story)


def test_ceded_slots_too_are_handed_back():
    async def story(world: PairWorld) -> None:
        await world.fill(16)
        await world.a.cedes.step(B, 1)
        await world.a.issue(2)
        await world.a.stop()
        await world.a.restart()
        world.meet()
        assert world.b.free() == (set(range(10, 16)), set(range(8)))  # B has the say over them now
        assert world.a.free() == (set(range(8)), set(range(10, 16)))
        await world.a.get_window(6)
        assert world.a.issuable() == set(range(10, 16))

    run(story)


def test_a_farewell_that_nobody_heard_costs_its_slots_only():
    async def story(world: PairWorld) -> None:
        await world.fill(16)
        await world.b.get_window(8)
        world.network.faults = lambda *_: Fault.DROP_REQUEST
        with pytest.raises(TrenzaError):
            await world.b.stop()
        world.network.faults = lambda *_: None
        await world.b.restart()
        world.meet()
        await world.b.get_window(16)
        assert world.b.issuable() == set(range(8, 16))

    run(story)


def test_the_farewell_of_another_session_is_refused():
    async def story(world: PairWorld) -> None:
        await world.fill(16)
        await world.b.get_window(8)
        former = world.b.ctx.session(A).id
        marks = world.b.marks()
        world.meet()
        with pytest.raises(RefusedError):
            await world.b.say(Leave(former, marks))
        assert world.a.free() == (set(range(8, 16)), set())

    run(story)


def test_a_life_hands_back_no_window_of_another():
    async def story(world: PairWorld) -> None:
        await world.fill(16)
        await world.b.get_window(8)
        marks = world.b.marks()
        await world.b.restart()
        world.meet()
        await world.b.say(Leave(world.b.ctx.session(A).id, marks))
        assert world.a.free() == (set(range(8, 16)), set())

    run(story)


@pytest.mark.parametrize("told", ["delivered", "issued", "void"])
def test_slots_of_which_more_is_known_are_not_taken_back(told):
    async def story(world: PairWorld) -> None:
        await world.fill(16)
        await world.b.get_window(8)
        (held,) = world.a.pair.held.values()
        match told:
            case "delivered":
                assert held.reserve(range(3, 4))
            case "issued":
                await world.a.pools.granting.note_marks(B, (WindowMark(held.number, 4, ()),))
            case "void":
                await world.a.pools.granting.note_marks(B, (WindowMark(held.number, 4, (3,)),))
        await world.b.say(Leave(world.b.ctx.session(A).id, (WindowMark(held.number, 2, ()),)))
        assert world.a.free() == (set(range(8, 16)), set())
        assert held.count == 8

    run(story)


@pytest.mark.parametrize("fails", Fails)
def test_nothing_is_granted_again_before_it_is_free_on_disk(fails):
    async def story(world: PairWorld) -> None:
        await world.fill(8)
        await world.b.get_window(8)
        told = await world.b.pools.release_reserved()
        world.a.store.fail_next = fails
        with pytest.raises(RefusedError):
            await world.b.say(Leave(world.b.ctx.session(A).id, told[A]))
        assert await world.a.pools.granting.grant(B, full=True, slots=8, accept=any_strands) == ()

    run(story)


def test_a_copy_of_the_issuers_disk_takes_no_slot_that_a_later_life_was_granted():
    async def story(world: PairWorld) -> None:
        await world.fill(8)
        await world.b.get_window(8)
        await world.b.stop()
        copy = world.b.store.after_crash()  # it remembers that it gave everything back
        world.b.store._closed = False
        await world.b.restart()
        world.meet()
        await world.b.get_window(8)
        assert len(await world.b.issue(8)) == 8
        await world.b.restart(copy)
        world.meet()
        await world.b.get_window(8)
        assert world.b.issuable() == set()  # the holder has the say, and has nothing left

    run(story)


def test_a_copy_of_the_holders_disk_grants_nothing_that_the_issuer_has_seen():
    async def story(world: PairWorld) -> None:
        await world.fill(8)
        copy = world.a.store.after_crash()
        world.a.store._closed = False
        await world.b.get_window(8)
        assert len(await world.b.issue(3)) == 3
        await world.b.stop()  # it hands back 3 to 7, and the farewell is the last that the holder hears
        await world.a.restart(copy)
        await world.b.restart()
        world.meet()
        with pytest.raises(TrenzaError):
            await world.b.get_window(8)
        assert world.b.issuable() == set()

    run(story)


def test_a_copy_of_the_holders_disk_gives_nothing_away_that_it_had_ceded():
    async def story(world: PairWorld) -> None:
        await world.fill(16)
        copy = world.a.store.after_crash()
        world.a.store._closed = False
        await world.a.cedes.step(B, 1)
        assert await world.a.issue(3) == [(0, 8), (0, 9), (0, 10)]
        await world.a.restart(copy)
        world.meet()
        assert world.a.free() == (set(range(16)), set())  # it has forgotten that it gave 8 to 15 up
        with pytest.raises(RefusedError):  # B has not, whether it is asked to hold them again
            await world.a.say(Cede(world.a.ctx.session(B).id, SEGMENT, 8, 8))
        await world.b.get_window(8)
        assert world.b.issuable() == set(range(8))  # what A still has the say over
        with pytest.raises(TrenzaError):
            await world.b.get_window(8)  # or is granted them
        assert world.b.issuable() == set(range(8))

    run(story)


def test_rows_of_before_cede_are_understood():
    async def story(world: PairWorld) -> None:
        await world.fill(16)
        await world.b.get_window(6)
        for end in (world.a, world.b):
            from trenza.kms import rows

            row = rows.decode(end.store.tables[Table.SEGMENT][SEGMENT], rows.SegmentRow)
            old = rows.encode(rows.SegmentRow(row.peer, row.record, 6))
            end.store.tables[Table.SEGMENT][SEGMENT] = old[:1].replace(b"\x95", b"\x93") + old[1:-2]
            await end.restart()
        assert world.a.free() == (set(range(6, 16)), set())
        assert world.b.free() == (set(), set(range(6, 16)))
        assert slots_in(((6, 2),)) == {6, 7}

    run(story)
