"""What a pair's policies need and what there is: the stock that filling aims at, and the windows to ask for.

Policies differ in which strands they accept: with QKD or without, over how many links, past which relays, how old.
Each such *kind* is stocked by itself; strands that suit several kinds count for all of them, so the strictest policy
is served without starving the others. Holds no strand and asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds, Seconds, nanoseconds
from trenza.core.choice import StrandKind
from trenza.core.recipe import LOCAL
from trenza.core.segment import SegmentFacts
from trenza.kms.context import Context
from trenza.kms.pools import Pools
from trenza.wire.peer import StockMark

_STOCK_MAX = 16
"""However fast a peer says it issues, filling aims at no more than this many times the target: an exposure, too."""


@dataclass(frozen=True, slots=True)
class Want:
    """What one direction of a pair lacks."""

    issuer: NodeId
    kind: StrandKind
    slots: int  # missing to the target
    stock: int  # slots there are


class Demand:
    """The demand on this node's pairs."""

    def __init__(self, ctx: Context, *, pools: Pools) -> None:
        self._ctx = ctx
        self._pools = pools
        self._issued: dict[tuple[NodeId, bool], _Rate] = {}
        self._kinds: dict[NodeId, tuple[StrandKind, ...]] = {}
        self._kinds_of_version = 0

    # --- kinds

    def kinds(self, peer: NodeId) -> tuple[StrandKind, ...]:
        """Return the kinds of strands that the policies of a pair accept, each once, in the book's order."""
        book = self._ctx.book
        if book.version != self._kinds_of_version:
            self._kinds.clear()
            self._kinds_of_version = book.version
        if peer not in self._kinds:
            self._kinds[peer] = tuple(
                dict.fromkeys(
                    StrandKind.of(policy, full=recipe.needs_qkd)
                    for _, other, policy in book.pairs_of_node(self._ctx.name)
                    if other.node == peer
                    for recipe in policy.recipes
                    if recipe is not LOCAL
                )
            )
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
        self._rate(peer, full=full).add(slots, self._ctx.clock.elapsed())

    def _rate(self, peer: NodeId, *, full: bool) -> _Rate:
        return self._issued.setdefault((peer, full), _Rate())

    def _target(self, rate: float) -> int:
        settings = self._ctx.settings
        most = _STOCK_MAX * settings.stock_target
        return max(settings.stock_target, int(min(rate * settings.stock_seconds, most)))

    # --- as an issuer

    def mark(self, peer: NodeId) -> StockMark:
        """Return what this node can issue to `peer` now, and how fast it has lately."""
        now = self._ctx.clock.elapsed()
        return StockMark(
            self._pools.issuable(peer, full=True),
            self._pools.issuable(peer, full=False),
            self._rate(peer, full=True).per_second(now),
            self._rate(peer, full=False).per_second(now),
        )

    def _issuable(self, peer: NodeId, kind: StrandKind) -> int:
        return self._pools.issuable(peer, full=kind.full, accept=self._accept(kind))

    def is_low(self, peer: NodeId) -> bool:
        """Tell whether this node could soon have too little of some kind to issue to `peer`."""
        little = self._ctx.settings.stock_target // 2
        return any(self._issuable(peer, kind) < little for kind in self.kinds(peer))

    def windows_to_ask(self, peer: NodeId) -> list[tuple[StrandKind, int]]:
        """Return the kinds of which fewer slots are held than half of what a few seconds of demand need."""
        mark = self.mark(peer)
        asked: list[tuple[StrandKind, int]] = []
        for kind in self.kinds(peer):
            enough = self._target((mark.full_rate if kind.full else mark.plain_rate) / 2)
            held = self._issuable(peer, kind)
            if held <= enough // 2:
                asked.append((kind, enough - held))
        return asked

    # --- as the leader

    def wants(self, peer: NodeId) -> list[Want]:
        """Return what the pair lacks, the emptiest first."""
        found: list[Want] = []
        for kind in self.kinds(peer):
            for issuer in (self._ctx.name, peer):
                stock, target = self._stock_of(peer, issuer, kind), self._target(self._rate_of(peer, issuer, kind))
                if stock < target * 3 // 4:
                    found.append(Want(issuer, kind, target - stock, stock))
        return sorted(found, key=lambda want: (want.stock, want.kind.full, want.issuer))

    def _stock_of(self, peer: NodeId, issuer: NodeId, kind: StrandKind) -> int:
        """Return the slots of a kind that one direction holds: granted and not issued, and not granted yet."""
        accept = self._accept(kind)
        ungranted = self._pools.ungranted(peer, issuer, full=kind.full, accept=accept)
        if issuer == self._ctx.name:
            return ungranted + self._issuable(peer, kind)
        return ungranted + self._pools.unissued(peer, full=kind.full, accept=accept)

    def _rate_of(self, peer: NodeId, issuer: NodeId, kind: StrandKind) -> float:
        mark = self.mark(peer) if issuer == self._ctx.name else self._pools.pair(peer).peer_stock
        return mark.full_rate if kind.full else mark.plain_rate


@dataclass(slots=True)
class _Rate:
    """Slots a second, averaged over about five seconds."""

    value: float = 0.0
    at: float = 0.0
    _HALF: float = 3.5

    def add(self, slots: int, now: float) -> None:
        self.value = self.per_second(now) + slots / (self._HALF / 0.6931)
        self.at = now

    def per_second(self, now: float) -> float:
        age = max(0.0, now - self.at)
        return float(self.value * 0.5 ** (age / self._HALF))
