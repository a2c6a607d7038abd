"""The rows of a node's store: what each table's keys and values are. Values are MessagePack; unknown members refused.

Keys begin with the peer's name (length byte first), so that everything of one peer can be found and dropped.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import msgspec

from trenza.base.names import NodeId
from trenza.kms.ports import Sealed
from trenza.wire.peer import Presence

SELF = b"self"
BOOK = b"book"
FORMER_BOOK = b"former book"
QUOTAS = b"quotas"


class SelfRow(msgspec.Struct, frozen=True, array_like=True):
    """META/self: which life of this node wrote last."""

    store: bytes  # 16 random bytes that name this store
    epoch: int
    incarnation: int
    whole: bool = True  # False: strands that cannot be trusted may still be here; whoever starts next drops them
    nonce: bytes = b""  # of that life
    past: tuple[bytes, ...] = ()  # of those before it in its epoch, newest first
    ends: tuple[int, ...] = ()  # what the store had counted when each of these was over


class PeerRow(msgspec.Struct, frozen=True, array_like=True):
    """META/peer:NAME: what this node remembers of another."""

    known: Presence | None
    vouched_at: bytes = b""  # the last place of this node at which it met a life of this node, and knew no better


class WindowsRow(msgspec.Struct, frozen=True, array_like=True):
    """META/windows:NAME: how many window numbers were ever given to a peer; none is given twice."""

    given: int


class QuotaRow(msgspec.Struct, frozen=True, array_like=True):
    """What one tenant was given on one day."""

    tenant: str
    day: int  # since 1970, UTC
    bits: int


class QuotasRow(msgspec.Struct, frozen=True, array_like=True):
    """META/quotas: what tenants had used of their days when it was last stored."""

    used: tuple[QuotaRow, ...]


class SealedRow(msgspec.Struct, frozen=True, array_like=True):
    """Something sealed."""

    handle: int
    box: bytes

    @staticmethod
    def of(sealed: Sealed) -> SealedRow:
        return SealedRow(sealed.handle, sealed.box)

    @property
    def sealed(self) -> Sealed:
        return Sealed(self.handle, self.box)


class RootRow(msgspec.Struct, frozen=True, array_like=True):
    """SESSION/root: the end-to-end root, and the next one where it is not known whether the leader has it."""

    generation: int
    root: SealedRow | None  # None: generation 0, the preshared one or none
    candidate: SealedRow | None
    preshared: bool = False


class IdKeysRow(msgspec.Struct, frozen=True, array_like=True):
    """SESSION/keys: the keys that seal key IDs, kept as long as a key issued under them may have to be explained."""

    created: int
    keys: SealedRow
    retired: bool = False


Ranges: TypeAlias = tuple[tuple[int, int], ...]


class SegmentRow(msgspec.Struct, frozen=True, array_like=True):
    """SEGMENT: a segment that both ends have verified; its bytes are in SEGMENT_BYTES."""

    peer: str
    record: bytes
    granted: int  # in rows of before the last two: slots below this one are granted, or received
    mine: Ranges | None = None  # slots that this node may still grant or cede
    theirs: Ranges | None = None  # slots that it has not seen given to anybody: it may be granted or ceded these


class IssuerWindowRow(msgspec.Struct, frozen=True, array_like=True):
    """WINDOW, role i: slots this node may issue; only good in the incarnation that received it."""

    segment: bytes
    first: int
    count: int
    next: int


class HeldWindowRow(msgspec.Struct, frozen=True, array_like=True):
    """WINDOW, role h: slots this node granted."""

    segment: bytes
    first: int
    count: int
    granted: int
    issued: int
    closed: int | None
    void: tuple[int, ...]
    life: bytes = b""  # the nonce of the life it was given to, which alone may hand back what it does not issue


class WrappedRow(msgspec.Struct, frozen=True, array_like=True):
    """WRAPPED: a key that waits here for one SAE, not computed from slots."""

    initiator: str
    target: str
    size: int
    sealed: SealedRow
    facts: bytes
    expires: int
    ready: bool  # whether phase two came


T = TypeVar("T", bound=msgspec.Struct)

_encoder = msgspec.msgpack.Encoder()


def encode(row: msgspec.Struct) -> bytes:
    return _encoder.encode(row)


def decode(value: bytes, kind: type[T]) -> T:
    """Return the row in `value`; msgspec's error means that the store is damaged."""
    return msgspec.msgpack.decode(value, type=kind)


def peer_prefix(peer: NodeId) -> bytes:
    name = peer.encode()
    return bytes((len(name),)) + name


def peer_key(peer: NodeId) -> bytes:
    return b"peer:" + peer.encode()


def windows_key(peer: NodeId) -> bytes:
    return WINDOWS + peer.encode()


def window_key(role: bytes, peer: NodeId, number: int) -> bytes:
    return role + peer_prefix(peer) + number.to_bytes(4, "big")


def delivered_key(peer: NodeId, number: int, slot: int) -> bytes:
    return peer_prefix(peer) + number.to_bytes(4, "big") + slot.to_bytes(2, "big")


def split_peer(key: bytes) -> tuple[NodeId, bytes]:
    """Return the peer that `key` begins with, and the rest."""
    length = key[0]
    return NodeId(key[1 : 1 + length].decode()), key[1 + length :]


ISSUER, HOLDER = b"i", b"h"
WINDOWS = b"windows:"
