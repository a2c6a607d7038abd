"""An event loop whose time is virtual: when nothing can run, it jumps to the next timer.

A run that can neither proceed nor jump is a deadlock and says so, and so does one that never ends. Works only with
code that waits for nothing outside the loop: the lab gives it none.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from trenza.base.units import Nanoseconds, Seconds, nanoseconds
from trenza.lab.process import make_task

T = TypeVar("T")

_NO_SKEW = Seconds(0.0)

EPOCH = Nanoseconds(1_800_000_000_000_000_000)
"""The wall clock at the start of every history: 2027-01-15T08:00:00Z."""

_MOST_TURNS: Final = 20_000_000
"""Turns of the loop after which a history is taken to have no end; a long one has a hundred thousand."""


class _Jump(selectors.SelectSelector):
    """A selector that never sleeps and hears nobody: it moves the clock instead."""

    now = 0.0
    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        if self.turns > _MOST_TURNS:
            raise RuntimeError(f"no end after {_MOST_TURNS} turns of the loop: something runs in a circle")
        if timeout is None:
            ready = super().select(0)
            if not ready:
                raise RuntimeError("deadlock: every task waits and no timer is set")
            return ready
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio on a clock that nobody waits for; tasks know the process that they belong to."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)
        self.set_task_factory(make_task)

    def time(self) -> float:
        return self._jump.now


class VirtualClock:
    """The loop's time as a node's Clock.

    `skew` is how far the wall clock is off; setting it anew is a jump, as when somebody sets the time. `drift` is how
    much faster the machine's oscillator runs; timers of the loop keep the true time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, skew: Seconds = _NO_SKEW, drift: float = 0.0) -> None:
        self._loop = loop
        self.skew = skew
        self._rate = 1.0 + drift

    def now(self) -> Nanoseconds:
        return Nanoseconds(EPOCH + nanoseconds(Seconds(self._loop.time() * self._rate + self.skew)))

    def elapsed(self) -> Seconds:
        return Seconds(self._loop.time() * self._rate)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
