"""What a key is bound to: the `info` of TS 103 744, the FixedInfo of SP 800-56C.

Holds only what both ends know when they braid. Whatever differs here gives another key, so neither end can be made to
use a key for another pair, another policy or another history than it believes.
Source: SP 800-56C r2 and SP 800-227 clause 4.6 ask for an unambiguous encoding of parties and algorithm; the layout
is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

from trenza.base.names import NodeId, SaeId
from trenza.base.units import Bits
from trenza.core.kdf import lv
from trenza.core.recipe import Recipe

KEY_ID_BYTES = 16
DIGEST_BYTES = 48
"""SHA-384."""

_ENCODING_VERSION = b"\x01"


@dataclass(frozen=True, slots=True)
class BindingInfo:
    """Everything one key is bound to."""

    recipe: Recipe
    initiator_node: NodeId
    target_node: NodeId
    initiator_sae: SaeId
    target_sae: SaeId
    key_id: bytes
    policy_digest: bytes
    provenance_digest: bytes
    size: Bits

    def __post_init__(self) -> None:
        if len(self.key_id) != KEY_ID_BYTES:
            raise ValueError(f"a key ID has {KEY_ID_BYTES} bytes")
        if len(self.policy_digest) != DIGEST_BYTES or len(self.provenance_digest) != DIGEST_BYTES:
            raise ValueError(f"a digest has {DIGEST_BYTES} bytes")

    def encode(self) -> bytes:
        """Return the encoding: a version byte, then length and value of each field in the order above.

        No two values share an encoding, and none is the beginning of another.

        Raises:
            OverflowError: the size does not fit 32 bits.
        """
        before, after = self.halves()
        return before + self.key_id + after

    def halves(self) -> tuple[bytes, bytes]:
        """Return what the encoding has before the key ID and after it: the same for all keys that differ in it only.

        Raises:
            OverflowError: the size does not fit 32 bits.
        """
        parties = (self.initiator_node, self.target_node, self.initiator_sae, self.target_sae)
        before = (self.recipe.suite_id, *(name.encode() for name in parties))
        after = (self.policy_digest, self.provenance_digest, self.size.to_bytes(4, "big"))
        return (
            _ENCODING_VERSION + b"".join(map(lv, before)) + KEY_ID_BYTES.to_bytes(4, "big"),
            b"".join(map(lv, after)),
        )
