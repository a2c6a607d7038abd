"""What a node tells its operators, and how it refuses them: JSON documents of our own. Never a key bit.

Values and bytes only. Times are RFC 3339 in UTC where people read them and nanoseconds where hashes and signatures
cover them; bytes are hexadecimal. Members may be added; what is here keeps its meaning.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Refusal(msgspec.Struct, frozen=True):
    """Body of every error."""

    error: str  # stable code, docs/reference/errors.md
    message: str
    mistakes: tuple[str, ...] = ()


class SessionStatus(msgspec.Struct, frozen=True):
    """A session with another node; `lease_s` is how long this node may go on issuing to it unheard."""

    peer: str
    lease_s: float
    epoch: int
    incarnation: int


class PoolStatus(msgspec.Struct, frozen=True):
    """What two nodes have ready in one direction, in slots (keys of up to 256 bits)."""

    peer: str
    issuer: str
    kind: str  # "full": with QKD; "plain": without
    issuable: int  # in windows that the issuer holds
    ungranted: int  # in ready segments that no window covers yet
    granted_by_us: int  # in windows that this node granted and the issuer has not used, as far as this node knows
    per_second: float  # demand lately


class StockStatus(msgspec.Struct, frozen=True):
    """Link key under which one end can send."""

    sender: str
    traffic_bits: int
    reserve_bits: int


class ReadingStatus(msgspec.Struct, frozen=True):
    """What the device beside this node says of itself."""

    state: str
    qber: float | None
    secret_bits_per_second: float | None
    loss_db: float | None
    alarms: tuple[str, ...]


class LinkStatus(msgspec.Struct, frozen=True):
    """This node's end of one QKD link. `reading` is null where the device is mute or does not answer."""

    link: str
    peer: str
    emulated: bool
    stock: tuple[StockStatus, ...]
    reading: ReadingStatus | None


class TlsStatus(msgspec.Struct, frozen=True):
    """What happened at one listener ("application", "peers", "management") or at the connections "to peers"."""

    door: str
    handshakes: dict[str, int]  # by negotiated group
    failed: dict[str, int]  # by reason; also those that were not begun because a limit was reached
    connections: int
    refused: dict[str, int] = {}  # connections and messages of known clients that a limit ended, by reason


class MessagesStatus(msgspec.Struct, frozen=True):
    """Frames exchanged with one node, over connections of either's making."""

    peer: str
    sent: int
    received: int


class InstanceStatus(msgspec.Struct, frozen=True):
    """Which of several processes of a node answers, and whether it leads."""

    name: str
    role: str  # "lead" or "second"


class NodeStatus(msgspec.Struct, frozen=True):
    """GET /v1/status."""

    node: str
    version: str
    epoch: int
    incarnation: int
    book_version: int  # 0: none
    time: str
    sessions: tuple[SessionStatus, ...]
    pools: tuple[PoolStatus, ...]
    links: tuple[LinkStatus, ...]
    tls: tuple[TlsStatus, ...]
    messages: tuple[MessagesStatus, ...]
    counters: dict[str, int]
    troubles: dict[str, str]  # what each task last failed with
    ledger: Head
    instance: InstanceStatus | None = None  # None: the node is this one process


class Head(msgspec.Struct, frozen=True):
    """Where the ledger stands."""

    sequence: int
    hash: str


class Health(msgspec.Struct, frozen=True):
    """GET /v1/health: 200 where keys can be issued to somebody, else 503 with the same body."""

    healthy: bool
    why: tuple[str, ...]


class Entry(msgspec.Struct, frozen=True):
    """One ledger entry: all that its hash covers."""

    sequence: int
    time: str
    time_ns: int
    kind: str
    body: str
    hash: str
    terms: tuple[str, ...]


class Entries(msgspec.Struct, frozen=True):
    """GET /v1/ledger. `next_after` asks for the next page; null where this was the last."""

    entries: tuple[Entry, ...]
    next_after: int | None
    start: Head = Head(0, "00" * 48)  # before the first entry that is kept: those up to it were pruned


class SignedHead(msgspec.Struct, frozen=True):
    """A checkpoint (core.chain.Checkpoint)."""

    node: str
    sequence: int
    hash: str
    time: str
    time_ns: int
    signature: str


class Checkpoints(msgspec.Struct, frozen=True):
    """GET /v1/checkpoints."""

    checkpoints: tuple[SignedHead, ...]


class Event(msgspec.Struct, frozen=True):
    """One thing that this node did with a key; `record` is all that its ledger says of it."""

    kind: str  # "issued" | "delivered" | …
    time: str
    sequence: int  # in this node's ledger
    record: dict[str, Any]  # core.provenance.KeyRecord or WrapRecord


class KeyStatement(msgspec.Struct, frozen=True):
    """GET /v1/keys/UUID: what protected this key, as far as this node knows."""

    key_ID: str  # noqa: N815 - spelt as in GS QKD 014
    node: str
    recipe: str
    size: int
    events: tuple[Event, ...]
    segment: dict[str, Any] | None  # core.provenance.SegmentRecord, and what follows from it
    segment_digest: str  # bound into every key made of the segment; empty where there is none
    braids: tuple[str, ...]  # keys that carried it to its targets; each can be asked for by itself
    issuer: str | None = None  # the node that issued it; slots change direction, so its segment does not say


class ExposedKeys(msgspec.Struct, frozen=True):
    """Keys whose QKD strands a node saw on their way: one entry of this node's ledger."""

    kind: str
    time: str
    sequence: int
    record: dict[str, Any]
    segment: dict[str, Any]


class Exposure(msgspec.Struct, frozen=True):
    """GET /v1/exposed: a page."""

    node: str
    since: str
    until: str
    exposed: tuple[ExposedKeys, ...]
    pruned_until: str | None = None  # records of before were pruned, and part of the time lies there: keys may lack
    next: str | None = None  # ask again with `after` for the next page; None: this was the last


class BookTaken(msgspec.Struct, frozen=True):
    """PUT /v1/book."""

    version: int


class Reloaded(msgspec.Struct, frozen=True):
    """POST /v1/reload: what changed."""

    changed: tuple[str, ...]


def encode(document: msgspec.Struct) -> bytes:
    """Return the JSON text of a document."""
    return msgspec.json.encode(document)
