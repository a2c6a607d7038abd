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
"""For each neighbour that brings them: none can push out what came by another."""

_OLDEST = Seconds(60.0)


@dataclass(frozen=True, slots=True)
class Carried:
    """Strands that both ends of a route hold, and the links they crossed. Whoever takes them wipes them."""

    strand: Secret
    hops: tuple[HopRecord, ...]


@dataclass(frozen=True, slots=True)
class _Waiting:
    since: Seconds  # on Clock.elapsed
    via: NodeId
    carried: Carried


class Arrivals:
    """What arrived, by source and segment; bounded in number by neighbour and in age, and wiped beyond."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: OrderedDict[tuple[NodeId, bytes], _Waiting] = OrderedDict()

    def keep(self, source: NodeId, segment: bytes, carried: Carried, *, via: NodeId) -> None:
        """Keep what arrived through the neighbour `via` until it is taken.

        Raises:
            RemoteProtocolError: something is waiting under that name; the caller keeps `carried`.
        """
        if (source, segment) in self._waiting:
            raise RemoteProtocolError(f"node {source} carries a segment twice")
        self._waiting[source, segment] = _Waiting(self._clock.elapsed(), via, carried)
        theirs = [name for name, waiting in self._waiting.items() if waiting.via == via]
        for name in theirs[: max(0, len(theirs) - _MOST)]:
            self._waiting.pop(name).carried.strand.wipe()
        self.expire()

    def take(self, source: NodeId, segment: bytes) -> Carried | None:
        """Return, once, what `source` carried here for `segment`; the caller wipes it."""
        self.expire()
        waiting = self._waiting.pop((source, segment), None)
        return None if waiting is None else waiting.carried

    def expire(self) -> None:
        """Wipe what nobody took in time."""
        oldest = self._clock.elapsed() - _OLDEST
        while self._waiting:
            name, waiting = next(iter(self._waiting.items()))
            if waiting.since >= oldest:
                return
            waiting.carried.strand.wipe()
            del self._waiting[name]
