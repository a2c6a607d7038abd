"""Tasks that recur: each takes a turn at its interval, or sooner when it is kicked, until nobody wants it any more.

Knows no keys, peers or links: what a turn does is its owner's. A turn that fails with a TrenzaError is counted, told
to people, and tried again at the next; anything else ends all the tasks, and with them the node (crash early).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from typing import NamedTuple

from trenza.base.errors import TrenzaError
from trenza.base.units import Seconds

_SOON = Seconds(0.05)
"""The shortest pause between two turns of a task that was woken early."""


class Recurring(NamedTuple):
    """What one task does, and how often."""

    interval: Seconds
    step: Callable[[], Awaitable[bool]]
    """One turn; tells whether there is more to do at once."""


class Tasks:
    """Tasks that run in one group, by key."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self.troubles: dict[str, str] = {}  # what each task last failed with, for people
        self._tasks: dict[Hashable, asyncio.Task[None]] = {}
        self._kicks: dict[Hashable, asyncio.Event] = {}
        self._group: asyncio.TaskGroup | None = None

    @property
    def are_running(self) -> bool:
        return self._group is not None

    async def run(self, begin: Callable[[], None]) -> None:
        """Run the tasks that `begin` starts, and those that are started later, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                try:
                    begin()
                    await asyncio.Event().wait()
                finally:
                    self._group = None  # requests that still come begin nothing in a group that ends
        finally:
            self._tasks.clear()

    def start(self, name: str, work: Coroutine[object, object, None]) -> None:
        """Run something once, beside the tasks that recur; they must be running."""
        assert self._group is not None, "run() comes first"
        self._group.create_task(work, name=name)

    def follow(self, wanted: Mapping[Hashable, Recurring]) -> None:
        """Start the tasks that are wanted and do not run yet, and stop the others; they must be running."""
        assert self._group is not None, "run() comes first"
        for key in [key for key in self._tasks if key not in wanted]:
            task = self._tasks.pop(key)
            task.cancel()
            self._kicks.pop(key, None)
            self.troubles.pop(task.get_name(), None)
        for key, recurring in wanted.items():
            if key not in self._tasks:
                kick = self._kicks[key] = asyncio.Event()
                name = " ".join(str(part) for part in key) if isinstance(key, tuple) else str(key)
                self._tasks[key] = self._group.create_task(self._turns(name, recurring, kick), name=name)

    def kick(self, *key: str) -> None:
        """Wake a task before its time."""
        event = self._kicks.get(key)
        if event is not None:
            event.set()

    async def _turns(self, name: str, recurring: Recurring, kick: asyncio.Event) -> None:
        """Take turn after turn: at once while there is more to do, else at intervals or when kicked."""
        while True:
            more = False
            try:
                more = await recurring.step()
                self.troubles.pop(name, None)
            except TrenzaError as error:
                self.troubles[name] = error.message
                self._counters[f"failed_{name.partition(' ')[0]}_turns"] += 1
            if more:
                await asyncio.sleep(0)
                continue
            try:
                async with asyncio.timeout(recurring.interval):
                    await kick.wait()
                await asyncio.sleep(_SOON)
            except TimeoutError:
                pass
            kick.clear()
