"""How many identical bits a pair holds at both ends, and of which supply.

Only counters: the bits themselves are drawn from the entropy port when a key is asked for, which is what makes
seventy emulated devices cheap. No clock: the caller says how far time has come. A full store keeps what it has
and generation waits, as in real devices; nothing stored is discarded to make room.
"""

from __future__ import annotations

import math
from enum import StrEnum, unique

from trenza.base.units import Bits, BitsPerSecond, Seconds


@unique
class Supply(StrEnum):
    """Where the bits of a key come from; always said with the key."""

    WARM = "warm"  # in the store when the emulation began
    LIVE = "live"  # generated since, at the rate that the physics gives
    SYNTHETIC = "synthetic"  # generated at any other rate


class Stock:
    """The store of one pair. Warm bits leave first; key becomes available in whole blocks."""

    def __init__(self, *, capacity: Bits, warm: Bits, generated_as: Supply, block_interval: Seconds) -> None:
        if not 0 <= warm <= capacity:
            raise ValueError("the initial stock does not fit the store")
        if not block_interval > 0.0:
            raise ValueError("a block takes some time")
        self._capacity = capacity
        self._generated_as = generated_as
        self._block_interval = block_interval
        self._warm: int = warm
        self._generated = 0
        self._rate = BitsPerSecond(0.0)
        self._since = Seconds(0.0)  # when the first block of this run began
        self._blocks = 0  # of this run, so far
        self._credited = 0  # bits of this run, so far

    @property
    def bits(self) -> Bits:
        """Bits that can be taken now."""
        return Bits(self._warm + self._generated)

    @property
    def full(self) -> bool:
        return self.bits >= self._capacity

    def advance(self, now: Seconds) -> None:
        """Credit the blocks finished by `now`. Looking seldom or often gives the same bits."""
        finished = math.floor((now - self._since) / self._block_interval)
        if self._rate <= 0.0 or finished <= self._blocks:
            return
        total = math.floor(finished * self._rate * self._block_interval)
        self._generated = min(self._generated + total - self._credited, self._capacity - self._warm)
        self._blocks, self._credited = finished, total

    def flow(self, rate: BitsPerSecond, *, start: Seconds) -> None:
        """Go on at another rate; call `advance` first.

        A block in the making goes on at the new rate. When the flow stops it is lost, as an interrupted block is in a
        real device, and the next flow begins a new one at `start`.
        """
        if self._rate > 0.0 and rate > 0.0:
            start = Seconds(self._since + self._blocks * self._block_interval)
        self._rate, self._since, self._blocks, self._credited = rate, start, 0, 0

    def take(self, size: Bits) -> Supply:
        """Remove `size` bits, the warm ones first, and say what they are.

        A key that mixes supplies is called by its least genuine part: synthetic, else warm, else live.
        """
        assert 0 < size <= self.bits
        warm = min(size, self._warm)
        self._warm -= warm
        self._generated -= size - warm
        if warm == 0 or (warm < size and self._generated_as is Supply.SYNTHETIC):
            return self._generated_as
        return Supply.WARM
