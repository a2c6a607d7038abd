"""Whether this node's clock can be believed: before anything is destroyed because the clock says that it is old.

Nodes tell each other no times. But a segment is made only where the clocks of its two ends agree
(`Settings.clock_tolerance`), so each one made is a peer's word for this clock; and as the monotonic clock goes on
evenly, that word holds until the difference between the two has changed: the clock was set, or the machine slept.
Decides nothing about keys. Why: docs/adr/0021-retention.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds, Seconds, nanoseconds
from trenza.kms.context import Context

_JUMP: Final = nanoseconds(Seconds(3_600.0))
"""What a clock that is disciplined, or drifts, is not moved by while a process lives."""

_ALONE: Final = Seconds(86_400.0)
"""How long a clock must have gone on evenly where there is no peer to vouch for it."""


class ClockCheck:
    """What speaks for one node's clock."""

    def __init__(self, ctx: Context, *, partners: Callable[[], Sequence[NodeId]]) -> None:
        """Begin without anybody's word.

        Args:
            ctx: of the node.
            partners: the nodes with which it makes segments.
        """
        self._ctx = ctx
        self._partners = partners
        self._agreed: dict[NodeId, Nanoseconds] = {}  # wall clock less monotonic clock, when a peer agreed last
        self._even_at = self._ahead()
        self._even_since = ctx.clock.elapsed()

    def agreed(self, peer: NodeId) -> None:
        """Note that a segment was made with `peer`, so that both clocks tell about the same time."""
        self._agreed[peer] = self._ahead()

    def is_sound(self) -> bool:
        """Tell whether at least half of the partners that are there have agreed, and nobody set the clock since."""
        ahead = self._ahead()
        if abs(ahead - self._even_at) > _JUMP:
            self._even_at, self._even_since = ahead, self._ctx.clock.elapsed()
        partners = self._partners()
        if not partners:
            return self._ctx.clock.elapsed() - self._even_since >= _ALONE
        vouching = {one for one in partners if one in self._agreed and abs(ahead - self._agreed[one]) <= _JUMP}
        there = {one for one in partners if one in self._ctx.sessions}
        return bool(vouching) and 2 * len(vouching) >= len(vouching | there)

    def _ahead(self) -> Nanoseconds:
        clock = self._ctx.clock
        return Nanoseconds(clock.now() - nanoseconds(clock.elapsed()))
