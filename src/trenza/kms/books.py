"""The policy book that this node follows: stored, taken from the key officer, and passed on between peers.

A book counts once it is durable, and only if the officer signed it and it is newer than the one in force
(docs/adr/0013-policy-book.md). Peers tell their book's version with every beat; whoever has the older one asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from trenza.base.errors import StaleError, UnavailableError
from trenza.base.names import NodeId
from trenza.core.policy import SignedBook, open_book
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.ports import Put, Table
from trenza.wire.peer import BookAnswer, BookRequest


class Books:
    """The book in force and the one before it."""

    def __init__(self, ctx: Context, *, leads: bool) -> None:
        """Read nothing yet.

        Args:
            ctx: of this instance.
            leads: whether this instance may write the book; another one beside it only reads.
        """
        self._ctx = ctx
        self._leads = leads
        self._installing = asyncio.Lock()
        self.on_installed: Callable[[], None] | None = None  # partners and pools may be others now

    async def load(self, signed: SignedBook | None) -> None:
        """Follow the stored book, and a newer one if it is given."""
        ctx = self._ctx
        for key in (rows.FORMER_BOOK, rows.BOOK):
            value = await ctx.store.get(Table.META, key)
            if value is not None:
                stored = SignedBook.decode(value)
                ctx.set_book(open_book(stored, officer=ctx.officer, newer_than=0), stored)
        if signed is not None:
            try:
                await self.install(signed)
            except StaleError:
                ctx.counters["books_stale"] += 1

    async def install(self, signed: SignedBook) -> int:
        """Take a newer policy book, durably, and follow it from now on.

        Returns:
            Its version.

        Raises:
            AuthenticationError, StaleError, InvalidDocumentError: it is not the officer's, not newer, or not sound.
        """
        ctx = self._ctx
        if not self._leads:
            raise UnavailableError("this instance of the node does not lead: give the book to the one that does")
        async with self._installing:  # several peers may bring the same book at once
            book = open_book(signed, officer=ctx.officer, newer_than=ctx.book.version if ctx.has_book else 0)
            changes = [Put(Table.META, rows.BOOK, signed.encode())]
            if ctx.signed_book is not None:
                changes.append(Put(Table.META, rows.FORMER_BOOK, ctx.signed_book.encode()))
            await ctx.store.commit(changes)
            ctx.set_book(book, signed)
        ctx.counters["books_installed"] += 1
        for peer in [peer for peer in ctx.sessions if peer not in book.node_by_name]:
            ctx.end_session(peer)  # it has left the network
        if self.on_installed is not None:
            self.on_installed()
        return book.version

    # --- between peers

    async def fetch(self, peer: NodeId) -> None:
        """Take the book of a peer, if it is newer than this node's."""
        ctx = self._ctx
        request = BookRequest(ctx.book.version if ctx.has_book else 0)
        answer = await ctx.peers.call(peer, request, timeout=ctx.settings.call_timeout)
        if isinstance(answer, BookAnswer) and answer.signed:
            await self.install(SignedBook.decode(answer.signed))

    def handle(self, request: BookRequest) -> BookAnswer:
        """Give a peer the book in force, if it is newer than the peer's."""
        signed = self._ctx.signed_book
        if signed is None or self._ctx.book.version <= request.newer_than:
            return BookAnswer(b"")
        return BookAnswer(signed.encode())
