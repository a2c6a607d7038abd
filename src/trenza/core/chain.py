"""The ledger's chain: every entry is bound by hash to all before it, and a signed checkpoint to the node.

An offline auditor with the node's public key finds a deleted, reordered or altered entry (design decision 4):
`verify_chain` names the first. A chain alone only shows that the entries fit each other, since whoever holds the
whole ledger can compute it anew; that they are the ones the node once vouched for is shown by its checkpoints.
Pure: no clock, no disk.

The hash is SHA-384 over a label and each field with its length before it, so no two entries encode alike.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from trenza.base.errors import AuthenticationError
from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds

_ENTRY_LABEL = b"trenza ledger entry v1"
_CHECKPOINT_LABEL = b"trenza ledger checkpoint v1"
_NUMBERS = struct.Struct(">Qq")  # sequence, time
_LENGTH = struct.Struct(">I")


class Head(Protocol):
    """Where a ledger stood: the last sequence and its hash; 0 and 48 zero bytes when it is empty."""

    @property
    def sequence(self) -> int: ...
    @property
    def hash(self) -> bytes: ...


class Entry(Head, Protocol):
    """A ledger entry as the store hands it out."""

    @property
    def time(self) -> Nanoseconds: ...
    @property
    def kind(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    @property
    def terms(self) -> tuple[str, ...]: ...


def chain_hash(
    previous: bytes, *, sequence: int, time: Nanoseconds, kind: str, body: bytes, terms: tuple[str, ...]
) -> bytes:
    """Return the hash of an entry that follows the one whose hash is `previous` (48 bytes; zeros for the first)."""
    fields = [_ENTRY_LABEL, previous, _NUMBERS.pack(sequence, time), kind.encode(), body]
    fields += [term.encode() for term in terms]
    return hashlib.sha384(_joined(fields)).digest()


def verify_chain(entries: Iterable[Entry], start: Head, *, through: Iterable[Head] = ()) -> tuple[int, bytes]:
    """Check that the entries follow `start` and each other, unaltered and without gaps.

    Args:
        entries: in the order in which the ledger handed them out.
        start: where the previous audit ended, or an empty head.
        through: checkpoints, already verified, and other places that the ledger must pass through when they lie at
            `start` or after it.

    Returns:
        Sequence and hash of the last entry: the next audit's start.

    Raises:
        AuthenticationError: names the first sequence that is missing, out of its place or altered.
    """
    vouched: dict[int, bytes] = {}
    for place in through:
        if place.sequence >= start.sequence and vouched.setdefault(place.sequence, place.hash) != place.hash:
            raise AuthenticationError(f"two different entries {place.sequence} are vouched for: the ledger forked")
    sequence, digest = start.sequence, start.hash
    _check_vouched(vouched, sequence, digest)
    for entry in entries:
        _check_place(entry.sequence, sequence + 1)
        sequence = entry.sequence
        digest = chain_hash(
            digest, sequence=sequence, time=entry.time, kind=entry.kind, body=entry.body, terms=entry.terms
        )
        if digest != entry.hash:
            raise AuthenticationError(f"ledger entry {sequence} was altered")
        _check_vouched(vouched, sequence, digest)
    if vouched:
        raise AuthenticationError(f"ledger entry {sequence + 1} is missing: a checkpoint vouches for {max(vouched)}")
    return sequence, digest


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node's word, signed with ML-DSA-65, that its ledger stood at `sequence` with `hash` at `time`."""

    node: NodeId
    sequence: int
    hash: bytes
    time: Nanoseconds
    signature: bytes


def sign_checkpoint(sign: Callable[[bytes], bytes], *, node: NodeId, head: Head, time: Nanoseconds) -> Checkpoint:
    """Vouch for the ledger as it stands; `sign` is the node's ML-DSA-65 identity."""
    message = _checkpoint_message(node, head.sequence, head.hash, time)
    return Checkpoint(node=node, sequence=head.sequence, hash=head.hash, time=time, signature=sign(message))


def verify_checkpoint(checkpoint: Checkpoint, public_key: bytes) -> None:
    """Check a checkpoint under the node's raw ML-DSA-65 public key (1952 bytes).

    Raises:
        AuthenticationError: the node did not sign this.
    """
    message = _checkpoint_message(checkpoint.node, checkpoint.sequence, checkpoint.hash, checkpoint.time)
    try:
        MLDSA65PublicKey.from_public_bytes(public_key).verify(checkpoint.signature, message)
    except InvalidSignature:
        raise AuthenticationError(
            f"the checkpoint at ledger entry {checkpoint.sequence} is not signed by {checkpoint.node}"
        ) from None


def _check_place(found: int, expected: int) -> None:
    if found > expected:
        raise AuthenticationError(f"ledger entry {expected} is missing: {found} stands in its place")
    if found < expected:
        raise AuthenticationError(f"ledger entry {found} is out of order: {expected} belongs there")


def _check_vouched(vouched: dict[int, bytes], sequence: int, digest: bytes) -> None:
    if vouched.pop(sequence, digest) != digest:
        raise AuthenticationError(f"ledger entry {sequence} is not the one a signed checkpoint vouches for")


def _checkpoint_message(node: NodeId, sequence: int, digest: bytes, time: Nanoseconds) -> bytes:
    return _joined([_CHECKPOINT_LABEL, node.encode(), _NUMBERS.pack(sequence, time), digest])


def _joined(fields: list[bytes]) -> bytes:
    return b"".join([_LENGTH.pack(len(field)) + field for field in fields])
