"""The constructions of ETSI TS 103 744: contexts, PRFs, KDFs, and the two combiners CatKDF and CasKDF.

Generic: knows hashes and byte strings, not origins, recipes or keys' owners. Every secret it returns is a bytearray
that the caller wipes; the PRF's intermediate outputs are immutable inside the libraries and cannot be wiped.
Source: ETSI TS 103 744 V1.2.1 clauses 7.2 to 8.3, as its reference implementation and test vectors have them.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from Crypto.Hash.KMAC128 import KMAC_Hash

Octets: TypeAlias = bytes | bytearray | memoryview

_KMAC_COUNTER = (1).to_bytes(4, "big")


class Hash(Enum):
    """The hashes V1.2.1 allows."""

    SHA256 = "sha256"
    SHA384 = "sha384"


_ALGORITHM = {Hash.SHA256: SHA256(), Hash.SHA384: SHA384()}
_DIGEST = {Hash.SHA256: hashlib.sha256, Hash.SHA384: hashlib.sha384}


class Kmac(Enum):
    """The KMACs V1.2.1 allows; the value is the length of PRF outputs and chain secrets, in bytes."""

    KMAC128 = 32
    KMAC256 = 48


def lv(value: Octets) -> bytes:
    """Return length-then-value: 4 bytes big-endian, then the bytes."""
    return len(value).to_bytes(4, "big") + value


def cb_f(first: Octets, second: Octets, third: Octets) -> bytes:
    """Concatenate three values unambiguously (clause 7.2.2)."""
    return b"".join((lv(first), lv(second), lv(third)))


def cahb_f(hash_: Hash, first: Octets, second: Octets, third: Octets) -> bytes:
    """Concatenate three values unambiguously and hash them (clause 7.2.3)."""
    return _DIGEST[hash_](cb_f(first, second, third)).digest()


def prf_hmac(hash_: Hash, secret: Octets, key: Octets, ma: Octets, mb: Octets) -> bytes:
    """Mix `key` and both messages under `secret` (clause 7.3.2)."""
    return hmac.digest(secret, cahb_f(hash_, key, ma, mb), hash_.value)


def prf_kmac(kmac: Kmac, secret: Octets, key: Octets, ma: Octets, mb: Octets) -> bytes:
    """Mix `key` and both messages under `secret`, which is as long as the KMAC's strength asks (clause 7.3.3)."""
    mac = _new_kmac(kmac, bytes(secret), kmac.value)
    mac.update(cb_f(key, ma, mb))
    return bytes(mac.digest())


def kdf_hkdf(hash_: Hash, secret: Octets, label: bytes, context: bytes, length: int) -> bytearray:
    """Derive `length` bytes with HKDF; the label is the salt (clause 7.4.2)."""
    output = bytearray(length)
    HKDF(_ALGORITHM[hash_], length, label, context).derive_into(secret, output)
    return output


def kdf_hmac(hash_: Hash, secret: Octets, label: bytes, context: bytes, length: int) -> bytearray:
    """Derive `length` bytes with the one-step KDF of SP 800-56C, HMAC under the label (clause 7.4.3)."""
    output = bytearray(length)
    ConcatKDFHMAC(_ALGORITHM[hash_], length, label, context).derive_into(secret, output)
    return output


def kdf_kmac(kmac: Kmac, secret: Octets, label: bytes, context: bytes, length: int) -> bytearray:
    """Derive `length` bytes (at least 8) with one call of KMAC under the label (clause 7.4.4)."""
    mac = _new_kmac(kmac, label, length, custom=b"KDF")
    for part in (_KMAC_COUNTER, secret, context):
        mac.update(part)
    return bytearray(mac.digest())


def _new_kmac(kmac: Kmac, key: bytes, length: int, custom: bytes = b"") -> KMAC_Hash:
    from Crypto.Hash import KMAC128, KMAC256  # a tenth of a node's start, and few nodes have a recipe that needs it

    made = KMAC128 if kmac is Kmac.KMAC128 else KMAC256
    mac: KMAC_Hash = made.new(key=key, mac_len=length, custom=custom)
    return mac


@dataclass(frozen=True, slots=True)
class Construction:
    """One KDF of the standard with the context function, the PRF and the chain length that go with it."""

    context: Callable[[Octets, Octets, Octets], bytes]
    prf: Callable[[Octets, Octets, Octets, Octets], bytes]
    kdf: Callable[[Octets, bytes, bytes, int], bytearray]
    chain_bytes: int


def _with_hkdf(hash_: Hash) -> Construction:
    size = _ALGORITHM[hash_].digest_size
    return Construction(partial(cahb_f, hash_), partial(prf_hmac, hash_), partial(kdf_hkdf, hash_), size)


def _with_hmac(hash_: Hash) -> Construction:
    size = _ALGORITHM[hash_].digest_size
    return Construction(partial(cahb_f, hash_), partial(prf_hmac, hash_), partial(kdf_hmac, hash_), size)


def _with_kmac(kmac: Kmac) -> Construction:
    return Construction(cb_f, partial(prf_kmac, kmac), partial(kdf_kmac, kmac), kmac.value)


HKDF_SHA256 = _with_hkdf(Hash.SHA256)
HKDF_SHA384 = _with_hkdf(Hash.SHA384)
HMAC_SHA256 = _with_hmac(Hash.SHA256)
HMAC_SHA384 = _with_hmac(Hash.SHA384)
KMAC_128 = _with_kmac(Kmac.KMAC128)
KMAC_256 = _with_kmac(Kmac.KMAC256)


def cat_kdf(
    construction: Construction,
    secrets: Sequence[Octets],
    *,
    label: bytes,
    info: Octets,
    ma: Octets,
    mb: Octets,
    length: int,
) -> bytearray:
    """Derive one key from secrets laid end to end (CatKDF, clause 8.2).

    Args:
        construction: which KDF.
        secrets: psk (or nothing), k1, k2 in this order. They are joined bare, so the caller fixes their lengths.
        label: the agreed label; HKDF's salt, the MACs' key.
        info: what the key is bound to.
        ma: the initiator's message.
        mb: the responder's message.
        length: of the key, in bytes.

    Returns:
        The key; the caller wipes it.
    """
    joined = bytearray().join(secrets)
    try:
        return construction.kdf(joined, label, construction.context(info, ma, mb), length)
    finally:
        joined[:] = bytes(len(joined))


def cas_round(
    construction: Construction,
    chain: Octets,
    key: Octets,
    *,
    label: bytes,
    info: bytes,
    ma: Octets,
    mb: Octets,
    length: int,
) -> tuple[bytearray, bytearray]:
    """Take one more secret into the chain (one round of CasKDF, clause 8.3).

    Args:
        construction: which KDF and PRF.
        chain: the chain secret before this round; before the first, the psk.
        key: this round's secret.
        label: this round's label.
        info: what this round's key is bound to; enters the KDF as it is.
        ma: the initiator's message of this round.
        mb: the responder's message of this round.
        length: of this round's key, in bytes.

    Returns:
        The chain secret after this round, and this round's key; the caller wipes both.
    """
    round_secret = construction.prf(chain, key, ma, mb)
    both = construction.kdf(round_secret, label, info, construction.chain_bytes + length)
    after, key_material = both[: construction.chain_bytes], both[construction.chain_bytes :]
    both[:] = bytes(len(both))
    return after, key_material


def cas_kdf(
    construction: Construction,
    psk: Octets,
    secrets: Sequence[Octets],
    *,
    label: bytes,
    info: bytes,
    ma: Octets,
    mb: Octets,
    length: int,
) -> bytearray:
    """Derive one key from secrets taken in one after the other (CasKDF, clause 8.3).

    All rounds share label, info and messages: ours come from one joint exchange. The chain keeps them apart.

    Args:
        construction: which KDF and PRF.
        psk: where the chain starts; may be empty with HMAC.
        secrets: one per round, at least one.
        label: the agreed label.
        info: what the key is bound to.
        ma: the initiator's message.
        mb: the responder's message.
        length: of the key, in bytes.

    Returns:
        The last round's key; the caller wipes it.
    """
    chain, key_material = bytearray(psk), bytearray()
    for secret in secrets:
        before, dropped = chain, key_material
        chain, key_material = cas_round(
            construction, before, secret, label=label, info=info, ma=ma, mb=mb, length=length
        )
        before[:] = bytes(len(before))
        dropped[:] = bytes(len(dropped))
    chain[:] = bytes(len(chain))
    return key_material
