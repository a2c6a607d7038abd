"""What stands in for cryptography between nodes in the lab: same contracts, seeded, fast, and no secrets at all."""

from __future__ import annotations

import hashlib
import hmac
import random

from trenza.base.errors import AuthenticationError, RemoteProtocolError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.kms.ports import Offer

_PUBLIC_BYTES = 32


class SeededEntropy:
    """Bytes that follow from a seed; never twice the same in one history."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - the lab's histories must repeat

    def token(self, count: int) -> bytearray:
        return bytearray(self._random.randbytes(count))


class LabAgreement:
    """A key agreement without mathematics: the secrets are a hash of both public values."""

    def __init__(self, entropy: SeededEntropy) -> None:
        self._entropy = entropy

    def offer(self) -> Offer:
        public = bytes(self._entropy.token(_PUBLIC_BYTES))
        return Offer(public, public)

    def answer(self, public: bytes) -> tuple[bytes, Secret, Secret]:
        if len(public) != _PUBLIC_BYTES:
            raise RemoteProtocolError("not a public value of the lab's key agreement")
        mine = bytes(self._entropy.token(_PUBLIC_BYTES))
        return (mine, *_secrets(public, mine))

    def finish(self, offer: Offer, answer: bytes) -> tuple[Secret, Secret]:
        return _secrets(offer.public, answer)


def _secrets(offer: bytes, answer: bytes) -> tuple[Secret, Secret]:
    digest = hashlib.shake_256(b"lab agreement" + offer + answer).digest(88)
    return Secret.of(digest[:56]), Secret.of(digest[56:])


class LabNotary:
    """Signatures as MACs under keys that only the lab holds: one cannot be made in another node's name."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()

    def tag(self, node: NodeId, message: bytes) -> bytes:
        key = hashlib.sha256(self._seed + node.encode()).digest()
        return hmac.digest(key, message, "sha384")

    def verify(self, node: NodeId, message: bytes, signature: bytes) -> None:
        if not hmac.compare_digest(self.tag(node, message), signature):
            raise AuthenticationError(f"the signature is not node {node}'s")


class LabSigner:
    """One node's signing identity."""

    def __init__(self, notary: LabNotary, node: NodeId) -> None:
        self._notary = notary
        self._node = node

    def sign(self, message: bytes) -> bytes:
        return self._notary.tag(self._node, message)

    def recognises(self, message: bytes, signature: bytes) -> bool:
        return hmac.compare_digest(self._notary.tag(self._node, message), signature)
