"""Tells a database that may have forgotten something from one that surely has not.

What an anchor beside the process remembers of a store in PostgreSQL is where its counter was, on which history of
which cluster, and under which lead. After an asynchronous failover, a restore or a recovery to a point in time the
history is another; after a restore of the server's files the counter is smaller. Then nothing is recalled, or less
than is there, and the node begins a new epoch (kms.own_life).

An instance vouches only for what it has seen. One that serves beside the lead notes what it sees, so that it can
vouch for the memory when it takes the lead itself; one that was away while the last lead led begins a new epoch.
"""

from __future__ import annotations

import struct

from trenza.adapters.postgres.server import ServerIdentity
from trenza.kms.ports import Anchor

_REIGN = struct.Struct(">q")


class PostgresAnchor:
    """Implements kms.ports.Anchor over another one, which lies on this machine's own disk."""

    def __init__(self, inner: Anchor, server: ServerIdentity, *, reign: int, succeeds: int) -> None:
        """Bind what `inner` remembers to a server's history and a lead.

        Args:
            inner: remembers across restarts of this process, outside the database and its backups.
            server: the one this process is connected to now (`Server.identity`).
            reign: the token of the lead that is remembered from now on (`Lease.token`, or `Lead.reign`).
            succeeds: the token of the lead that must have been seen for its memory to be vouched for
                (`Lease.succeeded`; for one that does not lead, the same as `reign`).
        """
        self._inner = inner
        self._now = server.encode() + _REIGN.pack(reign)
        self._before = server.encode() + _REIGN.pack(succeeds)

    def recall(self) -> tuple[bytes, int] | None:
        known = self._inner.recall()
        if known is None or not known[0].endswith(self._before):
            return None
        return known[0].removesuffix(self._before), known[1]

    def remember(self, identity: bytes, counter: int) -> None:
        self._inner.remember(identity + self._now, counter)

    def observe(self, identity: bytes, counter: int) -> None:
        """Remember what an instance sees that does not lead, unless the memory is behind what was seen before.

        Such a memory was restored, and what is remembered is the only trace of that: it stays, so that this instance
        begins a new epoch if it ever takes the lead.
        """
        known = self._inner.recall()
        seen = identity + self._now
        if known is None or known[0] != seen or known[1] <= counter:
            self._inner.remember(seen, counter)
