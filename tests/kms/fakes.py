"""Fakes that keep the contracts of kms/ports, in memory, with faults on order and no timing of their own.

`FakeNetwork` joins nodes and carries messages as bytes; `FakeDevicePair` holds identical bits at both ends;
`FakeStore` forgets nothing that was committed and everything else (`after_crash`); `FakeSealer` outlives its node,
as a keyring does. `make_context` puts one node together.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import hmac
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trenza.base.errors import (
    AuthenticationError,
    ConflictError,
    DeviceUnavailableError,
    PeerUnavailableError,
    RefusedError,
    RemoteProtocolError,
    StoreUnavailableError,
    TrenzaError,
)
from trenza.base.names import LinkId, NodeId
from trenza.base.secret import Secret
from trenza.base.units import Bits, Nanoseconds, Seconds, nanoseconds
from trenza.core.chain import chain_hash
from trenza.core.policy import Book, LinkEntry, NodeEntry, SignedBook
from trenza.core.strand import Supply
from trenza.kms.context import Context, LinkEnd, Session, Settings
from trenza.kms.ports import (
    Append,
    ChainHead,
    Change,
    Delete,
    DeletePrefix,
    DeviceLimits,
    Insert,
    LedgerEntry,
    LedgerExtent,
    LedgerQuery,
    Offer,
    Put,
    RawKey,
    Sealed,
    Table,
)
from trenza.wire.peer import PeerMessage, Presence, decode, encode


class FakeClock:
    """Time that stands still until it is told to go on."""

    def __init__(self, now: int = 1_800_000_000_000_000_000) -> None:
        self.now_ns = now
        self.elapsed_s = 0.0

    def now(self) -> Nanoseconds:
        return Nanoseconds(self.now_ns)

    def elapsed(self) -> Seconds:
        return Seconds(self.elapsed_s)

    def advance(self, seconds: float) -> None:
        self.now_ns += nanoseconds(Seconds(seconds))
        self.elapsed_s += seconds


class FakeEntropy:
    """Bytes that follow from a seed."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(repr(seed))

    def token(self, count: int) -> bytearray:
        return bytearray(self._random.randbytes(count))


class Fails(enum.Enum):
    """How the next commit of a FakeStore fails: nothing written, or written and the answer lost."""

    BEFORE = "before"
    AFTER = "after"


class FakeStore:
    """A store in dictionaries. `fail_next` makes one commit fail; `history` is every change ever written."""

    def __init__(self) -> None:
        self.tables: dict[Table, dict[bytes, bytes]] = defaultdict(dict)
        self.ledger: list[LedgerEntry] = []
        self.history: list[Change] = []
        self.fail_next: Fails | None = None
        self.on_commit: Callable[[Sequence[Change]], Awaitable[None]] | None = None  # runs after it is durable
        self._groups = 0
        self._closed = False

    def after_crash(self) -> FakeStore:
        """Return what the next process finds on the disk; this object answers no more."""
        found = FakeStore()
        found.tables = defaultdict(dict, {table: dict(rows) for table, rows in self.tables.items()})
        found.ledger, found.history, found._groups = list(self.ledger), list(self.history), self._groups
        self._closed = True
        return found

    async def commit(self, changes: Sequence[Change]) -> None:
        self._check_open()
        failure, self.fail_next = self.fail_next, None
        if failure is Fails.BEFORE:
            raise StoreUnavailableError("the commit failed")
        if any(isinstance(c, Insert) and c.key in self.tables[c.table] for c in changes):
            raise ConflictError("a row that must not exist does")
        for change in changes:
            self._apply(change)
        self._groups += 1
        await asyncio.sleep(0)
        if self.on_commit is not None:
            await self.on_commit(changes)
        if failure is Fails.AFTER:
            raise StoreUnavailableError("the commit's outcome is unknown")
        self._check_open()

    def _apply(self, change: Change) -> None:
        self.history.append(change)
        match change:
            case Put(table, key, value) | Insert(table, key, value):
                self.tables[table][bytes(key)] = bytes(value)
            case Delete(table, key):
                self.tables[table].pop(key, None)
            case DeletePrefix(table, prefix):
                assert prefix
                for key in [key for key in self.tables[table] if key.startswith(prefix)]:
                    del self.tables[table][key]
            case Append(time, kind, body, terms):
                previous = self.ledger[-1].hash if self.ledger else bytes(48)
                sequence = len(self.ledger) + 1
                chained = chain_hash(previous, sequence=sequence, time=time, kind=kind, body=body, terms=terms)
                self.ledger.append(LedgerEntry(sequence, time, kind, body, chained, terms))

    async def get(self, table: Table, key: bytes) -> bytes | None:
        self._check_open()
        return self.tables[table].get(key)

    async def scan(self, table: Table, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        self._check_open()
        return [(key, value) for key, value in sorted(self.tables[table].items()) if key.startswith(prefix)]

    async def head(self) -> ChainHead:
        return ChainHead(len(self.ledger), self.ledger[-1].hash) if self.ledger else ChainHead()

    async def extent(self) -> LedgerExtent:
        return LedgerExtent(head=await self.head())

    async def entries(self, query: LedgerQuery) -> list[LedgerEntry]:
        found = [
            entry
            for entry in self.ledger
            if entry.sequence > query.after_sequence
            and (query.term is None or query.term in entry.terms)
            and (query.kind is None or query.kind == entry.kind)
            and (query.since is None or entry.time >= query.since)
            and (query.until is None or entry.time <= query.until)
        ]
        return found[: query.limit]

    def counter(self) -> int:
        return self._groups

    async def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the store is closed")


class FakeSealer:
    """A keyring: AES-GCM under a key per slot, gone when it is erased."""

    def __init__(self) -> None:
        self.keys: dict[int, bytes] = {}
        self._next = 0

    async def seal(self, secret: Secret | bytes, *, associated: bytes) -> Sealed:
        await asyncio.sleep(0)
        handle, self._next = self._next, self._next + 1
        self.keys[handle] = hashlib.sha256(b"segment key %d" % handle).digest()
        plain = bytes(secret.view()) if isinstance(secret, Secret) else secret
        return Sealed(handle, AESGCM(self.keys[handle]).encrypt(bytes(12), plain, associated))

    async def unseal(self, sealed: Sealed, *, associated: bytes) -> Secret:
        await asyncio.sleep(0)
        key = self.keys.get(sealed.handle)
        if key is None:
            raise AuthenticationError("the key of this box was erased")
        try:
            return Secret.of(AESGCM(key).decrypt(bytes(12), sealed.box, associated))
        except InvalidTag:
            raise AuthenticationError("the box was sealed for something else") from None

    async def erase(self, handles: Sequence[int]) -> None:
        await asyncio.sleep(0)
        for handle in handles:
            self.keys.pop(handle, None)


class Fault(enum.Enum):
    """What happens to one message on its way."""

    DROP_REQUEST = "the peer never hears it"
    DROP_ANSWER = "the peer acts, the caller never hears"
    DUPLICATE = "the peer hears it twice at once; the caller hears the second answer"
    DELAY = "others overtake it"


Handler = Callable[[NodeId, PeerMessage], Awaitable[PeerMessage]]


class FakeNetwork:
    """Carries messages between nodes as bytes, through `encode` and `decode`.

    `faults(sender, receiver, message)` may name a Fault; `alter(sender, receiver, message)` may return another
    message; `sent` remembers what was put on the wire.
    """

    def __init__(self) -> None:
        self.handlers: dict[NodeId, Handler] = {}
        self.faults: Callable[[NodeId, NodeId, PeerMessage], Fault | None] = lambda *_: None
        self.alter: Callable[[NodeId, NodeId, PeerMessage], PeerMessage] = lambda _sender, _receiver, message: message
        self.sent: list[tuple[NodeId, NodeId, PeerMessage]] = []

    def of(self, name: NodeId) -> FakePeers:
        """Return the Peers port of one node."""
        return FakePeers(self, name)


class FakePeers:
    """One node's Peers port on a FakeNetwork."""

    def __init__(self, network: FakeNetwork, name: NodeId) -> None:
        self._network = network
        self._name = name

    async def call(self, peer: NodeId, message: PeerMessage, *, timeout: Seconds) -> PeerMessage:
        assert timeout > 0
        await asyncio.sleep(0)
        network = self._network
        fault = network.faults(self._name, peer, message)
        network.sent.append((self._name, peer, message))
        if fault is Fault.DROP_REQUEST:
            raise PeerUnavailableError(f"no answer from {peer}")
        if peer not in network.handlers:
            raise PeerUnavailableError(f"{peer} is not there", sent=False)
        if fault is Fault.DELAY:
            for _ in range(20):
                await asyncio.sleep(0)
        altered = network.alter(self._name, peer, message)
        if fault is Fault.DUPLICATE:
            first = asyncio.ensure_future(self._deliver(peer, altered))
            try:
                return await self._deliver(peer, altered)
            finally:
                await asyncio.wait([first])
                first.exception()  # the caller hears the second answer only
        answer = await self._deliver(peer, altered)
        if fault is Fault.DROP_ANSWER:
            raise PeerUnavailableError(f"no answer from {peer}")
        return answer

    async def _deliver(self, peer: NodeId, message: PeerMessage) -> PeerMessage:
        handler = self._network.handlers.get(peer)
        if handler is None:
            raise PeerUnavailableError(f"{peer} went away")
        try:
            answer = await handler(self._name, decode(encode(message)))
        except TrenzaError as error:
            raise RefusedError(f"{peer} refused: {error.message}", remote_code=error.code) from None
        return decode(encode(answer))


class FakeDevicePair:
    """Two devices that hold the same bits. `alter` flips a bit of what the far end fetches; `mute` silences both."""

    def __init__(self, seed: object, *, bits: int = 1 << 22, max_key_size: int = 1024, max_keys: int = 128) -> None:
        self.bits = bits
        self.mute = False
        self.alter = False
        self.supply = Supply.LIVE
        self.supply_at_fetch: Supply | None = None  # what the far end's device says, where that differs
        self.max_key_size = max_key_size
        self.max_keys = max_keys
        self.drawn: list[bytes] = []  # everything that ever left, to look for in places where it must not be
        self._random = random.Random(repr(seed))
        self.ends = (FakeDevice(self), FakeDevice(self))
        self.ends[0].far, self.ends[1].far = self.ends[1], self.ends[0]

    def token(self, count: int) -> bytes:
        return self._random.randbytes(count)


class FakeDevice:
    """One end of a FakeDevicePair."""

    far: FakeDevice

    def __init__(self, pair: FakeDevicePair) -> None:
        self.pair = pair
        self.waiting: dict[UUID, bytes] = {}  # what the far end drew and this end has not fetched

    async def limits(self) -> DeviceLimits:
        await self._answer()
        return DeviceLimits(Bits(self.pair.bits), self.pair.max_keys, Bits(self.pair.max_key_size), Bits(64))

    async def draw(self, *, number: int, size: Bits) -> list[RawKey]:
        await self._answer()
        assert number <= self.pair.max_keys
        assert 64 <= size <= self.pair.max_key_size
        assert size % 8 == 0
        if number * size > self.pair.bits:
            raise DeviceUnavailableError("not that many bits")
        self.pair.bits -= number * size
        keys = {UUID(bytes=self.pair.token(16)): self.pair.token(size // 8) for _ in range(number)}
        self.pair.drawn += keys.values()
        self.far.waiting |= keys
        return [RawKey(key_id, Secret.of(key), self.pair.supply) for key_id, key in keys.items()]

    async def fetch(self, key_ids: Sequence[UUID]) -> list[RawKey]:
        await self._answer()
        if any(key_id not in self.waiting for key_id in key_ids):
            raise DeviceUnavailableError("no such keys")
        keys = [self.waiting.pop(key_id) for key_id in key_ids]
        if self.pair.alter:
            keys[0] = bytes([keys[0][0] ^ 1]) + keys[0][1:]
        supply = self.pair.supply_at_fetch or self.pair.supply
        return [RawKey(i, Secret.of(key), supply) for i, key in zip(key_ids, keys, strict=True)]

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.pair.mute:
            raise DeviceUnavailableError("the device does not answer")


class FakeSigner:
    """Signs as one node; anyone with FakeVerifier can check (and, being a fake, forge)."""

    def __init__(self, name: NodeId) -> None:
        self._name = name

    def sign(self, message: bytes) -> bytes:
        return hmac.digest(self._name.encode(), message, "sha256")

    def recognises(self, message: bytes, signature: bytes) -> bool:
        return hmac.compare_digest(self.sign(message), signature)


class FakeVerifier:
    """Checks what FakeSigner signed."""

    def verify(self, node: NodeId, message: bytes, signature: bytes) -> None:
        if not hmac.compare_digest(FakeSigner(node).sign(message), signature):
            raise AuthenticationError(f"not signed by {node}")


class FakeAgreement:
    """A joint exchange in which both ends get the same secrets and so would anyone who listens."""

    def __init__(self, entropy: FakeEntropy) -> None:
        self._entropy = entropy

    def offer(self) -> Offer:
        public = bytes(self._entropy.token(32))
        return Offer(public, public)

    def answer(self, public: bytes) -> tuple[bytes, Secret, Secret]:
        if len(public) != 32:
            raise RemoteProtocolError("not a public key")
        answer = bytes(self._entropy.token(32))
        return (answer, *_agreed(public + answer))

    def finish(self, offer: Offer, answer: bytes) -> tuple[Secret, Secret]:
        if len(answer) != 32:
            raise RemoteProtocolError("not a public key")
        return _agreed(offer.public + answer)


def _agreed(transcript: bytes) -> tuple[Secret, Secret]:
    classical, post_quantum = hashlib.sha512(transcript).digest()[:56], hashlib.sha256(transcript).digest()
    return Secret.of(classical), Secret.of(post_quantum)


def make_book(nodes: Sequence[str], links: Sequence[tuple[str, str, str]]) -> Book:
    """Return a book of nodes and links (name, one end, other end) with no SAEs."""
    return Book(
        version=1,
        nodes=tuple(NodeEntry(NodeId(name), f"{name}:1") for name in nodes),
        links=tuple(LinkEntry(LinkId(name), (NodeId(one), NodeId(other))) for name, one, other in links),
        saes=(),
        policies=(),
        rules=(),
    )


def make_context(
    name: NodeId,
    network: FakeNetwork,
    *,
    clock: FakeClock,
    settings: Settings | None = None,
    store: FakeStore | None = None,
    sealer: FakeSealer | None = None,
    book: Book | None = None,
    presence: Presence | None = None,
    seed: object = 0,
) -> Context:
    """Return a node's context on fakes; give it the old store (`after_crash`) and sealer to restart it."""
    entropy = FakeEntropy((name, seed))
    context = Context(
        name=name,
        store=store or FakeStore(),
        sealer=sealer or FakeSealer(),
        peers=network.of(name),
        clock=clock,
        entropy=entropy,
        signer=FakeSigner(name),
        verifier=FakeVerifier(),
        agreement=FakeAgreement(entropy),
        settings=settings or Settings(),
        officer=bytes(1952),
        presence=presence or Presence(1, 1, bytes(16)),
    )
    if book is not None:
        context.set_book(book, SignedBook(b"", b""))
    return context


def join(one: Context, other: Context, link: LinkId, devices: FakeDevicePair) -> None:
    """Put a QKD link between two nodes."""
    one.links[link] = LinkEnd(link, other.name, devices.ends[0])
    other.links[link] = LinkEnd(link, one.name, devices.ends[1])


_ENDLESS = Seconds(1e9)
"""A lease that no test outlives: its renewal is upkeep's affair."""


def open_session(one: Context, other: Context, number: int = 1) -> None:
    """Give two nodes the session that upkeep would make."""
    session_id = number.to_bytes(16, "big")
    key = hashlib.sha384(
        session_id + min(one.name, other.name).encode() + max(one.name, other.name).encode()
    ).digest()
    for mine, theirs in ((one, other), (other, one)):
        mine.sessions[theirs.name] = Session(
            session_id, theirs.name, mine.presence, theirs.presence, Secret.of(key), Seconds(0.0), _ENDLESS
        )
