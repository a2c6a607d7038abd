"""Deadlines: ends tasks that take too long, with one timer for all of them.

A timer of its own for every request (`asyncio.timeout`) cost as much as reading the key ID that it asks for. Each
task has the same time, so the one that began first is the next to be due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from trenza.base.units import Seconds

_A = TypeVar("_A")


class Deadlines:
    """Gives every task the same time. Good for one event loop after the other, not for two at once."""

    def __init__(self, limit: Seconds) -> None:
        self._limit = limit
        self._due: dict[asyncio.Task[Any], float] = {}  # in this order
        self._passed: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def within(self, work: Coroutine[Any, Any, _A]) -> _A:
        """Return what `work` returns, awaited by the running task, which begins nothing else meanwhile.

        Raises:
            TimeoutError: it took too long and was cancelled.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._due[task] = loop.time() + self._limit
        if self._timer is None or self._loop is not loop:
            self._loop, self._timer = loop, loop.call_later(self._limit, self._look)
        try:
            return await work
        except asyncio.CancelledError:
            if task in self._passed and task.uncancel() == 0:
                raise TimeoutError from None
            raise  # somebody else wants it to end
        finally:
            self._due.pop(task, None)
            self._passed.discard(task)

    def _look(self) -> None:
        """End what is due, and come again when the next is."""
        assert self._loop is not None
        self._timer, now = None, self._loop.time()
        for task, due in list(self._due.items()):
            if due > now:
                self._timer = self._loop.call_at(due, self._look)
                return
            del self._due[task]
            self._passed.add(task)
            task.cancel()
