"""The queue of commits: all that wait become one group, one transaction, one sync on the server.

While a group is under way the next one gathers. An answer is released only after its group's COMMIT was confirmed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from trenza.adapters.postgres.driver import LOST
from trenza.adapters.postgres.group import Commit, Outcome
from trenza.adapters.postgres.line import Line
from trenza.adapters.postgres.server import Server
from trenza.adapters.postgres.transaction import Applied, Transaction
from trenza.base.errors import FencedError, StoreUnavailableError

_LOG = logging.getLogger(__name__)

_LARGE_GROUP = 512  # takes no more company
_MOST_WAITING = 8_192  # more than a server takes in a deadline: who comes later is told at once

Waiting: TypeAlias = tuple[Commit, "asyncio.Future[None]"]


class Writer:
    """Commits groups, one at a time, over a line of its own. Belongs to one event loop."""

    def __init__(self, server: Server, *, on_applied: Callable[[Applied], None]) -> None:
        """Prepare; nothing runs while nothing waits.

        Args:
            server: to connect to, over a line of its own.
            on_applied: told where the store stands after each group, before any of the group's answers is released.
        """
        self._server = server
        self._line = Line(server)
        self._on_applied = on_applied
        self._waiting: deque[Waiting] = deque()
        self._turn: asyncio.Task[None] | None = None
        self._closed = False

    async def commit(self, commit: Commit) -> None:
        """Queue a commit and wait for what becomes of it."""
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        if len(self._waiting) >= _MOST_WAITING:
            raise StoreUnavailableError(
                f"{_MOST_WAITING} commits wait for the database: it is too slow for this load"
            )
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((commit, answer))
        if self._turn is None:
            self._turn = asyncio.get_running_loop().create_task(self._commit_waiting(), name="postgres writer")
        await answer

    async def close(self) -> None:
        """Finish what was called."""
        self._closed = True
        while self._turn is not None:
            await asyncio.wait([self._turn])
        await self._line.close()

    async def _commit_waiting(self) -> None:
        try:
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(len(self._waiting), _LARGE_GROUP))]
                _release(group, await self._outcomes([commit for commit, _ in group]))
        finally:
            self._turn = None
            _release(list(self._waiting), [StoreUnavailableError("the store's writer ended")] * len(self._waiting))
            self._waiting.clear()

    async def _outcomes(self, commits: Sequence[Commit]) -> Sequence[Outcome]:
        try:
            applied = await self._applied(commits)
            self._on_applied(applied)
        except StoreUnavailableError as error:
            return [type(error)(error.message) for _ in commits]
        except Exception as error:  # noqa: BLE001 - the loop goes on: whoever waits behind these is not to blame
            _LOG.exception("a group of %d commits failed of a defect", len(commits))
            return [StoreUnavailableError(f"the store failed: {type(error).__name__}") for _ in commits]
        return applied.outcomes

    async def _applied(self, commits: Sequence[Commit]) -> Applied:
        """Apply a group; once more if it surely was not written because an old connection turned out to be dead."""
        transaction: Transaction | None = None
        was_open = self._line.is_open
        try:
            async with self._line.connection() as connection:
                transaction = Transaction(connection, self._server)
                return await transaction.apply(commits)
        except FencedError:
            raise
        except StoreUnavailableError as error:
            surely_not_written = transaction is not None and not transaction.may_be_written
            if not (was_open and surely_not_written and isinstance(error.__cause__, LOST)):
                raise
        async with self._line.connection() as connection:
            return await Transaction(connection, self._server).apply(commits)


def _release(group: Sequence[Waiting], outcomes: Sequence[Outcome]) -> None:
    for (_, answer), outcome in zip(group, outcomes, strict=True):
        if answer.done():  # its caller was cancelled: to them the outcome is unknown
            continue
        if outcome is None:
            answer.set_result(None)
        else:
            answer.set_exception(outcome)
