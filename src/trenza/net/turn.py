"""Turns: one kind of work, done for all connections in a row once in a turn of the loop.

Decrypting, answering and sending are long ways through different code. Done for one connection after the other they
push each other out of the processor's caches, and whoever is answered first preempts the answers to the others; done
in turn for all that came, an issuing request takes a fifth less CPU time (docs/performance.md). Nobody waits for
company: what came by itself is done by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Turn:
    """Puts calls off to the next turn of the loop and makes them in the order in which they came."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []

    def soon(self, call: Callable[[], None]) -> None:
        """Make this call at the next turn of the running loop."""
        self._due.append(call)
        if len(self._due) == 1:
            asyncio.get_running_loop().call_soon(self._take)

    def _take(self) -> None:
        due, self._due = self._due, []
        for call in due:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - one connection's failure is not the others'
                told = {"message": "a connection failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(told)
