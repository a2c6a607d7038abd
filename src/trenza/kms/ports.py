"""What a node's stories need from the world: a store, a sealer, peers, devices, and its own identity.

Each port is a Protocol with its contract in the docstring; tests/contract holds suites that anyone who writes
an implementation can run. The stories never see a socket, a disk or a clock of their own.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.base.units import Bits, Nanoseconds, Seconds
from trenza.core.archive import ArchiveHead
from trenza.core.strand import Supply
from trenza.wire.peer import PeerMessage

# --- the store


class Table(enum.Enum):
    """The tables of a node's store. A row is a key and a value, both bytes; meaning stays with the stories."""

    META = "meta"
    LINK_BLOCK = "link_block"
    LINK_USED = "link_used"
    SESSION = "session"
    SEGMENT = "segment"
    SEGMENT_BYTES = "segment_bytes"
    WINDOW = "window"
    DELIVERED = "delivered"
    WRAPPED = "wrapped"


@dataclass(frozen=True, slots=True)
class Put:
    """Write a row, replacing what was there."""

    table: Table
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Insert:
    """Write a row that must not exist yet; otherwise the whole commit raises ConflictError (exactly once)."""

    table: Table
    key: bytes
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class Expect:
    """Write nothing unless the row is as given; otherwise the whole commit raises ConflictError (compare and set).

    What is compared is the row as the changes before this one, in the same commit, leave it.
    """

    table: Table
    key: bytes
    value: bytes | None  # None: there must be no such row


@dataclass(frozen=True, slots=True)
class Exists:
    """Write nothing unless there is such a row, whatever its value; otherwise the whole commit raises ConflictError.

    What counts is what the changes before this one, in the same commit, leave.
    """

    table: Table
    key: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a row if it is there; its bytes are overwritten, not only unlinked."""

    table: Table
    key: bytes


@dataclass(frozen=True, slots=True)
class DeletePrefix:
    """Remove every row whose key starts with `prefix` (not empty)."""

    table: Table
    prefix: bytes


@dataclass(frozen=True, slots=True)
class Append:
    """Append one entry to the ledger; the store chains it by hash (core.chain.chain_hash)."""

    time: Nanoseconds
    kind: str
    body: bytes
    terms: tuple[str, ...] = ()  # what it can be found by: "node:…", "segment:…", "window:…", "key:…"


@dataclass(frozen=True, slots=True)
class Prune:
    """Remove the ledger's entries up to `through`, and let the ledger start after it.

    Unless that entry was there before, with this hash, the whole commit raises ConflictError; where the ledger starts
    there or later already, nothing is to be done. The chain, its head and its sequences go on as they were.
    """

    through: int
    hash: bytes


Change = Put | Insert | Expect | Exists | Delete | DeletePrefix | Append | Prune


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """An entry as it stands in the ledger."""

    sequence: int  # from 1, without gaps
    time: Nanoseconds
    kind: str
    body: bytes
    hash: bytes  # 48 bytes: SHA-384 over the previous hash and this entry
    terms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChainHead:
    """Where the ledger stands. An empty ledger has sequence 0 and 48 zero bytes."""

    sequence: int = 0
    hash: bytes = bytes(48)


@dataclass(frozen=True, slots=True)
class LedgerExtent:
    """From where to where a ledger is kept, and about how much of a disk its entries take, indexes included."""

    start: ChainHead = field(default_factory=ChainHead)  # before the first entry that is kept
    head: ChainHead = field(default_factory=ChainHead)
    bytes: int = 0  # the sum of `footprint` over the entries kept


def footprint(*, body: int, terms: int) -> int:
    """Return about how many bytes of disk an entry takes, of the sizes of its body and of its terms as JSON.

    The terms are there twice, in the entry and in the index; hash, numbers, kind and the other indexes are the rest.
    Every store counts alike, so that a limit means the same everywhere; measured in docs/performance.md.
    """
    return 180 + body + 2 * terms


@dataclass(frozen=True, slots=True)
class LedgerQuery:
    """Which entries: all conditions must hold; in ascending sequence."""

    term: str | None = None
    kind: str | None = None
    since: Nanoseconds | None = None
    until: Nanoseconds | None = None
    after_sequence: int = 0
    limit: int = 10_000


class Store(Protocol):
    """A node's durable memory: small tables of rows and one chained ledger.

    Contract:
        - `commit` is atomic and durable: when it returns, the changes survive a crash and power loss; when it raises
          ConflictError nothing of it was written; when it raises StoreUnavailableError it may or may not have been.
        - Commits take effect in the order in which `commit` was called.
        - Several concurrent commits may share one fsync; a conflict in one does not touch the others.
        - Several stores may be open on one memory (instances of one node). Their commits are ordered one after the
          other, ledger and counter are common to all, and `commit` raises FencedError, writing nothing, once the
          lead that the store was opened for is no longer the node's.
    """

    async def commit(self, changes: Sequence[Change]) -> None:
        """Apply all changes, or none, durably."""
        ...

    async def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value of a row, or None. Sees every commit that has returned."""
        ...

    async def scan(self, table: Table, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Return the rows whose key starts with `prefix`, in ascending order of key."""
        ...

    async def head(self) -> ChainHead:
        """Return the ledger's last sequence and hash."""
        ...

    async def extent(self) -> LedgerExtent:
        """Return from where to where the ledger is kept, and how much it is."""
        ...

    async def entries(self, query: LedgerQuery) -> list[LedgerEntry]:
        """Return the ledger entries that match, ascending, at most `query.limit`."""
        ...

    def counter(self) -> int:
        """Return the number of commit groups ever made durable here; restored copies show a smaller one.

        Of a memory that other instances write too, this is what it was when this store last committed or looked.
        """
        ...

    async def close(self) -> None:
        """Finish what was called, then let go of the disk."""
        ...


class SharedStore(Store, Protocol):
    """A store that several instances of one node have open at once.

    Contract: that of Store for several stores on one memory. `moment` never runs backwards by more than the clock of
    one machine does, and is the same clock for all instances.
    """

    @property
    def token(self) -> int:
        """The token of the lead under which commits stand."""
        ...

    def under(self, token: int) -> None:
        """Let the commits called from now on stand under another lead."""
        ...

    async def moment(self) -> Seconds:
        """Return the time by the memory's own clock."""
        ...


class Archive(Protocol):
    """Where entries of the ledger are kept when the store gives them up.

    Contract: when `keep` returns, the archive is durable and whole; when it raises, it is as if it never was asked.
    Keeping the same stretch again is harmless.
    """

    async def keep(self, head: ArchiveHead, entries: AsyncIterator[Sequence[LedgerEntry]]) -> str:
        """Write an archive (core.archive) and return its name.

        Raises:
            StoreUnavailableError: it cannot be written, or is there with other content.
        """
        ...


# --- keys at rest


@dataclass(frozen=True, slots=True)
class Sealed:
    """Ciphertext of one segment or block, and where its own key is kept."""

    handle: int  # slot of the keyring; erased when the segment is used up
    box: bytes  # nonce, ciphertext and tag


class Sealer(Protocol):
    """Seals each segment under a key of its own, so that erasing 32 bytes erases the segment (design decision 10).

    Contract: `seal` returns only when the segment's key is durable; after `erase` returns, no copy of the data
    directory taken from then on opens the box; `unseal` with other associated data or after erasure raises
    AuthenticationError.
    """

    async def seal(self, secret: Secret | bytes, *, associated: bytes) -> Sealed:
        """Encrypt under a fresh key; `associated` names the pool, the segment and the epoch."""
        ...

    async def unseal(self, sealed: Sealed, *, associated: bytes) -> Secret:
        """Decrypt; the caller wipes the result."""
        ...

    async def erase(self, handles: Sequence[int]) -> None:
        """Destroy the keys in these slots; erasing twice is harmless."""
        ...


class NodeKey(Protocol):
    """The key under which the keys of all segments are wrapped: in memory, or in a token that it never leaves.

    Contract: `unwrap` gives back what `wrap` was given only with the same nonce and context. A nonce is 12 random
    bytes. Calls may come from any thread, one after the other.
    """

    @property
    def is_at_hand(self) -> bool:
        """Whether calls take microseconds; otherwise they wait for a device and belong off the event loop."""
        ...

    def wrap(self, key: bytearray, *, nonce: bytes, context: bytes) -> bytes:
        """Return `key` encrypted, with a tag of 16 bytes over it and `context`.

        Raises:
            StoreUnavailableError: the token cannot be used now.
        """
        ...

    def unwrap(self, wrapped: bytes, *, nonce: bytes, context: bytes) -> bytearray:
        """Return the key; the caller overwrites it.

        Raises:
            AuthenticationError: it was wrapped under another key, or elsewhere, or was altered.
            StoreUnavailableError: the token cannot be used now.
        """
        ...

    def close(self) -> None:
        """Forget the key, or leave the token."""
        ...


class Anchor(Protocol):
    """Remembers, outside the data directory, how far the store had got: how a restored copy is told from a restart.

    Contract: `recall` returns the last `(identity, counter)` given to `remember` on this machine since it was
    booted, or None when nothing is known (first start, reboot, another machine).
    """

    def recall(self) -> tuple[bytes, int] | None: ...

    def remember(self, identity: bytes, counter: int) -> None: ...


# --- peers


class Peers(Protocol):
    """The other nodes, each behind a mutually authenticated connection whose peer name was checked.

    Contract: `call` returns the peer's answer or raises PeerUnavailableError (outcome unknown), or the
    RemoteProtocolError family with the peer's code. The connection keeps order but answers may overtake each other.
    """

    async def call(self, peer: NodeId, message: PeerMessage, *, timeout: Seconds) -> PeerMessage:
        """Send one request and wait for its answer."""
        ...


# --- devices


@dataclass(frozen=True, slots=True)
class RawKey:
    """Bits from a QKD device, with the ID under which the far device holds the same bits."""

    key_id: UUID
    key: Secret = field(repr=False)
    supply: Supply


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What the device's status says (GS QKD 014 Table 9)."""

    stored_bits: Bits
    max_keys_per_request: int
    max_key_size: Bits
    min_key_size: Bits


class LinkDevice(Protocol):
    """One end of a link's QKD device pair: its key door (GS QKD 014; decision 14).

    Contract: what `draw` returns, the far end's `fetch` returns once, bit for bit. A call whose outcome is unknown
    raises DeviceUnavailableError and its keys are lost, never retried.
    """

    async def limits(self) -> DeviceLimits: ...

    async def draw(self, *, number: int, size: Bits) -> list[RawKey]:
        """Take `number` fresh keys of `size` bits (enc_keys).

        Raises:
            DeviceUnavailableError: no answer, or the device holds too few.
        """
        ...

    async def fetch(self, key_ids: Sequence[UUID]) -> list[RawKey]:
        """Take the keys that the far end drew (dec_keys)."""
        ...


@dataclass(frozen=True, slots=True)
class LinkReading:
    """What a device says of itself, where it says anything."""

    state: str  # "starting" | "running" | "cut" | "attacked" | "dead" | "disabled"
    qber: float | None
    secret_bits_per_second: float | None
    loss_db: float | None
    alarms: tuple[str, ...] = ()


class LinkTelemetry(Protocol):
    """A device's telemetry port; optional: a mute device works too (decision 14)."""

    async def read(self) -> LinkReading:
        """Return the last reading.

        Raises:
            DeviceUnavailableError: no answer.
        """
        ...


# --- identity and key agreement


class Signer(Protocol):
    """This node's signing identity (ML-DSA-65)."""

    def sign(self, message: bytes) -> bytes: ...

    def recognises(self, message: bytes, signature: bytes) -> bool:
        """Tell whether this very identity made `signature` over `message`, in this life or an earlier one."""
        ...


class Verifier(Protocol):
    """Checks other nodes' signatures, by the certificates their connections showed."""

    def verify(self, node: NodeId, message: bytes, signature: bytes) -> None:
        """Raise AuthenticationError unless `signature` is `node`'s over `message`."""
        ...


@dataclass(frozen=True, slots=True)
class Offer:
    """The initiator's half of a joint exchange: public keys to send, and what it keeps to finish."""

    public: bytes
    finish: object = field(repr=False)


class KeyAgreement(Protocol):
    """X448 and ML-KEM-1024, run together (decision 2; TS 103 744 parameter set 2831)."""

    def offer(self) -> Offer: ...

    def answer(self, public: bytes) -> tuple[bytes, Secret, Secret]:
        """Return (answer to send, classical secret 56 bytes, ML-KEM secret 32 bytes).

        Raises:
            RemoteProtocolError: the offer is not two valid public keys.
        """
        ...

    def finish(self, offer: Offer, answer: bytes) -> tuple[Secret, Secret]:
        """Return (classical secret, ML-KEM secret) on the initiator's side."""
        ...
