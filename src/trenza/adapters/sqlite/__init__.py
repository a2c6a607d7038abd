"""The embedded store: a node's tables and its ledger in one SQLite file, durable before any answer.

`SqliteStore` has a writer thread that commits in groups; `InlineStore` is the same engine without threads, for the
lab. Both implement kms.ports.Store.
"""

from trenza.adapters.sqlite.inline import InlineStore
from trenza.adapters.sqlite.store import SqliteStore

__all__ = ["InlineStore", "SqliteStore"]
