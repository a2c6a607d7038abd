"""The store of a node that runs as several instances: tables, ledger, keys and the lead's lease in PostgreSQL.

One instance leads and runs the stories; the others serve from the same rows. Who may write is decided where it is
written: every commit checks, in its own transaction, that the lead it acts under is still the node's (fencing). What
PostgreSQL can do that a file cannot, and what it takes for it: docs/adr, "PostgreSQL for several instances".

Needs the extra `postgres` (asyncpg).
"""

from trenza.adapters.postgres.anchor import PostgresAnchor
from trenza.adapters.postgres.lease import Lead, Lease
from trenza.adapters.postgres.owned import OwnedSchemas
from trenza.adapters.postgres.sealer import PostgresSealer
from trenza.adapters.postgres.server import Server, ServerIdentity
from trenza.adapters.postgres.settings import PostgresSettings
from trenza.adapters.postgres.store import PostgresStore

__all__ = [
    "Lead",
    "Lease",
    "OwnedSchemas",
    "PostgresAnchor",
    "PostgresSealer",
    "PostgresSettings",
    "PostgresStore",
    "Server",
    "ServerIdentity",
]
