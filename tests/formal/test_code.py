"""The model and the code say the same: random steps of the model, done by `kms.pools` and `kms.cede`.

After every step both ends of the code must believe, slot by slot, what those of the model do: what may still be
given, which windows are held and what of them was delivered, what may be issued at once and after a reservation.
Messages come late, twice or never, as in the model; what the model ignores, the code must refuse, and change nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from formal.model import Machine, Meeting, Message, Slots, State, first_state, steps_of
from formal.worlds import bounds
from tests.kms.pair_world import A, B, End, PairWorld, any_strands, slots_in

from trenza.base.errors import TrenzaError
from trenza.core.choice import StrandKind
from trenza.kms.demand import Surplus
from trenza.kms.ports import Insert, Table
from trenza.kms.rows import delivered_key
from trenza.wire.peer import Cede, Leave, PeerMessage, WindowAnswer, WindowGrant, WindowMark

SLOTS = 6
SEGMENT = bytes([1]) * 16
KIND = StrandKind(full=True, max_hops=9, relays=frozenset(), max_age_s=0)
RARE = {"crashes": 0.02, "stops": 0.05, "issues": 2.0, "hears": 2.0}
WORLD = bounds(SLOTS, grants=12, cedes=12, crashes=4, stops=4)


def members(slots: Slots) -> set[int]:
    return {slot for slot in range(SLOTS) if slots >> slot & 1}


class Walk:
    """One history, in the model and in the code at once."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.model = first_state(WORLD)
        self.steps = steps_of(WORLD)
        self.world = PairWorld()
        self.ends: tuple[End, End] = (self.world.a, self.world.b)
        self.sessions: dict[Meeting, bytes] = {}
        self.left: dict[bytes, tuple[WindowMark, ...]] = {}
        self.asked: dict[tuple[int, Slots], object] = {}
        self.trace: list[str] = []
        self.done: set[str] = set()

    async def live(self, length: int) -> None:
        await self.world.fill(SLOTS)
        self._note_session()
        for _ in range(length):
            found = [(name, after) for name, after in self.steps(self.model) if self._is_possible(name)]
            if not found:
                return
            if self.chance.random() < 0.3:
                await self._hears_in_vain()
            weights = [RARE.get(name.split()[1], 1.0) for name, _ in found]
            ((name, after),) = self.chance.choices(found, weights)
            self.trace.append(name)
            self.done.add(name.split()[1])
            before, self.model = self.model, after
            await self._do(name, before, after)
            self._compare()

    # --- what the code can do of it: it grants from below and cedes from above, and takes windows in their order

    def _is_possible(self, name: str) -> bool:
        node, deed, slots = _read(name)
        machine, end = self.model.machines[node], self.ends[node]
        if deed == "grants":
            first, count = end.segment.mine.lowest(SLOTS)
            return slots in ({*range(first, first + n)} for n in range(1, count + 1))
        if deed == "gives":
            first, count = end.segment.mine.highest(SLOTS)
            return slots in ({*range(first + count - n, first + count)} for n in range(1, count + 1))
        if deed == "reserves":
            return bool(slots) and slots <= members(machine.rows[0].slots)
        if deed == "issues":
            first_window = next(window for window in end.pair.issuer if window.in_hand)
            return first_window.number == machine.hand[0].number
        return True

    async def _do(self, name: str, before: State, after: State) -> None:
        node, deed, slots = _read(name)
        end, peer = self.ends[node], self.ends[1 - node]
        match deed:
            case "grants":
                (grant,) = await end.pools.granting.grant(peer.name, full=True, slots=len(slots), accept=any_strands)
                assert {*range(grant.first, grant.first + grant.count)} == slots
            case "gives":
                (asked,) = await end.cedes._give_up(peer.name, Surplus(KIND, any_strands, len(slots)))
                self.asked[node, after.machines[node].pending] = asked
            case "hears":
                (message,) = [one for one in before.wire if self._is_heard(one, node, name, before, after)][:1]
                await self._hear(message)
            case "reserves":
                in_hand = sum(window.in_hand for window in end.pair.issuer)
                await end.pools.reserving.reserve(peer.name, in_hand + len(slots), full=True, accept=any_strands)
            case "issues":
                (take,) = end.pair.issuer.take(1, full=True, slots=1, accept=any_strands)
                assert {take.slot} == slots
                assert after.issued[take.slot] == (node, take.window.number)
            case "delivers":
                (slot,) = slots
                key = after.issued[slot]
                assert key is not None
                assert end.pair.held[key[1]].reserve(range(slot, slot + 1))
                await end.store.commit([Insert(Table.DELIVERED, delivered_key(peer.name, key[1], slot))])
            case "stops":
                session = self.sessions[before.machines[node].session]  # type: ignore[index]
                self.left[session] = (await end.pools.release_reserved()).get(peer.name, ())
            case "crashes":
                end.store._closed = True
            case "starts":
                end.store._closed = False
                await end.restart()
            case "meets":
                self.world.meet()
                self._note_session()
                for one, other in ((0, 1), (1, 0)):
                    if before.machines[one].knows != after.machines[other].life:
                        self.ends[one].pools.granting.renew_incarnation(self.ends[other].name)
            case _:
                raise AssertionError(name)

    def _note_session(self) -> None:
        one, other = self.model.machines
        self.sessions[one.life, other.life] = self.ends[0].ctx.session(B).id

    # --- messages

    def _is_heard(self, message: Message, node: int, name: str, before: State, after: State) -> bool:
        """The message of which the model says that it was heard."""
        same = message.to == node and f"hears {message.kind} " in name
        fits = {*range(SLOTS)} & set().union(*(members(part.slots) for part in message.windows)) == _read(name)[2]
        only = before._replace(wire=frozenset({message}))
        return same and fits and any(now.machines == after.machines for step, now in self.steps(only) if step == name)

    async def _hears_in_vain(self) -> None:
        """Bring a message that the model would ignore: the code must, too."""
        heard = [
            message
            for message in sorted(self.model.wire)
            if self.model.machines[message.to].up
            and message.under in {self.model.machines[message.to].life, self.model.machines[message.to].session}
            and not any(" hears " in step for step, _ in self.steps(self.model._replace(wire=frozenset({message}))))
        ]
        if heard:
            message = self.chance.choice(heard)
            self.trace.append(f"(in vain: {message})")
            await self._hear(message, in_vain=True)
            self._compare()

    async def _hear(self, message: Message, *, in_vain: bool = False) -> None:
        end, peer = self.ends[message.to], self.ends[1 - message.to]
        part = message.windows[0] if message.windows else None
        try:
            match message.kind:
                case "grant":
                    assert part is not None
                    await end.pools.taking.accept(peer.name, [_grant(part.number, part.slots)])
                case "cede":
                    assert part is not None
                    session = self.sessions[message.under]  # type: ignore[index]
                    first, count = _range(part.slots)
                    await end.cedes.handle(peer.name, Cede(session, SEGMENT, first, count))
                case "ceded":
                    assert part is not None
                    asked = self.asked.pop((message.to, part.slots), None)
                    if asked is not None:
                        await self._answered(end, peer, asked, _grant(part.number, part.slots))
                case "leave":
                    session = self.sessions[message.under]  # type: ignore[index]
                    await end.cedes.take_back(peer.name, Leave(session, self.left[session]))
                    end.ctx.sessions.pop(peer.name, None)
        except TrenzaError:
            assert in_vain, self.trace

    async def _answered(self, end: End, peer: End, asked: object, grant: WindowGrant) -> None:
        """Let the answer to a cede arrive."""

        async def answers(_peer: str, _message: PeerMessage) -> PeerMessage:
            return WindowAnswer((grant,))

        handlers: dict[object, Callable[..., Awaitable[PeerMessage]]] = self.world.network.handlers  # type: ignore[assignment]
        handlers[peer.name] = answers
        try:
            await end.cedes._ask(peer.name, asked)  # type: ignore[arg-type]
        finally:
            handlers[peer.name] = peer.handle

    # --- comparing

    def _compare(self) -> None:
        for machine, end in zip(self.model.machines, self.ends, strict=True):
            if machine.up:
                assert _believed(end) == _modelled(machine), "\n".join(self.trace)


def _believed(end: End) -> dict[str, object]:
    windows = list(end.pair.issuer)
    return {
        "mine": slots_in(end.segment.mine.ranges),
        "theirs": slots_in(end.segment.theirs.ranges),
        "held": {
            number: ({*range(held.first, held.first + held.count)}, held.delivered)
            for number, held in end.pair.held.items()
            if held.count
        },
        "rows": {one.number: {*range(one.reserved, one.end)} for one in windows if one.reserved < one.end},
        "hand": {one.number: {*range(one.next, one.reserved)} for one in windows if one.in_hand},
    }


def _modelled(machine: Machine) -> dict[str, object]:
    return {
        "mine": members(machine.mine),
        "theirs": members(machine.theirs),
        "held": {held.number: (members(held.slots), members(held.delivered)) for held in machine.held if held.slots},
        "rows": {row.number: members(row.slots) for row in machine.rows},
        "hand": {part.number: members(part.slots) for part in machine.hand},
    }


def _read(name: str) -> tuple[int, str, set[int]]:
    """Return whose step it is, which, and of which slots."""
    who, deed = name.split()[:2]
    slots = {int(slot) for part in name.split("{")[1:] for slot in part.split("}")[0].split(",") if slot}
    return "AB".index(who), deed, slots


def _range(slots: Slots) -> tuple[int, int]:
    found = sorted(members(slots))
    return found[0], len(found)


def _grant(number: int, slots: Slots) -> WindowGrant:
    return WindowGrant(number, SEGMENT, *_range(slots))


@pytest.mark.parametrize("seed", range(40))
def test_the_code_does_what_the_model_does(seed: int) -> None:
    async def story() -> None:
        await Walk(seed).live(60)

    asyncio.run(story())


@pytest.mark.slow
def test_the_code_does_what_the_model_does_for_long() -> None:
    async def story() -> set[str]:
        done: set[str] = set()
        for seed in range(1_000, 1_300):
            walk = Walk(seed)
            await walk.live(100)
            done |= walk.done
        return done

    done = asyncio.run(story())
    assert {
        "grants",
        "gives",
        "hears",
        "reserves",
        "issues",
        "delivers",
        "stops",
        "crashes",
        "starts",
        "meets",
    } <= done
    assert A < B
