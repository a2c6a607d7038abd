"""More rules for histories: what must be durable before what, whose slots and units they were, and what must be had.

Each takes a history and yields a sentence for every violation; `broken` joins them with those of `lab.history`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from trenza.base.names import NodeId, SaeId
from trenza.base.units import Bits
from trenza.core.recipe import recipe_named
from trenza.lab.history import (
    Delivered,
    Doubted,
    Ended,
    Filled,
    Forgot,
    Granted,
    Handed,
    HandedBack,
    History,
    Issued,
    Place,
    Recorded,
    Refused,
    Reserved,
    Sent,
    Stored,
    Took,
    Used,
    WentBack,
    units_of,
    violations,
)
from trenza.wire.peer import canonical

_UNKNOWN = ("no answer", "fell over", "store-unavailable")
"""After these nobody can tell whether the keys were marked as delivered. Any other refusal has touched nothing."""


def broken(history: History, *, homes: dict[SaeId, NodeId], lease: float) -> list[str]:
    """Return every rule that the history breaks.

    Args:
        history: what happened.
        homes: the node that serves each SAE.
        lease: seconds for which a node may still issue to one that came back without its memory.
    """
    return [
        *violations(history),
        *no_strand_in_two_keys(history),
        *deliveries_are_marked_first(history),
        *slots_are_granted_once(history),
        *slots_are_taken_once(history),
        *slots_come_from_segments(history),
        *units_are_given_up_first(history),
        *device_keys_are_used_once(history),
        *what_was_issued_can_be_fetched(history, homes=homes, lease=lease),
        *what_left_is_in_the_ledger(history),
    ]


def no_strand_in_two_keys(history: History) -> Iterator[str]:
    """No 32 bytes of a key are those of another, whatever any ledger says."""
    owners: dict[str, UUID] = {}
    for event in history.events:
        if isinstance(event, Issued | Delivered):
            for strand in event.digest.split():
                if owners.setdefault(strand, event.key_id) != event.key_id:
                    yield f"keys {event.key_id} and {owners[strand]} share bits"


def deliveries_are_marked_first(history: History) -> Iterator[str]:
    """A key made of slots left its target's node only after their mark was durable there."""
    handed: set[tuple[NodeId, NodeId, int, int]] = set()
    for event in history.events:
        match event:
            case Handed(node=node, peer=peer, slots=slots):
                handed.update((node, peer, window, slot) for window, slot in slots)
            case Delivered(place=place) if place is not None:
                slots_of = range(place.first, place.first + place.count)
                if any((place.peer, place.issuer, place.window, slot) not in handed for slot in slots_of):
                    yield f"key {event.key_id} left {place.peer} before its delivery was durable"
            case _:
                pass


def slots_are_granted_once(history: History) -> Iterator[str]:
    """The windows granted of a segment, at either end, never overlap, and are used as they were granted.

    Excused is what a node has granted since it was copied, when it becomes that copy; and, of segments that it had by
    then, what its two ends grant across each other, since it may have forgotten that it ceded slots, or handed them
    back. Who is granted such slots must refuse them (`slots_are_taken_once`).
    """
    given: dict[bytes, dict[tuple[NodeId, NodeId, int], range]] = defaultdict(dict)
    starts: dict[tuple[NodeId, NodeId, int], set[tuple[bytes, int]]] = defaultdict(set)
    times: dict[tuple[bytes, NodeId, NodeId, int], float] = {}
    made: dict[NodeId, set[bytes]] = defaultdict(set)
    misremembered: set[bytes] = set()
    for event in history.events:
        match event:
            case Filled(node=node, record=record):
                made[node].add(record.segment)
            case WentBack(node=node, since=since):
                misremembered |= made[node]
                for (segment, granter, peer, window), time in times.items():
                    if granter == node and time >= since:
                        given[segment].pop((node, peer, window), None)
            case Granted(node=node, peer=peer, window=window, segment=segment, first=first, count=count):
                for other, slots in given[segment].items():
                    if other == (node, peer, window) or (other[0] != node and segment in misremembered):
                        continue
                    if max(first, slots.start) < min(first + count, slots.stop):
                        both = "" if other[0] == node else f", the first time by {other[0]}"
                        yield f"{node} granted slots of segment {segment.hex()} twice{both}"
                given[segment][node, peer, window] = range(first, first + count)
                starts[node, peer, window].add((segment, first))
                times[segment, node, peer, window] = event.time
            case Ended(node=node, peer=peer, window=window):
                for windows in (given[segment] for segment, _ in starts[node, peer, window]):
                    windows.pop((node, peer, window), None)
            case Reserved(node=node, peer=peer, window=window):
                if (event.segment, event.first) not in starts[peer, node, window]:
                    yield f"{node} uses a window {window} that {peer} has not granted like that"
            case _:
                pass


def slots_are_taken_once(history: History) -> Iterator[str]:
    """No node takes a slot over to issue it that was taken over before, at either end: whoever offers it again.

    Nothing is excused: this is what holds when the other end has gone back in time. Free again is what a node that
    stopped has handed back.
    """
    takers: dict[bytes, dict[int, NodeId]] = defaultdict(dict)
    for event in history.events:
        match event:
            case Took(node=node, segment=segment, first=first, count=count):
                slots = range(first, first + count)
                for taker in sorted({takers[segment][slot] for slot in slots if slot in takers[segment]}):
                    yield f"{node} took over slots of segment {segment.hex()} that {taker} had taken over before"
                takers[segment].update(dict.fromkeys(slots, node))
            case HandedBack(segment=segment, slots=slots):
                for slot in slots:
                    takers[segment].pop(slot, None)
            case _:
                pass


def slots_come_from_segments(history: History) -> Iterator[str]:
    """Slots are issued out of segments that were durable here before, within them and in their direction."""
    filled: dict[tuple[NodeId, bytes], Filled] = {}
    for event in history.events:
        match event:
            case Filled(node=node, record=record):
                filled[node, record.segment] = event
            case Reserved(node=node, segment=segment, mark=mark) | Granted(node=node, segment=segment, first=mark):
                known = filled.get((node, segment))
                if known is None:
                    yield f"{node} uses segment {segment.hex()} and never made it durable"
                elif mark > known.record.slots:
                    yield f"{node} uses slots beyond the end of segment {segment.hex()}"
            case _:
                pass


def units_are_given_up_first(history: History) -> Iterator[str]:
    """A relay message left only when the use of every unit it names was durable at its sender, who had the block.

    Traffic goes under blocks of traffic, and is authenticated under blocks of the reserve.
    """
    used: dict[tuple[NodeId, bytes], int] = defaultdict(int)
    blocks: dict[tuple[NodeId, bytes], Stored] = {}
    seen: set[bytes] = set()
    for event in history.events:
        match event:
            case Stored(node=node, block=block):
                blocks[node, block] = event
            case Used(node=node, block=block, used=bits):
                used[node, block] |= bits
            case Sent(sender=sender, message=message) if (said := canonical(message)) not in seen:
                seen.add(said)
                for named, reserve in (*((pad, False) for pad in message.pads), (message.key, True)):
                    stored = blocks.get((sender, named.block))
                    if stored is None or named.first + named.count > stored.units:
                        yield f"{sender} sent under units of block {named.block.hex()} that it does not hold"
                    elif stored.reserve is not reserve:
                        yield f"{sender} sent under block {named.block.hex()}, which is for another purpose"
                    for block, unit in units_of([named]):
                        if not used[sender, block] >> unit & 1:
                            yield f"{sender} sent under unit {unit} of block {block.hex()} before its use was durable"
            case _:
                pass


def device_keys_are_used_once(history: History) -> Iterator[str]:
    """No key of a device is in two blocks."""
    blocks: dict[bytes, bytes] = {}
    for event in history.events:
        if isinstance(event, Stored):
            for key in event.device_keys:
                if blocks.setdefault(key, event.block) != event.block:
                    yield f"a device's key {key.hex()} is in blocks {blocks[key].hex()} and {event.block.hex()}"


def what_was_issued_can_be_fetched(history: History, *, homes: dict[SaeId, NodeId], lease: float) -> Iterator[str]:
    """Whoever asks first for a key that was issued gets it: a crash costs at most what was being answered then.

    Excused is what one of the key's nodes held when it lost its memory, and what was asked for before without an
    answer: that is doubtful.
    """
    issued: dict[UUID, Issued] = {}
    asked: set[tuple[UUID, SaeId]] = set()
    forgot: dict[NodeId, float] = {}
    for event in history.events:
        match event:
            case Issued():
                issued[event.key_id] = event
            case Forgot(time=time, node=node):
                forgot[node] = math.inf if event.goes_on else time
            case Delivered():
                asked.add((event.key_id, event.target))
            case Refused(deed="fetch"):
                names = [(key_id, event.caller) for key_id in event.key_ids]
                if event.code == "unknown-key" and not asked.intersection(names):
                    since = max(forgot.get(homes[sae], -lease) for sae in (event.caller, event.other)) + lease
                    if all(key in issued and issued[key].time > since for key in event.key_ids):
                        keys = ", ".join(str(key) for key in event.key_ids)
                        yield f"{event.time:.3f}: issued by {event.other} to {event.caller}, not to be had: {keys}"
                if event.code in _UNKNOWN or (event.code == "unknown-key" and len(names) == 1):
                    asked.update(names)
            case _:
                pass


def what_left_is_in_the_ledger(history: History) -> Iterator[str]:
    """Every slot of a key that left a node is in its ledger in the end: in the key's record, or as doubtful.

    Excused is what left a node before it lost its memory.
    """
    left: dict[NodeId, list[tuple[UUID, str, NodeId, Place]]] = defaultdict(list)
    told: dict[tuple[NodeId, str, NodeId, int], set[int]] = defaultdict(set)
    for event in history.events:
        match event:
            case Issued(place=place) if place is not None:
                left[place.issuer].append((event.key_id, "issued", place.peer, place))
            case Delivered(place=place) if place is not None:
                left[place.peer].append((event.key_id, "delivered", place.issuer, place))
            case Recorded(node=node, kind=deed, record=record):
                each = recipe_named(record.recipe).slots_for(Bits(record.size))
                told[node, deed, NodeId(record.peer), record.window].update(
                    slot for first in record.slots for slot in range(first, first + each)
                )
            case Doubted(node=node, record=doubtful):
                told[node, doubtful.deed, NodeId(doubtful.peer), doubtful.window] |= doubtful.slots
            case Forgot(node=node):
                left[node].clear()
            case _:
                pass
    for node, keys in left.items():
        for key_id, deed, peer, place in keys:
            slots = range(place.first, place.first + place.count)
            if not told[node, deed, peer, place.window].issuperset(slots):
                yield f"key {key_id} was {deed} by {node} and is not in its ledger"


# --- where everything went


@dataclass(frozen=True, slots=True)
class Balance:
    """Where the slots of one history went, counted at the nodes that issue them."""

    filled: int
    issued: int
    doubtful: int  # given up for keys that nobody got, or that were under way
    left: int  # never given up: still in stock, aged, or dropped with their segment

    def broken(self) -> Iterator[str]:
        """Yield what does not add up."""
        if min(self.filled, self.issued, self.doubtful, self.left) < 0 or (
            self.filled != self.issued + self.doubtful + self.left
        ):
            yield f"slots do not add up: {self}"


def balance(history: History) -> Balance:
    """Count where every slot went."""
    filled: dict[bytes, int] = {}
    reserved: dict[bytes, set[int]] = defaultdict(set)
    issued: dict[bytes, set[int]] = defaultdict(set)
    windows: dict[tuple[NodeId, NodeId, int], bytes] = {}
    for event in history.events:
        match event:
            case Filled(node=node, record=record) if record.issuer == node:
                filled[record.segment] = record.slots
            case Reserved(segment=segment, first=first, mark=mark):
                windows[event.node, event.peer, event.window] = segment
                reserved[segment].update(range(first, mark))
            case Issued(place=place) if place is not None:
                segment = windows.get((place.issuer, place.peer, place.window), b"")
                issued[segment].update(range(place.first, place.first + place.count))
            case _:
                pass
    all_slots = {(segment, slot) for segment, slots in filled.items() for slot in range(slots)}
    given_up = {(segment, slot) for segment, slots in reserved.items() for slot in slots}
    keys = {(segment, slot) for segment, slots in issued.items() for slot in slots}
    return Balance(len(all_slots), len(keys), len(given_up - keys), len(all_slots - given_up))
