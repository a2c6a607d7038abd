"""A node and a peer that remembers how far it had got: may a copy of the node use a pad, or deliver a key, again?

Disk and anchor are copied together, so no copy can find out by itself that it is one. It may be put in the node's
place (a restore) or run beside it (a clone), whenever. Slots are not in this world (model.py has them): here are the
units of link key that the node sends under, the keys that it delivers, its lives, and what the peer knows of them.
A state is what the machines of the node and the peer have on disk and in memory, what is on the wire, and what was
ever seen outside. Each `Flaw` takes one rule away.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

Units: TypeAlias = int  # a set of units, a bit each


class Flaw(enum.Enum):
    """A rule that a careless implementation would leave out."""

    SENT_BEFORE_TOLD = "a message leaves before the peer remembers how far the node has got"
    TOLD_BEFORE_DURABLE = "the peer answers before it has made durable what it was told"
    LAST_COUNTS = "of what it was told, the peer remembers the last and not the furthest"
    COUNTS_IGNORED = "the peer does not compare how far a life had got with where the next one began"
    NONCES_IGNORED = "two lives of one number are taken for the same"
    USED_IN_MEMORY = "a message leaves before the use of its unit is durable"
    DELIVERED_UNMET = "a life at another place delivers before it has met the peer"
    HOME_TOO_SOON = "a life is taken for one at home after another there, which the peer has not met either"
    HEARD_OF_THE_DEAD = "the peer notes how far a life has got although it knows a later one, which it forgets"


class Life(NamedTuple):
    epoch: int
    incarnation: int
    nonce: int
    past: tuple[
        tuple[int, int], ...
    ]  # of the lives before it in its epoch, newest first: nonce, and count at its end


class Disk(NamedTuple):
    life: Life
    counter: int  # of commits
    used: Units
    delivered: bool  # the one key of this world


class Message(NamedTuple):
    """A unit under which something is to leave: it may, once the peer knows of that count."""

    unit: int
    counter: int


class Machine(NamedTuple):
    """One machine of the node."""

    disk: Disk
    up: bool = True
    vouched: tuple[int, int] | None = (
        None  # what the peer knew when it first met a life at this place: whose, how far
    )
    holds: bool = True  # the strands of the first epoch; what begins anew has none
    is_later_here: bool = False  # only with a flaw: it was started at this place before
    met: bool = False  # the peer knows this life, and nothing that it has forgotten
    told: int = -1  # how far this life has got, as the peer said it remembers
    ready: Message | None = None


class State(NamedTuple):
    machines: tuple[Machine, ...]
    copy: Disk | None
    known: Life  # on the peer's disk: the last life of the node that it met
    reached: int  # and how far that had got
    thought: tuple[Life, int] | None  # what the peer has in memory only: a flaw
    wire: frozenset[tuple[Life, int]]  # "I have got so far": late, lost, twice
    answers: frozenset[tuple[Life, int]]
    sent: tuple[int | None, ...]  # by unit: the nonce of the life whose message went under it
    handed: tuple[int, int] | None  # the nonce of the life that delivered the key, and its count then
    nonces: int
    left: Budget
    wrong: str | None = None


class Budget(NamedTuple):
    """How many faults may still happen."""

    crashes: int
    copies: int
    clones: int
    peer_crashes: int


@dataclass(frozen=True)
class Bounds:
    """How much of the world is looked at."""

    units: int
    budget: Budget
    flaws: frozenset[Flaw] = frozenset()

    def with_flaw(self, *flaws: Flaw) -> Bounds:
        return replace(self, flaws=frozenset(flaws))


Step: TypeAlias = tuple[str, State]


def first_state(bounds: Bounds) -> State:
    """The node and its peer have met and hold some units, and the node a key to deliver."""
    life = Life(1, 1, 1, ())
    machine = Machine(Disk(life, 0, 0, delivered=False), vouched=(0, 0), met=True)
    none: tuple[int | None, ...] = (None,) * bounds.units
    return State((machine,), None, life, 0, None, frozenset(), frozenset(), none, None, 1, bounds.budget)


def steps_of(bounds: Bounds) -> Callable[[State], Iterator[Step]]:
    """Return all that can happen next in a world of these bounds."""
    has = bounds.flaws.__contains__

    def steps(state: State) -> Iterator[Step]:
        for place, machine in enumerate(state.machines):
            who = "A" + "'" * place
            if machine.up:
                yield from _works(state, place, who)
                yield from _meets(state, place, who)
                yield from _crashes(state, place, who)
            else:
                yield f"{who} starts", _begun(state, place, machine.disk, machine.vouched)
                if place == 0 and state.copy is not None:
                    yield "A's machine is put back", _begun(state, place, state.copy, None)
        yield from _is_copied(state)
        yield from _peer(state)

    # --- the node

    def _works(state: State, place: int, who: str) -> Iterator[Step]:
        machine = state.machines[place]
        disk = machine.disk
        if machine.holds and machine.met and machine.ready is None:
            for unit in range(bounds.units):
                if disk.used >> unit & 1:
                    continue
                after = disk._replace(counter=disk.counter + 1, used=disk.used | 1 << unit)
                if has(Flaw.USED_IN_MEMORY):
                    after = disk._replace(counter=disk.counter + 1)
                using = machine._replace(disk=after, ready=Message(unit, after.counter))
                yield f"{who} gives unit {unit} up", _put(state, place, using)
                break
        message = machine.ready
        if message is not None and (machine.told >= message.counter or has(Flaw.SENT_BEFORE_TOLD)):
            yield f"{who} sends under unit {message.unit}", _sent(state, place, message.unit)
        owes = machine.ready is not None or disk.delivered
        if (
            machine.met
            and owes
            and machine.holds
            and machine.told < disk.counter
            and (disk.life, disk.counter) not in state.wire
        ):
            said = state.wire | {(disk.life, disk.counter)}
            yield f"{who} says how far it is: {disk.counter}", state._replace(wire=said)
        for life, count in sorted(state.answers):
            if life == disk.life and count > machine.told:
                yield f"{who} hears that {count} is remembered", _put(state, place, machine._replace(told=count))
        vouched = machine.vouched is not None or has(Flaw.DELIVERED_UNMET) or machine.is_later_here
        if machine.holds and vouched and not disk.delivered:
            yield f"{who} delivers", _handed(state, place)

    def _sent(state: State, place: int, unit: int) -> State:
        machine = state.machines[place]
        nonce = machine.disk.life.nonce
        wrong = state.wrong
        if state.sent[unit] is not None:
            wrong = f"unit {unit} was used twice"
        sent = (*state.sent[:unit], nonce, *state.sent[unit + 1 :])
        return _put(state, place, machine._replace(ready=None))._replace(sent=sent, wrong=wrong)

    def _handed(state: State, place: int) -> State:
        """Deliver durably; wrong is a second time where the peer, when it vouched for this one, knew of the first."""
        machine = state.machines[place]
        disk = machine.disk._replace(counter=machine.disk.counter + 1, delivered=True)
        wrong = state.wrong
        if state.handed is not None:
            nonce, reached = machine.vouched or (state.known.nonce, state.reached)
            if nonce == state.handed[0] and reached >= state.handed[1]:
                wrong = "a key was delivered twice, and the peer knew of the first time"
        handed = (disk.life.nonce, disk.counter)
        return _put(state, place, machine._replace(disk=disk))._replace(handed=handed, wrong=wrong)

    def _crashes(state: State, place: int, who: str) -> Iterator[Step]:
        if state.left.crashes:
            budget = state.left._replace(crashes=state.left.crashes - 1)
            down = state.machines[place]._replace(up=False, met=False, told=-1, ready=None)
            yield f"{who} crashes", _put(state, place, down)._replace(left=budget)

    def _begun(state: State, place: int, disk: Disk, vouched: tuple[int, int] | None) -> State:
        """Begin a life: durable before anything else, and naming where the last one ended."""
        last = disk.life
        life = Life(last.epoch, last.incarnation + 1, state.nonces + 1, ((last.nonce, disk.counter), *last.past))
        is_later_here = has(Flaw.HOME_TOO_SOON) and place < len(state.machines) and state.machines[place].disk == disk
        machine = Machine(
            disk._replace(life=life, counter=disk.counter + 1),
            vouched=vouched,
            is_later_here=is_later_here,
            holds=last.epoch == 1,
        )
        return _put(state, place, machine)._replace(nonces=state.nonces + 1)

    def _is_copied(state: State) -> Iterator[Step]:
        disk = state.machines[0].disk
        if state.left.copies and state.copy is None:
            budget = state.left._replace(copies=state.left.copies - 1)
            yield "A's machine is copied", state._replace(copy=disk, left=budget)
        if state.left.clones and len(state.machines) == 1:
            budget = state.left._replace(clones=state.left.clones - 1)
            more = state._replace(machines=(*state.machines, Machine(disk, up=False)), left=budget)
            yield "A is cloned", _begun(more, 1, disk, None)

    # --- the peer

    def _meets(state: State, place: int, who: str) -> Iterator[Step]:
        machine = state.machines[place]
        if machine.met:
            return
        known, reached = _knows(state)
        life = machine.disk.life
        if _is_later(known, reached, life):
            if life.epoch == 1:
                yield f"{who} hears of what it has forgotten and begins anew", _begun_anew(state, place)
            return
        met = machine._replace(met=True, vouched=machine.vouched or (known.nonce, reached))
        if life == known:
            yield f"{who} meets B again", _put(state, place, met)
            return
        yield f"{who} meets B", _put(state, place, met)._replace(known=life, reached=0, thought=None)

    def _is_later(known: Life, reached: int, life: Life) -> bool:
        if known[:2] == life[:2]:
            return known.nonce != life.nonce and not has(Flaw.NONCES_IGNORED)
        since = life.incarnation - known.incarnation
        if known.epoch == life.epoch and 0 < since <= len(life.past):
            nonce, end = life.past[since - 1]
            return nonce != known.nonce or (reached > end and not has(Flaw.COUNTS_IGNORED))
        return known[:2] > life[:2]

    def _begun_anew(state: State, place: int) -> State:
        """Drop all strands; come back in the next epoch, which the peer will take for a later life."""
        machine = state.machines[place]
        life = Life(2, machine.disk.life.incarnation + 1, state.nonces + 1, ())
        disk = machine.disk._replace(life=life, counter=machine.disk.counter + 1)
        return _put(state, place, Machine(disk, holds=False))._replace(nonces=state.nonces + 1)

    def _peer(state: State) -> Iterator[Step]:
        known, reached = _knows(state)
        for life, count in sorted(state.wire):
            is_known = life == known or (has(Flaw.HEARD_OF_THE_DEAD) and life.epoch == 1)
            if not is_known:
                continue
            furthest = count if has(Flaw.LAST_COUNTS) or life != known else max(count, reached)
            heard = state._replace(answers=state.answers | {(life, count)})
            if has(Flaw.TOLD_BEFORE_DURABLE):
                heard = heard._replace(thought=(life, furthest))
                yield "B writes down what it was told", state._replace(known=known, reached=reached, thought=None)
            else:
                heard = heard._replace(known=life, reached=furthest)
            if count <= _told(state, life) and heard._replace(answers=state.answers) == state:
                continue  # the answer would tell nothing, and change nothing
            if heard != state:
                yield f"B remembers {count}", heard
        if state.left.peer_crashes:
            budget = state.left._replace(peer_crashes=state.left.peer_crashes - 1)
            yield "B crashes and starts", state._replace(thought=None, left=budget)

    return steps


def _knows(state: State) -> tuple[Life, int]:
    return (state.known, state.reached) if state.thought is None else state.thought


def _told(state: State, life: Life) -> int:
    return max((one.told for one in state.machines if one.up and one.disk.life == life), default=1 << 30)


def _put(state: State, place: int, machine: Machine) -> State:
    """Return the state with `machine` in its place; what nobody can hear any more is forgotten."""
    machines = (*state.machines[:place], machine, *state.machines[place + 1 :])
    told = {one.disk.life: one.told for one in machines if one.up}
    answers = frozenset(one for one in state.answers if one[1] > told.get(one[0], one[1]))
    ears = {state.known, *told}
    wire = frozenset(one for one in state.wire if one[0] in ears and one[1] > told.get(one[0], -1))
    return state._replace(machines=machines, answers=answers, wire=wire)


def wrong_of(_: Bounds) -> Callable[[State], str | None]:
    """Return the invariants, as one question."""
    return lambda state: state.wrong
