"""The joint exchange's key pairs: X448 and ML-KEM-1024, side by side, as `cryptography` has them.

Implements kms.ports.KeyAgreement. Combines nothing: both secrets are returned apart, and `core.exchange` binds them
to the transcript. Standards: RFC 7748 (X448), FIPS 203 (ML-KEM); parameter set 2831 of ETSI TS 103 744.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey, MLKEM1024PublicKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey, X448PublicKey

from trenza.base.errors import RemoteProtocolError
from trenza.base.secret import Secret
from trenza.kms.ports import Offer

X448_BYTES: Final = 56  # public key and secret alike
ML_KEM_BYTES: Final = 1_568  # encapsulation key and ciphertext alike, in ML-KEM-1024
SHARE_BYTES: Final = X448_BYTES + ML_KEM_BYTES


@dataclass(frozen=True, slots=True)
class _Begun:
    """The private halves of an offer; `cryptography` keeps them, and Python cannot wipe them."""

    x448: X448PrivateKey = field(repr=False)
    ml_kem: MLKEM1024PrivateKey = field(repr=False)


class X448MlKem1024:
    """Fresh key pairs for every exchange; none is ever used twice."""

    def offer(self) -> Offer:
        begun = _Begun(X448PrivateKey.generate(), MLKEM1024PrivateKey.generate())
        public = begun.x448.public_key().public_bytes_raw() + begun.ml_kem.public_key().public_bytes_raw()
        return Offer(public, begun)

    def answer(self, public: bytes) -> tuple[bytes, Secret, Secret]:
        theirs, encapsulation_key = _parts(public)
        mine = X448PrivateKey.generate()
        try:
            ml_kem = MLKEM1024PublicKey.from_public_bytes(encapsulation_key)
        except ValueError:
            raise RemoteProtocolError("the offer's ML-KEM-1024 key is none") from None
        classical = _x448(mine, theirs)
        shared, ciphertext = ml_kem.encapsulate()
        return mine.public_key().public_bytes_raw() + ciphertext, classical, Secret.of(shared)

    def finish(self, offer: Offer, answer: bytes) -> tuple[Secret, Secret]:
        begun = offer.finish
        assert isinstance(begun, _Begun), "an offer of another agreement"
        theirs, ciphertext = _parts(answer)
        classical = _x448(begun.x448, theirs)
        return classical, Secret.of(begun.ml_kem.decapsulate(ciphertext))


def _parts(share: bytes) -> tuple[bytes, bytes]:
    if len(share) != SHARE_BYTES:
        raise RemoteProtocolError(f"a share of the joint exchange has {SHARE_BYTES} bytes, this one {len(share)}")
    return share[:X448_BYTES], share[X448_BYTES:]


def _x448(mine: X448PrivateKey, theirs: bytes) -> Secret:
    """Return the X448 secret; a peer that forces it to zero (a point of small order) is refused (RFC 7748, 6.2)."""
    try:
        shared = mine.exchange(X448PublicKey.from_public_bytes(theirs))
    except ValueError:  # OpenSSL refuses the all-zero output by itself
        raise RemoteProtocolError("the peer's X448 key yields no secret") from None
    if not any(shared):
        raise RemoteProtocolError("the peer's X448 key yields no secret")
    return Secret.of(shared)
