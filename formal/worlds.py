"""The worlds that are explored: how many slots, which faults, how often; and the world that shows each flaw."""

from __future__ import annotations

from dataclasses import dataclass

from formal import witness
from formal.explore import Found, explore
from formal.model import Bounds, Budget, Flaw, State, first_state, steps_of, wrong_of


@dataclass(frozen=True)
class World:
    name: str
    bounds: Bounds


def bounds(
    slots: int,
    *,
    grants: int = 2,
    cedes: int = 0,
    crashes: int = 0,
    stops: int = 0,
    unknowns: int = 0,
    restores: int = 0,
    clones: int = 0,
    expiries: int = 0,
    seconds: bool = False,
    anchored: bool = True,
) -> Bounds:
    budget = Budget(grants, cedes, crashes, stops, unknowns, restores, clones, expiries)
    return Bounds(slots, budget, seconds=seconds, anchored=anchored)


QUICK = (
    World("crash", bounds(2, cedes=1, crashes=1)),
    World("stop, then crash", bounds(1, cedes=2, stops=1, crashes=1)),
    World("commits of unknown outcome", bounds(2, cedes=1, crashes=1, unknowns=1)),
    World("two instances on one disk", bounds(1, cedes=1, stops=1, crashes=1, seconds=True)),
    World("restore, found by the anchor", bounds(1, cedes=1, crashes=1, stops=1, restores=1)),
    World("restore, anchor and all", bounds(1, cedes=1, crashes=1, restores=1, anchored=False)),
    World("clone", bounds(1, cedes=1, stops=1, clones=1, expiries=1)),
)
"""Seconds: part of the default tests."""

LARGE = (
    World("crashes and stops", bounds(2, grants=3, cedes=2, crashes=1, stops=1, unknowns=1)),
    World("three slots", bounds(3, cedes=1, stops=1)),
    World("two instances on one disk", bounds(2, cedes=1, stops=1, crashes=1, seconds=True)),
    World("restore, found by the anchor", bounds(2, cedes=1, crashes=1, restores=1)),
    World("restore, anchor and all", bounds(2, grants=2, cedes=1, crashes=1, restores=1, anchored=False)),
    World("clone", bounds(2, cedes=1, clones=1, expiries=1)),
    World("restore and stop, anchor and all", bounds(1, cedes=1, crashes=1, stops=1, restores=1, anchored=False)),
    World("clone and stop", bounds(1, grants=3, cedes=2, stops=1, crashes=1, clones=1)),
)
"""About a minute."""

FLAWED: dict[Flaw, Bounds] = {
    Flaw.RESERVED_IN_MEMORY: bounds(1, seconds=True),
    Flaw.TAKEN_WITHOUT_LOOKING: bounds(1, crashes=1, restores=1, anchored=False),
    Flaw.CEDED_BEFORE_GIVEN_UP: bounds(2, cedes=1, crashes=1),
    Flaw.CEDED_UNSEEN: bounds(1, grants=1, cedes=1, crashes=1, restores=1, anchored=False),
    Flaw.CEDE_ANSWERED_TWICE: bounds(2, cedes=1, stops=1),
    Flaw.WINDOWS_SURVIVE: bounds(1, crashes=1, restores=1, anchored=False),
    Flaw.DELIVERED_IN_MEMORY: bounds(2, cedes=1, crashes=1),
    Flaw.LEFT_BEFORE_GIVEN_UP: bounds(2, cedes=1, stops=1),
    Flaw.LEFT_WITH_SECONDS: bounds(1, stops=1, seconds=True),
    Flaw.LEFT_AFTER_A_CRASH: bounds(1, crashes=1, restores=1, anchored=False),
    Flaw.UNKNOWN_TAKEN_FOR_DONE: bounds(2, cedes=1, unknowns=1),
    Flaw.TWO_AT_ONCE: bounds(2, cedes=1, clones=1, expiries=1),
    Flaw.COPY_NOT_FOUND: bounds(2, cedes=1, crashes=1, restores=1),
}


def explored(world: Bounds, *, most: int = 2_000_000) -> Found[State]:
    """Visit every state of a world."""
    return explore(first_state(world), steps=steps_of(world), wrong=wrong_of(world), most=most)


@dataclass(frozen=True)
class Remembered:
    """A world of a node, its copies, and a peer that remembers (formal.witness)."""

    name: str
    bounds: witness.Bounds


def remembered(
    units: int, *, crashes: int = 0, copies: int = 0, clones: int = 0, peer_crashes: int = 0
) -> witness.Bounds:
    return witness.Bounds(units, witness.Budget(crashes, copies, clones, peer_crashes))


QUICK_REMEMBERED = (
    Remembered("a machine put back", remembered(2, crashes=1, copies=1)),
    Remembered("put back, and the peer crashes", remembered(1, crashes=2, copies=1, peer_crashes=1)),
    Remembered("a clone beside its original", remembered(2, clones=1)),
    Remembered("a clone, and a crash", remembered(1, crashes=1, clones=1)),
)
"""A second or two: part of the default tests."""

LARGE_REMEMBERED = (
    Remembered("a machine put back", remembered(3, crashes=2, copies=1, peer_crashes=1)),
    Remembered("a clone, and a crash", remembered(2, crashes=1, clones=1, peer_crashes=1)),
    Remembered("a copy and a clone", remembered(1, crashes=1, copies=1, clones=1)),
)

FLAWED_REMEMBERED: dict[witness.Flaw, witness.Bounds] = {
    witness.Flaw.SENT_BEFORE_TOLD: remembered(1, crashes=1, copies=1),
    witness.Flaw.TOLD_BEFORE_DURABLE: remembered(1, crashes=1, copies=1, peer_crashes=1),
    witness.Flaw.LAST_COUNTS: remembered(1, crashes=1, copies=1),
    witness.Flaw.COUNTS_IGNORED: remembered(1, crashes=1, copies=1),
    witness.Flaw.NONCES_IGNORED: remembered(1, crashes=1, clones=1),
    witness.Flaw.USED_IN_MEMORY: remembered(1, crashes=1, copies=1),
    witness.Flaw.DELIVERED_UNMET: remembered(1, crashes=1, copies=1),
    witness.Flaw.HOME_TOO_SOON: remembered(1, crashes=2, copies=1),
    witness.Flaw.HEARD_OF_THE_DEAD: remembered(1, crashes=1, clones=1),
}


def witnessed(world: witness.Bounds, *, most: int = 2_000_000) -> Found[witness.State]:
    """Visit every state of a world with a peer that remembers."""
    return explore(
        witness.first_state(world), steps=witness.steps_of(world), wrong=witness.wrong_of(world), most=most
    )
