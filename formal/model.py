"""Two nodes, one segment of few slots: who may issue which slot, and who may deliver it (README.md says it in words).

A state is what both machines have on disk and in memory, the messages that are under way, and what clients have seen.
`steps` are all that can happen next; `wrong` is what must never be. A rule of the real system is one line here, and
each `Flaw` takes one away: the tests see that every flaw is found.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, TypeAlias

Slots: TypeAlias = int  # a set of slots, a bit each
Life: TypeAlias = tuple[int, int, int]  # epoch, incarnation, nonce
Meeting: TypeAlias = tuple[Life, Life]  # a session: a life of node 0 and a life of node 1


class Flaw(enum.Enum):
    """A rule that a careless implementation would leave out."""

    RESERVED_IN_MEMORY = "a sub-range is issued from before the store has given it up"
    TAKEN_WITHOUT_LOOKING = "an issuer takes any grant, also of slots that it has seen before"
    CEDED_BEFORE_GIVEN_UP = "a cede is asked for before the slots are given up durably"
    CEDED_UNSEEN = "a cede is taken without looking whether the slots were granted to this node"
    CEDE_ANSWERED_TWICE = "the answer to a cede counts again when it arrives again"
    WINDOWS_SURVIVE = "an issuer goes on with the windows of its last life"
    DELIVERED_IN_MEMORY = "a key leaves before its delivery is durable"
    LEFT_BEFORE_GIVEN_UP = "a node hands slots back and does not make durable that it has given them up"
    LEFT_WITH_SECONDS = "a node hands back what another instance of it has reserved"
    LEFT_AFTER_A_CRASH = "a node hands back in its next life what its rows say was never reserved"
    UNKNOWN_TAKEN_FOR_DONE = "a sub-range is issued from although nobody knows whether its reserving was written"
    TWO_AT_ONCE = "a second incarnation is let in while the lease of the first runs"
    COPY_NOT_FOUND = "a node that finds its disk older than its anchor goes on as if nothing had happened"


class Held(NamedTuple):
    """A window that was granted or ceded: what its holder may deliver."""

    number: int
    slots: Slots
    delivered: Slots
    open: bool  # nothing else than the life that it was given to may hand it back
    ceded: Meeting | None  # the session in which the issuer asked for it by cede


class Reserved(NamedTuple):
    """Slots of one window: those of a row that are not reserved yet, or those that an instance holds in memory."""

    number: int
    slots: Slots


class Machine(NamedTuple):
    """One machine of a node; a clone is another one."""

    node: int
    up: bool
    # on disk
    life: Life
    ready: bool  # the segment is there
    mine: Slots  # which this node may still grant or cede
    theirs: Slots  # which this node may still be granted, or be asked to hold
    held: tuple[Held, ...]
    rows: tuple[Reserved, ...]  # windows to issue from: what is not reserved of them
    next: int  # number of the next window
    knows: Life | None  # the last life of the other node
    # in memory
    session: Meeting | None
    leased: bool
    hand: tuple[Reserved, ...]  # reserved and not issued, by the instance that leads
    second: tuple[Reserved, ...]  # the same, by another instance that shares the disk
    pending: Slots  # asked for by a cede that has no answer yet


class Message(NamedTuple):
    kind: str  # grant | cede | ceded | leave
    to: int
    under: Meeting | Life  # the session it speaks of; of an answer, the life that asked
    windows: tuple[Reserved, ...]


class Budget(NamedTuple):
    """How many faults may still happen."""

    grants: int
    cedes: int
    crashes: int
    stops: int
    unknowns: int
    restores: int
    clones: int
    expiries: int


class State(NamedTuple):
    machines: tuple[Machine, ...]
    wire: frozenset[Message]  # never taken off: what is under way may be lost, late, or come twice
    issued: tuple[tuple[int, int] | None, ...]  # by slot: the node whose client got it, and its window's number
    delivered: Slots  # those that the other node's client got
    burnt: Slots  # which nobody may ever get
    copies: tuple[Machine | None, Machine | None]  # of each node's disk
    lives: tuple[int, int]  # begun so far by each node
    left: Budget
    wrong: str | None


@dataclass(frozen=True)
class Bounds:
    """How much of the world is looked at."""

    slots: int
    budget: Budget
    seconds: bool = False  # node 1 has a second instance on the same disk
    anchored: bool = True  # a restore or clone is found by its anchor; else the anchor went back with the disk
    flaws: frozenset[Flaw] = frozenset()

    @property
    def has_copies(self) -> bool:
        """Disk and anchor are copied together, within one life, so that no node finds it by itself.

        What may happen then is stated in docs/adr/0005: a holder may deliver a second time to whoever is entitled,
        and stock that a copy believes in may be refused. No slot is issued twice even so.
        """
        return not self.anchored or self.budget.clones > 0

    def with_flaw(self, *flaws: Flaw) -> Bounds:
        return replace(self, flaws=frozenset(flaws))


def first_state(bounds: Bounds) -> State:
    """Both nodes have just filled a segment; node 0 is the one that grants its slots."""
    everything = (1 << bounds.slots) - 1
    lives: Meeting = ((1, 1, 1), (1, 1, 1))
    machines = tuple(
        Machine(
            node=node,
            up=True,
            life=lives[node],
            ready=True,
            mine=0 if node else everything,
            theirs=everything if node else 0,
            held=(),
            rows=(),
            next=0,
            knows=lives[1 - node],
            session=lives,
            leased=True,
            hand=(),
            second=(),
            pending=0,
        )
        for node in (0, 1)
    )
    none: tuple[tuple[int, int] | None, ...] = (None,) * bounds.slots
    return State(machines, frozenset(), none, 0, 0, (None, None), (1, 1), bounds.budget, None)


Step: TypeAlias = tuple[str, State]


def steps_of(bounds: Bounds) -> Callable[[State], Iterator[Step]]:
    """Return all that can happen next in a world of these bounds."""
    has = bounds.flaws.__contains__

    def steps(state: State) -> Iterator[Step]:
        for place, machine in enumerate(state.machines):
            who = "AB"[machine.node] + ("'" if place > 1 else "")
            if machine.up:
                yield from _meets(state, place, who)
                yield from _grants(state, place, who)
                yield from _asks_to_cede(state, place, who)
                yield from _hears(state, place, who)
                yield from _reserves(state, place, who)
                yield from _stops(state, place, who)
                yield from _delivers(state, place, who)
                yield from _expires(state, place, who)
                if machine.leased and (state.left.clones or len(state.machines) > 2):
                    yield f"{who}'s lease ends", _put(state, place, machine._replace(leased=False))
            else:
                yield from _starts(state, place, who)
            yield from _issues(state, place, who)
            yield from _is_copied(state, place, who)

    # --- meeting

    def _meets(state: State, place: int, who: str) -> Iterator[Step]:
        machine = state.machines[place]
        if machine.node != 0:
            return
        for other, peer in enumerate(state.machines):
            if peer.node != 1 or not peer.up:
                continue
            meeting: Meeting = (machine.life, peer.life)
            if machine.session == peer.session == meeting and machine.leased and peer.leased:
                continue
            for one, two in ((place, other), (other, place)):
                known = state.machines[two].knows
                if known is not None and _is_later(known, state.machines[one].life):
                    node = state.machines[one].node
                    if len(state.machines) > 2 and state.lives[node] > 3:
                        break  # two copies that meet the other by turns supersede each other without end
                    yield f"{'AB'[node]} hears of a later life of itself", _begins_anew(state, one, after=known)
                    break
            else:
                if not _is_leased_elsewhere(state, machine, peer) or has(Flaw.TWO_AT_ONCE):
                    yield f"{who} meets B{'' if other < 2 else chr(39)}", _met(state, place, other)

    def _is_leased_elsewhere(state: State, *both: Machine) -> bool:
        """Another incarnation of one of the two may still issue to the other."""
        for one, two in (both, both[::-1]):
            for rival in state.machines:
                if rival.node == one.node and rival.life != one.life and rival.life == two.knows and rival.leased:
                    return True
        return False

    def _met(state: State, place: int, other: int) -> State:
        machine, peer = state.machines[place], state.machines[other]
        meeting: Meeting = (machine.life, peer.life)
        for here, there in ((place, peer), (other, machine)):
            one = state.machines[here]
            if one.ready and not there.ready:
                state = _finished(state, here, whole=one.knows is not None and one.knows[0] == there.life[0])
                one = state.machines[here]
            if one.knows != there.life:
                one = one._replace(held=tuple(held._replace(open=False) for held in one.held))
            one = one._replace(knows=there.life, session=meeting, leased=True, pending=0)
            state = _put(state, here, one)
        return state

    # --- windows

    def _grants(state: State, place: int, who: str) -> Iterator[Step]:
        machine = state.machines[place]
        if machine.session is None or not machine.mine or not state.left.grants:
            return
        to = 1 - machine.node
        for slots in _runs(machine.mine, bounds.slots):
            given = Held(machine.next, slots, 0, True, None)
            after = machine._replace(mine=machine.mine & ~slots, held=(*machine.held, given), next=machine.next + 1)
            message = Message("grant", to, machine.session[to], (Reserved(given.number, slots),))
            budget = state.left._replace(grants=state.left.grants - 1)
            yield f"{who} grants {_told(slots)}", _put(state, place, after, sent=message)._replace(left=budget)

    def _asks_to_cede(state: State, place: int, who: str) -> Iterator[Step]:
        machine = state.machines[place]
        if machine.session is None or machine.pending or not machine.mine or not state.left.cedes:
            return
        budget = state.left._replace(cedes=state.left.cedes - 1)
        for slots in _runs(machine.mine, bounds.slots):
            mine = machine.mine if has(Flaw.CEDED_BEFORE_GIVEN_UP) else machine.mine & ~slots
            after = machine._replace(mine=mine, pending=slots)
            message = Message("cede", 1 - machine.node, machine.session, (Reserved(-1, slots),))
            sent = _put(state, place, after, sent=message)._replace(left=budget)
            yield f"{who} gives up {_told(slots)} and asks to issue it itself", sent

    def _hears(state: State, place: int, who: str) -> Iterator[Step]:
        machine = state.machines[place]
        for message in sorted(state.wire):
            if message.to != machine.node:
                continue
            after: State | None = None
            match message.kind:
                case "grant" if message.under == machine.life:
                    after = _accepted(state, place, message.windows[0])
                case "cede" if message.under == machine.session:
                    after = _ceded(state, place, message)
                case "ceded" if message.under == machine.life and machine.session is not None:
                    after = _took_ceded(state, place, message.windows[0])
                case "leave" if message.under == machine.session:
                    after = _let_go(state, place, message)
            if after is not None and after != state:
                told = ", ".join(_told(window.slots) for window in message.windows)
                yield f"{who} hears {message.kind} {told}", after

    def _accepted(state: State, place: int, given: Reserved) -> State | None:
        machine = state.machines[place]
        fresh = given.slots & ~machine.theirs == 0 or has(Flaw.TAKEN_WITHOUT_LOOKING)
        if not machine.ready or not fresh or any(row.number == given.number for row in machine.rows):
            return None
        rows = (*machine.rows, given)
        return _put(state, place, machine._replace(rows=rows, theirs=machine.theirs & ~given.slots))

    def _ceded(state: State, place: int, message: Message) -> State | None:
        machine = state.machines[place]
        slots = message.windows[0].slots
        if any(held.ceded == message.under and held.slots == slots for held in machine.held):
            return None  # asked again: the same answer, which is on the wire already
        if not machine.ready or (slots & ~machine.theirs and not has(Flaw.CEDED_UNSEEN)):
            return None
        assert machine.session is not None
        held = Held(machine.next, slots, 0, True, machine.session)
        after = machine._replace(theirs=machine.theirs & ~slots, held=(*machine.held, held), next=machine.next + 1)
        answer = Message(
            "ceded", 1 - machine.node, machine.session[1 - machine.node], (Reserved(held.number, slots),)
        )
        return _put(state, place, after, sent=answer)

    def _took_ceded(state: State, place: int, given: Reserved) -> State | None:
        machine = state.machines[place]
        asked = given.slots == machine.pending or has(Flaw.CEDE_ANSWERED_TWICE)
        if not machine.ready or not asked or any(row.number == given.number and row.slots for row in machine.rows):
            return None
        after = machine._replace(rows=(*machine.rows, given), pending=0, mine=machine.mine & ~given.slots)
        return _put(state, place, after)

    # --- keys

    def _reserves(state: State, place: int, who: str) -> Iterator[Step]:
        machine = state.machines[place]
        for row in machine.rows:
            if not row.slots:
                continue
            for slots in sorted({row.slots, row.slots & -row.slots}):
                rest = row if has(Flaw.RESERVED_IN_MEMORY) else row._replace(slots=row.slots & ~slots)
                given_up = machine._replace(rows=tuple(one for one in _with(machine.rows, rest) if one.slots))
                own = given_up._replace(hand=_added(machine.hand, row.number, slots))
                yield f"{who} reserves {_told(slots)}", _put(state, place, own)
                if bounds.seconds and machine.node == 1:
                    shared = given_up._replace(second=_added(machine.second, row.number, slots))
                    yield f"{who}'s second reserves {_told(slots)}", _put(state, place, shared)
                if state.left.unknowns:
                    budget = state.left._replace(unknowns=state.left.unknowns - 1)
                    burnt = _put(state, place, given_up)._replace(burnt=state.burnt | slots, left=budget)
                    yield f"{who} does not learn that {_told(slots)} was reserved", burnt
                    if has(Flaw.UNKNOWN_TAKEN_FOR_DONE):
                        used = machine._replace(hand=_added(machine.hand, row.number, slots))
                        yield (
                            f"{who} does not learn that nothing was written",
                            _put(state, place, used)._replace(left=budget),
                        )

    def _issues(state: State, place: int, who: str) -> Iterator[Step]:
        machine = state.machines[place]
        if not machine.leased:
            return
        for name, mine in (("hand", machine.hand), ("second", machine.second)):
            if not mine or (name == "hand" and not machine.up):
                continue
            part = mine[0]
            slot = part.slots & -part.slots
            rest = _without(mine, part.number, slot)
            after = machine._replace(hand=rest) if name == "hand" else machine._replace(second=rest)
            yield f"{who} issues {_told(slot)}", _issued(_put(state, place, after), machine, part.number, slot)

    def _issued(state: State, machine: Machine, number: int, slot: Slots) -> State:
        place = slot.bit_length() - 1
        wrong = state.wrong
        if state.issued[place] is not None:
            wrong = f"slot {place} was issued twice"
        elif state.burnt & slot:
            wrong = f"slot {place} was issued although it is doubtful"
        elif bounds.anchored and not _can_deliver(state, 1 - machine.node, number, slot):
            wrong = f"slot {place} was issued and can never be fetched"
        issued = (*state.issued[:place], (machine.node, number), *state.issued[place + 1 :])
        return state._replace(issued=issued, wrong=wrong)

    def _can_deliver(state: State, node: int, number: int, slot: Slots) -> bool:
        """The node still holds the window; one that lost its memory is excused."""
        return any(
            machine.life[0] > 1 or any(held.number == number and held.slots & slot for held in machine.held)
            for machine in state.machines
            if machine.node == node
        )

    def _delivers(state: State, place: int, who: str) -> Iterator[Step]:
        machine = state.machines[place]
        for slot, key in enumerate(state.issued):
            if key is None or key[0] == machine.node:
                continue
            bit = 1 << slot
            for held in machine.held:
                if held.number != key[1] or not held.slots & bit or held.delivered & bit:
                    continue
                after = machine._replace(held=_with(machine.held, held._replace(delivered=held.delivered | bit)))
                wrong = state.wrong
                if state.delivered & bit and not bounds.has_copies:
                    wrong = f"slot {slot} was delivered twice"
                done = _put(state, place, after)._replace(delivered=state.delivered | bit, wrong=wrong)
                yield f"{who} delivers {_told(bit)}", done

    def _expires(state: State, place: int, who: str) -> Iterator[Step]:
        machine = state.machines[place]
        if not state.left.expiries:
            return
        for held in machine.held:
            if not held.open:
                rest = tuple(one for one in machine.held if one.number != held.number)
                budget = state.left._replace(expiries=state.left.expiries - 1)
                after = _put(state, place, machine._replace(held=rest))._replace(left=budget)
                yield f"{who} lets {_told(held.slots)} expire", after

    # --- lives

    def _stops(state: State, place: int, who: str) -> Iterator[Step]:
        machine = state.machines[place]
        if state.left.crashes:
            budget = state.left._replace(crashes=state.left.crashes - 1)
            yield f"{who} crashes", _down(state, place)._replace(left=budget)
        if state.left.stops and machine.session is not None:
            budget = state.left._replace(stops=state.left.stops - 1)
            yield f"{who} stops in good order", _left(state, place)._replace(left=budget)

    def _down(state: State, place: int) -> State:
        """The process that leads is gone; what another instance has in hand, it still has."""
        machine = state.machines[place]
        lost = _all(machine.hand)
        after = machine._replace(
            up=False,
            session=None,
            leased=machine.leased and bounds.seconds,
            hand=(),
            held=tuple(h._replace(delivered=0) for h in machine.held)
            if has(Flaw.DELIVERED_IN_MEMORY)
            else machine.held,
            pending=0,
        )
        return _put(state, place, after)._replace(burnt=state.burnt | lost)

    def _left(state: State, place: int) -> State:
        """Give up durably what was not issued, then say so."""
        machine = state.machines[place]
        rest = machine.rows
        for part in (*machine.hand, *(machine.second if has(Flaw.LEFT_WITH_SECONDS) else ())):
            rest = _added(rest, part.number, part.slots)
        rest = tuple(part for part in rest if part.slots)
        theirs = machine.theirs if has(Flaw.LEFT_BEFORE_GIVEN_UP) else machine.theirs | _all(rest)
        after = machine._replace(rows=(), hand=(), theirs=theirs)
        assert machine.session is not None
        message = Message("leave", 1 - machine.node, machine.session, rest)
        return _down(_put(state, place, after, sent=message), place)

    def _let_go(state: State, place: int, message: Message) -> State | None:
        """Make grantable again what the other gives back of windows that are open."""
        machine = state.machines[place]
        held, mine = machine.held, machine.mine
        for part in message.windows:
            window = next((one for one in held if one.number == part.number and one.open), None)
            if window is None or part.slots & ~window.slots or part.slots & window.delivered:
                continue
            held = _with(held, window._replace(slots=window.slots & ~part.slots))
            mine |= part.slots
        return _put(state, place, machine._replace(held=held, mine=mine, session=None, leased=False))

    def _starts(state: State, place: int, who: str) -> Iterator[Step]:
        machine = state.machines[place]
        yield f"{who} starts", _begun(state, place, machine)
        copy = state.copies[machine.node]
        if copy is not None and state.left.restores:
            budget = state.left._replace(restores=state.left.restores - 1)
            if bounds.anchored and not has(Flaw.COPY_NOT_FOUND):
                copy = _dropped(copy)._replace(life=(copy.life[0] + 1, *copy.life[1:]))
            after = _begun(state, place, copy)
            yield f"{who} starts from a copy", after._replace(left=budget)

    def _begun(state: State, place: int, disk: Machine) -> State:
        """Begin a life on what the disk holds: windows to issue from are dropped."""
        node = disk.node
        lives = tuple(count + (one == node) for one, count in enumerate(state.lives))
        life = (disk.life[0], disk.life[1] + 1, lives[node])
        theirs = disk.theirs | (_all(disk.rows) if has(Flaw.LEFT_AFTER_A_CRASH) else 0)
        rows = disk.rows if has(Flaw.WINDOWS_SURVIVE) else ()
        after = disk._replace(up=True, life=life, session=None, leased=False, rows=rows, theirs=theirs, pending=0)
        after = after._replace(second=(), hand=())
        state = _put(state, place, after)._replace(lives=(lives[0], lives[1]), burnt=state.burnt | _all(disk.second))
        if has(Flaw.LEFT_AFTER_A_CRASH) and disk.knows is not None and disk.rows:
            meeting = (disk.life, disk.knows) if node == 0 else (disk.knows, disk.life)
            state = _put(state, place, after, sent=Message("leave", 1 - node, meeting, disk.rows))
        return state

    def _begins_anew(state: State, place: int, *, after: Life) -> State:
        """Drop all strands and come back in an epoch after that of a life nobody here remembers."""
        machine = state.machines[place]
        state = state._replace(burnt=state.burnt | _all(machine.hand) | _all(machine.second))
        one = _dropped(machine)._replace(life=(max(machine.life[0], after[0]) + 1, *machine.life[1:]))
        return _begun(state, place, one)

    def _finished(state: State, place: int, *, whole: bool) -> State:
        """The other end has the segment no more: deliver what was issued, if the other remembers that; no more."""
        machine = state.machines[place]
        burnt = state.burnt | _all(machine.hand) | _all(machine.second)
        if whole and machine.held:
            after = machine._replace(mine=0, theirs=0, rows=(), hand=(), second=(), pending=0)
        else:
            after = _dropped(machine)
        return _put(state, place, after)._replace(burnt=burnt)

    def _is_copied(state: State, place: int, who: str) -> Iterator[Step]:
        machine = state.machines[place]
        if place > 1:
            return
        disk = machine._replace(up=False, session=None, leased=False, hand=(), second=(), pending=0)
        if state.left.restores and state.copies[machine.node] is None:
            copies = (disk, state.copies[1]) if machine.node == 0 else (state.copies[0], disk)
            yield f"{who}'s disk is copied", state._replace(copies=copies)
        if state.left.clones and machine.node == 1 and len(state.machines) == 2:
            budget = state.left._replace(clones=state.left.clones - 1)
            cloned = state._replace(machines=(*state.machines, disk), left=budget)
            yield f"{who} is cloned", _begun(cloned, len(state.machines), disk)

    return steps


# --- what must never be


def wrong_of(bounds: Bounds) -> Callable[[State], str | None]:
    """Return the invariants, as one question."""
    heals = lru_cache(maxsize=1 << 18)(lambda state: _stock_is_lost(state, bounds))

    def wrong(state: State) -> str | None:
        if state.wrong is not None:
            return state.wrong
        for machine in state.machines:
            reserved = _all(machine.hand) | _all(machine.second)
            if reserved & _all(machine.rows):
                return "slots are issued from memory that the store has not given up"
            if not bounds.has_copies and machine.life[0] == 1 and machine.mine & _issued_slots(state):
                return "a slot that was issued may be granted again"
        if not bounds.has_copies and heals(_calm(state)):
            return "there is stock, all is well again, and no key can be issued"
        return None

    return wrong


def _issued_slots(state: State) -> Slots:
    return sum(1 << slot for slot, key in enumerate(state.issued) if key is not None)


def _calm(state: State) -> State:
    """What is under way is lost, and no fault happens any more."""
    machines = tuple(one for place, one in enumerate(state.machines) if place < 2)
    nothing = Budget(0, 0, 0, 0, 0, 0, 0, 0)
    blank: tuple[tuple[int, int] | None, ...] = (None,) * len(state.issued)
    return State(machines, frozenset(), blank, 0, 0, (None, None), state.lives, nothing, None)


def _stock_is_lost(calm: State, bounds: Bounds) -> bool:
    """With both nodes up and at peace: may slots be granted of which not one can ever be issued?

    The one run that matters is followed, not all: start who is down, meet, then grant all there is, accept, reserve.
    """
    steps = steps_of(bounds)
    wanted = ("starts", "hears of a later", "meets", "grants", "hears grant", "reserves", "issues")
    state = calm
    had_stock = False
    for _ in range(40):
        grants = Budget(9, 0, 0, 0, 0, 0, 0, 0)
        found = list(steps(state._replace(left=grants)))
        if any(" issues " in name for name, _ in found):
            return False
        chosen = next(
            (after for word in wanted for name, after in found if f" {word}" in name and "second" not in name), None
        )
        one, other = state.machines
        if one.session == other.session == (one.life, other.life) and (one.mine or other.mine):
            had_stock = True
        if chosen is None:
            break
        state = chosen
    return had_stock


# --- sets of slots


def _runs(slots: Slots, count: int) -> Iterator[Slots]:
    """Yield every range of neighbouring slots within `slots`."""
    for first in range(count):
        for last in range(first, count):
            run = ((1 << (last - first + 1)) - 1) << first
            if run & ~slots == 0:
                yield run


def _told(slots: Slots) -> str:
    return "{" + ",".join(str(slot) for slot in range(slots.bit_length()) if slots >> slot & 1) + "}"


def _all(parts: tuple[Reserved, ...]) -> Slots:
    found = 0
    for part in parts:
        found |= part.slots
    return found


def _added(parts: tuple[Reserved, ...], number: int, slots: Slots) -> tuple[Reserved, ...]:
    for part in parts:
        if part.number == number:
            return _with(parts, part._replace(slots=part.slots | slots))
    return tuple(sorted((*parts, Reserved(number, slots))))


def _without(parts: tuple[Reserved, ...], number: int, slots: Slots) -> tuple[Reserved, ...]:
    left = (part._replace(slots=part.slots & ~slots) if part.number == number else part for part in parts)
    return tuple(part for part in left if part.slots)


def _with(rows: tuple, row: Held | Reserved) -> tuple:  # type: ignore[type-arg]
    return tuple(row if one.number == row.number else one for one in rows)


def _dropped(machine: Machine) -> Machine:
    return machine._replace(
        ready=False, mine=0, theirs=0, held=(), rows=(), hand=(), second=(), pending=0, session=None, leased=False
    )


def _is_later(one: Life, other: Life) -> bool:
    if one[:2] == other[:2]:
        return one[2] != other[2]
    return one[:2] > other[:2]


def _put(state: State, place: int, machine: Machine, *, sent: Message | None = None) -> State:
    """Return the state with `machine` in its place; messages that nobody can hear any more are forgotten."""
    machines = (*state.machines[:place], machine, *state.machines[place + 1 :])
    wire = state.wire if sent is None else state.wire | {sent}
    ears = {one.session for one in machines} | {one.life for one in machines if one.up}
    if any(message.under not in ears for message in wire):
        wire = frozenset(message for message in wire if message.under in ears)
    return state._replace(machines=machines, wire=wire)
