"""What happened in a lab network, as data, and the checkers that say whether it may have happened.

A history is written by the lab, never by the nodes: what clients asked and got, what became durable in every store,
what went over every wire. Key bytes are not in it, only digests under a key of the history. The checkers return
sentences, one for each violation; an empty list is what every seed must give.
"""

from __future__ import annotations

import hmac
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import msgspec

from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Bits
from trenza.core.provenance import KeyRecord, SegmentRecord
from trenza.core.recipe import recipe_named
from trenza.core.strand import Origin
from trenza.kms.ports import Append, Change
from trenza.wire.peer import PadRange, Relay, canonical


@dataclass(frozen=True, slots=True)
class Issued:
    """The initiator got a key."""

    time: float
    key_id: UUID
    initiator: SaeId
    targets: tuple[SaeId, ...]
    recipe: str
    digest: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Delivered:
    """A target got a key."""

    time: float
    key_id: UUID
    initiator: SaeId
    target: SaeId
    digest: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """A client was told no, or was told nothing in time."""

    time: float
    deed: str  # "issue" | "fetch"
    caller: SaeId
    other: SaeId
    code: str


@dataclass(frozen=True, slots=True)
class Sent:
    """A relay message left a node."""

    time: float
    sender: NodeId
    message: Relay


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


Event = Issued | Delivered | Refused | Sent | Recorded | Filled | Trouble


class History:
    """Everything that happened, in order."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.events: list[Event] = []
        self._key = f"history {seed}".encode()

    def add(self, event: Event) -> None:
        self.events.append(event)

    def digest(self, key: Secret) -> str:
        """Return what stands for key bytes here; equal for equal keys of this history only."""
        return hmac.digest(self._key, bytes(key.view()), "sha256").hex()

    def note_commit(self, time: float, node: NodeId, changes: Sequence[Change]) -> None:
        """Write down what of a durable commit matters to the checkers."""
        for change in changes:
            if not isinstance(change, Append):
                continue
            if change.kind == "segment":
                self.add(Filled(time, node, SegmentRecord.decode(change.body)))
            elif any(term.startswith("segment:") for term in change.terms):
                self.add(Recorded(time, node, change.kind, msgspec.msgpack.decode(change.body, type=KeyRecord)))

    def trace(self) -> Iterator[str]:
        """Yield one line an event: two runs of one seed give the same lines."""
        for event in self.events:
            match event:
                case Issued() | Delivered() as one:
                    yield f"{one} {one.digest}"
                case Sent(time, sender, message):
                    body = message.ciphertext.hex()
                    yield f"{time:.6f} {sender} relay {message.relay.hex()} {message.position} {body}"
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
        *_slots_used_once(history),
        *_units_used_once(history),
        *_strands_derived_once(history),
    ]


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
    """Each key goes once to its initiator and once to each target, and to nobody else."""
    issued: dict[UUID, Issued] = {}
    handed: set[tuple[UUID, SaeId]] = set()
    for event in history.events:
        if isinstance(event, Issued):
            if event.key_id in issued:
                yield f"key {event.key_id} was issued twice"
            issued[event.key_id] = event
        elif isinstance(event, Delivered):
            if (event.key_id, event.target) in handed:
                yield f"key {event.key_id} was delivered twice to {event.target}"
            handed.add((event.key_id, event.target))
            known = issued.get(event.key_id)
            if known is not None and (known.initiator != event.initiator or event.target not in known.targets):
                yield f"key {event.key_id} was delivered to {event.target}, which is not its target"


def _slots_used_once(history: History) -> Iterator[str]:
    """No slot of a segment is in two keys, at either end."""
    used: dict[tuple[str, bytes, int], KeyRecord] = {}
    for event in history.events:
        if not isinstance(event, Recorded):
            continue
        record = event.record
        recipe = recipe_named(record.recipe)
        for first in record.slots:
            for slot in range(first, first + recipe.slots_for(Bits(record.size))):
                name = event.kind, record.segment, slot
                if name in used:
                    yield f"slot {slot} of segment {record.segment.hex()} was {event.kind} twice"
                used[name] = record
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
