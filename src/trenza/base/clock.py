"""Time as a port: the lab turns it by hand.

Two clocks that are never mixed: `now` names a moment that other nodes and auditors understand;
`elapsed` measures how long something took on this machine and never jumps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, cast

from trenza.base.units import Nanoseconds, Seconds


class Clock(Protocol):
    """What a node asks about time."""

    def now(self) -> Nanoseconds:
        """Return the moment, in nanoseconds since 1970-01-01T00:00:00Z; may jump when the clock is set."""
        ...

    def elapsed(self) -> Seconds:
        """Return seconds since some fixed start; never goes back."""
        ...


class SystemClock:
    """The machine's clocks: asked several times in every request, so without a call of our own around them."""

    now = staticmethod(cast("Callable[[], Nanoseconds]", time.time_ns))
    elapsed = staticmethod(cast("Callable[[], Seconds]", time.monotonic))
