"""What every story of one node shares: who it is, its ports, its settings, its book, and its counters.

Holds no behaviour beyond looking things up; the stories are in the other files of this room.
"""

from __future__ import annotations

import math
from collections import Counter
from copy import copy
from dataclasses import dataclass, field

from trenza.base.clock import Clock
from trenza.base.entropy import Entropy
from trenza.base.errors import UnauthorisedError, UnavailableError
from trenza.base.names import LinkId, NodeId
from trenza.base.secret import Secret
from trenza.base.units import Nanoseconds, Seconds
from trenza.core.policy import Book, SignedBook
from trenza.kms.ports import (
    Archive,
    KeyAgreement,
    LinkDevice,
    LinkTelemetry,
    Peers,
    Sealer,
    SharedStore,
    Signer,
    Store,
    Verifier,
)
from trenza.wire.peer import Presence

_FORMER_BOOKS = 8


@dataclass(frozen=True, slots=True)
class Settings:
    """How a node behaves; the defaults suit a metropolitan network. Times in seconds, stocks in slots or units."""

    call_timeout: Seconds = Seconds(5.0)
    relay_timeout: Seconds = Seconds(10.0)
    beat_interval: Seconds = Seconds(1.0)
    lease: Seconds = Seconds(5.0)  # an initiator issues only this long after the peer last answered a beat
    fill_interval: Seconds = Seconds(0.5)
    ingest_interval: Seconds = Seconds(0.5)
    levels_interval: Seconds = Seconds(1.0)
    stock_target: int = 2_048  # slots per pool and direction that filling aims at, at least
    stock_seconds: Seconds = Seconds(10.0)  # …or this many seconds of recent demand, if that is more
    segment_min: int = 64  # slots; smaller segments cost too much an exchange
    segment_max: int = 1_024  # slots one exchange yields at most (decision 2)
    window_slots: int = 256  # slots asked for at once, at least
    window_seconds: Seconds = Seconds(3.0)  # …or this many seconds of recent demand, if that is more
    reserve_slots: int = 16  # slots given up ahead of issuing by one commit, at least
    reserve_seconds: Seconds = Seconds(0.25)  # …or this many seconds of recent demand; a crash costs as much
    journal_delay: Seconds = Seconds(0.1)  # how far behind its key a ledger record may be written
    journal_batch: int = 2_048  # keys that are recorded at once without waiting so long
    journal_records: int = 20_000  # keys without a durable record at most; beyond that nothing is issued
    link_target_units: int = 8_192  # units (32 bytes) of traffic key per link and direction that ingest aims at
    reserve_units: int = 64  # units per link and direction kept for authentication
    block_units: int = 1_024  # units per block at most
    session_lifetime: Seconds = Seconds(86_400.0)
    segment_lifetime: Seconds = Seconds(86_400.0)  # an old stock is also an exposure
    clock_uncertainty: Nanoseconds = Nanoseconds(50_000_000)  # stated in provenance; NTP-disciplined clocks
    clock_tolerance: Nanoseconds = Nanoseconds(60_000_000_000)  # clocks further apart than this refuse to fill
    max_keys_per_request: int = 128
    max_additional_targets: int = 8
    emergency_floor: float = 0.125  # of stock_target: what the emergency class keeps for itself
    class_floor: float = 0.03125  # of stock_target: the same, of every other class that the book uses
    low_water: float = 0.25  # of stock_target: below this, above the floors, stock is shared out
    waiting_keys_max: int = 65_536  # keys that wait here, drawn and placed: half for own initiators, half for others'
    checkpoint_entries: int = 1_000
    checkpoint_seconds: Seconds = Seconds(60.0)
    ledger_days: float = 400.0  # how long the ledger's entries are kept; 0: for ever
    ledger_max_bytes: int = 0  # …and how much of a disk they may take, of whatever age; 0: as much as there is
    retention_interval: Seconds = Seconds(60.0)  # between looks at whether the ledger is to be pruned


@dataclass(slots=True)
class LinkEnd:
    """This node's end of one QKD link: its device, and the telemetry port if the device has one."""

    link: LinkId
    peer: NodeId
    device: LinkDevice
    telemetry: LinkTelemetry | None = None
    emulated: bool = True


@dataclass(slots=True)
class Session:
    """What two live nodes agreed on when they last met. Wiped when it is replaced."""

    id: bytes  # 16 bytes
    peer: NodeId
    mine: Presence
    theirs: Presence
    verify_key: Secret = field(repr=False)  # 48 bytes; compares blocks and segments, off the QKD path
    opened: Seconds  # on Clock.elapsed
    lease_until: Seconds  # on Clock.elapsed: until when we may issue to the peer


@dataclass(slots=True)
class Context:
    """One node: its name, its ports and what it knows of the network."""

    name: NodeId
    store: Store
    sealer: Sealer
    peers: Peers
    clock: Clock
    entropy: Entropy
    signer: Signer
    verifier: Verifier
    agreement: KeyAgreement
    settings: Settings
    officer: bytes  # the key officer's public key
    presence: Presence = field(default_factory=lambda: Presence(0, 0, bytes(16)))
    signed_book: SignedBook | None = None
    book_in_force: Book | None = None  # None: the node has none yet
    former_books: tuple[Book, ...] = ()  # newest first; keys issued under them may still be fetched
    replaced: tuple[Nanoseconds, ...] = ()  # since when each of these is a former one, as far as this life knows
    links: dict[LinkId, LinkEnd] = field(default_factory=dict)
    sessions: dict[NodeId, Session] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)  # names in docs/reference/metrics.md
    preshared: dict[NodeId, Secret] = field(default_factory=dict, repr=False)  # installed by hand, by peer
    archive: Archive | None = None  # where pruned entries go first; None: nowhere
    place: bytes = b""
    """What only one life can hold at a time, 16 bytes: whoever holds it knows that every life that held it before has
    ended. Empty: nothing here proves that."""

    shared: SharedStore | None = None  # the store again, where other instances of this node write it too
    until: Seconds = Seconds(math.inf)  # on Clock.elapsed: until when this instance surely may issue

    @property
    def book(self) -> Book:
        """Return the policy book in force.

        Raises:
            UnavailableError: the node has none yet.
        """
        if self.book_in_force is None:
            raise UnavailableError("this node has no policy book yet: install one signed by the key officer")
        return self.book_in_force

    @property
    def has_book(self) -> bool:
        return self.book_in_force is not None

    def set_book(self, book: Book, signed: SignedBook) -> None:
        if self.book_in_force is not None:
            self.former_books = (self.book_in_force, *self.former_books)[:_FORMER_BOOKS]
            self.replaced = (self.clock.now(), *self.replaced)[:_FORMER_BOOKS]
        self.book_in_force = book
        self.signed_book = signed

    def retire(self) -> None:
        """Let nothing be issued or answered from this context any more: another one of the node takes its place."""
        for session in self.sessions.values():
            session.verify_key.wipe()
        self.sessions.clear()
        self.book_in_force = copy(self.book_in_force)  # another object: what is remembered of this one is over

    def session(self, peer: NodeId) -> Session:
        """Return the live session with `peer`.

        Raises:
            UnavailableError: there is none now; upkeep is making one.
        """
        session = self.sessions.get(peer)
        if session is None:
            raise UnavailableError(f"no session with node {peer} yet")
        return session

    def session_of(self, peer: NodeId, session_id: bytes) -> Session:
        """Return the session with `peer` if it is the one the peer means.

        Raises:
            UnavailableError: the peer speaks of another session; a new one is being made.
        """
        session = self.session(peer)
        if session.id != session_id:
            raise UnavailableError(f"node {peer} speaks of a session that has ended")
        return session

    def end_session(self, peer: NodeId) -> None:
        """End the session with `peer`, if there is one, and wipe its key."""
        session = self.sessions.pop(peer, None)
        if session is not None:
            session.verify_key.wipe()

    def leads(self, peer: NodeId) -> bool:
        """Tell whether this node leads the pair: begins exchanges and fills (the smaller name does)."""
        return self.name < peer

    def link_with(self, peer: NodeId, link: LinkId) -> LinkEnd:
        """Return this node's end of `link`.

        Raises:
            UnauthorisedError: `peer` is not at the other end of it.
        """
        end = self.links.get(link)
        if end is None or end.peer != peer:
            raise UnauthorisedError(f"link {link} does not join this node to {peer}")
        return end
