"""What protected a key: records with a fixed, versioned format (decision 4).

A *segment record* is written by both end nodes when a segment becomes issuable; its digest is bound into every key
made of the segment, so the record is shared history and neither end can tell another story later. *Key records* say
which slots went to whom. Each node chains its records by hash (core.chain) and signs checkpoints, so an auditor with
public keys finds what was deleted, reordered or altered.

SAEs are told the class (recipe, supply, strength, hops); auditors read all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from trenza.base.errors import RemoteProtocolError
from trenza.base.units import Nanoseconds
from trenza.core.strand import Origin, Supply, worst_of

FORMAT_VERSION = 1

KEY_RECORD_VERSION = 4
"""Version 1 had one entry for each request and no `times`; 1 and 2 were maps with a name for each member, 3 had an
entry for each pair and window. All can still be read (core.key_records)."""


class Hop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One QKD link that the strands crossed."""

    link: str
    sender: str
    receiver: str
    supply: Supply
    emulated: bool
    bootstrap: str  # what vouched for the two ends at first: "preshared" (a secret by hand) | "computational"
    epsilon: float | None  # of the device's blocks; reserved: no source states one yet


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The joint exchange that classical and post-quantum strands come from."""

    exchange: bytes
    scheme: str
    transcript: bytes  # the SHA-384 digests of MA and of MB, end to end: 96 bytes
    authentication: tuple[
        str, ...
    ]  # "ml-dsa-65", and "root-preshared" or "root-continuity" where a root was in force


class SegmentRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the strands of one segment come from, who saw them, and since when they are verified."""

    version: int
    segment: bytes
    leader: str
    follower: str
    issuer: str  # which of the two issues from it
    slots: int
    origins: tuple[Origin, ...]
    lineage: Lineage
    hops: tuple[Hop, ...]
    created: int  # nanoseconds since the epoch, by the leader's clock
    uncertainty: int  # nanoseconds

    @property
    def known_to(self) -> tuple[str, ...]:
        """Return every node, beside the two ends, that saw the QKD strands; sorted."""
        return tuple(sorted({hop.receiver for hop in self.hops} - {self.leader, self.follower}))

    @property
    def supply(self) -> Supply | None:
        """Return the worst supply of the links crossed, or None where there is no QKD strand."""
        return worst_of(hop.supply for hop in self.hops) if self.hops else None

    @property
    def epsilon(self) -> float | None:
        """Return the summed epsilon of the hops, or None unless every hop states one."""
        stated = [hop.epsilon for hop in self.hops if hop.epsilon is not None]
        return sum(stated) if stated and len(stated) == len(self.hops) else None

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @staticmethod
    def decode(body: bytes) -> SegmentRecord:
        """Return the record in `body`.

        Raises:
            RemoteProtocolError: not a segment record of this format version.
        """
        try:
            record = msgspec.msgpack.decode(body, type=SegmentRecord)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RemoteProtocolError(f"not a segment record: {error}") from None
        if record.version != FORMAT_VERSION:
            raise RemoteProtocolError(f"segment record of format version {record.version}")
        return record


def segment_digest(body: bytes) -> bytes:
    """Return the 48 bytes that bind an encoded segment record into its keys."""
    return hashlib.sha384(b"trenza segment record v1" + body).digest()


class KeyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Slots that became keys for one SAE pair, or were delivered to the target. One record for many keys alike.

    How entries of the ledger hold them: core.key_records.
    """

    version: int
    segment: bytes
    peer: str  # the node at the other end
    window: int
    slots: tuple[int, ...]  # first slot of each key
    initiator: str
    target: str
    recipe: str
    size: int  # bits
    policy: str
    policy_digest: bytes
    tls_group: str  # of the application's connection
    uncertainty: int  # nanoseconds, of the entry's time
    times: tuple[int, ...] = ()  # microseconds from the entry's time to each key; of version 1: none, all at once

    def time_of(self, index: int, entry: Nanoseconds) -> Nanoseconds:
        """Return when the key at `index` was issued or delivered, given the time of its entry."""
        return Nanoseconds(entry + self.times[index] * 1_000) if self.times else entry

    def only(self, indices: Sequence[int]) -> KeyRecord:
        """Return what the record says of some of its keys, by their place in it; times count from the first."""
        slots = tuple(self.slots[index] for index in indices)
        times = tuple(self.times[index] - self.times[indices[0]] for index in indices) if self.times else ()
        return msgspec.structs.replace(self, slots=slots, times=times)


class DoubtfulRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Slots given up for keys of which no record was made. They may have become keys or not.

    Written by the start after a crash, and where a delivery was given up before it was known to be durable. What
    protected such a key is not in doubt: that is the segment's record.
    """

    version: int
    deed: str  # "issued" | "delivered": what may have become of them at this node
    segment: bytes
    peer: str
    window: int
    ranges: tuple[tuple[int, int], ...]  # first slot and number of slots

    def names(self, slot: int) -> bool:
        return any(first <= slot < first + count for first, count in self.ranges)

    @property
    def slots(self) -> frozenset[int]:
        return frozenset(slot for first, count in self.ranges for slot in range(first, first + count))


def ranges_of(slots: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return slots as ranges: first slot and number of slots, ascending."""
    ranges: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if ranges and slot == sum(ranges[-1]):
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
        else:
            ranges.append((slot, 1))
    return tuple(ranges)


class PrunedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Says that the node removes its ledger's entries up to one for which it had signed a checkpoint."""

    version: int
    through: int
    hash: bytes
    until: int  # nanoseconds since the epoch: the checkpoint's time; all that is removed was written before
    archive: str  # where the entries are kept; empty: nowhere

    @staticmethod
    def decode(body: bytes) -> PrunedRecord:
        """Return the record in `body`.

        Raises:
            RemoteProtocolError: it is none.
        """
        try:
            return msgspec.msgpack.decode(body, type=PrunedRecord)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RemoteProtocolError(f"not a record of pruning: {error}") from None


class WrapRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that is random at the initiator's node: LOCAL, or wrapped for several targets."""

    version: int
    key_id: bytes
    initiator: str
    target: str
    recipe: str
    size: int
    braids: tuple[bytes, ...]  # key IDs of the braids that wrap it, one per far target; empty where it never travels
    policy: str
    policy_digest: bytes
    tls_group: str
    uncertainty: int
