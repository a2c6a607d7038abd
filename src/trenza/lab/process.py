"""A process of a lab machine: the tasks of one life, counted step by step, and an end that can come at any of them.

A step is what a task does between two awaits. A process told to die at its n-th step is killed there and then: the
step is not run, nothing that still unwinds can write or be heard, and whoever waits for an answer waits for ever.
That is a crash at an await; crashes at writes are the disk's affair (lab/disk).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

from trenza.base.errors import TrenzaError

T = TypeVar("T")

_running: ContextVar[Process | None] = ContextVar("_running", default=None)
"""The process that the running task belongs to: tasks that it starts belong to it too."""


class Process:
    """One life of a node on a machine."""

    def __init__(
        self, name: str, *, fatal_step: int = 0, on_death: Callable[[], None], keeps_all: bool = False
    ) -> None:
        """Begin a life without any task.

        Args:
            name: for people.
            fatal_step: the process dies when it is about to take this step, counted from 1; 0 is never.
            on_death: called when it does.
            keeps_all: whether tasks that its tasks begin end with it by themselves, not by who began them.
        """
        self.name = name
        self.steps = 0
        self.fatal_step = fatal_step
        self.dead = False
        self.on_death = on_death
        self.ended = asyncio.Event()
        self.keeps_all = keeps_all
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in the order in which they began
        self._context = copy_context()
        self._context.run(_running.set, self)

    def spawn(self, deed: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Let the process do something."""
        task = asyncio.get_running_loop().create_task(deed, name=name, context=self._context)
        if not self.keeps_all:
            self.keep(task)
        return task

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Let a task end when the process does."""
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def ask(self, deed: Coroutine[Any, Any, T]) -> T:
        """Let the process do something and wait for it; who gives up does not stop it, as with a connection cut."""
        if self.dead:
            deed.close()
            await asyncio.Event().wait()
        task = self.spawn(deed)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_note_unheard)
            asker = asyncio.current_task()
            if self.dead and asker is not None and not asker.cancelling():
                await asyncio.Event().wait()
            raise

    def die(self) -> list[asyncio.Task[Any]]:
        """End the life at this instant.

        Returns:
            The tasks that still unwind.
        """
        self.dead = True
        self.ended.set()
        unwinding = list(self._tasks)
        for task in unwinding:
            task.cancel()
        return unwinding

    def take_step(self) -> bool:
        """Count a step; False when the process dies instead of taking it."""
        self.steps += 1
        if self.steps != self.fatal_step or self.dead:
            return True
        self.on_death()
        return False


def _note_unheard(task: asyncio.Task[Any]) -> None:
    """Let a refusal that nobody waits for any more go unheard; anything else is told."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, TrenzaError):
        told = {"message": "nobody waits for the task that failed", "exception": error, "task": task}
        task.get_loop().call_exception_handler(told)


class _Steps(Coroutine[Any, Any, T]):
    """A coroutine of a process, every step of it counted."""

    __slots__ = ("__weakref__", "_coro", "_process")

    def __init__(self, coro: Coroutine[Any, Any, T], process: Process) -> None:
        self._coro = coro
        self._process = process

    def send(self, value: Any) -> Any:
        if self._process.take_step():
            return self._coro.send(value)
        return self._coro.throw(asyncio.CancelledError())

    def throw(self, *error: Any) -> Any:
        self._process.take_step()  # an error is on its way: whoever dies now unwinds by it
        return self._coro.throw(*error)

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coro.__await__()


def process_of(context: Context) -> Process | None:
    """Return the process that something is to be called in."""
    return context.get(_running)


def make_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    """Make a task for the loop's task factory, its steps counted if it belongs to a process."""
    context = options.get("context")
    process = _running.get() if context is None else context.get(_running)
    if process is None:
        return asyncio.Task(coro, loop=loop, **options)
    task: asyncio.Task[Any] = asyncio.Task(_Steps(coro, process), loop=loop, **options)
    if process.keeps_all:
        process.keep(task)
    return task
