"""The life that this node lives: taken up at its start, signed, and dropped when a later one of it is seen.

The epoch grows when the node cannot prove that its memory is whole: its store is older than the anchor outside it
remembers, or a peer has met a later life than the one that speaks. Such a node drops all its strands before it does
anything else, so a restored or cloned copy can never issue a slot twice (design decision 8;
docs/adr/0005-windows-and-lives.md). What a later life is: kms.lives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from trenza.base.errors import AuthenticationError, RemoteProtocolError
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.lives import is_later, is_same
from trenza.kms.ports import Anchor, Put, Table
from trenza.wire.peer import Presence, life_message

_PAST = 64
"""Lives before its own that a node tells of: a peer that met a copy of it must hear of it within so many starts."""


class OwnLife:
    """This node's life."""

    def __init__(self, ctx: Context, *, anchor: Anchor) -> None:
        self._ctx = ctx
        self._anchor = anchor
        self._store_name = bytes(16)
        self._dying = asyncio.Lock()  # held while this life is dropped for a new one
        self._wanted: deque[tuple[Presence, asyncio.Future[None]]] = deque()
        self._is_wanted = asyncio.Event()
        self._runs = False
        self.on_new: Callable[[], Awaitable[None]] | None = None  # drops what other stories hold

    @property
    def store_name(self) -> bytes:
        """What names the store in which this node's life is; none before `begin`."""
        return self._store_name

    async def begin(self) -> bool:
        """Take up a new incarnation, durably; tell whether memory is whole.

        A store that is behind its anchor, or that an anchor does not know although it is not new, is a copy: the
        epoch grows and the caller drops all strands, then says so (`note_dropped`). Nothing may be committed before
        this: a commit would tell the anchor of the copy.
        """
        ctx = self._ctx
        value = await ctx.store.get(Table.META, rows.SELF)
        past: tuple[bytes, ...] = ()
        ends: tuple[int, ...] = ()
        known = self._anchor.recall()
        await ctx.store.head()  # another instance may have written last
        reached = ctx.store.counter()
        if value is None:
            row = rows.SelfRow(bytes(ctx.entropy.token(16)), 1, 1)
            whole = True
        else:
            last = rows.decode(value, rows.SelfRow)
            anchored = known is not None and known[0] == last.store and reached >= known[1]
            whole = anchored and last.whole
            row = rows.SelfRow(last.store, last.epoch + (not whole), last.incarnation + 1)
            if whole and last.nonce:
                past, ends = (last.nonce, *last.past)[:_PAST], (reached, *last.ends)[:_PAST]
        self._store_name = row.store
        await self._set(row.epoch, row.incarnation, whole=whole, past=past, ends=ends)
        return whole

    async def _set(
        self,
        epoch: int,
        incarnation: int,
        *,
        whole: bool,
        past: tuple[bytes, ...] = (),
        ends: tuple[int, ...] = (),
    ) -> None:
        nonce = bytes(self._ctx.entropy.token(16))
        self._ctx.presence = Presence(epoch, incarnation, nonce, place=self._ctx.place, past=past, ends=ends)
        self.sign()
        await self._write(whole=whole)

    def sign(self) -> None:
        """Sign this node's life with the key that its certificate has now; peers believe no other signature."""
        self._ctx.presence = self._signed(self._ctx.presence)

    def now(self) -> Presence:
        """Return this life, signed, with how far its store has got."""
        return self._signed(msgspec.structs.replace(self._ctx.presence, reached=self._ctx.store.counter()))

    def _signed(self, life: Presence) -> Presence:
        return msgspec.structs.replace(life, signature=self._ctx.signer.sign(life_message(self._ctx.name, life)))

    async def _write(self, *, whole: bool) -> None:
        presence = self._ctx.presence
        row = rows.SelfRow(
            self._store_name,
            presence.epoch,
            presence.incarnation,
            whole,
            presence.nonce,
            presence.past,
            presence.ends,
        )
        await self._ctx.store.commit([Put(Table.META, rows.SELF, rows.encode(row))])
        self._anchor.remember(self._store_name, self._ctx.store.counter())

    async def note_dropped(self) -> None:
        """Make it durable that no strand of a memory that was not whole is left."""
        await self._write(whole=True)

    async def begin_anew(self, *, after: Presence) -> None:
        """Drop every strand and come back in an epoch after `after`: another copy of this node was seen.

        Several peers may tell of it at once, and sessions may be in the making: one of them begins the new life, and
        no session of the old one goes on into it. Once begun it is finished, though nobody waits for it any more.

        Raises:
            RemoteProtocolError: it is this very life, or an earlier one.
            AuthenticationError: this node never signed that life; whoever speaks of it proves nothing.
        """
        if not is_later(after, self._ctx.presence):
            self._ctx.counters["lives_unproved"] += 1
            raise RemoteProtocolError("a peer calls a life of this node later that is not")
        if not self._ctx.signer.recognises(life_message(self._ctx.name, after), after.signature):
            self._ctx.counters["lives_unproved"] += 1
            raise AuthenticationError("a peer speaks of a later life of this node that this node did not sign")
        if not self._runs:
            await self._begin_once(after)
            return
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted.append((after, begun))
        self._is_wanted.set()
        await begun

    async def run(self) -> None:
        """Begin the new lives that are asked for, each to its end, until cancelled."""
        self._runs = True
        try:
            while True:
                await self._is_wanted.wait()
                self._is_wanted.clear()
                while self._wanted:
                    await self._begin_for(*self._wanted[0])
                    self._wanted.popleft()
        finally:
            self._runs = False
            for _, begun in self._wanted:
                begun.cancel()
            self._wanted.clear()

    async def _begin_for(self, after: Presence, begun: asyncio.Future[None]) -> None:
        """Begin a new life for a story that may have gone meanwhile."""
        try:
            await self._begin_once(after)
        except Exception as error:  # noqa: BLE001 - it is that story's to say what is wrong
            if not begun.done():
                begun.set_exception(error)
        else:
            if not begun.done():
                begun.set_result(None)

    async def _begin_once(self, after: Presence) -> None:
        async with self._dying:
            if is_later(after, self._ctx.presence):  # else it was begun while this story waited
                await self._begin_anew(after)

    async def _begin_anew(self, after: Presence) -> None:
        self._ctx.counters["lives_superseded"] += 1
        for peer in list(self._ctx.sessions):
            self._ctx.end_session(peer)
        await self._write(whole=False)  # a crash from here on must not leave a part of the strands to be used
        if self.on_new is not None:
            await self.on_new()
        epoch = max(self._ctx.presence.epoch, after.epoch) + 1
        await self._set(epoch, max(self._ctx.presence.incarnation, after.incarnation) + 1, whole=True)

    def is_past(self, life: Presence) -> bool:
        """Tell whether a life of this node is over, or about to be."""
        return self._dying.locked() or not is_same(life, self._ctx.presence)
