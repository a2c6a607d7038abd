"""Key IDs that carry their own address, sealed: what lets a key be issued without a round trip (decision 9).

A key ID is a UUID with 122 free bits. It carries where the key's strands lie (window and slot), whose key it is (a
handle of the SAE pair), its size and its recipe, masked so that nobody else reads order or volume from it, and under
a MAC over all of these, the direction, both full SAE IDs and the policy. The far node unmasks, checks and derives.
Why this layout, and what each attacker gains: docs/adr/0004-key-ids.md.

    payload (62 bits)   window 26 | slot 10 | handle 12 | size / 8 - 1: 10 | recipe 4
    tag     (60 bits)   HMAC-SHA256(tag key, payload | binding), truncated
    masked  (62 bits)   payload XOR HMAC-SHA256(mask key, tag), truncated
    UUID                version nibble 4, variant bits 10, then masked | tag in the 122 other bits

The construction is that of a synthetic IV: the tag is both the authenticator and the nonce of the mask.
Pure; the two keys belong to one session and one direction.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from struct import Struct
from uuid import UUID

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from trenza.base.names import NodeId, SaeId
from trenza.base.units import Bits

WINDOW_BITS, SLOT_BITS, HANDLE_BITS, SIZE_BITS, RECIPE_BITS, TAG_BITS = 26, 10, 12, 10, 4, 60
PAYLOAD_BITS = WINDOW_BITS + SLOT_BITS + HANDLE_BITS + SIZE_BITS + RECIPE_BITS
WINDOWS_MAX = 1 << WINDOW_BITS
SLOTS_MAX = 1 << SLOT_BITS
SIZE_MAX = Bits(8 << SIZE_BITS)
assert PAYLOAD_BITS + TAG_BITS == 122

HANDLE_STEP = 1 << (SIZE_BITS + RECIPE_BITS)
SLOT_STEP = HANDLE_STEP << HANDLE_BITS
"""What a packed address grows by from one handle, and from one slot, to the next."""

_QUAD = Struct(">Q")
_PAYLOAD_MASK = (1 << PAYLOAD_BITS) - 1
_TAG_MASK = (1 << TAG_BITS) - 1


@dataclass(frozen=True, slots=True)
class IdKeys:
    """The two keys that seal the IDs of one direction of one session; 32 bytes each."""

    tag: bytes = field(repr=False)
    mask: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyAddress:
    """What a key ID says to the two nodes that can read it."""

    window: int
    slot: int  # first slot of the key, counted from the segment's first
    handle: int
    size: Bits
    recipe: int  # code in core.recipe

    def __post_init__(self) -> None:
        if not (
            0 <= self.window < WINDOWS_MAX
            and 0 <= self.slot < SLOTS_MAX
            and 0 <= self.handle < 1 << HANDLE_BITS
            and 8 <= self.size <= SIZE_MAX
            and self.size % 8 == 0
            and 0 <= self.recipe < 1 << RECIPE_BITS
        ):
            raise ValueError("the address does not fit a key ID")

    def pack(self) -> int:
        packed = self.window
        packed = packed << SLOT_BITS | self.slot
        packed = packed << HANDLE_BITS | self.handle
        packed = packed << SIZE_BITS | (self.size // 8 - 1)
        return packed << RECIPE_BITS | self.recipe

    @staticmethod
    def unpack(packed: int) -> KeyAddress:
        recipe = packed & ((1 << RECIPE_BITS) - 1)
        packed >>= RECIPE_BITS
        size = ((packed & ((1 << SIZE_BITS) - 1)) + 1) * 8
        packed >>= SIZE_BITS
        handle = packed & ((1 << HANDLE_BITS) - 1)
        packed >>= HANDLE_BITS
        return KeyAddress(packed >> SLOT_BITS, packed & ((1 << SLOT_BITS) - 1), handle, Bits(size), recipe)


def window_of(packed: int) -> int:
    """Return the window of a packed address."""
    return packed >> (PAYLOAD_BITS - WINDOW_BITS)


def slot_of(packed: int) -> int:
    """Return the slot of a packed address."""
    return packed // SLOT_STEP & (SLOTS_MAX - 1)


def size_and_recipe_of(packed: int) -> int:
    """Return the end of a packed address: what keys of one size and recipe have in common."""
    return packed & (HANDLE_STEP - 1)


def pair_binding(issuer: NodeId, holder: NodeId, initiator: SaeId, target: SaeId, *, policy_digest: bytes) -> bytes:
    """Return what the MAC of every key ID of this SAE pair covers beside the payload: direction, SAEs, policy."""
    parts = (issuer, holder, initiator, target)
    encoded = b"".join(len(raw).to_bytes(4, "big") + raw for raw in (part.encode() for part in parts))
    return b"trenza key id v1" + encoded + policy_digest


def pair_handle(initiator: SaeId, target: SaeId) -> int:
    """Return the 12-bit handle of an SAE pair; both nodes compute it, and it is only a hint which pair to check."""
    first = initiator.encode()
    digest = hashlib.sha256(b"trenza pair v1" + len(first).to_bytes(4, "big") + first + target.encode()).digest()
    return int.from_bytes(digest[:2], "big") >> (16 - HANDLE_BITS)


class IdMacs:
    """The two MACs of one direction of one session, their keys taken in once: they seal key IDs."""

    __slots__ = ("_mask", "_tag")

    def __init__(self, keys: IdKeys) -> None:
        self._tag = HMAC(keys.tag, SHA256())
        self._mask = HMAC(keys.mask, SHA256())

    def seal(self, payload: int, binding: bytes) -> int:
        """Return the key ID, as a UUID's number, of a packed address under what binds it to a pair."""
        mac = self._tag.copy()
        mac.update(_QUAD.pack(payload) + binding)
        tag = _QUAD.unpack_from(mac.finalize())[0] & _TAG_MASK
        mac = self._mask.copy()
        mac.update(_QUAD.pack(tag))
        masked = payload ^ _QUAD.unpack_from(mac.finalize())[0] & _PAYLOAD_MASK
        return _numbered(masked, tag)


def read_key_id(key_id: UUID, keys: IdKeys) -> KeyAddress:
    """Return the address that `key_id` holds if these are its keys; believe it only after `verify_key_id`."""
    return KeyAddress.unpack(read_packed(key_id.int, keys))


def verify_key_id(key_id: UUID, address: KeyAddress, keys: IdKeys, *, binding: bytes) -> bool:
    """Tell whether whoever holds `keys` issued `key_id` for `address` under `binding`; constant time."""
    return verify_packed(key_id.int, address.pack(), keys, binding=binding)


def read_packed(number: int, keys: IdKeys) -> int:
    """Return what a key ID, given as its number, holds: as `read_key_id`, and packed still."""
    free = _free_bits(number)
    return (free >> TAG_BITS) ^ _mask(free & _TAG_MASK, keys)


def verify_packed(number: int, payload: int, keys: IdKeys, *, binding: bytes) -> bool:
    """Tell what `verify_key_id` tells, of a packed address."""
    free = _free_bits(number)
    if _numbered(free >> TAG_BITS, free & _TAG_MASK) != number:
        return False  # version and variant carry no tag, yet the key is bound to all 128 bits
    tag = _tag(payload, keys, binding)
    return hmac.compare_digest(tag.to_bytes(8, "big"), (free & _TAG_MASK).to_bytes(8, "big"))


def _tag(payload: int, keys: IdKeys, binding: bytes) -> int:
    digest = hmac.digest(keys.tag, payload.to_bytes(8, "big") + binding, "sha256")
    return int.from_bytes(digest[:8], "big") & _TAG_MASK


def _mask(tag: int, keys: IdKeys) -> int:
    digest = hmac.digest(keys.mask, tag.to_bytes(8, "big"), "sha256")
    return int.from_bytes(digest[:8], "big") & _PAYLOAD_MASK


def _numbered(masked: int, tag: int) -> int:
    """Return the number of the UUID with these 62 + 60 free bits."""
    return masked >> 14 << 80 | 0x4 << 76 | (masked >> 2 & 0xFFF) << 64 | 0b10 << 62 | (masked & 0b11) << 60 | tag


def _free_bits(value: int) -> int:
    return (value >> 80) << 74 | ((value >> 64) & 0xFFF) << 62 | (value & ((1 << 62) - 1))
