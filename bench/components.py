"""What the parts of one key cost by themselves: CPU microseconds, and how many commits a second the store makes."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import measure
import msgspec
import uvloop
from OpenSSL import SSL

from trenza.adapters.sqlite import SqliteStore
from trenza.app.pki import CertificateAuthority, KeyType
from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Bits, Nanoseconds
from trenza.core.binding import DIGEST_BYTES, BindingInfo
from trenza.core.combine import combine
from trenza.core.key_records import encode_key_records
from trenza.core.keyid import (
    IdKeys,
    IdMacs,
    KeyAddress,
    pair_binding,
    pair_handle,
    read_key_id,
    verify_key_id,
)
from trenza.core.provenance import KEY_RECORD_VERSION, KeyRecord
from trenza.core.recipe import HYBRID_CATKDF, HYBRID_CATKDF_KMAC, ITS, Recipe
from trenza.core.strand import STRAND_BYTES, TRANSCRIPT_BYTES, Bundle, Transcript
from trenza.kms.ports import Append, Change, Insert, Put, Table
from trenza.kms.rows import IssuerWindowRow, delivered_key, encode
from trenza.net.tls import TlsIdentity, client_context, peer_identity, server_context
from trenza.wire import etsi014
from trenza.wire.etsi014 import Key, KeyExtension

SIZE = Bits(256)
ALICE, BOB = NodeId("Alice"), NodeId("Bob")
SAE_A, SAE_B = SaeId("sae-alice"), SaeId("sae-bob")
DIGEST = bytes(DIGEST_BYTES)
BINDING = pair_binding(ALICE, BOB, SAE_A, SAE_B, policy_digest=DIGEST)
KEYS = IdKeys(secrets.token_bytes(32), secrets.token_bytes(32))
ADDRESS = KeyAddress(5, 77, pair_handle(SAE_A, SAE_B), SIZE, HYBRID_CATKDF.code)
MACS = IdMacs(KEYS)
KEY_ID = UUID(int=MACS.seal(ADDRESS.pack(), BINDING))
TRANSCRIPT = Transcript(secrets.token_bytes(TRANSCRIPT_BYTES), secrets.token_bytes(TRANSCRIPT_BYTES))
RECORD = KeyRecord(
    version=KEY_RECORD_VERSION,
    segment=bytes(16),
    peer=BOB,
    window=5,
    slots=(77,),
    initiator=SAE_A,
    target=SAE_B,
    recipe=HYBRID_CATKDF.name,
    size=SIZE,
    policy="default",
    policy_digest=DIGEST,
    tls_group="X25519MLKEM768",
    uncertainty=1_000_000,
    times=(0,),
)
RECORDS = [msgspec.structs.replace(RECORD, target=f"sae-bob-{number}", slots=(number,)) for number in range(256)]
TOLD = KeyExtension(
    recipe=HYBRID_CATKDF.name,
    origins=("CLASSICAL", "PQC", "QKD"),
    supply="synthetic",
    strength="256-bit strength",
    hops=1,
    created=Nanoseconds(1_000_000_000),
    expires=Nanoseconds(2_000_000_000),
)


class Commits(msgspec.Struct):
    at_once: int
    commits_per_s: float
    p50_ms: float
    cpu_us_per_commit: float


class Components(msgspec.Struct):
    machine: measure.Machine
    cpu_us: dict[str, float]
    commits: list[Commits]


def braid(recipe: Recipe) -> Callable[[], object]:
    strands = {origin: secrets.token_bytes(STRAND_BYTES) for origin in recipe.origins}
    info = BindingInfo(recipe, ALICE, BOB, SAE_A, SAE_B, KEY_ID.bytes, DIGEST, DIGEST, SIZE)

    def once() -> object:
        bundle = Bundle({origin: Secret(bytearray(strand)) for origin, strand in strands.items()})
        key = combine([bundle], recipe=recipe, transcript=TRANSCRIPT, info=info, size=SIZE)
        bundle.wipe()
        return key

    return once


def find_key_id() -> object:
    address = read_key_id(KEY_ID, KEYS)
    return verify_key_id(KEY_ID, address, KEYS, binding=BINDING)


PARTS: dict[str, Callable[[], object]] = {
    "braid, hybrid-catkdf (HKDF-SHA384)": braid(HYBRID_CATKDF),
    "braid, hybrid-catkdf-kmac (KMAC256)": braid(HYBRID_CATKDF_KMAC),
    "braid, its (one-time pad under a CatKDF)": braid(ITS),
    "key ID sealed": lambda: MACS.seal(ADDRESS.pack(), BINDING),
    "key ID read and verified": find_key_id,
    "ledger records encoded, of 256 pairs": lambda: encode_key_records(RECORDS),
    "path read": lambda: etsi014.route("/api/v1/keys/sae-bob/enc_keys"),
    "request body read": lambda: etsi014.key_request_from_body(b'{"number":1,"size":256}'),
    "key container written": lambda: etsi014.encode_container([Key(KEY_ID, Secret(bytearray(32)), TOLD)]),
}


def handshake(folder: Path, key_type: KeyType) -> Callable[[], object]:
    """Return one whole TLS 1.3 handshake in memory, both ends with certificates of `key_type`."""
    authority = CertificateAuthority.create("The components' authority", key_type)
    trust = folder / f"{key_type.value}-ca.pem"
    authority.save(trust, folder / f"{key_type.value}-ca.key.pem")
    one = TlsIdentity(folder / f"{key_type.value}.pem", folder / f"{key_type.value}.key.pem", trust)
    authority.issue("both", uris=("urn:trenza:node:both",)).save(one.certificate_file, one.private_key_file)
    contexts = server_context(one), client_context(one)

    def once() -> object:
        server, client = (SSL.Connection(context.openssl, None) for context in contexts)
        server.set_accept_state()
        client.set_connect_state()
        done = False
        while not done:
            done = all([_shaken(client, server), _shaken(server, client)])
        return peer_identity(server), peer_identity(client)

    return once


def _shaken(mine: SSL.Connection, theirs: SSL.Connection) -> bool:
    try:
        mine.do_handshake()
        done = True
    except SSL.WantReadError:
        done = False
    with contextlib.suppress(SSL.WantReadError):
        theirs.bio_write(mine.bio_read(65_536))
    return done


def cpu_us(part: Callable[[], object], *, batches: int = 7, batch_s: float = 0.1) -> float:
    """Return the median over batches of the CPU microseconds of one call."""
    calls = 10
    while (spent := _spent_ns(part, calls)) < batch_s * 1e9:
        calls = max(2 * calls, int(calls * batch_s * 1e9 / max(spent, 1)))
    return statistics.median(_spent_ns(part, calls) / calls / 1e3 for _ in range(batches))


def _spent_ns(part: Callable[[], object], calls: int) -> int:
    began = time.process_time_ns()
    for _ in range(calls):
        part()
    return time.process_time_ns() - began


async def commits(folder: Path, at_once: int, seconds: float = 3.0) -> Commits:
    """Commit what one pair of requests commits, an issue and a delivery in turn, from `at_once` callers."""
    store = SqliteStore.open(folder)
    waited: list[float] = []
    ends = time.perf_counter() + seconds
    cpu = time.process_time()

    async def caller(number: int) -> None:
        slot = 0
        while (began := time.perf_counter()) < ends:
            await store.commit(_changes(number, slot))
            waited.append(1e3 * (time.perf_counter() - began))
            slot += 1

    await asyncio.gather(*map(caller, range(at_once)))
    cpu = time.process_time() - cpu
    await store.close()
    return Commits(at_once, len(waited) / seconds, statistics.median(waited), 1e6 * cpu / len(waited))


def _changes(window: int, slot: int) -> list[Change]:
    row = encode(IssuerWindowRow(bytes(16), 0, 1024, slot))
    terms = (f"segment:{bytes(16).hex()}", f"window:{BOB}:{window}")
    entry = Append(Nanoseconds(slot), "issued", encode_key_records([RECORD]), terms)
    if slot % 2:
        return [Insert(Table.DELIVERED, delivered_key(BOB, window, slot)), entry]
    return [Put(Table.WINDOW, b"issuer" + bytes([window]), row), entry]


def main() -> None:
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        where = measure.machine(Path(folder))
        shakes = {f"TLS handshake, both ends, X25519MLKEM768 and {kind.value}": kind for kind in KeyType}
        handshakes = {name: handshake(Path(folder), kind) for name, kind in shakes.items()}
        parts = {name: cpu_us(part) for name, part in (PARTS | handshakes).items()}
        stores: list[Commits] = []
        for at_once in (1, 16, 64):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                stores.append(runner.run(commits(Path(folder) / str(at_once), at_once)))
    result = Components(where, parts, stores)
    print(measure.table(["part", "CPU µs"], [[name, f"{spent:.1f}"] for name, spent in parts.items()]))
    print()
    head = ["commits under way at once", "durable commits/s", "p50 ms", "CPU µs per commit"]
    rows = [
        [str(c.at_once), f"{c.commits_per_s:,.0f}", f"{c.p50_ms:.2f}", f"{c.cpu_us_per_commit:.0f}"] for c in stores
    ]
    print(measure.table(head, rows))
    print(f"\nfdatasync p50 {where.fdatasync_p50_ms:.2f} ms; written to {measure.save('components', result)}")


if __name__ == "__main__":
    main()
