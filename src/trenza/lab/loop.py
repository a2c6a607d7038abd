"""An event loop whose time is virtual: when nothing can run, it jumps to the next timer.

A run that can neither proceed nor jump is a deadlock and says so. Works only with code that waits for nothing outside
the loop: the lab gives it none.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from trenza.base.units import Nanoseconds, Seconds, nanoseconds

T = TypeVar("T")

_NO_SKEW = Seconds(0.0)

EPOCH = Nanoseconds(1_800_000_000_000_000_000)
"""The wall clock at the start of every history: 2027-01-15T08:00:00Z."""


class _Jump(selectors.SelectSelector):
    """A selector that never sleeps: it moves the clock instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError("deadlock: every task waits and no timer is set")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio on a clock that nobody waits for."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


class VirtualClock:
    """The loop's time as a node's Clock; `skew` is how far this node's wall clock is off."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, skew: Seconds = _NO_SKEW) -> None:
        self._loop = loop
        self.skew = skew

    def now(self) -> Nanoseconds:
        return Nanoseconds(EPOCH + nanoseconds(Seconds(self._loop.time() + self.skew)))

    def elapsed(self) -> Seconds:
        return Seconds(self._loop.time())


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
