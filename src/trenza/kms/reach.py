"""Reach: how far this node's store has got, as its peers remember it, and theirs as this node does.

A node tells its peers how far its store has got, and a life says how far each one before it had got. So peers find a
copy that brought its anchor along: it has forgotten what they remember (docs/adr/0023-counters-among-peers.md).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

import msgspec

from trenza.base.errors import RemoteProtocolError, UnavailableError
from trenza.base.names import NodeId
from trenza.kms.context import Context
from trenza.kms.lives import is_same
from trenza.kms.met import Met
from trenza.kms.own_life import OwnLife
from trenza.wire.peer import Done, PeerMessage, Presence, Reached, Superseded, WindowAnswer, life_message


class Reach:
    """Both sides."""

    def __init__(self, ctx: Context, *, life: OwnLife, met: Met) -> None:
        self._ctx = ctx
        self._life = life
        self._met = met
        self._told: dict[NodeId, int] = {}  # how far this life has got, as a peer remembers durably
        self._owed: dict[NodeId, int] = {}  # how far it had got when it last did what a peer is to hear of
        self._telling: defaultdict[NodeId, asyncio.Lock] = defaultdict(asyncio.Lock)

    def forget(self) -> None:
        """Begin a new life: peers remember nothing of it yet."""
        self._told.clear()
        self._owed.clear()

    # --- this node's

    def owe(self, peer: NodeId) -> None:
        """Note that something was done, durably, that a copy of this node from before must not do again."""
        self._owed[peer] = self._ctx.store.counter()

    async def tell_if_owed(self, peer: NodeId) -> None:
        """Tell `peer` how far this life has got, if it has done what the peer is to remember."""
        if peer in self._ctx.sessions and self._owed.get(peer, 0) > self._told.get(peer, 0):
            await self.tell(peer)

    async def tell(self, peer: NodeId) -> None:
        """Return when `peer` remembers, durably, that this life has got as far as it has now.

        Whoever waits meanwhile shares an answer.

        Raises:
            UnavailableError, PeerUnavailableError: it may not.
        """
        ctx = self._ctx
        now = ctx.store.counter()
        async with self._telling[peer]:
            if self._told.get(peer, 0) >= now:
                return
            life = self._life.now()
            message = Reached(ctx.session(peer).id, life)
            answer = await ctx.peers.call(peer, message, timeout=ctx.settings.call_timeout)
            if isinstance(answer, Superseded):
                await self._life.begin_anew(after=answer.known)
                raise UnavailableError(f"node {peer} has met a later life of this node; starting a new one")
            if not isinstance(answer, Done):
                raise RemoteProtocolError(f"node {peer} answers how far this node is with {type(answer).__name__}")
            if self._life.is_past(life):
                raise UnavailableError("this node begins a new life; what the last one has told is over")
            self._told[peer] = life.reached

    def with_reach(self, answer: WindowAnswer) -> WindowAnswer:
        """Return an answer with how far this life has got: the windows in it are durable."""
        return msgspec.structs.replace(answer, reached=self._life.now()) if answer.grants else answer

    # --- a peer's

    async def handle(self, peer: NodeId, message: Reached) -> PeerMessage:
        """Remember how far the peer has got; answer when that is durable."""
        if (later := self._met.later_life(peer, message.presence)) is not None:
            return Superseded(later)
        self._ctx.session_of(peer, message.session)
        await self.note(peer, message.presence)
        return Done()

    async def note(self, peer: NodeId, life: Presence | None) -> None:
        """Remember, durably, how far the life of the peer has got with which there is a session.

        Raises:
            UnavailableError: there is no session with that life.
            AuthenticationError: the peer did not sign it.
        """
        if life is None:
            return
        if not is_same(self._ctx.session(peer).theirs, life) or not is_same(self._met.life_of(peer), life):
            raise UnavailableError(f"node {peer} speaks of a life with which there is no session")
        self._ctx.verifier.verify(peer, life_message(peer, life), life.signature)
        await self._met.remember(peer, life)
