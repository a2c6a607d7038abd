"""Turns: one kind of work, done for all connections in a row once in a turn of the loop.

Decrypting, answering and sending are long ways through different code. Done for one connection after the other they
push each other out of the processor's caches, and whoever is answered first preempts the answers to the others; done
in turn for all that came, an issuing request takes a fifth less CPU time (docs/performance.md). Nobody waits for
company: what came by itself is done by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Turn(Generic[T]):
    """Puts things off to the next turn of the loop, and has them dealt with in the order in which they came."""

    __slots__ = ("_due", "_held", "_work")

    def __init__(self, work: Callable[[Sequence[T]], None]) -> None:
        self._work = work
        self._due: list[T] = []
        self._held = False

    def soon(self, thing: T) -> None:
        """Deal with this at the next turn of the running loop, or at the end of `gathered`."""
        self._due.append(thing)
        if len(self._due) == 1 and not self._held:
            asyncio.get_running_loop().call_soon(self._take)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Deal with what is put off meanwhile as soon as this ends: all of a row is there then."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if self._due:
                self._take()

    def _take(self) -> None:
        due, self._due = self._due, []
        self._work(due)


def call_each(calls: Iterable[Callable[[], None]]) -> None:
    """Make calls, one for each connection, whose failure is not the others'."""
    for call in calls:
        try:
            call()
        except Exception as error:  # noqa: BLE001
            told = {"message": "a connection failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(told)
