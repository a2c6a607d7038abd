"""The store of production on the lab's disk against a dictionary, with crashes: what was answered stays, in order."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from tests.machines import QUICK, AsyncMachine

from trenza.base.errors import ConflictError
from trenza.core.chain import chain_hash
from trenza.kms.ports import Append, ChainHead, Change, Delete, DeletePrefix, Insert, LedgerQuery, Put, Table
from trenza.lab.volume import Volume, VolumeStore

TABLES = st.sampled_from([Table.META, Table.WINDOW])
KEYS = st.binary(min_size=1, max_size=2).map(lambda raw: bytes(each % 3 for each in raw))
VALUES = st.binary(max_size=700)
CHANGES = st.one_of(
    st.builds(Put, TABLES, KEYS, VALUES),
    st.builds(Insert, TABLES, KEYS, VALUES),
    st.builds(Delete, TABLES, KEYS),
    st.builds(DeletePrefix, TABLES, KEYS),
    st.builds(Append, st.integers(0, 9), st.sampled_from("ab"), st.binary(max_size=40), st.just(("key:1",))),
)


class Model:
    """What a store must be like."""

    def __init__(self) -> None:
        self.rows: dict[tuple[Table, bytes], bytes] = {}
        self.ledger: list[Append] = []

    def commit(self, changes: list[Change]) -> bool:
        rows, ledger = dict(self.rows), list(self.ledger)
        for change in changes:
            match change:
                case Put(table, key, value):
                    rows[table, key] = value
                case Insert(table, key, value):
                    if (table, key) in rows:
                        return False
                    rows[table, key] = value
                case Delete(table, key):
                    rows.pop((table, key), None)
                case DeletePrefix(table, prefix):
                    rows = {at: one for at, one in rows.items() if at[0] != table or not at[1].startswith(prefix)}
                case Append():
                    ledger.append(change)
        self.rows, self.ledger = rows, ledger
        return True

    def head(self) -> ChainHead:
        digest = bytes(48)
        for number, one in enumerate(self.ledger, 1):
            digest = chain_hash(digest, sequence=number, time=one.time, kind=one.kind, body=one.body, terms=one.terms)
        return ChainHead(len(self.ledger), digest)


class Store(AsyncMachine):
    """A store that crashes now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.store = VolumeStore.open(Volume())
        self.crashes = 0
        self.counter = 0

    @rule(changes=st.lists(CHANGES, min_size=1, max_size=6))
    def commit(self, changes: list[Change]) -> None:
        if self.model.commit(changes):
            self.now(self.store.inner.commit(changes))
        else:
            with pytest.raises(ConflictError):
                self.now(self.store.inner.commit(changes))

    @rule(power=st.booleans())
    def crash(self, power: bool) -> None:
        self.crashes += 1
        self.counter = self.store.inner.counter()
        volume = self.store.volume
        files = volume.after_power_loss(random.Random(self.crashes)) if power else volume.after_kill()
        self.store.abandon()
        self.store = VolumeStore.open(Volume(files))
        assert self.store.inner.counter() == self.counter

    @rule(changes=st.lists(CHANGES, min_size=1, max_size=6), writes=st.integers(0, 30))
    def crash_in_the_midst(self, changes: list[Change], writes: int) -> None:
        """The power fails during a commit: it is there or it is not, and nothing in between."""
        before = self.store.inner.counter()
        self.store.volume.fail_after(writes)
        with contextlib.suppress(Exception):  # whether it is there is what the next start says
            self.now(self.store.inner.commit(changes))
        files = self.store.volume.after_power_loss(random.Random(writes))
        self.store.abandon()
        self.store = VolumeStore.open(Volume(files))
        if self.store.inner.counter() > before:
            self.model.commit(changes)

    @rule()
    def move_the_log(self) -> None:
        for _ in range(64):
            self.store.tidy()

    @invariant()
    def the_store_is_what_the_model_is(self) -> None:
        for table in (Table.META, Table.WINDOW):
            rows = sorted((key, value) for (of, key), value in self.model.rows.items() if of is table)
            assert self.now(self.store.inner.scan(table)) == rows
        assert self.now(self.store.inner.head()) == self.model.head()
        entries = self.now(self.store.inner.entries(LedgerQuery(kind="a")))
        assert [one.body for one in entries] == [one.body for one in self.model.ledger if one.kind == "a"]

    def teardown(self) -> None:
        self.store.abandon()
        super().teardown()


TestStore = Store.TestCase
TestStore.settings = settings(QUICK, max_examples=20, stateful_step_count=25)
