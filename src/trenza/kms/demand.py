"""What a pair's policies need and what there is: the stock that filling aims at, and the windows to ask for.

Policies differ in which strands they accept: with QKD or without, over how many links, past which relays, how old.
Each such *kind* is stocked by itself; strands that suit several kinds count for all of them, so the strictest policy
is served without starving the others. Holds no strand and asks nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds, Seconds, nanoseconds
from trenza.core.choice import StrandKind
from trenza.core.priority import DEFAULT
from trenza.core.recipe import LOCAL
from trenza.core.segment import SegmentFacts
from trenza.kms.context import Context
from trenza.kms.pools import Pools
from trenza.wire.peer import StockMark

_STOCK_MAX = 16
"""However fast a peer says it issues, filling aims at no more than this many times the target: an exposure, too."""


_CHUNK_MAX = 4_096
_CHUNKS_HELD = 4
"""Windows should hold at least so many chunks, so that a burst does not wait for the far node each time."""

_HALF = 3.5
"""Seconds after which demand counts half."""


@dataclass(frozen=True, slots=True)
class Want:
    """What one direction of a pair lacks."""

    issuer: NodeId
    kind: StrandKind
    slots: int  # missing to the target
    stock: int  # slots there are
    priority: int = DEFAULT  # the highest class whose policies accept that kind
    low: bool = False  # whether so little is left that it is shared out, or kept for higher classes


@dataclass(frozen=True, slots=True)
class Surplus:
    """Slots that the peer could be granted, can do without, and this node is short of."""

    kind: StrandKind
    accept: Callable[[SegmentFacts], bool] = field(repr=False)
    slots: int


def _urgency(want: Want) -> tuple[bool, int, int, bool, NodeId]:
    """Return where a want stands among others: the classes count where little is left, elsewhere the stock."""
    return not want.low, -want.priority if want.low else 0, want.stock, want.kind.full, want.issuer


class Demand:
    """The demand on this node's pairs."""

    def __init__(self, ctx: Context, *, pools: Pools) -> None:
        self._ctx = ctx
        self._pools = pools
        self._issued: dict[tuple[NodeId, bool], Flow] = {}
        self._kinds: dict[NodeId, dict[StrandKind, int]] = {}  # with the highest class of their policies
        self._kinds_of_version = 0
        self.floor_of: Callable[[NodeId], int] = lambda _peer: 0  # slots kept for higher classes (kms.shares)

    # --- kinds

    def kinds(self, peer: NodeId) -> tuple[StrandKind, ...]:
        """Return the kinds of strands that the policies of a pair accept, each once, in the book's order."""
        return tuple(self._classes(peer))

    def _classes(self, peer: NodeId) -> Mapping[StrandKind, int]:
        """Return the kinds of a pair with the highest class of the policies that accept them."""
        book = self._ctx.book
        if book.version != self._kinds_of_version:
            self._kinds.clear()
            self._kinds_of_version = book.version
        if peer not in self._kinds:
            found = self._kinds[peer] = {}
            for _, other, policy in book.pairs_of_node(self._ctx.name):
                for recipe in policy.recipes:
                    if other.node == peer and recipe is not LOCAL:
                        kind = StrandKind.of(policy, full=recipe.needs_qkd)
                        found[kind] = max(found.get(kind, 0), policy.priority)
        return self._kinds[peer]

    def wanted(self, peer: NodeId, *, full: bool) -> bool:
        """Tell whether any policy of the pair needs strands with QKD, or without."""
        return any(kind.full is full for kind in self.kinds(peer))

    def max_age(self, peer: NodeId, *, full: bool) -> Seconds:
        """Return how old strands may become before no policy of the pair accepts them."""
        ages = [float(kind.max_age_s) for kind in self.kinds(peer) if kind.full is full]
        return Seconds(min(max(ages, default=0.0), self._ctx.settings.segment_lifetime))

    def _accept(self, kind: StrandKind) -> Callable[[SegmentFacts], bool]:
        """Return the test whether strands count as stock of a kind: they are replaced in time before they age."""
        age = Seconds(min(float(kind.max_age_s), self._ctx.settings.segment_lifetime) * 3 / 4)
        return kind.acceptance(oldest=Nanoseconds(self._ctx.clock.now() - nanoseconds(age)))

    # --- demand

    def note_issued(self, peer: NodeId, *, full: bool, slots: int) -> None:
        """Count demand: stock is meant to last for seconds of it."""
        self.flow(peer, full=full).taken += slots

    def flow(self, peer: NodeId, *, full: bool) -> Flow:
        """Return the count of what is issued to `peer`; good to keep."""
        flow = self._issued.get((peer, full))
        if flow is None:
            least = self._ctx.settings.reserve_slots
            flow = self._issued[peer, full] = Flow(least, least // 2)
        return flow

    def note_reserved(self, peer: NodeId, *, full: bool) -> None:
        """Settle how many slots come into hand next time: for some time of demand, and twice as many as this time
        where these did not last so long. So a burst soon finds as much as it takes, before the average follows.
        """
        settings, flow, now = self._ctx.settings, self.flow(peer, full=full), self._ctx.clock.elapsed()
        chunk = max(settings.reserve_slots, int(flow.per_second(now) * settings.reserve_seconds))
        if now - flow.reserved_at < settings.reserve_seconds:
            chunk = max(chunk, min(2 * flow.chunk, self._most_at_once(flow.per_second(now))))
        flow.chunk, flow.low, flow.reserved_at = chunk, chunk // 2, now

    def _most_at_once(self, rate: float) -> int:
        """Return how many slots a burst may bring into hand: others that share the windows need some too."""
        if self._ctx.shared is None:
            return _CHUNK_MAX
        return max(4 * self._ctx.settings.reserve_slots, int(rate))

    def at_once(self, peer: NodeId, *, full: bool) -> int:
        """Return the slots to get where requests wait: for all who wait, and what should then be in hand."""
        flow = self.flow(peer, full=full)
        return flow.waiting + flow.chunk

    def _rate(self, peer: NodeId, *, full: bool) -> float:
        return self.flow(peer, full=full).per_second(self._ctx.clock.elapsed())

    def _target(self, rate: float) -> int:
        settings = self._ctx.settings
        most = _STOCK_MAX * settings.stock_target
        return max(settings.stock_target, int(min(rate * settings.stock_seconds, most)))

    # --- as an issuer

    def mark(self, peer: NodeId) -> StockMark:
        """Return what this node can issue to `peer` now, and how fast it has lately."""
        return StockMark(
            self._pools.issuable(peer, full=True),
            self._pools.issuable(peer, full=False),
            self._rate(peer, full=True),
            self._rate(peer, full=False),
        )

    def _issuable(self, peer: NodeId, kind: StrandKind) -> int:
        return self._pools.issuable(peer, full=kind.full, accept=self._accept(kind))

    def is_low(self, peer: NodeId) -> bool:
        """Tell whether there is so little of some kind to issue to `peer` that more must be filled or ceded."""
        little = self._ctx.settings.stock_target // 2
        return any(self._stock_of(peer, self._ctx.name, kind) < little for kind in self.kinds(peer))

    def windows_to_ask(self, peer: NodeId) -> list[tuple[StrandKind, int]]:
        """Return the kinds of which fewer slots are held than half of what some seconds of demand need.

        No more than that is asked for, though more may be in stock: a crash gives up what is held.
        """
        settings = self._ctx.settings
        asked: list[tuple[StrandKind, int]] = []
        for kind in self.kinds(peer):
            rate = self._rate(peer, full=kind.full)
            burst = _CHUNKS_HELD * self.flow(peer, full=kind.full).chunk
            enough = max(settings.window_slots, int(rate * settings.window_seconds), burst)
            held = self._issuable(peer, kind)
            if held <= enough // 2:
                asked.append((kind, enough - held))
        return asked

    def surplus(self, peer: NodeId, *, wanted: int = 0) -> list[Surplus]:
        """Return what had better change direction; nothing where nobody asks for keys.

        This node is short when stock for its own direction, granted or not, is less than half of what it needs. The
        peer keeps what it needs, and the floor of its higher classes. A part of a window is not worth a message,
        unless it is all there is.

        Args:
            peer: of the pair.
            wanted: slots that a request lacks right now.
        """
        found: list[Surplus] = []
        for kind in self.kinds(peer):
            seconds = self._seconds_of(self._rate_of(peer, self._ctx.name, kind))
            if not seconds and not wanted:
                continue
            need = max(seconds, wanted, self._ctx.settings.window_slots)
            stock = self._stock_of(peer, self._ctx.name, kind)
            accept = self._accept(kind)
            free = self._pools.ungranted(peer, peer, full=kind.full, accept=accept)
            if not free or stock >= max(wanted, need // 2):
                continue
            kept = max(self._seconds_of(self._rate_of(peer, peer, kind)), self.floor_of(peer))
            held = self._pools.granting.unissued(peer, full=kind.full, accept=accept)
            slots = min(need - stock, free - max(0, kept - held))
            if slots >= min(free, self._ctx.settings.window_slots // 4):
                found.append(Surplus(kind, accept, slots))
        return found

    def _seconds_of(self, rate: float) -> int:
        settings = self._ctx.settings
        return int(min(rate * settings.stock_seconds, _STOCK_MAX * settings.stock_target))

    # --- as the leader

    def wants(self, peer: NodeId) -> list[Want]:
        """Return what the pair lacks: first where little is left, by class, then the emptiest."""
        found: list[Want] = []
        for kind, priority in self._classes(peer).items():
            for issuer in (self._ctx.name, peer):
                stock, target = self._stock_of(peer, issuer, kind), self._target(self._rate_of(peer, issuer, kind))
                if stock < target * 3 // 4:
                    low = stock < self._ctx.settings.low_water * self._ctx.settings.stock_target
                    found.append(Want(issuer, kind, target - stock, stock, priority, low=low))
        return sorted(found, key=_urgency)

    def _stock_of(self, peer: NodeId, issuer: NodeId, kind: StrandKind) -> int:
        """Return the slots of a kind that one direction holds: granted and not issued, and not granted yet."""
        accept = self._accept(kind)
        ungranted = self._pools.ungranted(peer, issuer, full=kind.full, accept=accept)
        if issuer == self._ctx.name:
            return ungranted + self._issuable(peer, kind)
        return ungranted + self._pools.granting.unissued(peer, full=kind.full, accept=accept)

    def _rate_of(self, peer: NodeId, issuer: NodeId, kind: StrandKind) -> float:
        mark = self.mark(peer) if issuer == self._ctx.name else self._pools.pair(peer).peer_stock
        return mark.full_rate if kind.full else mark.plain_rate


@dataclass(slots=True, eq=False)
class Flow:
    """How fast slots of one kind are issued to one node. Whoever issues adds to `taken`, and nothing else."""

    chunk: int  # slots that should come into hand at once
    low: int  # fewer slots in hand than this are too few
    until_look: int = 0  # slots that may be taken before anyone need count what is in hand
    waiting: int = 0  # slots for which requests wait
    reserved_at: float = -math.inf  # on Clock.elapsed
    taken: int = 0  # since the rate was last looked at
    _value: float = 0.0
    _at: float = 0.0

    def per_second(self, now: float) -> float:
        """Return the slots a second, averaged over about five seconds."""
        age = max(0.0, now - self._at)
        self._value = self._value * 0.5 ** (age / _HALF) + self.taken / (_HALF / 0.6931)
        self._at, self.taken = now, 0
        return self._value
