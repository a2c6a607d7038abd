"""A PostgreSQL server in the lab: what production's adapter would find behind its connections, without SQL.

What a group of commits comes to, its queue, fencing, the sealed keys and the anchor are production's own code
(adapters.postgres); here is what they ask: rows, ledger, lease and clock of one schema, and how questions to a server
fail. A question that arrived takes effect whatever becomes of who asked; where an answer is lost, nobody knows.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Final, TypeVar

from trenza.adapters.postgres.group import (
    SEGMENT_KEYS,
    Commit,
    Group,
    Kept,
    Row,
    pruned_through,
    relation,
    sum_up,
    terms_text,
)
from trenza.adapters.postgres.lease import Lead
from trenza.adapters.postgres.server import ServerIdentity
from trenza.adapters.postgres.transaction import Applied
from trenza.base.errors import StoreUnavailableError
from trenza.base.units import Seconds
from trenza.kms.ports import ChainHead, Change, LedgerEntry, LedgerExtent, LedgerQuery, Table, footprint
from trenza.lab.loop import EPOCH

T = TypeVar("T")

_NOWHERE: Final = ChainHead()
_RECENTLY: Final = 10.0  # seconds, as adapters.postgres.lease has it
_REMEMBERED: Final = 12
"""Groups that a standby may lack at most."""

_CUT_AFTER: Final = 5.0
"""Seconds until whoever is cut off gives up, at most (app.memory.DATABASE_DEADLINE)."""


@dataclass(slots=True)
class _Led:
    """The row of the lead."""

    token: int = 0
    reign: int = 0
    holder: bytes | None = None
    name: str | None = None
    until: float = 0.0


@dataclass(slots=True)
class _Before:
    """What a group found, to be put back when a standby lacks it."""

    rows: dict[Row, bytes | None]
    entries: list[LedgerEntry]  # the whole ledger, where the group pruned; else nothing
    kept: int  # entries that were there
    extent: LedgerExtent
    counter: int


@dataclass(slots=True)
class Schema:
    """One node's schema: all that is in it."""

    rows: dict[Row, bytes] = field(default_factory=dict)
    ledger: list[LedgerEntry] = field(default_factory=list)
    extent: LedgerExtent = field(default_factory=LedgerExtent)
    counter: int = 0
    led: _Led = field(default_factory=_Led)
    seen: dict[bytes, tuple[str, float]] = field(default_factory=dict)  # instances, by life
    keyring: tuple[bytes, bytes] | None = None
    made: dict[bytes, float] = field(default_factory=dict)  # when each segment's key was


class LabPostgres:
    """One server with one schema in virtual time."""

    def __init__(
        self,
        *,
        chance: random.Random,
        observe: Callable[[Sequence[Change]], None] = lambda _changes: None,
        fired: Counter[str] | None = None,
        delay: tuple[float, float] = (0.0, 0.004),
    ) -> None:
        """Start an empty server.

        Args:
            chance: seeded; decides how long each question takes, and what goes wrong with it.
            observe: told the changes of every commit that became durable.
            fired: counts faults by kind.
            delay: least and most seconds that each way of a question takes.
        """
        self.schema = Schema()
        self.identity = ServerIdentity(7_000_000_000_000_000_000, 1)
        self.is_up = True
        self.cut: set[str] = set()  # instances that do not reach it
        self.lose_answers = 0.0  # of commits: how likely each is lost
        self._chance = chance
        self._observe = observe
        self._fired = Counter[str]() if fired is None else fired
        self._delay = delay
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # what it does goes on whatever becomes of the process that asked
        self._started = self.now()
        self._lately: deque[_Before] = deque(maxlen=_REMEMBERED)
        self._connections = 0  # a restart ends all of them

    def now(self) -> float:
        """Return the time by its clock, in seconds since 1970."""
        return EPOCH / 1e9 + self._loop.time()

    # --- how it fails

    def crash(self) -> None:
        """Go down at once; what was acknowledged is there when it starts again."""
        self.is_up = False
        self._connections += 1

    def start(self) -> None:
        self.is_up, self._started = True, self.now()

    def fail_over(self) -> int:
        """Be a standby that was promoted, and lacks some of the last commits; return how many groups."""
        self.crash()
        lacks = self._chance.randint(0, len(self._lately))
        for _ in range(lacks):
            self._undo(self._lately.pop())
        self._lately.clear()
        self.identity = ServerIdentity(self.identity.system, self.identity.timeline + 1)
        self.start()
        return lacks

    def _undo(self, before: _Before) -> None:
        schema = self.schema
        for row, value in before.rows.items():
            if value is None:
                schema.rows.pop(row, None)
            else:
                schema.rows[row] = value
        if before.entries:
            schema.ledger = before.entries
        del schema.ledger[before.kept :]
        schema.extent, schema.counter = before.extent, before.counter

    # --- questions

    def ask(self, name: str, act: Callable[[], T], *, writes: bool = False) -> asyncio.Future[T]:
        """Let `act` be done on the server, and its answer come back, if nothing is in the way.

        Args:
            name: of the instance that asks.
            act: what is done there, in one transaction.
            writes: whether it is a commit, whose answer may be lost by itself.
        """
        answer: asyncio.Future[T] = self._loop.create_future()
        self._later(self._way(), lambda: self._arrive(name, act, answer, self._connections, writes=writes))
        return answer

    def _way(self) -> float:
        return self._chance.uniform(*self._delay)

    def _later(self, seconds: float, deed: Callable[[], None]) -> None:
        self._loop.call_later(seconds, deed, context=self._context)

    def _arrive(
        self, name: str, act: Callable[[], T], answer: asyncio.Future[T], connection: int, *, writes: bool
    ) -> None:
        if name in self.cut:
            self._fired["database cut"] += 1
            self._later(_CUT_AFTER, lambda: _fail(answer, "no answer in time"))
            return
        if not self.is_up:
            self._fired["database restarted"] += 1
            self._later(self._way(), lambda: _fail(answer, "connection refused"))
            return
        try:
            found = act()
        except Exception as error:  # noqa: BLE001 - it is who asked's
            refused = error
            self._later(self._way(), lambda: None if answer.done() else answer.set_exception(refused))
            return
        if writes and self._chance.random() < self.lose_answers:
            self._fired["commit answer lost"] += 1
            self._later(self._way(), lambda: _fail(answer, "the connection was lost"))
            return
        self._later(self._way(), lambda: self._bring(name, found, answer, connection))

    def _bring(self, name: str, found: T, answer: asyncio.Future[T], connection: int) -> None:
        if name in self.cut:
            self._fired["database cut"] += 1
            self._later(_CUT_AFTER, lambda: _fail(answer, "no answer in time"))
        elif connection != self._connections:
            _fail(answer, "the server went away")
        elif not answer.done():
            answer.set_result(found)

    # --- what is asked

    def commit(self, commits: Sequence[Commit]) -> Applied:
        """Apply a group as one transaction (adapters.postgres.transaction)."""
        schema = self.schema
        ledger = self._kept(pruned_through(commits))
        group = sum_up(commits, present=schema.rows, extent=schema.extent, token=schema.led.token, ledger=ledger)
        if not group.is_empty:
            self._write(group)
            for commit, outcome in zip(commits, group.outcomes, strict=True):
                if outcome is None:
                    self._observe([change for change in commit.changes if isinstance(change, Change)])
        return Applied(group.outcomes, schema.counter)

    def _kept(self, through: list[int]) -> Mapping[int, Kept]:
        found: dict[int, Kept] = {}
        size = 0
        for entry in self.schema.ledger if through else ():
            size += footprint(body=len(entry.body), terms=len(terms_text(entry.terms).encode()))
            if entry.sequence in through:
                found[entry.sequence] = Kept(entry.hash, size)
        return found

    def _write(self, group: Group) -> None:
        schema, rows = self.schema, group.rows
        changed = dict(rows.changed)
        for table, prefix in rows.cleared:
            for row in schema.rows:
                if row[0] == table and row[1].startswith(prefix):
                    changed.setdefault(row, None)
        pruned = list(schema.ledger) if group.start is not None else []
        self._lately.append(
            _Before(
                {row: schema.rows.get(row) for row in changed},
                pruned,
                len(schema.ledger),
                schema.extent,
                schema.counter,
            )
        )
        for row, value in changed.items():
            if value is None:
                schema.rows.pop(row, None)
                continue
            if row[0] == SEGMENT_KEYS:
                schema.made[row[1]] = self.now()
            schema.rows[row] = value
        schema.ledger += group.entries
        if group.start is not None:
            schema.ledger = [entry for entry in schema.ledger if entry.sequence > group.start.sequence]
        schema.extent = group.extent
        schema.counter += 1

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.schema.rows.get((table, key))

    def scan(self, table: Table, prefix: bytes) -> list[tuple[bytes, bytes]]:
        name = relation(table)
        return sorted(
            (key, value) for (at, key), value in self.schema.rows.items() if at == name and key.startswith(prefix)
        )

    def entries(self, query: LedgerQuery) -> list[LedgerEntry]:
        found = [
            entry
            for entry in self.schema.ledger
            if entry.sequence > query.after_sequence
            and (query.term is None or query.term in entry.terms)
            and (query.kind is None or query.kind == entry.kind)
            and (query.since is None or query.since <= entry.time)
            and (query.until is None or entry.time <= query.until)
        ]
        return found[: query.limit]

    def keys_older_than(self, seconds: float) -> list[bytes]:
        before = self.now() - seconds
        return sorted(
            key for table, key in self.schema.rows if table == SEGMENT_KEYS and self.schema.made[key] < before
        )

    def keyring(self, identity: bytes, tag: bytes) -> tuple[bytes, bytes]:
        if self.schema.keyring is None:
            self.schema.keyring = identity, tag
        return self.schema.keyring

    def server_start(self) -> int:
        return int(self._started * 1e6)

    # --- the lead's lease (adapters.postgres.lease)

    def look(self, life: bytes, name: str) -> Lead:
        led, now = self.schema.led, self.now()
        self.schema.seen[life] = name, now
        recent = sorted((one, at) for at, (one, when) in self.schema.seen.items() if when > now - _RECENTLY)
        lives = frozenset(at for _, at in recent)
        remaining = 0.0 if led.holder is None else led.until - now
        names = tuple(one for one, _ in recent)
        return Lead(led.token, led.reign, led.name, led.holder == life, Seconds(remaining), names, lives)

    def acquire(self, life: bytes, name: str, ttl: float) -> tuple[int | None, int]:
        """Take the lead if it is free; return the token, if it was, and that of the lead before."""
        led, now = self.schema.led, self.now()
        self.schema.seen[life] = name, now
        former = led.reign
        if led.holder not in {None, life} and led.until > now:
            return None, former
        token = self._grown()
        self.schema.led = _Led(token, token, life, name, now + ttl)
        return token, former

    def renew(self, life: bytes, name: str, token: int, ttl: float) -> bool:
        led, now = self.schema.led, self.now()
        self.schema.seen[life] = name, now
        if led.holder != life or led.token != token:
            return False
        led.until = now + ttl
        return True

    def release(self, life: bytes, token: int) -> None:
        led = self.schema.led
        if led.holder == life and led.token == token:
            self.schema.led = _Led(self._grown(), led.reign)

    def _grown(self) -> int:
        return max(self.schema.led.token + 1, int(self.now() * 1_000))


def _fail(answer: asyncio.Future[T], why: str) -> None:
    if not answer.done():
        answer.set_exception(StoreUnavailableError(f"the database failed: {why}"))
