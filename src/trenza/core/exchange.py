"""The joint exchange: one run of X448 and ML-KEM-1024 between two end nodes, and all that is derived from it.

Decision 2: the classical and the post-quantum secret come from one exchange, whose transcript travels with both
(MA and MB of ETSI TS 103 744). It is authenticated twice: by ML-DSA signatures, and by a MAC under an end-to-end root
that evolves with every exchange and starts from a preshared secret where one was installed, so that a broken
certificate authority alone breaks nothing.

Pure: who makes key pairs and signatures is behind ports; here are only the bytes that are signed and the derivations
(HKDF-SHA384, RFC 5869; every output has a label of its own).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from trenza.base.errors import AuthenticationError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.core.keyid import IdKeys
from trenza.core.strand import STRAND_BYTES, Transcript

SCHEME = "X448+ML-KEM-1024"
ROOT_BYTES = 48
VERIFY_KEY_BYTES = 48
NO_ROOT = bytes(ROOT_BYTES)
"""Where a root starts when nothing was preshared: the MAC then adds nothing until the first exchange is done."""

_HKDF_MAX = 255 * 48


def _lv(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def offer_message(
    leader: NodeId, follower: NodeId, exchange_id: bytes, root_generation: int, public: bytes, *, context: bytes
) -> bytes:
    """Return MA: everything the leader says. `context` is the rest of the message that carries the offer."""
    generation = root_generation.to_bytes(8, "big")
    return b"trenza exchange offer v1" + _lv(
        SCHEME.encode(), leader.encode(), follower.encode(), exchange_id, generation, public, context
    )


def answer_message(offer: bytes, public: bytes, *, context: bytes) -> bytes:
    """Return MB: everything the follower says, bound to the whole of MA."""
    return b"trenza exchange answer v1" + _lv(hashlib.sha384(offer).digest(), public, context)


def root_tag(root: Secret, message: bytes) -> bytes:
    """Return the 48-byte tag of `message` under the end-to-end root."""
    return hmac.digest(bytes(root.view()), b"trenza root tag v1" + message, "sha384")


def check_root_tag(root: Secret, message: bytes, tag: bytes) -> None:
    """Raise AuthenticationError unless `tag` is the root's over `message`."""
    if not hmac.compare_digest(root_tag(root, message), tag):
        raise AuthenticationError("the exchange is not authenticated under this pair's end-to-end root")


def transcript_of(offer: bytes, answer: bytes) -> Transcript:
    """Return the digests of both messages; they stand for MA and MB in every key made of this exchange."""
    return Transcript(hashlib.sha384(offer).digest(), hashlib.sha384(answer).digest())


@dataclass(slots=True)
class ExchangeSecrets:
    """The two secrets of one exchange, 56 and 32 bytes. Wiped by whoever ran the exchange."""

    classical: Secret = field(repr=False)
    pqc: Secret = field(repr=False)

    def wipe(self) -> None:
        self.classical.wipe()
        self.pqc.wipe()


def next_root(root: Secret, secrets: ExchangeSecrets, transcript: Transcript) -> Secret:
    """Return the root of the next exchange: it keeps the strength of the old root and of this exchange."""
    return _derive_of_both(secrets, ROOT_BYTES, label=b"root", transcript=transcript, root=root)


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """What the exchange at the start of a session yields."""

    session_id: bytes  # public name of the session
    verify_key: Secret = field(repr=False)
    leader_issues: IdKeys = field(repr=False)  # seal the IDs of keys that the leader's node issues
    follower_issues: IdKeys = field(repr=False)


def session_keys(root: Secret, secrets: ExchangeSecrets, transcript: Transcript) -> SessionKeys:
    """Derive a session's keys from the exchange and the root that authenticated it."""
    size = 16 + VERIFY_KEY_BYTES + 4 * 32
    okm = _derive_of_both(secrets, size, label=b"session", transcript=transcript, root=root)
    view = okm.view()
    cut = 16 + VERIFY_KEY_BYTES
    four = [bytes(view[cut + 32 * i : cut + 32 * (i + 1)]) for i in range(4)]
    keys = SessionKeys(bytes(view[:16]), Secret.of(view[16:cut]), IdKeys(four[0], four[1]), IdKeys(four[2], four[3]))
    view.release()
    okm.wipe()
    return keys


def strand_blocks(secrets: ExchangeSecrets, transcript: Transcript, *, slots: int) -> tuple[Secret, Secret]:
    """Return the classical and the post-quantum strands of a segment, `slots` x 32 bytes each.

    Each block depends on one secret only, so that the two origins stay independent.
    """
    size = slots * STRAND_BYTES
    return (
        _derive(secrets.classical, size, label=b"classical strands", transcript=transcript, salt=b""),
        _derive(secrets.pqc, size, label=b"pqc strands", transcript=transcript, salt=b""),
    )


def _derive_of_both(
    secrets: ExchangeSecrets, size: int, *, label: bytes, transcript: Transcript, root: Secret
) -> Secret:
    """Derive from classical and post-quantum secret together, salted with the root."""
    buffer = bytearray(len(secrets.classical) + len(secrets.pqc))
    buffer[: len(secrets.classical)] = secrets.classical.view()
    buffer[len(secrets.classical) :] = secrets.pqc.view()
    joined = Secret(buffer)
    try:
        return _derive(joined, size, label=label, transcript=transcript, salt=bytes(root.view()))
    finally:
        joined.wipe()


def _derive(ikm: Secret, size: int, *, label: bytes, transcript: Transcript, salt: bytes) -> Secret:
    out = bytearray(size)  # never grown: growing leaves copies behind
    info = b"trenza " + label + b" v1" + transcript.initiator + transcript.responder
    with memoryview(out) as whole:
        for part in range(0, size, _HKDF_MAX):
            here = whole[part : part + _HKDF_MAX]
            HKDF(hashes.SHA384(), len(here), salt or None, info + part.to_bytes(4, "big")).derive_into(
                ikm.view(), here
            )
    return Secret(out)
