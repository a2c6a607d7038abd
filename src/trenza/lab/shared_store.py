"""One instance's hands on the lab's PostgreSQL: production's store, lease and database with the driver left out.

Everything that decides (fencing, queues, witnesses, what a group comes to) is production's; only what it would say in
SQL is asked of `lab.database` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from trenza.adapters.anchor import MemoryAnchor
from trenza.adapters.keyring.node_key import HeldNodeKey
from trenza.adapters.postgres import Lead, Lease, PostgresSettings, PostgresStore, Server
from trenza.adapters.postgres.group import SEGMENT_KEYS, Commit, relation
from trenza.adapters.postgres.line import Line
from trenza.adapters.postgres.reading import Reading, Standing
from trenza.adapters.postgres.transaction import Applied
from trenza.adapters.postgres.writer import Writer
from trenza.app.memory import Database
from trenza.base.clock import Clock
from trenza.base.entropy import Entropy
from trenza.base.errors import FencedError, StoreUnavailableError
from trenza.base.secret import Secret
from trenza.base.units import Seconds
from trenza.kms.ports import LedgerEntry, LedgerQuery, Table
from trenza.lab.database import LabPostgres

if TYPE_CHECKING:
    from trenza.app.config import NodeConfig

T = TypeVar("T")

_SETTINGS = PostgresSettings("host=lab", "lab")


class LabServer(Server):
    """What a process knows of the server, and its way there."""

    def __init__(self, postgres: LabPostgres, name: str) -> None:
        super().__init__(_SETTINGS)
        self.is_dead = False  # the process has ended: what still unwinds reaches nobody
        self._postgres = postgres
        self._name = name

    async def ask(self, act: Callable[[LabPostgres], T], *, writes: bool = False) -> T:
        """Have something done on the server, if it is the one that this process began with.

        Raises:
            StoreUnavailableError: outcome unknown.
            FencedError: it is another server, or another history, than before.
        """
        if self.is_dead:
            raise StoreUnavailableError("this process is dead")
        if self._moved is not None:
            raise self._moved
        found, identity = await self._postgres.ask(self._name, lambda: self._at_server(act), writes=writes)
        del identity
        return found

    def _at_server(self, act: Callable[[LabPostgres], T]) -> tuple[T, object]:
        identity = self._postgres.identity
        if self._identity is None:
            self._identity = identity
        if identity != self._identity:  # as every new connection asks; those of before have ended
            self._moved = FencedError("the database is another than this instance began with: a new life must begin")
            raise self._moved
        return act(self._postgres), identity


class _Writer(Writer):
    """Production's queue, whose groups go to the lab's server."""

    def __init__(self, server: LabServer, *, on_applied: Callable[[Applied], None]) -> None:
        super().__init__(server, on_applied=on_applied)
        self._lab = server

    async def _applied(self, commits: Sequence[Commit]) -> Applied:
        seen = self._lab.counter
        applied = await self._lab.ask(lambda postgres: postgres.commit(commits), writes=True)
        self._lab.witness(applied.counter, at_least=seen)
        return applied


class _Reading(Reading):
    """What can be asked of the schema."""

    def __init__(self, server: LabServer) -> None:
        super().__init__(Line(server))
        self._lab = server

    async def get(self, table: Table, key: bytes) -> bytes | None:
        return await self._lab.ask(lambda postgres: postgres.get(relation(table), key))

    async def scan(self, table: Table, prefix: bytes) -> list[tuple[bytes, bytes]]:
        return await self._lab.ask(lambda postgres: postgres.scan(table, prefix))

    async def entries(self, query: LedgerQuery) -> list[LedgerEntry]:
        return await self._lab.ask(lambda postgres: postgres.entries(query))

    async def standing(self) -> Standing:
        return await self._lab.ask(lambda postgres: Standing(postgres.schema.counter, postgres.schema.extent))

    async def segment_key(self, handle: bytes) -> bytes | None:
        return await self._lab.ask(lambda postgres: postgres.get(SEGMENT_KEYS, handle))

    async def segment_keys(self, *, older_than: Seconds) -> list[bytes]:
        return await self._lab.ask(lambda postgres: postgres.keys_older_than(older_than))

    async def keyring(self, identity: bytes, tag: bytes) -> tuple[bytes, bytes]:
        return await self._lab.ask(lambda postgres: postgres.keyring(identity, tag))

    async def server_start(self) -> int:
        return await self._lab.ask(lambda postgres: postgres.server_start())

    async def moment(self) -> Seconds:
        return await self._lab.ask(lambda postgres: Seconds(postgres.now()))


class LabSharedStore(PostgresStore):
    """Implements kms.ports.SharedStore on the lab's server."""

    def __init__(self, server: LabServer, *, token: int = 0, on_group: Callable[[int], None] | None = None) -> None:
        super().__init__(server, _Reading(server), token=token, on_group=on_group)
        self._writer = _Writer(server, on_applied=self._applied)

    @classmethod
    async def begin(
        cls, server: LabServer, *, token: int = 0, on_group: Callable[[int], None] | None = None
    ) -> LabSharedStore:
        """Open it, as production does: where the memory stands is seen first."""
        store = cls(server, token=token, on_group=on_group)
        await store.look()
        return store


class LabLease(Lease):
    """One instance's claim to lead."""

    def __init__(self, server: LabServer, *, name: str, clock: Clock, entropy: Entropy) -> None:
        super().__init__(server, name=name, clock=clock, entropy=entropy)
        self._lab = server

    async def acquire(self) -> bool:
        asked = self._clock.elapsed()
        life, name, ttl = self.life, self._name, self._ttl
        token, former = await self._lab.ask(lambda postgres: postgres.acquire(life, name, ttl), writes=True)
        self.token, self.succeeded = token or 0, former
        self._until = Seconds(asked + ttl)
        return token is not None

    async def renew(self) -> None:
        asked = self._clock.elapsed()
        life, name, token, ttl = self.life, self._name, self.token, self._ttl
        if not await self._lab.ask(lambda postgres: postgres.renew(life, name, token, ttl), writes=True):
            self.token = 0
            raise FencedError("another instance leads this node now")
        self._until = Seconds(asked + ttl)

    async def release(self) -> None:
        token, self.token = self.token, 0
        life = self.life
        await self._lab.ask(lambda postgres: postgres.release(life, token), writes=True)

    async def look(self) -> Lead:
        life, name = self.life, self._name
        return await self._lab.ask(lambda postgres: postgres.look(life, name))


class LabDatabase(Database):
    """The memory of a node as one instance opens it: production's, on the lab's server."""

    def __init__(
        self,
        config: NodeConfig,
        server: LabServer,
        *,
        name: str,
        clock: Clock,
        entropy: Entropy,
        anchor: MemoryAnchor,
        node_key: bytes,
    ) -> None:
        self._config = config
        self._entropy = entropy
        self._clock = clock
        self.name = name
        self.server = server
        self.lease = LabLease(server, name=name, clock=clock, entropy=entropy)
        self._anchor = anchor
        self._node_key = HeldNodeKey(Secret.of(node_key))
        self._lab = server

    async def _open_store(self, *, token: int = 0, on_group: Callable[[int], None] | None = None) -> PostgresStore:
        return await LabSharedStore.begin(self._lab, token=token, on_group=on_group)
