"""The lives of peers that this node has met, durably, and the peers that have met this one's.

A life that comes back after a later one of the same node was met is refused: it is a copy, or a memory that was put
back (docs/adr/0005-windows-and-lives.md). What a later life is: kms.lives.
"""

from __future__ import annotations

from trenza.base.errors import StaleError
from trenza.base.names import NodeId
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.lives import is_later, is_same
from trenza.kms.ports import Put, Table
from trenza.wire.peer import Presence


class Met:
    """What this node remembers of others' lives, and which of the others vouch for its own."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._known: dict[NodeId, Presence] = {}
        self._vouched_at: dict[
            NodeId, bytes
        ] = {}  # peers that have met a life at that place, and knew no better of it

    async def load(self) -> None:
        """Read what earlier lives of this node have met."""
        for key, stored in await self._ctx.store.scan(Table.META, b"peer:"):
            peer = rows.decode(stored, rows.PeerRow)
            name = NodeId(key[5:].decode())
            if peer.known is not None:
                self._known[name] = peer.known
            if peer.vouched_at:
                self._vouched_at[name] = peer.vouched_at

    # --- their lives

    def life_of(self, peer: NodeId) -> Presence | None:
        """Return the last life of `peer` that this node has met."""
        return self._known.get(peer)

    def later_life(self, peer: NodeId, presence: Presence) -> Presence | None:
        """Return the life of `peer` that was met and is later than this one, if it is."""
        known = self._known.get(peer)
        return known if known is not None and is_later(known, presence) else None

    def refuse_earlier_life(self, peer: NodeId, presence: Presence) -> None:
        """Go on only with a life of `peer` that is no earlier than the one that was met.

        Raises:
            StaleError: it is.
        """
        if self.later_life(peer, presence) is not None:
            raise StaleError(f"node {peer} speaks from an earlier life; it learns so when it says hello itself")

    async def remember(self, peer: NodeId, presence: Presence) -> None:
        """Remember a life of a peer, durably; of one life, what it said when it had got furthest."""
        known = self._known.get(peer)
        if known is None or not is_same(known, presence) or presence.reached > known.reached:
            self._known[peer] = presence
        await self._write(peer)

    async def _write(self, peer: NodeId) -> None:
        row = rows.PeerRow(self._known.get(peer), self._vouched_at.get(peer, b""))
        await self._ctx.store.commit([Put(Table.META, rows.peer_key(peer), rows.encode(row))])

    # --- this node's life, as they know it

    def vouches(self, peer: NodeId) -> bool:
        """Tell whether `peer` has met a life at this very place, and knew of nothing that it had forgotten.

        Then no copy can have come between: one that is put in its place, or started beside it, is at another.
        """
        return self._vouched_at.get(peer) == self._ctx.place

    @property
    def vouching(self) -> tuple[NodeId, ...]:
        """The peers that vouch for this life."""
        return tuple(sorted(peer for peer in self._vouched_at if self.vouches(peer)))

    async def note_vouched(self, peer: NodeId) -> None:
        """Note that `peer` has taken this life for the one it knows, or for one that follows it."""
        if not self.vouches(peer):
            self._vouched_at[peer] = self._ctx.place
            await self._write(peer)
