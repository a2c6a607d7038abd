"""What happened in a lab network, as data, and the checkers that say whether it may have happened.

A history is written by the lab, never by the nodes: what clients asked and got, what became durable in every store,
what went over every wire. Key bytes are not in it, only digests under a key of the history. The checkers return
sentences, one for each violation; an empty list is what every seed must give.
"""

from __future__ import annotations

import hmac
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import msgspec

from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Bits
from trenza.core.key_records import decode_key_records
from trenza.core.provenance import DoubtfulRecord, KeyRecord, SegmentRecord
from trenza.core.recipe import recipe_named
from trenza.core.slot_set import SlotSet
from trenza.core.strand import STRAND_BYTES, Origin
from trenza.kms import rows
from trenza.kms.pads import BlockRow, UsedRow
from trenza.kms.ports import Append, Change, Delete, Insert, Put, Table
from trenza.wire.peer import PadRange, Presence, Relay, canonical


@dataclass(frozen=True, slots=True)
class Issued:
    """The initiator got a key."""

    time: float
    key_id: UUID
    initiator: SaeId
    targets: tuple[SaeId, ...]
    recipe: str
    digest: str = field(repr=False)
    place: Place | None = None  # None: drawn, not made of slots


@dataclass(frozen=True, slots=True)
class Delivered:
    """A target got a key."""

    time: float
    key_id: UUID
    initiator: SaeId
    target: SaeId
    digest: str = field(repr=False)
    place: Place | None = None  # None: it waited at the target's node, and was not made of slots there
    by: Reach | None = None  # the life that handed it out; None in histories made by hand


@dataclass(frozen=True, slots=True)
class Refused:
    """A client was told no, or was told nothing in time."""

    time: float
    deed: str  # "issue" | "fetch"
    caller: SaeId
    other: SaeId
    code: str
    key_ids: tuple[UUID, ...] = ()  # what it asked for


@dataclass(frozen=True, slots=True)
class Sent:
    """A relay message left a node."""

    time: float
    sender: NodeId
    message: Relay


@dataclass(frozen=True, slots=True)
class Place:
    """Where an issued key's slots lie: of whom, in which window, and which."""

    issuer: NodeId
    peer: NodeId
    window: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a life of a node had got, and which other node's word it needs to hand out a key."""

    node: NodeId
    peer: NodeId
    life: Presence = field(repr=False)
    counter: int  # commits of its store


@dataclass(frozen=True, slots=True)
class Heard:
    """A node noted, durably, which life of another it met, or how far that has got."""

    time: float
    node: NodeId
    life: Presence = field(repr=False)
    peer: NodeId


@dataclass(frozen=True, slots=True)
class WentBack:
    """A node is its own copy, anchor and all, or there are two of it: nobody can know of what came after the copy."""

    time: float
    node: NodeId
    since: float  # when the copy was made


@dataclass(frozen=True, slots=True)
class Reserved:
    """A node gave up, durably, the slots of a window below a mark: only these it may issue."""

    time: float
    node: NodeId
    peer: NodeId
    window: int
    segment: bytes
    first: int
    mark: int


@dataclass(frozen=True, slots=True)
class Granted:
    """A node gave the slots of a window, durably, to the node that issues from it; told again when it shrinks."""

    time: float
    node: NodeId
    peer: NodeId
    window: int
    segment: bytes
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Took:
    """A node took over, durably, a window to issue from: of these slots it has the say now."""

    time: float
    node: NodeId
    peer: NodeId
    window: int
    segment: bytes
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class HandedBack:
    """A node that stops gave up, durably, slots of a window that it had not issued: they may be given anew."""

    time: float
    node: NodeId
    segment: bytes
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """A node forgot, durably, a window that it had granted."""

    time: float
    node: NodeId
    peer: NodeId
    window: int


@dataclass(frozen=True, slots=True)
class Handed:
    """A node noted, durably, that slots of a window it granted are delivered."""

    time: float
    node: NodeId
    peer: NodeId
    slots: tuple[tuple[int, int], ...]  # window and slot


@dataclass(frozen=True, slots=True)
class Stored:
    """A node made a block of link key durable; the keys of the device that it is made of, at the end that drew."""

    time: float
    node: NodeId
    block: bytes
    units: int
    reserve: bool
    device_keys: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Used:
    """A node noted, durably, which units of a block are used."""

    time: float
    node: NodeId
    block: bytes
    used: int  # bit n is unit n


@dataclass(frozen=True, slots=True)
class Forgot:
    """A node came back without its memory, or with an old one: what it held until then may be lost."""

    time: float
    node: NodeId
    goes_on: bool = False  # it has two lives from now on, each of which may drop what the other did


@dataclass(frozen=True, slots=True)
class Doubted:
    """A node that started anew said of which slots a crash had left no record."""

    time: float
    node: NodeId
    record: DoubtfulRecord


@dataclass(frozen=True, slots=True)
class Recorded:
    """A node made durable that slots became keys, or that keys were handed to their target."""

    time: float
    node: NodeId
    kind: str  # "issued" | "delivered"
    record: KeyRecord


@dataclass(frozen=True, slots=True)
class Filled:
    """A node made a segment durable and issuable."""

    time: float
    node: NodeId
    record: SegmentRecord


@dataclass(frozen=True, slots=True)
class Trouble:
    """The lab did something to the network."""

    time: float
    what: str


Event = (
    Issued
    | Delivered
    | Refused
    | Sent
    | Reserved
    | Granted
    | Took
    | HandedBack
    | Ended
    | Handed
    | Stored
    | Used
    | Recorded
    | Doubted
    | Filled
    | Forgot
    | Heard
    | WentBack
    | Trouble
)


class History:
    """Everything that happened, in order."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.events: list[Event] = []
        self._key = f"history {seed}".encode()
        self._extents: dict[tuple[NodeId, NodeId, int], tuple[bytes, int, int]] = {}  # of windows, as last told
        self._taken: dict[tuple[NodeId, NodeId, int], tuple[bytes, range]] = {}  # windows that nodes issue from

    def add(self, event: Event) -> None:
        self.events.append(event)

    def digest(self, key: Secret) -> str:
        """Return what stands for key bytes here, strand by strand; equal for equal bytes of this history only."""
        bits = bytes(key.view())
        strands = [bits[at : at + STRAND_BYTES] for at in range(0, len(bits), STRAND_BYTES)]
        told = [one for one in strands if len(one) == STRAND_BYTES] or strands  # a short tail may be equal by chance
        return " ".join(hmac.digest(self._key, strand, "sha256").hex()[:32] for strand in told)

    def note_commit(self, time: float, node: NodeId, changes: Sequence[Change]) -> None:
        """Write down what of a durable commit matters to the checkers."""
        handed: dict[NodeId, list[tuple[int, int]]] = {}
        gone: list[tuple[NodeId, int]] = []
        for change in changes:
            match change:
                case Put() | Insert():
                    self._note_row(time, node, change, handed)
                case Append():
                    self._note_entry(time, node, change)
                case Delete(Table.WINDOW, key) if key[:1] == rows.HOLDER:
                    peer, rest = rows.split_peer(key[1:])
                    self.add(Ended(time, node, peer, int.from_bytes(rest, "big")))
                case Delete(Table.WINDOW, key):
                    peer, rest = rows.split_peer(key[1:])
                    gone.append((peer, int.from_bytes(rest, "big")))
                case _:
                    pass
        for peer, slots in handed.items():
            self.add(Handed(time, node, peer, tuple(slots)))
        self._note_handed_back(time, node, gone, changes)

    def _note_handed_back(
        self, time: float, node: NodeId, gone: Sequence[tuple[NodeId, int]], changes: Sequence[Change]
    ) -> None:
        """Write down which slots of windows that go with this commit the node regards as nobody's again."""
        theirs = {
            change.key: SlotSet(rows.decode(change.value, rows.SegmentRow).theirs or ())
            for change in changes
            if gone and isinstance(change, Put) and change.table is Table.SEGMENT
        }
        for peer, window in gone:
            segment, taken = self._taken.pop((node, peer, window), (b"", range(0)))
            free = tuple(slot for slot in taken if slot in theirs.get(segment, SlotSet()))
            if free:
                self.add(HandedBack(time, node, segment, free))

    def _note_entry(self, time: float, node: NodeId, entry: Append) -> None:
        if entry.kind == "segment":
            self.add(Filled(time, node, SegmentRecord.decode(entry.body)))
        elif entry.kind == "doubtful":
            self.add(Doubted(time, node, msgspec.msgpack.decode(entry.body, type=DoubtfulRecord)))
        elif any(term.startswith("segment:") for term in entry.terms):
            for record in decode_key_records(entry.body):
                self.add(Recorded(time, node, entry.kind, record))

    def _note_row(
        self, time: float, node: NodeId, row: Put | Insert, handed: dict[NodeId, list[tuple[int, int]]]
    ) -> None:
        match row.table:
            case Table.META if row.key.startswith(b"peer:"):
                known = rows.decode(row.value, rows.PeerRow).known
                if known is not None:
                    self.add(Heard(time, node, known, NodeId(row.key[5:].decode())))
            case Table.WINDOW:
                self._note_window(time, node, row)
            case Table.DELIVERED:
                peer, rest = rows.split_peer(row.key)
                slot = int.from_bytes(rest[:4], "big"), int.from_bytes(rest[4:], "big")
                handed.setdefault(peer, []).append(slot)
            case Table.LINK_BLOCK:
                block = msgspec.msgpack.decode(row.value, type=BlockRow)
                self.add(Stored(time, node, row.key, block.units, block.reserve, block.key_ids))
            case Table.LINK_USED:
                used = msgspec.msgpack.decode(row.value, type=UsedRow).used
                self.add(Used(time, node, row.key, int.from_bytes(used, "little")))
            case _:
                pass

    def _note_window(self, time: float, node: NodeId, change: Put | Insert) -> None:
        peer, rest = rows.split_peer(change.key[1:])
        window = int.from_bytes(rest, "big")
        if change.key[:1] == rows.ISSUER:
            issuer = rows.decode(change.value, rows.IssuerWindowRow)
            if isinstance(change, Insert):
                self._taken[node, peer, window] = issuer.segment, range(issuer.first, issuer.first + issuer.count)
                self.add(Took(time, node, peer, window, issuer.segment, issuer.first, issuer.count))
            self.add(Reserved(time, node, peer, window, issuer.segment, issuer.first, issuer.next))
            return
        held = rows.decode(change.value, rows.HeldWindowRow)
        extent = held.segment, held.first, held.count
        if isinstance(change, Insert) or self._extents.get((node, peer, window)) != extent:
            self._extents[node, peer, window] = extent
            self.add(Granted(time, node, peer, window, *extent))

    def trace(self) -> Iterator[str]:
        """Yield one line an event, of decisions and not of bytes: two runs of one seed give the same lines."""
        for event in self.events:
            match event:
                case Issued() | Delivered() as one:
                    yield f"{one} {one.digest}"
                case Sent(time, sender, message):
                    used = [f"{named.block.hex()}[{named.first}:+{named.count}]" for named in message.pads]
                    yield f"{time:.6f} {sender} relay {message.relay.hex()} {message.position} {' '.join(used)}"
                case other:
                    yield str(other)

    def counts(self) -> dict[str, int]:
        """Return how many events of each kind there are, for people."""
        found: dict[str, int] = defaultdict(int)
        for event in self.events:
            found[type(event).__name__] += 1
        return dict(sorted(found.items()))


def violations(history: History) -> list[str]:
    """Return every rule that the history breaks."""
    return [
        *_keys_agree(history),
        *_delivered_once(history),
        *_issued_from_what_was_reserved(history),
        *_slots_used_once(history),
        *_units_used_once(history),
        *_strands_derived_once(history),
    ]


class Witnesses:
    """What the nodes of a history remembered, durably, of each other's lives, and when they met each of them."""

    def __init__(self) -> None:
        self._reached: dict[tuple[NodeId, NodeId, bytes], int] = {}  # by who knows, of whom, and the life's nonce
        self._at_meeting: dict[tuple[NodeId, NodeId, bytes], dict[bytes, int]] = {}  # what was known of other lives
        self._at_place: dict[tuple[NodeId, NodeId, bytes], dict[bytes, int]] = {}  # when the last life there was met

    def note(self, event: Heard | Forgot) -> None:
        if isinstance(event, Forgot):
            self._reached = {each: got for each, got in self._reached.items() if each[0] != event.node}
            return
        node, peer, nonce = event.node, event.peer, event.life.nonce
        if (node, peer, nonce) not in self._at_meeting:
            known = {each[2]: got for each, got in self._reached.items() if each[:2] == (node, peer)}
            self._at_meeting[node, peer, nonce] = self._at_place[node, peer, event.life.place] = known
        self._reached[node, peer, nonce] = max(event.life.reached, self._reached.get((node, peer, nonce), 0))

    def could_tell(self, first: Reach, second: Reach) -> bool:
        """Tell whether the second life of a node knew what the first one did, or who has to let it go on did."""
        one, other = first.life, second.life
        if one.nonce == other.nonce or one.epoch != other.epoch:
            return True
        past = dict(zip(other.past, other.ends, strict=True))
        if past.get(one.nonce, -1) >= first.counter:
            return True  # its own memory tells
        if first.peer == first.node:
            return False  # no other node has to do with it
        met = self._at_meeting.get((second.peer, second.node, other.nonce))
        if met is None and one.place != other.place:  # the first was a copy; after a plain restart nobody is asked
            met = self._at_place.get((second.peer, second.node, other.place))
        return met is None or met.get(one.nonce, 0) >= first.counter


def _of(history: History, kind: type) -> Iterable[Event]:
    return (event for event in history.events if isinstance(event, kind))


def _keys_agree(history: History) -> Iterator[str]:
    """Both ends of a key hold the same bits, and no two keys do."""
    digests: dict[UUID, str] = {}
    owners: dict[str, UUID] = {}
    for event in history.events:
        if not isinstance(event, Issued | Delivered):
            continue
        if digests.setdefault(event.key_id, event.digest) != event.digest:
            yield f"key {event.key_id} differs between its ends"
        if owners.setdefault(event.digest, event.key_id) != event.key_id:
            yield f"keys {event.key_id} and {owners[event.digest]} are equal"


def _delivered_once(history: History) -> Iterator[str]:
    """Each key goes once to its initiator and once to each target, and to nobody else.

    Excused is a second delivery by a copy of a node that cannot know of the first: neither could the node that issued
    the key, when it met the copy; or, of a life that it has not met, when it last met one at that place.
    """
    issued: dict[UUID, Issued] = {}
    handed: dict[tuple[UUID, SaeId], Reach | None] = {}
    witnesses = Witnesses()
    for event in history.events:
        if isinstance(event, Heard | Forgot):
            witnesses.note(event)
        elif isinstance(event, Issued):
            if event.key_id in issued:
                yield f"key {event.key_id} was issued twice"
            issued[event.key_id] = event
        elif isinstance(event, Delivered):
            if (event.key_id, event.target) in handed:
                first = handed[event.key_id, event.target]
                if first is None or event.by is None or witnesses.could_tell(first, event.by):
                    yield f"key {event.key_id} was delivered twice to {event.target}"
            handed[event.key_id, event.target] = event.by
            known = issued.get(event.key_id)
            if known is not None and (known.initiator != event.initiator or event.target not in known.targets):
                yield f"key {event.key_id} was delivered to {event.target}, which is not its target"


def _issued_from_what_was_reserved(history: History) -> Iterator[str]:
    """Every key that left is made of slots given up durably before it left, and no two keys share one.

    What the ledger says is not believed here: it is written behind, and a crash may leave it short.
    """
    reserved: dict[tuple[NodeId, NodeId, int], Reserved] = {}
    used: dict[tuple[bytes, int], UUID] = {}
    for event in history.events:
        if isinstance(event, Reserved):
            reserved[event.node, event.peer, event.window] = event
        if not isinstance(event, Issued) or event.place is None:
            continue
        place = event.place
        within = reserved.get((place.issuer, place.peer, place.window))
        if within is None or not within.first <= place.first <= place.first + place.count <= within.mark:
            yield f"key {event.key_id} was issued from slots that were not reserved durably before"
            continue
        for slot in range(place.first, place.first + place.count):
            if used.setdefault((within.segment, slot), event.key_id) != event.key_id:
                yield f"slot {slot} of segment {within.segment.hex()} is in two keys that were issued"


def _slots_used_once(history: History) -> Iterator[str]:
    """No slot of a segment is in two keys, at either end.

    Of a delivery that its node had forgotten, the rule of deliveries judges.
    """
    used: dict[tuple[str, bytes, int], KeyRecord] = {}
    first_at: dict[tuple[str, bytes, int], float] = {}
    back_to: dict[NodeId, float] = {}
    for event in history.events:
        if isinstance(event, WentBack):
            back_to[event.node] = event.since
        if not isinstance(event, Recorded):
            continue
        record = event.record
        recipe = recipe_named(record.recipe)
        for first in record.slots:
            for slot in range(first, first + recipe.slots_for(Bits(record.size))):
                name = event.kind, record.segment, slot
                forgotten = first_at.get(name, 0.0) >= back_to.get(event.node, math.inf)
                if name in used and not (event.kind == "delivered" and forgotten):
                    yield f"slot {slot} of segment {record.segment.hex()} was {event.kind} twice"
                used[name] = record
                first_at.setdefault(name, event.time)
                other = used.get(("issued" if event.kind == "delivered" else "delivered", record.segment, slot))
                if other is not None and _owner(other) != _owner(record):
                    yield f"slot {slot} of segment {record.segment.hex()} became another key at the other end"


def _owner(record: KeyRecord) -> tuple[str, str, str, int]:
    return record.initiator, record.target, record.recipe, record.size


def _units_used_once(history: History) -> Iterator[str]:
    """No unit of link key is strand, pad or MAC key of two different messages, nor two of these of one."""
    used: dict[tuple[bytes, int], bytes] = {}
    seen: set[bytes] = set()
    for event in history.events:
        if not isinstance(event, Sent):
            continue
        message = canonical(event.message)
        if message in seen:
            continue  # a retry of the identical bytes
        seen.add(message)
        for unit in units_of((*event.message.pads, event.message.key)):
            if unit in used:
                yield f"unit {unit[1]} of block {unit[0].hex()} was used twice"
            used[unit] = message


def units_of(ranges: Iterable[PadRange]) -> Iterator[tuple[bytes, int]]:
    """Yield every unit that the ranges name, by block and number."""
    for named in ranges:
        for unit in range(named.first, named.first + named.count):
            yield named.block, unit


def _strands_derived_once(history: History) -> Iterator[str]:
    """Every QKD strand of a segment came over one relay, once: bits are neither made nor stretched on the way."""
    carried: dict[bytes, dict[bytes, int]] = defaultdict(dict)
    for event in history.events:
        if isinstance(event, Sent) and event.message.position == 1:
            carried[event.message.segment][event.message.relay] = sum(named.count for named in event.message.pads)
    records: dict[bytes, SegmentRecord] = {}
    places: set[tuple[NodeId, bytes]] = set()
    for event in history.events:
        if not isinstance(event, Filled):
            continue
        record = event.record
        if (event.node, record.segment) in places:
            yield f"segment {record.segment.hex()} was made twice at node {event.node}"
        places.add((event.node, record.segment))
        if records.setdefault(record.segment, record) != record:
            yield f"the two ends of segment {record.segment.hex()} tell different stories of it"
        wanted = [record.slots] if Origin.QKD in record.origins else []
        if list(carried.get(record.segment, {}).values()) != wanted:
            yield f"segment {record.segment.hex()} has {record.slots} slots and came by another number of units"
