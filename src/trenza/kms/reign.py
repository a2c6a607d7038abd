"""What the instance that leads tells those that serve beside it: that it lives, and under which leases it may issue.

Rows of the shared store, written several times a second. An instance beside the lead believes them only while the
lead that wrote them is in force, and only once it has seen them change: rows of a lead that has ended, or of a
database that was put back, prove nothing (kms.second). Times are by the memory's own clock, never later than true.
"""

from __future__ import annotations

import msgspec

from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds, Seconds, nanoseconds
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.demand import Demand
from trenza.kms.id_keys import IdKeyRing
from trenza.kms.met import Met
from trenza.kms.own_life import OwnLife
from trenza.kms.pools import Pools
from trenza.kms.ports import Change, Delete, Put, SharedStore, Table
from trenza.wire.peer import Presence

REIGN = b"reign"
LEASES = b"lease:"

PUBLISH_EVERY = Seconds(0.25)


class ReignRow(msgspec.Struct, frozen=True, array_like=True):
    """META/reign: who leads, and that it lives."""

    token: int  # of the lead
    count: int  # of the times it has written this
    store: bytes  # what names the store, for anchors
    epoch: int
    incarnation: int
    book_version: int
    vouching: tuple[str, ...] = ()  # peers that know of nothing that the node has forgotten


class LeaseRow(msgspec.Struct, frozen=True, array_like=True):
    """META/lease:NAME: the session with a peer, and what may be done under it."""

    session: bytes
    under: bytes  # the session whose ID keys seal what is issued
    until: int  # by the memory's clock, in nanoseconds: until when keys may be issued
    theirs: Presence
    ungranted_full: int  # slots that the peer may still grant, with QKD strands
    ungranted_plain: int


def lease_key(peer: NodeId) -> bytes:
    return LEASES + peer.encode()


class Reign:
    """The lead's side."""

    def __init__(
        self, ctx: Context, *, life: OwnLife, met: Met, id_keys: IdKeyRing, pools: Pools, demand: Demand
    ) -> None:
        self._ctx = ctx
        self._life = life
        self._met = met
        self._id_keys = id_keys
        self._pools = pools
        self._demand = demand
        self._count = 0
        self._told: set[NodeId] = set()

    async def publish(self) -> None:
        """Tell the others, and take in what they have used."""
        ctx, shared = self._ctx, self._ctx.shared
        if shared is None:
            return
        for peer, full, slots in self._pools.reserving.note_reserved_by_others(
            await shared.scan(Table.WINDOW, rows.ISSUER)
        ):
            self._demand.note_issued(peer, full=full, slots=slots)
        ahead = await self._ahead(shared)
        self._count += 1
        life = ctx.presence
        reign = ReignRow(
            shared.token,
            self._count,
            self._life.store_name,
            life.epoch,
            life.incarnation,
            ctx.book.version if ctx.has_book else 0,
            self._met.vouching,
        )
        changes: list[Change] = [Put(Table.META, REIGN, rows.encode(reign))]
        told = self._told
        self._told = set(ctx.sessions)
        changes += [Put(Table.META, lease_key(peer), self._lease(peer, ahead)) for peer in sorted(self._told)]
        changes += [Delete(Table.META, lease_key(peer)) for peer in sorted(told - self._told)]
        await shared.commit(changes)

    async def _ahead(self, shared: SharedStore) -> Nanoseconds:
        """Return what to add to Clock.elapsed for a time by the memory's clock that is not later than true."""
        moment = await shared.moment()
        return Nanoseconds(nanoseconds(moment) - nanoseconds(self._ctx.clock.elapsed()))

    def _lease(self, peer: NodeId, ahead: Nanoseconds) -> bytes:
        session = self._ctx.sessions[peer]
        me = self._ctx.name
        row = LeaseRow(
            session.id,
            self._id_keys.issues_under(peer),
            nanoseconds(session.lease_until) + ahead,
            session.theirs,
            self._pools.ungranted(peer, me, full=True),
            self._pools.ungranted(peer, me, full=False),
        )
        return rows.encode(row)

    async def begin(self) -> None:
        """Forget what an earlier lead told: its sessions are not this one's."""
        shared = self._ctx.shared
        if shared is None:
            return
        told = [key for key, _ in await shared.scan(Table.META, LEASES)]
        if told:
            await shared.commit([Delete(Table.META, key) for key in told])
