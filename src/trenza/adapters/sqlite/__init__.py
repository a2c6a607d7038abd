"""The embedded store: a node's tables and its ledger in one SQLite file, durable before any answer.

`SqliteStore` has a writer thread that commits in groups; `InlineStore` is the same engine without threads, for the
lab and for tools. Both implement kms.ports.Store. `copy_store` copies what a backup holds while a node runs.
"""

from trenza.adapters.sqlite.copying import Copied, copy_store, ledger_of
from trenza.adapters.sqlite.directory import LOCK_NAME, STORE_NAME, DataDirectory
from trenza.adapters.sqlite.inline import InlineStore
from trenza.adapters.sqlite.schema import connect
from trenza.adapters.sqlite.store import SqliteStore

__all__ = [
    "LOCK_NAME",
    "STORE_NAME",
    "Copied",
    "DataDirectory",
    "InlineStore",
    "SqliteStore",
    "connect",
    "copy_store",
    "ledger_of",
]
