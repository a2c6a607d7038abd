"""Tells a database that may have forgotten something from one that surely has not.

What an anchor beside the process remembers of a store in PostgreSQL is where its counter was, and on which history of
which cluster. After an asynchronous failover, a restore or a recovery to a point in time the history is another: then
nothing is recalled, and the node begins a new epoch (kms.sessions), whatever the counter says.

An instance that serves beside the lead tells its own anchor what it sees, so that it can vouch for the memory when it
takes the lead itself.
"""

from __future__ import annotations

from trenza.adapters.postgres.server import ServerIdentity
from trenza.kms.ports import Anchor


class PostgresAnchor:
    """Implements kms.ports.Anchor over another one, which lies on this machine's own disk."""

    def __init__(self, inner: Anchor, server: ServerIdentity) -> None:
        """Bind what `inner` remembers to a server's history.

        Args:
            inner: remembers across restarts of this process, outside the database and its backups.
            server: the one this process is connected to now (`Server.identity`).
        """
        self._inner = inner
        self._server = server.encode()

    def recall(self) -> tuple[bytes, int] | None:
        known = self._inner.recall()
        if known is None or not known[0].endswith(self._server):
            return None
        return known[0].removesuffix(self._server), known[1]

    def remember(self, identity: bytes, counter: int) -> None:
        self._inner.remember(identity + self._server, counter)
