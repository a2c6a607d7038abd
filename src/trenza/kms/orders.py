"""Orders: requests for one key that an application makes again and again, answered without waiting.

All that does not change between two of them is looked up once: what belongs to the pair (who may ask, for what) in
its order; what belongs to the strands (which window, what its keys have in common) in the *lane* that it shares with
the orders of all pairs under the same policy, so that many pairs cost no more than one. Everything that may change is
looked at every time: the book, the session and its lease, the age of the strands, what is in hand, and whether the
pair has had its share. Where one of these is not as it was, or something must be waited for, the request takes the
long way (`kms.deliver`), which also says why.
"""

from __future__ import annotations

from trenza.base.clock import Clock
from trenza.base.names import NodeId
from trenza.base.units import Bits, Nanoseconds, Seconds
from trenza.core.choice import acceptance
from trenza.core.delivery import Wishes
from trenza.core.policy import Policy
from trenza.core.recipe import Recipe
from trenza.core.window import IssuerWindow
from trenza.kms.context import Context, Session
from trenza.kms.issuing import Desk, FreshKey, Issuing, Reel
from trenza.kms.shares import Asked, Shares
from trenza.kms.slots import Pair

_MOST_LANES = 1_024
_AT_ONCE = 64  # keys out of one look at what allows them


class Lane:
    """Where keys of one recipe and size for one node come from, under one policy and the same wishes."""

    __slots__ = (
        "_book",
        "_counters",
        "_ctx",
        "_flow",
        "_good_until",
        "_id_keys",
        "_issuing",
        "_journal",
        "_peer",
        "_policy",
        "_recipe",
        "_reel",
        "_session",
        "_size",
        "_under",
        "_window",
        "_wishes",
        "slots",
    )

    def __init__(
        self, ctx: Context, issuing: Issuing, peer: NodeId, policy: Policy, recipe: Recipe, size: Bits, wishes: Wishes
    ) -> None:
        self._ctx = ctx
        self._counters = ctx.counters
        self._issuing = issuing
        self._journal = issuing.journal
        self._id_keys = issuing.id_keys
        self._peer = peer
        self._policy = policy
        self._recipe = recipe
        self._size = size
        self._wishes = wishes
        self.slots = recipe.slots_for(size)
        self._flow = issuing.flow(peer, full=recipe.needs_qkd)
        self._book = ctx.book
        self._session: Session | None = None
        self._under = b""
        self._reel: Reel | None = None
        self._window: IssuerWindow | None = None
        self._good_until = Nanoseconds(0)

    @property
    def is_good(self) -> bool:
        """Tell whether the book that allowed it is still in force."""
        return self._ctx.book_in_force is self._book

    def reel(self, now: Nanoseconds, elapsed: Seconds) -> Reel | None:
        """Return what to make the next key of; None where the request must go the long way."""
        reel, window, session = self._reel, self._window, self._session
        if (
            reel is None
            or window is None
            or session is None
            or self._ctx.sessions.get(self._peer) is not session
            or elapsed >= session.lease_until
            or elapsed >= self._ctx.until
            or now > self._good_until
            or window.next + self.slots > window.reserved
            or self._id_keys.issues_under(self._peer) != self._under
            or self._journal.is_full
            or self._ctx.book_in_force is not self._book
        ):
            return self._another(now, elapsed)
        return reel

    def most(self, number: int) -> int:
        """Return how many keys, at most `number`, can be made of the reel that was just returned."""
        window = self._window
        assert window is not None
        return min(number, (window.reserved - window.next) // self.slots)

    def take(self, number: int, now: Nanoseconds) -> range:
        """Take the slots of so many keys out of the reel that was just returned; return the first of each."""
        window, flow, slots = self._window, self._flow, number * self.slots
        assert window is not None
        first = window.next
        window.next = first + slots
        flow.taken += slots
        self._counters["keys_issued"] += number
        flow.until_look -= slots
        if flow.until_look <= 0:
            accept = acceptance(self._policy, self._wishes, now=now)
            self._issuing.look_ahead(self._peer, full=self._recipe.needs_qkd, accept=accept)
        return range(first, window.next, self.slots)

    def _another(self, now: Nanoseconds, elapsed: Seconds) -> Reel | None:
        """Go on with the oldest window that has something in hand."""
        self._reel = self._window = None
        session = self._ctx.sessions.get(self._peer)
        if session is None or elapsed >= min(session.lease_until, self._ctx.until):
            return None
        if not self.is_good or self._journal.is_full:
            return None
        accept = acceptance(self._policy, self._wishes, now=now)
        full = self._recipe.needs_qkd
        window = self._issuing.window_in_hand(self._peer, full=full, slots=self.slots, accept=accept)
        if window is None:
            return None
        self._session = session
        self._under = self._id_keys.issues_under(self._peer)
        self._good_until = Nanoseconds(window.facts.record.created + now - accept.oldest)
        self._window = window
        self._reel = self._issuing.reel(self._peer, window, self._recipe, self._size, self._policy)
        return self._reel


class Lanes:
    """The lanes of one node, under the book in force."""

    def __init__(self, ctx: Context, issuing: Issuing) -> None:
        self._ctx = ctx
        self._issuing = issuing
        self._lanes: dict[tuple[NodeId, bytes, int, Bits, Wishes], Lane] = {}

    def lane(self, peer: NodeId, policy: Policy, recipe: Recipe, size: Bits, wishes: Wishes) -> Lane:
        """Return the lane for such keys."""
        key = (peer, policy.digest, recipe.code, size, wishes)
        lane = self._lanes.get(key)
        if lane is None or not lane.is_good:
            if len(self._lanes) >= _MOST_LANES:
                self._lanes.clear()  # whoever has one goes on with it
            lane = self._lanes[key] = Lane(self._ctx, self._issuing, peer, policy, recipe, size, wishes)
        return lane


class Order:
    """One key of one recipe and size for one pair, again and again."""

    __slots__ = ("_asked", "_clock", "_desk", "_lane", "_pair", "_shares")

    def __init__(self, clock: Clock, lane: Lane, desk: Desk, shares: Shares, pair: Pair, asked: Asked) -> None:
        self._clock = clock
        self._lane = lane
        self._desk = desk
        self._shares = shares
        self._pair = pair
        self._asked = asked

    @property
    def is_good(self) -> bool:
        """Tell whether the book that allowed it is still in force; an order that is not is made anew."""
        return self._lane.is_good

    def serve(self, number: int) -> list[FreshKey]:
        """Return `number` keys; fewer, or none, where the rest must go the long way. The caller wipes the keys."""
        now, elapsed = self._clock.now(), self._clock.elapsed()
        keys: list[FreshKey] = []
        try:
            while len(keys) < number and (some := self._out_of_one_reel(number - len(keys), now, elapsed)):
                keys += some
        except Exception:
            if not keys:
                raise
            # these are noted as issued, and leave; on the long way the others hear what is wrong
        return keys

    def _out_of_one_reel(self, number: int, now: Nanoseconds, elapsed: Seconds) -> list[FreshKey]:
        lane = self._lane
        reel = lane.reel(now, elapsed)
        if reel is None:
            return []
        number = self._granted(lane.most(min(number, _AT_ONCE)), elapsed)
        return self._desk.issue(reel, lane.take(number, now), now) if number else []

    def _granted(self, number: int, elapsed: Seconds) -> int:
        """Return how many keys, at most `number`, are the pair's share now: all, or one where all are too many."""
        if number > 1 and self._shares.grants(self._pair, self._asked, elapsed, times=number):
            return number
        return 1 if self._shares.grants(self._pair, self._asked, elapsed) else 0
