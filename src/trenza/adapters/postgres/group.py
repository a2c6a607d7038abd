"""What a group of commits comes to: which succeed, which rows they leave, which entries they append.

Pure: no database here. The caller holds the lock under which nothing else is written, and gives the rows that
conditions ask about; so what is decided here in memory is what would come of applying change after change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

import msgspec

from trenza.base.errors import ConflictError, FencedError
from trenza.core.chain import chain_hash
from trenza.kms.ports import (
    Append,
    ChainHead,
    Change,
    Delete,
    DeletePrefix,
    Exists,
    Expect,
    Insert,
    LedgerEntry,
    LedgerExtent,
    Prune,
    Put,
    Table,
    footprint,
)

Row: TypeAlias = tuple[str, bytes]
"""Table and key."""

Outcome: TypeAlias = Exception | None
"""None: part of the group. ConflictError, FencedError or a caller's bug: nothing of it is."""

SEGMENT_KEYS = "segment_key"


def relation(table: Table) -> str:
    """Return the name of the table in the database; "window" alone is a word of SQL."""
    return f"{table.value}_row"


@dataclass(frozen=True, slots=True)
class PutKey:
    """Write a segment's sealed key; its handle is new."""

    handle: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class DropKey:
    """Remove a segment's key, if it is there."""

    handle: bytes


Work: TypeAlias = Change | PutKey | DropKey
"""What a commit may consist of: what the stories know, and what the sealer does with the keys' own table."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One caller's changes, and the token of the lead that it acted under."""

    changes: Sequence[Work]
    token: int


class Rows:
    """Rows as they will be, over rows as they are below."""

    def __init__(self, below: Callable[[Row], bytes | None]) -> None:
        self.changed: dict[Row, bytes | None] = {}  # None: there is none
        self.cleared: list[tuple[str, bytes]] = []  # before `changed`: table and prefix
        self._below = below

    def value(self, row: Row) -> bytes | None:
        if row in self.changed:
            return self.changed[row]
        return None if self.is_cleared(row) else self._below(row)

    def is_cleared(self, row: Row) -> bool:
        return any(row[0] == table and row[1].startswith(prefix) for table, prefix in self.cleared)

    def clear(self, table: str, prefix: bytes) -> None:
        self.changed = {
            row: value for row, value in self.changed.items() if row[0] != table or not row[1].startswith(prefix)
        }
        self.cleared.append((table, prefix))

    def take_over(self, upper: Rows) -> None:
        """Make what was decided above this part of it."""
        for table, prefix in upper.cleared:
            self.clear(table, prefix)
        self.changed.update(upper.changed)


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry up to which is to be pruned, as it is there."""

    hash: bytes
    bytes: int  # of all entries up to it: the sum of kms.ports.footprint


@dataclass(slots=True)
class Group:
    """The sum of several commits."""

    rows: Rows
    extent: LedgerExtent
    ledger: Mapping[int, Kept] = field(default_factory=dict)
    entries: list[LedgerEntry] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    start: ChainHead | None = None  # where the ledger starts from now on, if that changes

    @property
    def is_empty(self) -> bool:
        return not (self.rows.changed or self.rows.cleared or self.entries or self.start)


def asked_about(commits: Iterable[Commit]) -> dict[str, list[bytes]]:
    """Return, by table, the keys whose present rows decide about the commits."""
    keys: dict[str, dict[bytes, None]] = {}
    for commit in commits:
        for change in commit.changes:
            if isinstance(change, Insert | Expect | Exists):
                keys.setdefault(relation(change.table), {})[change.key] = None
    return {table: list(found) for table, found in keys.items()}


def pruned_through(commits: Iterable[Commit]) -> list[int]:
    """Return the entries up to which the commits prune."""
    found = {change.through for commit in commits for change in commit.changes if isinstance(change, Prune)}
    return sorted(found)


def sum_up(
    commits: Sequence[Commit],
    *,
    present: Mapping[Row, bytes],
    extent: LedgerExtent,
    token: int,
    ledger: Mapping[int, Kept] = MappingProxyType({}),
) -> Group:
    """Apply the commits one after the other, each whole or not at all.

    Args:
        commits: in the order in which they were called.
        present: those rows that `asked_about` names and that exist.
        extent: of the ledger.
        token: of the lead in force.
        ledger: those entries that `pruned_through` names and that exist.
    """
    group = Group(Rows(present.get), extent, ledger)
    for commit in commits:
        if commit.token != token:
            group.outcomes.append(FencedError("another instance leads this node now: nothing was written"))
            continue
        mine = Group(Rows(group.rows.value), group.extent, ledger)
        try:
            for change in commit.changes:
                _apply(change, mine)
        except Exception as fault:  # noqa: BLE001 - a conflict, or a caller's bug: told to that caller alone
            group.outcomes.append(fault)
            continue
        group.rows.take_over(mine.rows)
        group.entries += mine.entries
        group.extent = mine.extent
        group.start = mine.start or group.start
        group.outcomes.append(None)
    return group


def check(changes: Iterable[Work]) -> None:
    """Refuse what no store could write, before it is queued.

    Raises:
        TypeError, ValueError: a caller's bug.
    """
    for change in changes:
        match change:
            case Append():
                _check_bytes(change.body)
            case DeletePrefix(prefix=prefix):
                _check_bytes(prefix)
                if not prefix:
                    raise ValueError("the prefix is empty: this would delete the whole table")
            case Put() | Insert():
                _check_bytes(change.key, change.value)
            case Expect():
                _check_bytes(change.key, b"" if change.value is None else change.value)
            case Delete() | Exists():
                _check_bytes(change.key)
            case Prune():
                _check_bytes(change.hash)
            case PutKey() | DropKey():
                pass


def _check_bytes(*given: object) -> None:
    for one in given:
        if not isinstance(one, bytes):
            raise TypeError(f"bytes are stored, not {type(one).__name__}")


def _apply(change: Work, group: Group) -> None:
    rows = group.rows
    match change:
        case Put(table, key, value):
            rows.changed[relation(table), key] = value
        case Insert(table, key, value):
            if rows.value((relation(table), key)) is not None:
                raise ConflictError(f"a row of {table.value} that was to be written once is there already")
            rows.changed[relation(table), key] = value
        case Expect(table, key, value):
            if rows.value((relation(table), key)) != value:
                raise ConflictError(f"a row of {table.value} is not what it was expected to be")
        case Exists(table, key):
            if rows.value((relation(table), key)) is None:
                raise ConflictError(f"a row of {table.value} that was to be there is not")
        case Delete(table, key):
            rows.changed[relation(table), key] = None
        case DeletePrefix(table, prefix):
            rows.clear(relation(table), prefix)
        case Append():
            _append(change, group)
        case Prune(through, digest):
            _prune(through, digest, group)
        case PutKey(handle, value):
            rows.changed[SEGMENT_KEYS, handle] = value
        case DropKey(handle):
            rows.changed[SEGMENT_KEYS, handle] = None


def _append(entry: Append, group: Group) -> None:
    extent = group.extent
    sequence = extent.head.sequence + 1
    digest = chain_hash(
        extent.head.hash, sequence=sequence, time=entry.time, kind=entry.kind, body=entry.body, terms=entry.terms
    )
    group.entries.append(LedgerEntry(sequence, entry.time, entry.kind, entry.body, digest, entry.terms))
    size = extent.bytes + footprint(body=len(entry.body), terms=len(terms_text(entry.terms).encode()))
    group.extent = LedgerExtent(extent.start, ChainHead(sequence, digest), size)


def _prune(through: int, digest: bytes, group: Group) -> None:
    extent = group.extent
    if through <= extent.start.sequence:
        return
    kept = group.ledger.get(through)
    if kept is None or kept.hash != digest:
        raise ConflictError(f"ledger entry {through} is not the one that was to be pruned")
    earlier = group.ledger.get(extent.start.sequence)  # pruned by a commit of this group, before this one
    size = extent.bytes - kept.bytes + (earlier.bytes if earlier is not None else 0)
    group.start = ChainHead(through, digest)
    group.extent = LedgerExtent(group.start, extent.head, size)


def terms_text(terms: tuple[str, ...]) -> str:
    """Return a ledger entry's terms as its row has them."""
    return msgspec.json.encode(terms).decode()
