"""Orders: requests for one key that an application makes again and again, answered without waiting.

All that does not change between two of them is looked up once: who may ask, which recipe, which window, and what its
keys have in common. Everything that may change is looked at every time: the book, the session and its lease, the age
of the strands, what is in hand, and whether the pair has had its share. Where one of these is not as it was, or
something must be waited for, the request takes the long way (`kms.deliver`), which also says why.
"""

from __future__ import annotations

from trenza.base.units import Bits, Nanoseconds, Seconds, nanoseconds
from trenza.core.choice import acceptance
from trenza.core.delivery import Wishes
from trenza.core.recipe import Recipe
from trenza.core.window import IssuerWindow
from trenza.kms.context import Context, Session
from trenza.kms.id_keys import IdKeyRing
from trenza.kms.issuing import Desk, FreshKey, Issuing
from trenza.kms.journal import Journal
from trenza.kms.shares import Asked, Shares
from trenza.kms.slots import Pair


class Order:
    """One key of one recipe and size for one pair, again and again."""

    __slots__ = (
        "_asked",
        "_book",
        "_clock",
        "_counters",
        "_ctx",
        "_desk",
        "_flow",
        "_good_until",
        "_id_keys",
        "_issuing",
        "_journal",
        "_pair",
        "_peer",
        "_recipe",
        "_session",
        "_shares",
        "_size",
        "_slots",
        "_tls_group",
        "_under",
        "_window",
        "_wishes",
    )

    def __init__(
        self,
        ctx: Context,
        issuing: Issuing,
        shares: Shares,
        pair: Pair,
        recipe: Recipe,
        *,
        size: Bits,
        wishes: Wishes,
        tls_group: str,
    ) -> None:
        self._ctx = ctx
        self._clock = ctx.clock
        self._counters = ctx.counters
        self._issuing = issuing
        self._journal: Journal = issuing.journal
        self._id_keys: IdKeyRing = issuing.id_keys
        self._pair = pair
        self._peer = pair.target.node
        self._recipe = recipe
        self._size = size
        self._wishes = wishes
        self._tls_group = tls_group
        self._slots = recipe.slots_for(size)
        self._shares = shares
        self._asked = Asked.of(1, size, full=recipe.needs_qkd, slots_per_key=self._slots)
        self._flow = issuing.flow(self._peer, full=recipe.needs_qkd)
        self._book = ctx.book
        self._session: Session | None = None
        self._under = b""
        self._desk: Desk | None = None
        self._window: IssuerWindow | None = None
        self._good_until = Nanoseconds(0)

    @property
    def is_good(self) -> bool:
        """Tell whether the book that allowed it is still in force; an order that is not is made anew."""
        return self._ctx.book_in_force is self._book

    def serve(self) -> FreshKey | None:
        """Return the next key; None where the request must go the long way. The caller wipes the key."""
        desk, window, session = self._desk, self._window, self._session
        now, elapsed = self._clock.now(), self._clock.elapsed()
        if (
            desk is None
            or window is None
            or session is None
            or self._ctx.sessions.get(self._peer) is not session
            or elapsed >= session.lease_until
            or elapsed >= self._ctx.until
            or now > self._good_until
            or window.next + self._slots > window.reserved
            or self._id_keys.issues_under(self._peer) != self._under
            or self._journal.is_full
            or self._ctx.book_in_force is not self._book
        ):
            return self._from_another_window(now)
        if not self._shares.grants(self._pair, self._asked, elapsed):
            return None
        slot = window.next
        window.next = slot + self._slots
        self._flow.taken += self._slots
        self._counters["keys_issued"] += 1
        self._flow.until_look -= self._slots
        if self._flow.until_look <= 0:
            self._look_ahead(now)
        return desk.issue(slot, now)

    def _from_another_window(self, now: Nanoseconds) -> FreshKey | None:
        """Go on with the oldest window that has something in hand."""
        session = self._ctx.sessions.get(self._peer)
        if session is None or self._clock.elapsed() >= min(session.lease_until, self._ctx.until):
            return None
        if not self.is_good or self._journal.is_full:
            return None
        accept = acceptance(self._pair.policy, self._wishes, now=now)
        window = self._issuing.window_in_hand(
            self._peer, full=self._recipe.needs_qkd, slots=self._slots, accept=accept
        )
        if window is None:
            self._desk = self._window = None
            return None
        age = Seconds(float(self._pair.policy.max_age_s))
        if self._wishes.max_age is not None:
            age = min(age, self._wishes.max_age)
        self._session = session
        self._under = self._id_keys.issues_under(self._peer)
        self._desk = self._issuing.desk(self._pair, self._recipe, self._size, self._tls_group, window)
        self._window = window
        self._good_until = Nanoseconds(window.facts.record.created + nanoseconds(age))
        return self.serve()

    def _look_ahead(self, now: Nanoseconds) -> None:
        accept = acceptance(self._pair.policy, self._wishes, now=now)
        self._issuing.look_ahead(self._peer, full=self._recipe.needs_qkd, accept=accept)
