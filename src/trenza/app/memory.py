"""Where a node's memory is: on this machine's disk, or in a schema of PostgreSQL that several instances share.

Opens store, sealer and anchor in the one order that keeps their promises, and closes what it opened where the next
step fails. Which instance leads a shared memory is `app.instances`' to find out.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trenza.adapters.anchor import PERSISTENT, FileAnchor
from trenza.adapters.keyring import KEYRING_NAME, KeyringSealer
from trenza.adapters.sqlite import LOCK_NAME, SqliteStore
from trenza.app.config import DatabaseConfig, NodeConfig
from trenza.app.keeping import GroupAnchor, handles_in_use, place_of
from trenza.app.node_key import open_node_key
from trenza.app.seat import Seat
from trenza.base.clock import Clock
from trenza.base.entropy import Entropy
from trenza.base.errors import FencedError
from trenza.base.names import NodeId
from trenza.base.units import Seconds
from trenza.kms.ports import (
    Anchor,
    ChainHead,
    Change,
    LedgerEntry,
    LedgerExtent,
    LedgerQuery,
    NodeKey,
    Sealer,
    SharedStore,
    Store,
    Table,
)

if TYPE_CHECKING:  # a node that has its memory on its own disk does without the driver
    from trenza.adapters.postgres import Lease, PostgresSettings, PostgresStore, Server

DATABASE_DEADLINE = Seconds(5.0)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a node's stories are given of it."""

    store: Store
    sealer: Sealer
    anchor: Anchor
    place: bytes
    leaked: int = 0  # sealed boxes that no row names: left by a crash, and erased now
    shared: SharedStore | None = None  # the store again, where other instances write it too
    tidy: Callable[[], Awaitable[int]] | None = None  # erases such boxes, where the start does not wait for that


async def open_on_disk(config: NodeConfig, entropy: Entropy, stack: AsyncExitStack) -> Memory:
    """Open the data directory of a node; `stack` closes what was opened.

    Raises:
        StoreUnavailableError: it is in use, or cannot be used.
    """
    anchor = FileAnchor(config.anchor, boot_id=PERSISTENT)
    stack.callback(anchor.close)
    kept = GroupAnchor(anchor)
    node_key = open_node_key(config, entropy)
    stack.callback(node_key.close)
    store = SqliteStore.open(config.data_directory, on_group=kept.committed)
    stack.push_async_callback(store.close)
    sealer = KeyringSealer.open(config.data_directory / KEYRING_NAME, node_key=node_key, entropy=entropy)
    stack.push_async_callback(sealer.close)
    leaked = await sealer.retain(await handles_in_use(store))
    place = place_of(config.data_directory, config.data_directory / LOCK_NAME)
    return Memory(store, sealer, kept, place, leaked)


class Database:
    """The memory of a node in PostgreSQL, as one instance opens it: once for each role that it takes."""

    def __init__(self, config: NodeConfig, settings: PostgresSettings, clock: Clock, entropy: Entropy) -> None:
        """Connect to nothing yet; `open` is the way to make one."""
        from trenza.adapters.postgres import Lease, Server

        assert config.database is not None
        self._config = config
        self._entropy = entropy
        self._clock = clock
        self.name = config.database.instance or socket.gethostname()
        self.server: Server = Server(settings, deadline=DATABASE_DEADLINE)
        self.lease: Lease = Lease(self.server, name=self.name, clock=clock, entropy=entropy)
        self._anchor: Anchor
        self._node_key: NodeKey

    @classmethod
    async def open(cls, config: NodeConfig, clock: Clock, entropy: Entropy, stack: AsyncExitStack) -> Database:
        """Find the database and make its tables if they are not there; `stack` closes what was opened.

        Raises:
            StoreUnavailableError: no driver, no answer, a server that would forget what it acknowledged, or another
                process has this instance's anchor.
            InvalidDocumentError: its address, or the schema, is not acceptable.
            AuthenticationError: another node key than that of the instances before.
        """
        from trenza.adapters.postgres import PostgresStore

        found = cls(config, settings_of(config.name, config.database), clock, entropy)
        seat = Seat(config.anchor)
        stack.callback(seat.leave)
        if (former := seat.take(found.lease.life)) is not None:
            found.lease.inherit(former)
        found._anchor = anchor = FileAnchor(config.anchor, boot_id=PERSISTENT)
        stack.callback(anchor.close)
        found._node_key = open_node_key(config, entropy)
        stack.callback(found._node_key.close)
        stack.push_async_callback(found.lease.close)
        store = await PostgresStore.open(found.server)  # makes the tables, which the lease is in
        await store.close()
        return found

    async def _open_store(self, *, token: int = 0, on_group: Callable[[int], None] | None = None) -> PostgresStore:
        from trenza.adapters.postgres import PostgresStore

        return await PostgresStore.open(self.server, token=token, on_group=on_group)

    async def as_lead(self, stack: AsyncExitStack) -> Memory:
        """Open it under the lead that this instance has just acquired."""
        from trenza.adapters.postgres import PostgresAnchor, PostgresSealer

        lease, server = self.lease, self.server
        kept = GroupAnchor(PostgresAnchor(self._anchor, server.identity, reign=lease.token, succeeds=lease.succeeded))
        store = await self._open_store(token=lease.token, on_group=kept.committed)
        stack.push_async_callback(store.close)
        sealer = await PostgresSealer.open(store, node_key=self._node_key, entropy=self._entropy)
        stack.push_async_callback(sealer.close)

        async def tidy() -> int:
            return await sealer.retain(await handles_in_use(store))

        return Memory(store, sealer, kept, await store.place(), shared=store, tidy=tidy)

    async def as_second(self, stack: AsyncExitStack) -> Memory:
        """Open it to serve beside whoever leads; the store follows the lead's token (`SharedStore.under`)."""
        from trenza.adapters.postgres import PostgresSealer

        store = await self._open_store()
        stack.push_async_callback(store.close)
        sealer = await PostgresSealer.open(store, node_key=self._node_key, entropy=self._entropy)
        stack.push_async_callback(sealer.close)
        return Memory(store, sealer, _Witness(self._anchor), b"", shared=store)

    def witness(self, identity: bytes, *, reign: int) -> None:
        """Remember how far the memory has got under another's lead, so that this instance can vouch for it."""
        from trenza.adapters.postgres import PostgresAnchor

        anchor = PostgresAnchor(self._anchor, self.server.identity, reign=reign, succeeds=reign)
        anchor.observe(identity, self.server.counter)


class _Witness:
    """The anchor of an instance that does not lead: nobody asks it to remember a life of its own."""

    def __init__(self, anchor: Anchor) -> None:
        self._anchor = anchor

    def recall(self) -> tuple[bytes, int] | None:
        return self._anchor.recall()

    def remember(self, identity: bytes, counter: int) -> None:
        """Nothing: see `Database.witness`."""


class Following:
    """A shared store whose commits follow the lead: one that is refused for its token is called again under the next.

    For an instance beside the lead, each of whose commits holds by itself whoever leads (kms.second).
    """

    def __init__(self, store: SharedStore, lease: Lease) -> None:
        self._store = store
        self._lease = lease

    @property
    def token(self) -> int:
        return self._store.token

    def under(self, token: int) -> None:
        self._store.under(token)

    async def commit(self, changes: Sequence[Change]) -> None:
        token = self._store.token
        try:
            await self._store.commit(changes)
        except FencedError:
            lead = await self._lease.look()
            if lead.token <= token:  # it was refused for another reason
                raise
            self._store.under(max(lead.token, self._store.token))
            await self._store.commit(changes)

    async def get(self, table: Table, key: bytes) -> bytes | None:
        return await self._store.get(table, key)

    async def scan(self, table: Table, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        return await self._store.scan(table, prefix)

    async def head(self) -> ChainHead:
        return await self._store.head()

    async def extent(self) -> LedgerExtent:
        return await self._store.extent()

    async def entries(self, query: LedgerQuery) -> list[LedgerEntry]:
        return await self._store.entries(query)

    async def moment(self) -> Seconds:
        return await self._store.moment()

    def counter(self) -> int:
        return self._store.counter()

    async def close(self) -> None:
        await self._store.close()


def settings_of(node: NodeId, told: DatabaseConfig | None) -> PostgresSettings:
    """Return where the database is.

    Raises:
        StoreUnavailableError: no driver, or the file cannot be read.
        InvalidDocumentError: what it says is not acceptable.
    """
    from trenza.adapters.postgres import PostgresSettings

    assert told is not None
    return PostgresSettings.load(told.address, schema=told.schema or node)
