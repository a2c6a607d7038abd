"""What every implementation of kms.ports.Store must do. Run it against your own:

    @pytest.mark.parametrize("clause", store_contract.CLAUSES, ids=store_contract.name)
    def test_my_store_keeps_the_contract(clause, tmp_path):
        asyncio.run(clause(lambda: MyStore(tmp_path)))

`make_store` opens the same durable memory each time it is called, at once or as something to be awaited; a clause
closes what it opened. SHARED_CLAUSES are for stores of which several may be open on one memory.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import pytest

from trenza.base.errors import ConflictError, StoreUnavailableError
from trenza.base.units import Nanoseconds
from trenza.core.chain import verify_chain
from trenza.kms.ports import (
    Append,
    ChainHead,
    Delete,
    DeletePrefix,
    Exists,
    Expect,
    Insert,
    LedgerEntry,
    LedgerExtent,
    LedgerQuery,
    Prune,
    Put,
    Store,
    Table,
    footprint,
)

MakeStore = Callable[[], Store | Awaitable[Store]]
Clause = Callable[[MakeStore], Awaitable[None]]

SEGMENT, WINDOW, DELIVERED = Table.SEGMENT, Table.WINDOW, Table.DELIVERED


async def opened(make_store: MakeStore) -> Store:
    store = make_store()
    return await store if inspect.isawaitable(store) else store


def entry(number: int, *, kind: str = "issued", terms: tuple[str, ...] = ()) -> Append:
    return Append(Nanoseconds(number * 1_000), kind, b"body %d" % number, terms)


def weight(entries: Sequence[LedgerEntry]) -> int:
    return sum(footprint(body=len(e.body), terms=len(msgspec.json.encode(e.terms))) for e in entries)


async def a_row_is_read_back_replaced_and_deleted(make_store: MakeStore) -> None:
    store = await opened(make_store)
    assert await store.get(SEGMENT, b"k") is None
    await store.commit([Put(SEGMENT, b"k", b"one")])
    assert await store.get(SEGMENT, b"k") == b"one"
    assert await store.get(WINDOW, b"k") is None
    await store.commit([Put(SEGMENT, b"k", b"two"), Put(WINDOW, b"k", b"")])
    assert await store.get(SEGMENT, b"k") == b"two"
    assert await store.get(WINDOW, b"k") == b""
    await store.commit([Delete(SEGMENT, b"k"), Delete(SEGMENT, b"never there")])
    assert await store.get(SEGMENT, b"k") is None
    await store.close()


async def rows_are_scanned_by_prefix_in_order(make_store: MakeStore) -> None:
    store = await opened(make_store)
    keys = [b"", b"a", b"a\x00", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff\x01"]
    await store.commit([Put(SEGMENT, key, b"v" + key) for key in reversed(keys)])
    assert await store.scan(SEGMENT) == [(key, b"v" + key) for key in sorted(keys)]
    for prefix in (b"a", b"a\xff", b"\xff", b"\xff\xff", b"c"):
        found = [key for key, _ in await store.scan(SEGMENT, prefix)]
        assert found == sorted(key for key in keys if key.startswith(prefix))
    await store.close()


async def rows_are_deleted_by_prefix(make_store: MakeStore) -> None:
    store = await opened(make_store)
    keys = [b"a", b"a\x00", b"a\xff", b"b", b"\xff", b"\xff\xff\x01"]
    await store.commit([Put(SEGMENT, key, b"") for key in keys])
    await store.commit([DeletePrefix(SEGMENT, b"a")])
    assert [key for key, _ in await store.scan(SEGMENT)] == [b"b", b"\xff", b"\xff\xff\x01"]
    await store.commit([DeletePrefix(SEGMENT, b"\xff")])
    assert [key for key, _ in await store.scan(SEGMENT)] == [b"b"]
    with pytest.raises(ValueError, match="prefix is empty"):
        await store.commit([DeletePrefix(SEGMENT, b"")])
    assert await store.get(SEGMENT, b"b") == b""
    await store.close()


async def a_conflict_writes_nothing_of_its_commit(make_store: MakeStore) -> None:
    store = await opened(make_store)
    await store.commit([Insert(DELIVERED, b"k", b"first"), entry(1)])
    before = await store.head()
    for changes in (
        [Insert(DELIVERED, b"k", b"second"), Put(SEGMENT, b"s", b""), entry(2)],
        [Put(SEGMENT, b"s", b""), entry(2), Insert(DELIVERED, b"k", b"second")],
        [Insert(DELIVERED, b"new"), Insert(DELIVERED, b"new")],
    ):
        with pytest.raises(ConflictError):
            await store.commit(changes)
    assert await store.scan(SEGMENT) == []
    assert await store.scan(DELIVERED) == [(b"k", b"first")]
    assert await store.head() == before
    await store.commit([Delete(DELIVERED, b"k"), Insert(DELIVERED, b"k", b"third")])
    assert await store.get(DELIVERED, b"k") == b"third"
    await store.close()


async def a_row_that_is_as_expected_is_changed_and_otherwise_nothing_is(make_store: MakeStore) -> None:
    store = await opened(make_store)
    await store.commit([Expect(WINDOW, b"w", None), Put(WINDOW, b"w", b"1"), entry(1)])
    await store.commit([Expect(WINDOW, b"w", b"1"), Put(WINDOW, b"w", b"2")])
    before = await store.head()
    for changes in (
        [Expect(WINDOW, b"w", b"1"), Put(WINDOW, b"w", b"3"), entry(2)],
        [Put(WINDOW, b"w", b"3"), entry(2), Expect(SEGMENT, b"s", b"")],
        [Expect(WINDOW, b"w", None)],
        [Expect(WINDOW, b"w", b"2"), Delete(WINDOW, b"w"), Expect(WINDOW, b"w", b"2")],
        [DeletePrefix(WINDOW, b"w"), Put(WINDOW, b"w", b"3"), Insert(WINDOW, b"w", b"4")],
    ):
        with pytest.raises(ConflictError):
            await store.commit(changes)
    assert await store.scan(WINDOW) == [(b"w", b"2")]
    assert await store.head() == before
    await store.commit([Delete(WINDOW, b"w"), Expect(WINDOW, b"w", None), Insert(WINDOW, b"w", b"5")])
    await store.commit([DeletePrefix(WINDOW, b"w"), Expect(WINDOW, b"w", None), Put(WINDOW, b"ww", b"6")])
    await store.commit([Put(WINDOW, b"ww", b"7"), Expect(WINDOW, b"ww", b"7")])
    assert await store.scan(WINDOW) == [(b"ww", b"7")]
    await store.close()


async def a_row_that_must_exist_is_there_whatever_its_value_or_nothing_is_written(make_store: MakeStore) -> None:
    store = await opened(make_store)
    await store.commit([Put(WINDOW, b"w", b"1")])
    await store.commit([Exists(WINDOW, b"w"), Insert(SEGMENT, b"s1")])
    await store.commit([Put(WINDOW, b"w", b"2"), Insert(WINDOW, b"v"), Exists(WINDOW, b"v"), Exists(WINDOW, b"w")])
    for changes in (
        [Insert(SEGMENT, b"s2"), Exists(WINDOW, b"x")],
        [Insert(SEGMENT, b"s2"), Exists(SEGMENT, b"w")],
        [Delete(WINDOW, b"w"), Exists(WINDOW, b"w")],
        [DeletePrefix(WINDOW, b"w"), Insert(SEGMENT, b"s2"), Exists(WINDOW, b"w")],
    ):
        with pytest.raises(ConflictError):
            await store.commit(changes)
    assert await store.scan(WINDOW) == [(b"v", b""), (b"w", b"2")]
    assert await store.scan(SEGMENT) == [(b"s1", b"")]
    await store.close()


async def of_all_who_expect_the_same_row_one_wins(make_store: MakeStore) -> None:
    store = await opened(make_store)
    await store.commit([Put(WINDOW, b"w", b"free")])
    takers = [[Expect(WINDOW, b"w", b"free"), Put(WINDOW, b"w", b"%d" % n)] for n in range(20)]
    outcomes = await asyncio.gather(*map(store.commit, takers), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None)] + [ConflictError] * 19
    assert await store.get(WINDOW, b"w") == b"0"
    await store.close()


async def changes_of_one_commit_apply_in_their_order(make_store: MakeStore) -> None:
    store = await opened(make_store)
    await store.commit([Put(SEGMENT, b"a1", b""), Put(SEGMENT, b"b", b"")])
    await store.commit(
        [Put(SEGMENT, b"a2", b""), DeletePrefix(SEGMENT, b"a"), Put(SEGMENT, b"a1", b"new"), Delete(SEGMENT, b"b")]
    )
    assert await store.scan(SEGMENT) == [(b"a1", b"new")]
    await asyncio.gather(
        store.commit([Put(SEGMENT, b"a3", b"")]),
        store.commit([DeletePrefix(SEGMENT, b"a")]),
        store.commit([Insert(SEGMENT, b"a1", b"newer")]),
    )
    assert await store.scan(SEGMENT) == [(b"a1", b"newer")]
    await store.commit([])
    await store.close()


async def a_conflict_touches_no_other_commit(make_store: MakeStore) -> None:
    store = await opened(make_store)
    await store.commit([Insert(DELIVERED, b"taken")])
    commits = [
        [entry(n), Insert(DELIVERED, b"taken" if n % 3 == 0 else b"%d" % n), Put(SEGMENT, b"%03d" % n, b"")]
        for n in range(60)
    ]
    outcomes = await asyncio.gather(*map(store.commit, commits), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConflictError if n % 3 == 0 else type(None) for n in range(60)]
    written = [int(key) for key, _ in await store.scan(SEGMENT)]
    assert written == [n for n in range(60) if n % 3]
    ledger = await store.entries(LedgerQuery())
    assert [e.body for e in ledger] == [b"body %d" % n for n in written]
    verify_chain(ledger, ChainHead())
    await store.close()


async def a_callers_bug_touches_no_other_commit(make_store: MakeStore) -> None:
    store = await opened(make_store)
    commits = [[Put(SEGMENT, b"%d" % n, b""), entry(n)] for n in range(20)]
    commits[7] = [entry(7), Put(SEGMENT, "not bytes", b"")]  # type: ignore[arg-type]
    outcomes = await asyncio.gather(*map(store.commit, commits), return_exceptions=True)
    assert [n for n, outcome in enumerate(outcomes) if outcome is not None] == [7]
    assert len(await store.scan(SEGMENT)) == 19
    assert verify_chain(await store.entries(LedgerQuery()), ChainHead())[0] == 19
    await store.close()


async def concurrent_commits_take_effect_in_the_order_of_their_calls(make_store: MakeStore) -> None:
    store = await opened(make_store)
    await asyncio.gather(*(store.commit([Put(WINDOW, b"w", b"%d" % n), entry(n)]) for n in range(300)))
    assert await store.get(WINDOW, b"w") == b"299"
    ledger = await store.entries(LedgerQuery())
    assert [e.body for e in ledger] == [b"body %d" % n for n in range(300)]
    await store.close()


async def the_ledger_is_chained_and_its_head_moves(make_store: MakeStore) -> None:
    store = await opened(make_store)
    assert await store.head() == ChainHead()
    await asyncio.gather(*(store.commit([entry(2 * n), entry(2 * n + 1)]) for n in range(50)))
    ledger = await store.entries(LedgerQuery())
    assert [e.sequence for e in ledger] == list(range(1, 101))
    assert ChainHead(*verify_chain(ledger, ChainHead())) == await store.head()
    assert verify_chain(await store.entries(LedgerQuery(after_sequence=40)), ledger[39])[0] == 100
    await store.close()


async def ledger_entries_are_found_by_term_kind_and_time(make_store: MakeStore) -> None:
    store = await opened(make_store)
    await store.commit(
        [entry(n, kind=("issued", "voided")[n % 2], terms=("node:a", f"key:{n % 5}", "node:a")) for n in range(20)]
    )

    async def found(**conditions) -> list[int]:
        return [e.time // 1_000 for e in await store.entries(LedgerQuery(**conditions))]

    assert await found(term="key:3") == [3, 8, 13, 18]
    assert await found(term="key:3", kind="voided") == [3, 13]
    assert await found(term="node:a", since=Nanoseconds(17_000)) == [17, 18, 19]
    assert await found(since=Nanoseconds(4_000), until=Nanoseconds(6_000)) == [4, 5, 6]
    assert await found(kind="issued", after_sequence=11, limit=3) == [12, 14, 16]
    assert await found(term="key") == []
    (first,) = await store.entries(LedgerQuery(limit=1))
    assert first.terms == ("node:a", "key:0", "node:a")
    await store.close()


async def what_was_committed_is_there_after_a_restart(make_store: MakeStore) -> None:
    store = await opened(make_store)
    await store.commit([Put(SEGMENT, b"k", b"v" * 100_000), Insert(DELIVERED, b"d"), entry(1, terms=("node:a",))])
    counter, head = store.counter(), await store.head()
    await store.close()
    again = await opened(make_store)
    assert await again.get(SEGMENT, b"k") == b"v" * 100_000
    assert (again.counter(), await again.head()) == (counter, head)
    with pytest.raises(ConflictError):
        await again.commit([Insert(DELIVERED, b"d")])
    await again.commit([entry(2)])
    verify_chain(await again.entries(LedgerQuery()), ChainHead())
    await again.close()


async def the_counter_grows_with_every_commit_that_waits_alone(make_store: MakeStore) -> None:
    store = await opened(make_store)
    before = store.counter()
    for n in range(5):
        await store.commit([Put(WINDOW, b"w", b"%d" % n)])
    assert store.counter() == before + 5
    await store.close()


async def a_closed_store_says_so(make_store: MakeStore) -> None:
    store = await opened(make_store)
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailableError):
        await store.commit([Put(WINDOW, b"w", b"")])
    with pytest.raises(StoreUnavailableError):
        await store.get(WINDOW, b"w")


async def closing_finishes_what_was_called(make_store: MakeStore) -> None:
    store = await opened(make_store)
    async with asyncio.TaskGroup() as calls:
        for n in range(100):
            calls.create_task(store.commit([Put(SEGMENT, b"%03d" % n, b"")]))
        calls.create_task(store.close())
    again = await opened(make_store)
    assert len(await again.scan(SEGMENT)) == 100
    await again.close()


async def what_is_pruned_is_gone_and_the_ledger_goes_on(make_store: MakeStore) -> None:
    store = await opened(make_store)
    await store.commit([entry(n, terms=("node:é", f"key:{n % 3}")) for n in range(1, 31)])
    ledger = await store.entries(LedgerQuery())
    assert await store.extent() == LedgerExtent(ChainHead(), await store.head(), weight(ledger))
    await store.commit([Prune(10, ledger[9].hash)])
    await store.commit([entry(31), Prune(20, ledger[19].hash), Put(SEGMENT, b"s", b"v"), Prune(12, ledger[11].hash)])
    await store.commit([Prune(20, ledger[19].hash)])
    kept = await store.entries(LedgerQuery())
    start = ChainHead(20, ledger[19].hash)
    assert [e.sequence for e in kept] == list(range(21, 32))
    assert [e.sequence for e in await store.entries(LedgerQuery(term="key:0"))] == [21, 24, 27, 30]
    assert ChainHead(*verify_chain(kept, start)) == await store.head()
    assert await store.extent() == LedgerExtent(start, await store.head(), weight(kept))
    await store.close()
    again = await opened(make_store)
    assert await again.extent() == LedgerExtent(start, ChainHead(31, kept[-1].hash), weight(kept))
    await again.commit([Prune(31, kept[-1].hash)])
    assert await again.extent() == LedgerExtent(await again.head(), await again.head(), 0)
    await again.commit([entry(32, terms=("key:0",))])
    (last,) = await again.entries(LedgerQuery(term="key:0"))
    assert (last.sequence, (await again.extent()).bytes) == (32, weight([last]))
    verify_chain([last], (await again.extent()).start)
    await again.close()


async def nothing_is_pruned_that_is_not_as_it_was_named(make_store: MakeStore) -> None:
    store = await opened(make_store)
    await store.commit([entry(n) for n in range(1, 6)])
    ledger, before = await store.entries(LedgerQuery()), await store.extent()
    for wrong in (Prune(3, ledger[3].hash), Prune(6, ledger[4].hash)):
        for changes in ([wrong], [Put(SEGMENT, b"s", b""), entry(6), wrong], [Prune(2, ledger[1].hash), wrong]):
            with pytest.raises(ConflictError):
                await store.commit(changes)
    assert await store.extent() == before
    assert await store.scan(SEGMENT) == []
    assert await store.entries(LedgerQuery()) == ledger
    await store.close()


async def of_those_who_prune_at_once_each_gets_its_answer(make_store: MakeStore) -> None:
    store = await opened(make_store)
    await store.commit([entry(n, terms=("a",)) for n in range(1, 41)])
    ledger = await store.entries(LedgerQuery())
    commits = [[Prune(n, ledger[n - 1].hash if n % 4 else bytes(48)), entry(n)] for n in range(2, 31)]
    outcomes = await asyncio.gather(*map(store.commit, commits), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None) if n % 4 else ConflictError for n in range(2, 31)]
    kept, extent = await store.entries(LedgerQuery()), await store.extent()
    assert (kept[0].sequence, extent.start) == (31, ChainHead(30, ledger[29].hash))
    assert extent == LedgerExtent(extent.start, ChainHead(*verify_chain(kept, extent.start)), weight(kept))
    await store.close()


# --- several stores on one memory


async def what_one_store_committed_another_reads(make_store: MakeStore) -> None:
    one, other = [await opened(make_store) for _ in range(2)]
    await one.commit([Put(SEGMENT, b"k", b"v"), entry(1)])
    assert await other.get(SEGMENT, b"k") == b"v"
    assert await other.head() == await one.head()
    await other.commit([Delete(SEGMENT, b"k"), entry(2)])
    assert await one.scan(SEGMENT) == []
    assert other.counter() == one.counter() + 1
    await one.close()
    await other.close()


async def a_row_is_inserted_once_by_whichever_store(make_store: MakeStore) -> None:
    stores = [await opened(make_store) for _ in range(2)]
    claims = [(store, key) for key in range(100) for store in stores]
    outcomes = await asyncio.gather(
        *(store.commit([Insert(DELIVERED, b"%03d" % key), entry(key)]) for store, key in claims),
        return_exceptions=True,
    )
    assert {type(outcome) for outcome in outcomes} == {type(None), ConflictError}
    won = [key for (_, key), outcome in zip(claims, outcomes, strict=True) if outcome is None]
    assert sorted(won) == list(range(100))
    ledger = await stores[0].entries(LedgerQuery())
    assert sorted(e.time // 1_000 for e in ledger) == list(range(100))
    for store in stores:
        await store.close()


async def a_mark_that_two_stores_move_is_never_moved_twice_from_one_place(make_store: MakeStore) -> None:
    stores = [await opened(make_store) for _ in range(2)]
    await stores[0].commit([Put(WINDOW, b"w", b"0")])

    async def reserve(store: Store) -> list[int]:
        mine: list[int] = []
        while len(mine) < 30:
            mark = await store.get(WINDOW, b"w")
            try:
                await store.commit([Expect(WINDOW, b"w", mark), Put(WINDOW, b"w", b"%d" % (int(mark) + 1))])
            except ConflictError:
                continue
            mine.append(int(mark))
        return mine

    reserved = await asyncio.gather(*map(reserve, stores))
    assert sorted(reserved[0] + reserved[1]) == list(range(60))
    for store in stores:
        await store.close()


async def stores_append_to_one_chain(make_store: MakeStore) -> None:
    stores = [await opened(make_store) for _ in range(3)]
    await asyncio.gather(
        *(store.commit([entry(n, terms=(f"node:{n}",)), entry(n)]) for n in range(60) for store in stores)
    )
    ledger = await stores[1].entries(LedgerQuery())
    assert len(ledger) == 360
    assert ChainHead(*verify_chain(ledger, ChainHead())) == await stores[2].head()
    for store in stores:
        await store.close()


SHARED_CLAUSES: tuple[Clause, ...] = (
    what_one_store_committed_another_reads,
    a_row_is_inserted_once_by_whichever_store,
    a_mark_that_two_stores_move_is_never_moved_twice_from_one_place,
    stores_append_to_one_chain,
)

CLAUSES: tuple[Clause, ...] = (
    a_row_is_read_back_replaced_and_deleted,
    rows_are_scanned_by_prefix_in_order,
    rows_are_deleted_by_prefix,
    a_conflict_writes_nothing_of_its_commit,
    a_row_that_is_as_expected_is_changed_and_otherwise_nothing_is,
    a_row_that_must_exist_is_there_whatever_its_value_or_nothing_is_written,
    of_all_who_expect_the_same_row_one_wins,
    changes_of_one_commit_apply_in_their_order,
    a_conflict_touches_no_other_commit,
    a_callers_bug_touches_no_other_commit,
    concurrent_commits_take_effect_in_the_order_of_their_calls,
    the_ledger_is_chained_and_its_head_moves,
    ledger_entries_are_found_by_term_kind_and_time,
    what_was_committed_is_there_after_a_restart,
    the_counter_grows_with_every_commit_that_waits_alone,
    a_closed_store_says_so,
    closing_finishes_what_was_called,
    what_is_pruned_is_gone_and_the_ledger_goes_on,
    nothing_is_pruned_that_is_not_as_it_was_named,
    of_those_who_prune_at_once_each_gets_its_answer,
)


def name(clause: Clause) -> str:
    return clause.__name__
