"""One hop of the relay: a strand under a one-time pad, the message under a one-time MAC.

Pure: the pad and the MAC key come from the caller, who has made their use durable before the message leaves.
Both are information-theoretically secure only because no bit of them is ever used twice (core/pads keeps count).
Source: Vernam's pad; Poly1305 as a Wegman-Carter one-time authenticator, RFC 8439 clause 2.5, with a fresh
32-byte key for each message; ITU-T Y.3803 relays keys hop by hop in the same way.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.poly1305 import Poly1305

from trenza.base.errors import AuthenticationError
from trenza.base.secret import Secret

MAC_KEY_BYTES = 32


def encrypt(strand: Secret, pad: Secret) -> bytes:
    """Return the strand under the pad, which has the same length; both stay the caller's."""
    return bytes(_xor(strand.view(), pad.view()))


def decrypt(ciphertext: bytes, pad: Secret) -> Secret:
    """Return the strand that lies under the pad; the caller wipes it.

    Raises:
        ValueError: the lengths differ.
    """
    return Secret(_xor(memoryview(ciphertext), pad.view()))


def tag_of(message: bytes, key: Secret) -> bytes:
    """Return the tag of a message under a key that no other message was ever tagged with."""
    return Poly1305.generate_tag(key.view(), message)


def check_tag(message: bytes, tag: bytes, key: Secret) -> None:
    """Compare in constant time.

    Raises:
        AuthenticationError: the message is not what the holder of the key sent.
    """
    try:
        Poly1305.verify_tag(key.view(), message, tag)
    except InvalidSignature:
        raise AuthenticationError("a message does not carry its one-time tag") from None


def _xor(one: memoryview, other: memoryview) -> bytearray:
    """Return one XOR other, by way of integers: fast, but integers cannot be wiped (docs/threat-model.md)."""
    if len(one) != len(other):
        raise ValueError("a pad has the length of what it hides")
    mixed = int.from_bytes(one, "little") ^ int.from_bytes(other, "little")
    return bytearray(mixed.to_bytes(len(one), "little"))
