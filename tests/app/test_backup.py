"""A backup holds what a node remembers and no strand, and a node is restored from it whole or not at all."""

import asyncio
import os
import shutil
import stat
import threading
from pathlib import Path

import apsw
import msgspec
import pytest
from tests.adapters.sqlite.old_nodes import NODES, SEED, old_nodes

from trenza.adapters.keyring import KeyringSealer
from trenza.adapters.sqlite import InlineStore, SqliteStore, connect, copying
from trenza.app import backup
from trenza.app.backup import Manifest, back_up
from trenza.app.config import ApplicationListener, DatabaseConfig, Listener, NodeConfig
from trenza.app.restore import RESTORED, restore
from trenza.base.clock import SystemClock
from trenza.base.entropy import SystemEntropy
from trenza.base.errors import (
    AuthenticationError,
    ConflictError,
    InvalidDocumentError,
    InvalidRequestError,
    StoreUnavailableError,
)
from trenza.base.secret import Secret
from trenza.base.units import Nanoseconds
from trenza.core.chain import verify_chain
from trenza.kms import rows
from trenza.kms.ports import Append, ChainHead, LedgerExtent, LedgerQuery, Prune, Put, Sealed, Table
from trenza.lab.standins import SeededEntropy

NODE = NODES[0]
EMPTIED = [table for table in Table if table not in {Table.META, Table.SESSION}]


class Later(SystemClock):
    """A clock that is told how much later it is: backups are named by the second."""

    def __init__(self, seconds: int = 0) -> None:
        self._ahead = seconds * 1_000_000_000

    def now(self) -> Nanoseconds:
        return Nanoseconds(super().now() + self._ahead)


def configured(folder: Path, data: str = "data", name=NODE) -> NodeConfig:
    nowhere = folder / "none.pem"
    listener = (nowhere, nowhere, nowhere, "127.0.0.1:0")
    return NodeConfig(
        name=name,
        data_directory=folder / data,
        node_key=folder / "node.key",
        anchor=folder / "anchor",
        officer=nowhere,
        application=ApplicationListener(*listener),
        peers=Listener(*listener),
        management=Listener(*listener),
    )


@pytest.fixture
def config(tmp_path) -> NodeConfig:
    """A node that has lived: the directory that a node of the lab left."""
    made = configured(tmp_path)
    made.data_directory.mkdir(mode=0o700)
    for name, content in old_nodes(1).files[NODE].items():
        (made.data_directory / name).write_bytes(content)
    made.node_key.touch(mode=0o600)
    made.node_key.write_bytes(SeededEntropy(f"node key {SEED} {NODE}").token(32))
    asyncio.run(SqliteStore.open(made.data_directory).close())  # of this release's format now
    return made


def test_a_node_with_its_memory_in_a_database_is_referred_to_the_database(config, tmp_path):
    there = msgspec.structs.replace(config, database=DatabaseConfig(tmp_path / "address"))
    with pytest.raises(InvalidRequestError, match="the database's own replication"):
        backed_up(there)
    assert not (tmp_path / "backups").exists()
    with pytest.raises(InvalidRequestError, match="the database's own replication"):
        restore(
            there,
            source=tmp_path,
            with_id_keys=True,
            clock=SystemClock(),
            entropy=SystemEntropy(),
            progress=lambda *_: None,
        )


def backed_up(config, *, later: int = 0, progress=lambda *_: None) -> tuple[Path, Manifest]:
    to = config.anchor.parent / "backups"
    return back_up(config, to=to, clock=Later(later), entropy=SystemEntropy(), progress=progress)


def restored(config, source, *, data: str = "fresh", with_id_keys: bool = True) -> NodeConfig:
    target = msgspec.structs.replace(config, data_directory=config.anchor.parent / data)
    restore(
        target,
        source=source,
        with_id_keys=with_id_keys,
        clock=SystemClock(),
        entropy=SystemEntropy(),
        progress=lambda *_: None,
    )
    return target


def opened(directory: Path) -> InlineStore:
    return InlineStore(connect(str(directory / "store.db")))


def rows_of(directory: Path, table: Table) -> dict[bytes, bytes]:
    async def read() -> dict[bytes, bytes]:
        store = opened(directory)
        try:
            return dict(await store.scan(table))
        finally:
            await store.close()

    return asyncio.run(read())


def ledger_of(directory: Path) -> list:
    async def read() -> list:
        store = opened(directory)
        try:
            return await store.entries(LedgerQuery())
        finally:
            await store.close()

    return asyncio.run(read())


def content_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file())


# --- what is in a backup


def test_a_backup_holds_the_ledger_and_no_strand_root_or_link_key(config) -> None:
    assert rows_of(config.data_directory, Table.SEGMENT_BYTES)
    assert rows_of(config.data_directory, Table.LINK_BLOCK)
    place, manifest = backed_up(config)
    assert sorted(path.name for path in place.iterdir()) == ["keyring", "manifest.json", "store.db"]
    for table in EMPTIED:
        assert rows_of(place, table) == {}, table
    assert {key[:4] for key in rows_of(place, Table.SESSION)} == {b"keys"}  # and no root
    assert ledger_of(place) == ledger_of(config.data_directory)
    last = ledger_of(place)[-1]
    assert (manifest.ledger_end, manifest.ledger_hash) == (last.sequence, last.hash.hex())
    meta = rows_of(config.data_directory, Table.META)
    kept = rows_of(place, Table.META)
    assert kept.keys() == meta.keys()
    assert {key for key, value in kept.items() if value != meta[key]} == {rows.SELF}
    assert not rows.decode(kept[rows.SELF], rows.SelfRow).whole


def test_no_copy_of_a_backup_opens_a_strand_even_with_the_node_key(config) -> None:
    place, _ = backed_up(config)
    everything = content_of(place)
    node_key = Secret.of(config.node_key.read_bytes())
    assert bytes(node_key.view()) not in everything
    sealer = KeyringSealer.in_memory(
        node_key=node_key, entropy=SystemEntropy(), image=(place / "keyring").read_bytes()
    )

    async def tried() -> None:
        for segment, value in rows_of_sync.items():
            sealed = rows.decode(value, rows.SealedRow)
            assert sealed.box not in everything
            for associated in (b"segment" + b"A\0B\0" + segment, b""):
                with pytest.raises(AuthenticationError):
                    await sealer.unseal(Sealed(sealed.handle, sealed.box), associated=associated)

    rows_of_sync = rows_of(config.data_directory, Table.SEGMENT_BYTES)
    asyncio.run(tried())


def test_a_backup_is_its_owners_alone(config) -> None:
    place, _ = backed_up(config)
    assert stat.S_IMODE(place.stat().st_mode) == stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o600}


def test_a_backup_of_a_node_that_writes_is_of_one_moment(config) -> None:
    told: list[tuple[str, int, int]] = []
    stop = threading.Event()

    async def node() -> None:
        store = SqliteStore.open(config.data_directory)
        number = 0
        while not stop.is_set():
            number += 1
            mark = Put(Table.META, b"mark", b"%d" % number)
            await store.commit([*(Append(Nanoseconds(n), "k", b"x" * 200, ("t",)) for n in range(50)), mark])
        await store.close()

    writing = threading.Thread(target=lambda: asyncio.run(node()))
    writing.start()
    try:
        made = [backed_up(config, later=n, progress=lambda *one: told.append(one)) for n in range(3)]
    finally:
        stop.set()
        writing.join()
    ends = [manifest.ledger_end for _, manifest in made]
    assert ends == sorted(set(ends))
    whole = {entry.sequence: entry.hash for entry in all_entries(config.data_directory)}
    for place, manifest in made:
        ledger = all_entries(place)
        assert verify_chain(ledger, ChainHead()) == (manifest.ledger_end, whole[manifest.ledger_end])
        mark = int(rows_of(place, Table.META).get(b"mark", b"0"))
        first = manifest.ledger_end - 50 * mark
        assert first == len(old_ledger()), "rows and ledger are of one moment"
    assert {what for what, _, _ in told} >= {"ledger entries", "bytes of store.db checked"}
    assert all(done <= of for _, done, of in told)


def all_entries(directory: Path) -> list:
    async def read() -> list:
        store, found = opened(directory), []
        try:
            while page := await store.entries(LedgerQuery(after_sequence=found[-1].sequence if found else 0)):
                found += page
        finally:
            await store.close()
        return found

    return asyncio.run(read())


def old_ledger() -> list:
    async def read() -> list:
        store = InlineStore.from_image(old_nodes(1).files[NODE]["store.db"])
        try:
            return await store.entries(LedgerQuery())
        finally:
            await store.close()

    return asyncio.run(read())


def prune(directory: Path, through: int) -> None:
    async def pruned() -> None:
        store = opened(directory)
        entry = (await store.entries(LedgerQuery(after_sequence=through - 1, limit=1)))[0]
        await store.commit([Prune(through, entry.hash)])
        await store.close()

    asyncio.run(pruned())


def extent_of(directory: Path) -> LedgerExtent:
    async def read() -> LedgerExtent:
        store = opened(directory)
        try:
            return await store.extent()
        finally:
            await store.close()

    return asyncio.run(read())


def test_a_pruned_ledger_is_backed_up_and_restored_with_its_start(config) -> None:
    prune(config.data_directory, 4)
    before = extent_of(config.data_directory)
    place, manifest = backed_up(config)
    assert (manifest.ledger_start, extent_of(place)) == (4, before)
    target = restored(config, place)
    after = extent_of(target.data_directory)
    assert (after.start, after.head.sequence) == (before.start, before.head.sequence + 1)
    verify_chain(all_entries(target.data_directory), after.start)


@pytest.mark.parametrize("through", [4, 7], ids=["what is copied", "what is not copied yet"])
def test_a_ledger_that_is_pruned_while_it_is_copied_is_copied_whole_from_where_it_starts(
    config, monkeypatch, through
) -> None:
    monkeypatch.setattr(copying, "_BATCH", 5)
    told: list[str] = []

    def progress(what: str, _done: int, _of: int) -> None:
        if not told:
            threads = threading.Thread(target=prune, args=(config.data_directory, through))
            threads.start()
            threads.join()
        told.append(what)

    place, manifest = backed_up(config, progress=progress)
    assert manifest.ledger_start == through
    assert extent_of(place) == extent_of(config.data_directory)
    assert all_entries(place) == all_entries(config.data_directory)
    verify_chain(all_entries(place), extent_of(place).start)


# --- what is not backed up


def test_a_damaged_ledger_is_not_backed_up(config) -> None:
    connection = apsw.Connection(str(config.data_directory / "store.db"))
    connection.execute("UPDATE ledger SET body = x'00' WHERE sequence = 3")
    connection.close()
    with pytest.raises(AuthenticationError, match="entry 3 was altered"):
        backed_up(config)
    assert list((config.anchor.parent / "backups").iterdir()) == []  # and nothing half done is left


def test_a_backup_says_what_it_lacks(config, tmp_path) -> None:
    with pytest.raises(StoreUnavailableError, match="has the node ever run"):
        backed_up(configured(tmp_path, "elsewhere"))
    asyncio.run(SqliteStore.open(tmp_path / "empty").close())
    (tmp_path / "empty" / "keyring").touch()
    with pytest.raises(StoreUnavailableError, match="never run"):
        backed_up(configured(tmp_path, "empty"))
    key = config.node_key.read_bytes()
    config.node_key.unlink()
    with pytest.raises(StoreUnavailableError, match="node key"):
        backed_up(config)
    assert not config.node_key.exists(), "a backup makes no node key"
    config.node_key.touch(mode=0o600)
    config.node_key.write_bytes(bytes(32))
    with pytest.raises(AuthenticationError, match="another node key"):
        backed_up(config)
    config.node_key.write_bytes(key)
    (config.data_directory / "store.db").write_bytes(old_nodes(1).files[NODE]["store.db"])
    with pytest.raises(InvalidDocumentError, match="start the node once"):
        backed_up(config)


def test_two_backups_of_one_second_do_not_mix(config, monkeypatch) -> None:
    clock = Later()
    moment = clock.now()
    monkeypatch.setattr(Later, "now", lambda _: moment)
    backed_up(config)
    with pytest.raises(ConflictError, match="already"):
        backed_up(config)


# --- restoring


def test_a_restored_directory_is_the_backups_and_says_so_in_its_ledger(config) -> None:
    place, manifest = backed_up(config)
    target = restored(config, place)
    assert sorted(path.name for path in target.data_directory.iterdir()) == ["keyring", "lock", "store.db"]
    ledger = ledger_of(target.data_directory)
    verify_chain(ledger, ChainHead())
    assert ledger[:-1] == ledger_of(place)
    assert ledger[-1].kind == RESTORED
    assert msgspec.json.decode(ledger[-1].body, type=Manifest) == manifest
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.data_directory.iterdir()} == {0o600}


def test_a_restored_node_has_the_keys_that_explain_its_past(config) -> None:
    place, manifest = backed_up(config)
    target = restored(config, place)
    found = rows_of(target.data_directory, Table.SESSION)
    before = rows_of(config.data_directory, Table.SESSION)
    node_key = Secret.of(config.node_key.read_bytes())

    async def secrets(directory: Path, kept: dict[bytes, bytes]) -> dict[bytes, bytes]:
        sealer = KeyringSealer.in_memory(
            node_key=node_key, entropy=SystemEntropy(), image=(directory / "keyring").read_bytes()
        )
        told = {}
        for key, value in kept.items():
            if key.startswith(b"keys"):
                peer, session = rows.split_peer(key[4:])
                associated = b"id keys" + NODE.encode() + b"\0" + peer.encode() + b"\0" + session
                row = rows.decode(value, rows.IdKeysRow)
                told[key] = bytes((await sealer.unseal(row.keys.sealed, associated=associated)).view())
        return told

    assert asyncio.run(secrets(target.data_directory, found)) == asyncio.run(secrets(config.data_directory, before))
    assert len(found) == manifest.id_keys > 0
    assert all(rows.decode(value, rows.IdKeysRow).retired for value in found.values())


def test_without_its_node_key_a_node_is_restored_without_explanations(config) -> None:
    place, _ = backed_up(config)
    config.node_key.unlink()
    with pytest.raises(StoreUnavailableError, match="--without-id-keys"):
        restored(config, place)
    config.node_key.touch(mode=0o600)
    config.node_key.write_bytes(os.urandom(32))
    with pytest.raises(AuthenticationError, match="--without-id-keys"):
        restored(config, place)
    config.node_key.unlink()
    target = restored(config, place, with_id_keys=False)
    assert rows_of(target.data_directory, Table.SESSION) == {}
    assert (target.data_directory / "keyring").read_bytes() == b""
    assert len(ledger_of(target.data_directory)) == len(ledger_of(place)) + 1


def test_a_directory_that_holds_something_is_left_alone(config) -> None:
    place, _ = backed_up(config)
    before = (config.data_directory / "store.db").read_bytes(), (config.data_directory / "keyring").read_bytes()
    with pytest.raises(InvalidRequestError, match=r"not empty \(keyring, store.db"):
        restored(config, place, data="data")
    assert before == tuple((config.data_directory / name).read_bytes() for name in ("store.db", "keyring"))


def test_a_node_that_runs_is_left_alone(config, tmp_path) -> None:
    place, _ = backed_up(config)

    async def story() -> None:
        store = SqliteStore.open(config.data_directory)
        with pytest.raises(StoreUnavailableError, match="in use by process"):
            await asyncio.to_thread(restored, config, place, data="data")
        await store.close()

    asyncio.run(story())


@pytest.mark.parametrize("name", ["store.db", "keyring"])
@pytest.mark.parametrize("damage", ["altered", "cut short", "missing"])
def test_a_damaged_backup_is_refused_and_leaves_nothing(config, name, damage) -> None:
    place, _ = backed_up(config)
    content = bytearray((place / name).read_bytes())
    match damage:
        case "altered":
            content[len(content) // 2] ^= 1
            (place / name).write_bytes(content)
        case "cut short":
            (place / name).write_bytes(content[:-4096])
        case "missing":
            (place / name).unlink()
    with pytest.raises((InvalidDocumentError, StoreUnavailableError), match=name):
        restored(config, place)
    assert sorted(path.name for path in (config.anchor.parent / "fresh").iterdir()) == ["lock"]
    shutil.rmtree(place)
    again, _ = backed_up(config, later=5)
    restored(config, again)  # the same place is good for a better one


def rewritten(place: Path, **changes) -> None:
    manifest = msgspec.json.decode((place / "manifest.json").read_bytes())
    (place / "manifest.json").write_bytes(msgspec.json.encode(manifest | changes))


def test_what_is_no_backup_of_this_node_is_refused(config, tmp_path) -> None:
    place, manifest = backed_up(config)
    with pytest.raises(InvalidDocumentError, match="no manifest"):
        restored(config, tmp_path)
    with pytest.raises(InvalidDocumentError, match=f"of node {NODE}, not of B: take a backup of B"):
        restored(configured(tmp_path, name="B"), place)
    rewritten(place, format=2)
    with pytest.raises(InvalidDocumentError, match="use the one that wrote it"):
        restored(config, place)
    rewritten(place, format=1, ledger_end=manifest.ledger_end + 1)
    with pytest.raises(AuthenticationError, match="not as its manifest says"):
        restored(config, place)
    (place / "manifest.json").write_text("{}")
    with pytest.raises(InvalidDocumentError, match="missing required field"):
        restored(config, place)


def test_a_backup_of_a_newer_release_is_refused(config) -> None:
    place, _ = backed_up(config)
    connection = apsw.Connection(str(place / "store.db"))
    connection.pragma("user_version", 99)
    connection.pragma("journal_mode", "DELETE")
    connection.close()
    digests = {name: msgspec.to_builtins(backup._digest(place / name, lambda *_: None)) for name in backup.FILES}
    rewritten(place, files=digests)
    with pytest.raises(InvalidDocumentError, match="newer release"):
        restored(config, place)


def test_a_restore_that_was_cut_short_is_done_again(config, monkeypatch) -> None:
    place, _ = backed_up(config)
    rename = Path.rename

    def cut_short(path: Path, target: Path) -> Path:
        if path.name == "store.db":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as power_lost:
        power_lost.setattr(Path, "rename", cut_short)
        with pytest.raises(KeyboardInterrupt):
            restored(config, place)
    assert (config.anchor.parent / "fresh" / "keyring").exists()
    target = restored(config, place)
    verify_chain(ledger_of(target.data_directory), ChainHead())
