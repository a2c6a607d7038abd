"""An event loop whose time is virtual: when nothing can run, it jumps to the next timer.

A run that can neither proceed nor jump is a deadlock and says so, and so does one that never ends. Works only with
code that waits for nothing outside the loop: the lab gives it none.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from heapq import heapify, heappop, heappush
from typing import Any, Final, TypeAlias, TypeVar, TypeVarTuple

from trenza.base.units import Nanoseconds, Seconds, nanoseconds
from trenza.lab.process import Process, make_task, process_of

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Act: TypeAlias = Callable[[*Ts], object]

_NO_SKEW = Seconds(0.0)

EPOCH = Nanoseconds(1_800_000_000_000_000_000)
"""The wall clock at the start of every history: 2027-01-15T08:00:00Z."""

_MOST_TURNS: Final = 20_000_000
"""Turns of the loop after which a history is taken to have no end; a long one has a hundred thousand."""

_RESOLUTION: Final = 1e-9
"""Seconds within which timers are of one instant."""

_MANY: Final = 100  # timers, beyond which those that were cancelled are looked for


class _Call(asyncio.TimerHandle):
    """Something to be called, now or when its time has come; what asyncio's own has for debugging it leaves out."""

    __slots__ = ("act", "args", "context", "is_cancelled", "is_timer", "loop")

    def __init__(
        self, act: Callable[..., object], args: tuple[Any, ...], loop: VirtualLoop, context: Context | None
    ) -> None:
        self.act = act
        self.args = args
        self.loop = loop
        self.context = copy_context() if context is None else context
        self.is_cancelled = self.is_timer = False

    def cancel(self) -> None:
        if self.is_cancelled:
            return
        self.is_cancelled = True
        self.args = ()  # what it held is let go of, though it may be long until its time
        self.act = _nothing
        if self.is_timer:
            self.loop.note_cancelled()

    def cancelled(self) -> bool:
        return self.is_cancelled

    def __repr__(self) -> str:
        return f"call of {self.act!r}"

    def __lt__(self, other: object) -> bool:
        return False  # asked where both have one time: neither is before the other

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


def _nothing() -> None:
    """What is done instead of what was cancelled."""


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio on a clock that nobody waits for, and without a socket; tasks know the process that they belong to.

    It keeps the order of asyncio's own loop, timers of one instant included: a seed is the same story on both.
    """

    def __init__(self) -> None:
        self._is_running = self._is_to_stop = False
        super().__init__()
        self._now = 0.0
        self._turns = 0
        self._calls: deque[_Call] = deque()
        self._timers: list[tuple[float, _Call]] = []
        self._cancelled = 0  # among the timers
        self._frozen: dict[Process, list[_Call]] = {}

    def time(self) -> float:
        return self._now

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return make_task(self, coro, **options)

    # --- calls

    def call_soon(self, callback: Act[*Ts], *args: *Ts, context: Context | None = None) -> asyncio.Handle:
        call = _Call(callback, args, self, context)
        self._calls.append(call)
        return call

    def call_soon_threadsafe(self, callback: Act[*Ts], *args: *Ts, context: Context | None = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Act[*Ts], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Act[*Ts], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _Call(callback, args, self, context)
        timer.is_timer = True
        heappush(self._timers, (when, timer))
        return timer

    def note_cancelled(self) -> None:
        """Count a timer that waits for nothing any more."""
        self._cancelled += 1

    def freeze(self, process: Process) -> None:
        """Let nothing of a process happen until it thaws, though time goes on, as when its machine is paused."""
        self._frozen.setdefault(process, [])

    def thaw(self, process: Process) -> None:
        """Let a process go on with all that has become due."""
        self._calls.extend(self._frozen.pop(process, ()))

    # --- running

    def run_forever(self) -> None:
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(
            firstiter=self._asyncgen_firstiter_hook,  # type: ignore[attr-defined]
            finalizer=self._asyncgen_finalizer_hook,  # type: ignore[attr-defined]
        )
        self._is_running, self._is_to_stop = True, False
        _set_running_loop(self)
        try:
            while not self._is_to_stop:
                self._turn()
        finally:
            _set_running_loop(None)
            self._is_running = False
            sys.set_asyncgen_hooks(*hooks)

    def stop(self) -> None:
        self._is_to_stop = True

    def is_running(self) -> bool:
        return self._is_running

    def _turn(self) -> None:
        self._turns += 1
        if self._turns > _MOST_TURNS:
            raise RuntimeError(f"no end after {_MOST_TURNS} turns of the loop: something runs in a circle")
        self._tidy()
        timers, calls = self._timers, self._calls
        if not calls:
            if not timers:
                raise RuntimeError("deadlock: every task waits and no timer is set")
            self._now += max(0.0, timers[0][0] - self._now)
        end = self._now + _RESOLUTION
        while timers and timers[0][0] < end:
            timer = heappop(timers)[1]
            timer.is_timer = False
            calls.append(timer)
        for _ in range(len(calls)):
            call = calls.popleft()
            if call.is_cancelled:
                continue
            if self._frozen and (process := process_of(call.context)) in self._frozen:
                assert process is not None
                self._frozen[process].append(call)
            else:
                self._make(call)

    def _make(self, call: _Call) -> None:
        try:
            call.context.run(call.act, *call.args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - as asyncio does: the loop goes on
            self.call_exception_handler({"message": f"a call failed: {call!r}", "exception": error, "handle": call})

    def _tidy(self) -> None:
        """Let go of timers that were cancelled: those that come first, or all, when they are many."""
        timers = self._timers
        if len(timers) > _MANY and self._cancelled > len(timers) / 2:
            timers[:] = [entry for entry in timers if not entry[1].is_cancelled]
            heapify(timers)
            self._cancelled = 0
        else:
            while timers and timers[0][1].is_cancelled:
                heappop(timers)
                self._cancelled -= 1


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
