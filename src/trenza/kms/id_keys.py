"""The keys that seal key IDs: two for each direction of each session, kept longer than the session.

Keys issued in one session may be fetched in the next, and explained years later; so ID keys outlive the session whose
exchange they come from. They protect what an ID says (which window, which pair), never a key's bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from trenza.base.errors import AuthenticationError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.base.units import Nanoseconds, Seconds, nanoseconds
from trenza.core.exchange import SessionKeys
from trenza.core.keyid import IdKeys
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.ports import Delete, Put, Sealed, Sealer, Table

_ROW = b"keys"

_GRACE = Seconds(60.0)
"""How long after its keys' lifetime a session's ID keys are still honoured."""

_KEPT = 256
"""Sets of past sessions kept for each peer, so that keys of the past can be explained; those that still seal keys
that may be fetched are kept in any case."""


@dataclass(slots=True)
class IdKeySet:
    """The keys that seal key IDs in one session: for keys this node issues, and for those the peer issues."""

    session: bytes
    created: Nanoseconds
    mine: IdKeys = field(repr=False)
    theirs: IdKeys = field(repr=False)
    sealed: Sealed
    retired: bool = False  # they only serve to explain keys of the past


class IdKeyRing:
    """The ID keys of all sessions this node has had, newest first for each peer."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._sets: dict[NodeId, list[IdKeySet]] = {}
        self._issues_under: dict[NodeId, bytes] = {}  # the session whose keys seal what is issued now
        self.unreadable: set[tuple[NodeId, bytes]] = set()
        """Sessions whose ID keys are there and cannot be opened: the store and the keyring are not of one time."""

    async def load(self) -> None:
        """Read the keys of earlier sessions, under which keys may still be fetched.

        Those that cannot be opened cost the keys that they sealed the IDs of, and nothing else.

        Raises:
            StoreUnavailableError: not now.
        """
        for key, value in await self._ctx.store.scan(Table.SESSION, _ROW):
            peer, session = rows.split_peer(key[len(_ROW) :])
            row = rows.decode(value, rows.IdKeysRow)
            if (known := self._find(peer, session)) is not None:
                known.retired = row.retired
                continue
            try:
                secret = await self._ctx.sealer.unseal(row.keys.sealed, associated=self._associated(peer, session))
            except AuthenticationError:
                if (peer, session) not in self.unreadable:
                    self._ctx.counters["id_keys_unreadable"] += 1
                self.unreadable.add((peer, session))
                continue
            self.unreadable.discard((peer, session))
            parts = [bytes(secret.view()[32 * i : 32 * (i + 1)]) for i in range(4)]
            secret.wipe()
            mine, theirs = IdKeys(parts[0], parts[1]), IdKeys(parts[2], parts[3])
            created = Nanoseconds(row.created)
            one = IdKeySet(session, created, mine, theirs, row.keys.sealed, row.retired)
            self._sets.setdefault(peer, []).append(one)
        for sets in self._sets.values():
            sets.sort(key=lambda one: one.created, reverse=True)

    async def refresh(self) -> None:
        """Read what another instance of this node has kept, retired or forgotten since."""
        await self.load()

    def has(self, peer: NodeId, session: bytes) -> bool:
        """Tell whether the ID keys of that session are known."""
        return self._find(peer, session) is not None

    def _find(self, peer: NodeId, session: bytes) -> IdKeySet | None:
        return next((one for one in self._sets.get(peer, ()) if one.session == session), None)

    async def keep(self, peer: NodeId, keys: SessionKeys) -> None:
        """Keep the ID keys of a new session, durably."""
        ctx = self._ctx
        leader = ctx.leads(peer)
        mine = keys.leader_issues if leader else keys.follower_issues
        theirs = keys.follower_issues if leader else keys.leader_issues
        material = Secret(bytearray(mine.tag + mine.mask + theirs.tag + theirs.mask))
        sealed = await ctx.sealer.seal(material, associated=self._associated(peer, keys.session_id))
        material.wipe()
        now = ctx.clock.now()
        row = rows.IdKeysRow(now, rows.SealedRow.of(sealed))
        await ctx.store.commit([Put(Table.SESSION, self._row_key(peer, keys.session_id), rows.encode(row))])
        self._sets.setdefault(peer, []).insert(0, IdKeySet(keys.session_id, now, mine, theirs, sealed))
        await self._forget_old(peer)

    async def _forget_old(self, peer: NodeId) -> None:
        """Destroy sets that are only kept to explain keys of the past, where there are too many."""
        ctx, sets = self._ctx, self._sets[peer]
        used = {one.session for one in self.fetchable(peer)} | {self._issues_under.get(peer)}
        old = [one for one in sets[_KEPT:] if one.session not in used]
        if not old:
            return
        self._sets[peer] = [one for one in sets if one not in old]
        await ctx.store.commit([Delete(Table.SESSION, self._row_key(peer, one.session)) for one in old])
        await ctx.sealer.erase([one.sealed.handle for one in old])
        ctx.counters["id_keys_forgotten"] += len(old)

    async def retire_all(self) -> None:
        """Let no key be fetched under earlier ID keys: part of dropping all strands.

        They stay, so that what they sealed can still be explained.
        """
        for peer, sets in list(self._sets.items()):
            for one in list(sets):
                one.retired = True
                if one not in self._sets[peer]:
                    continue  # forgotten while another row was written
                row = rows.IdKeysRow(one.created, rows.SealedRow.of(one.sealed), retired=True)
                await self._ctx.store.commit([Put(Table.SESSION, self._row_key(peer, one.session), rows.encode(row))])

    # --- using them

    def issue_under(self, peer: NodeId, session: bytes) -> None:
        """Seal from now on under the ID keys of `session`, which has been kept."""
        self._issues_under[peer] = session

    def issues_under(self, peer: NodeId) -> bytes:
        """Return the session whose keys seal what is issued now."""
        return self._issues_under.get(peer, b"")

    def issuing(self, peer: NodeId) -> IdKeys:
        """Return the keys that seal the IDs of keys this node issues now.

        Raises:
            UnavailableError: no session.
        """
        self._ctx.session(peer)
        return next(one.mine for one in self._sets[peer] if one.session == self._issues_under[peer])

    def fetchable(self, peer: NodeId) -> list[IdKeySet]:
        """Return the sets under which a key may still be fetched.

        They are those of this session, and of sessions that ended less than the longest key lifetime ago: window
        numbers may come round again for older ones.
        """
        sets = self._sets.get(peer, [])
        if len(sets) == 1:  # mostly; asked with every fetch
            return [] if sets[0].retired else [sets[0]]
        oldest = self._ctx.clock.now() - lifetime_of(self._ctx) - nanoseconds(_GRACE)
        ends = [self._ctx.clock.now(), *(one.created for one in sets)]
        return [one for one, ended in zip(sets, ends, strict=False) if not one.retired and ended >= oldest]

    def all_of(self, peer: NodeId) -> list[IdKeySet]:
        """Return the sets of all sessions this node has had with `peer`, newest first, as far as they are kept."""
        return self._sets.get(peer, [])

    @property
    def peers(self) -> list[NodeId]:
        """Return the nodes with which there ever was a session."""
        return sorted(self._sets)

    def _associated(self, peer: NodeId, session: bytes) -> bytes:
        return _associated(self._ctx.name, peer, session)

    @staticmethod
    def _row_key(peer: NodeId, session: bytes) -> bytes:
        return b"keys" + rows.peer_prefix(peer) + session


async def sealed_anew(
    kept: Iterable[tuple[bytes, bytes]], *, node: NodeId, old: Sealer, new: Sealer
) -> list[tuple[bytes, bytes]]:
    """Seal the ID keys in rows of SESSION with another sealer, as keys that only explain what is past.

    For a backup, whose keyring holds nothing else. Those that the node has destroyed meanwhile are left out.

    Args:
        kept: rows, of whatever kind.
        node: whose.
        old: opens the rows.
        new: seals those that are returned.
    """
    moved: list[tuple[bytes, bytes]] = []
    for key, value in kept:
        if not key.startswith(_ROW):
            continue
        peer, session = rows.split_peer(key[len(_ROW) :])
        associated = _associated(node, peer, session)
        row = rows.decode(value, rows.IdKeysRow)
        try:
            secret = await old.unseal(row.keys.sealed, associated=associated)
        except AuthenticationError:
            continue
        sealed = await new.seal(secret, associated=associated)
        secret.wipe()
        moved.append((key, rows.encode(rows.IdKeysRow(row.created, rows.SealedRow.of(sealed), retired=True))))
    return moved


def _associated(node: NodeId, peer: NodeId, session: bytes) -> bytes:
    return b"id keys" + node.encode() + b"\0" + peer.encode() + b"\0" + session


def lifetime_of(ctx: Context) -> Nanoseconds:
    """Return the longest that any key of the book may wait to be fetched; an hour while there is no book."""
    return nanoseconds(Seconds(float(ctx.book.longest_key_lifetime_s if ctx.has_book else 3_600)))
