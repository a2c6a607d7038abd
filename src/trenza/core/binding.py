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


class Parties:
    """Whose keys: two SAEs and their nodes, encoded once for all keys of the pair."""

    __slots__ = ("encoded", "initiator_node", "initiator_sae", "target_node", "target_sae")

    def __init__(self, initiator_node: NodeId, target_node: NodeId, initiator_sae: SaeId, target_sae: SaeId) -> None:
        self.initiator_node = initiator_node
        self.target_node = target_node
        self.initiator_sae = initiator_sae
        self.target_sae = target_sae
        names = (initiator_node, target_node, initiator_sae, target_sae)
        self.encoded = b"".join(lv(name.encode()) for name in names) + KEY_ID_BYTES.to_bytes(4, "big")


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
        parties = Parties(self.initiator_node, self.target_node, self.initiator_sae, self.target_sae)
        return before_parties(self.recipe) + parties.encoded + self.key_id + self.after_key_id()

    def after_key_id(self) -> bytes:
        """Return the end of the encoding.

        Raises:
            OverflowError: the size does not fit 32 bits.
        """
        return b"".join(map(lv, (self.policy_digest, self.provenance_digest, self.size.to_bytes(4, "big"))))


def before_parties(recipe: Recipe) -> bytes:
    """Return the beginning of the encoding."""
    return _ENCODING_VERSION + lv(recipe.suite_id)
