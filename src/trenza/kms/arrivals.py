"""Strands that came to the end of their route and wait, in memory only, for the story that asked for them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from trenza.base.clock import Clock
from trenza.base.errors import RemoteProtocolError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.base.units import Seconds
from trenza.wire.peer import HopRecord

_MOST = 256
_OLDEST = Seconds(60.0)


@dataclass(frozen=True, slots=True)
class Carried:
    """Strands that both ends of a route hold, and the links they crossed. Whoever takes them wipes them."""

    strand: Secret
    hops: tuple[HopRecord, ...]


class Arrivals:
    """What arrived, by source and segment; bounded in number and age, and wiped beyond."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: OrderedDict[tuple[NodeId, bytes], tuple[Seconds, Carried]] = OrderedDict()

    def keep(self, source: NodeId, segment: bytes, carried: Carried) -> None:
        """Keep what arrived until it is taken.

        Raises:
            RemoteProtocolError: something is waiting under that name; the caller keeps `carried`.
        """
        if (source, segment) in self._waiting:
            raise RemoteProtocolError(f"node {source} carries a segment twice")
        self._waiting[source, segment] = (self._clock.elapsed(), carried)
        self.expire()

    def take(self, source: NodeId, segment: bytes) -> Carried | None:
        """Return, once, what `source` carried here for `segment`; the caller wipes it."""
        self.expire()
        _, carried = self._waiting.pop((source, segment), (None, None))
        return carried

    def expire(self) -> None:
        """Wipe what nobody took in time, and the oldest of what is too much."""
        oldest = self._clock.elapsed() - _OLDEST
        while self._waiting:
            name, (since, carried) = next(iter(self._waiting.items()))
            if since >= oldest and len(self._waiting) <= _MOST:
                return
            carried.strand.wipe()
            del self._waiting[name]
