"""The braid: several strands become one key.

Pure: no clock, no I/O, no randomness, and no choice: the recipe says what must be there, and a bundle that holds
anything else is refused. That no slot is braided twice is the pool's promise, not checked here.
Sources: ETSI TS 103 744 V1.2.1 clauses 8.2 and 8.3; NIST SP 800-56C r2 clause 5 (two-step).
"""

from __future__ import annotations

from collections.abc import Sequence

from trenza.base.errors import MissingOriginError
from trenza.base.secret import Secret
from trenza.base.units import Bits, whole_bytes
from trenza.core.binding import BindingInfo
from trenza.core.kdf import HKDF_SHA384, KMAC_256, Hash, cas_kdf, cat_kdf, cb_f, kdf_hkdf
from trenza.core.recipe import Combiner, Recipe
from trenza.core.strand import STRAND_BYTES, Bundle, Origin, Transcript

LABEL_BYTES = 48
"""The label is HKDF's salt and KMAC's key: one SHA-384 digest long, the suite ID and then zeros."""

STANDARD_ORDER = (Origin.QKD, Origin.CLASSICAL, Origin.PQC)
"""TS 103 744: psk, then k1 (classical), then k2 (post-quantum). The QKD strand takes the psk's place."""

_APPROVED_FIRST = (Origin.PQC, Origin.CLASSICAL, Origin.QKD)
"""SP 800-56C: Z' = Z || T, where Z comes from an approved scheme (ML-KEM) and T is any other secret."""

_DEAD_STRAND = bytes(STRAND_BYTES)


def combine(
    strands: Sequence[Bundle], *, recipe: Recipe, transcript: Transcript, info: BindingInfo, size: Bits
) -> Secret:
    """Braid the strands of the slots a key consumes into that key.

    Args:
        strands: as many bundles as `recipe.slots_for(size)`, each of exactly the recipe's origins.
        recipe: which origins, which combiner; from the policy and the key ID, never from the bundle.
        transcript: digests of the joint exchange's messages; `NO_EXCHANGE` where there was none.
        info: what the key is bound to; `qkd-only`, `local` and `wrapped` keys are the bare bits, bound to nothing.
        size: of the key, in bits.

    Returns:
        The key; the caller wipes it. The strands are left to their owner.

    Raises:
        MissingOriginError: a bundle lacks an origin of the recipe. What is there is never braided alone.
        InvalidRequestError: the recipe makes no key of that size.
        ValueError: the caller's bug: wrong number of bundles, an origin too many, a strand of wrong length or one
            that was wiped, or `info` speaking of another recipe or size.
    """
    if len(strands) != recipe.slots_for(size):
        raise ValueError(f"{size} bits with recipe {recipe.name} take {recipe.slots_for(size)} slots")
    if info.recipe != recipe or info.size != size:
        raise ValueError("the binding speaks of another recipe or size")
    for bundle in strands:
        _refuse_unless_exact(bundle, recipe)
    return Secret(_braid(strands, recipe, transcript, info.encode(), whole_bytes(size)))


def label_of(recipe: Recipe) -> bytes:
    """Return the label of a recipe's KDF."""
    return recipe.suite_id.ljust(LABEL_BYTES, b"\0")


def _refuse_unless_exact(bundle: Bundle, recipe: Recipe) -> None:
    if bundle.origins != recipe.origins:
        missing = recipe.origins - bundle.origins
        if missing:
            names = ", ".join(sorted(origin.value for origin in missing))
            raise MissingOriginError(f"recipe {recipe.name} needs a strand of origin {names}")
        raise ValueError(f"a bundle holds origins that recipe {recipe.name} does not name")
    for origin in recipe.origins:
        strand = bundle.strand(origin).view()
        if len(strand) != STRAND_BYTES:
            raise ValueError(f"a {origin.value} strand has {len(strand)} bytes, not {STRAND_BYTES}")
        if strand == _DEAD_STRAND:  # wiped by its owner, or a dead source: either would be a known secret
            raise ValueError(f"a {origin.value} strand is all zeros")


def _braid(strands: Sequence[Bundle], recipe: Recipe, transcript: Transcript, info: bytes, length: int) -> bytearray:
    label = label_of(recipe)
    ma, mb = transcript.initiator, transcript.responder
    first = strands[0]
    match recipe.combiner:
        case Combiner.CATKDF_HKDF_SHA384:
            secrets = _views(first, STANDARD_ORDER)
            return cat_kdf(HKDF_SHA384, secrets, label=label, info=info, ma=ma, mb=mb, length=length)
        case Combiner.CATKDF_KMAC256:
            secrets = _views(first, STANDARD_ORDER)
            return cat_kdf(KMAC_256, secrets, label=label, info=info, ma=ma, mb=mb, length=length)
        case Combiner.CASKDF_HKDF_SHA384:
            psk = first.strand(Origin.QKD).view() if Origin.QKD in recipe.origins else b""
            secrets = _views(first, (Origin.CLASSICAL, Origin.PQC))
            return cas_kdf(HKDF_SHA384, psk, secrets, label=label, info=info, ma=ma, mb=mb, length=length)
        case Combiner.SP800_56C_TWO_STEP:
            return _two_step(_views(first, _APPROVED_FIRST), label, cb_f(info, ma, mb), length)
        case Combiner.ITS_XOR:
            return _masked_pad(strands, label, transcript, info, length)
        case Combiner.QKD_BITS:
            return _bits(strands, Origin.QKD, length)
        case Combiner.RANDOM:
            return _bits(strands, Origin.LOCAL, length)


def _views(bundle: Bundle, order: Sequence[Origin]) -> list[memoryview]:
    return [bundle.strand(origin).view() for origin in order if origin in bundle.origins]


def _bits(strands: Sequence[Bundle], origin: Origin, length: int) -> bytearray:
    """Lay the strands of one origin end to end and cut what is over."""
    bits = bytearray().join([bundle.strand(origin).view() for bundle in strands])
    bits[length:] = bytes(len(bits) - length)  # overwritten first: `del` alone would leave them in memory
    del bits[length:]
    return bits


def _two_step(secrets: Sequence[memoryview], label: bytes, fixed_info: bytes, length: int) -> bytearray:
    """Extract with HMAC under the salt, expand with FixedInfo (HKDF is a profile of SP 800-56C's two-step)."""
    joined = bytearray().join(secrets)
    try:
        return kdf_hkdf(Hash.SHA384, joined, label, fixed_info, length)
    finally:
        joined[:] = bytes(len(joined))


def _masked_pad(
    strands: Sequence[Bundle], label: bytes, transcript: Transcript, info: bytes, length: int
) -> bytearray:
    """XOR each slot's QKD bits with a CatKDF of its classical and post-quantum strands.

    The mask cannot weaken uniform QKD bits, so secrecy is information-theoretic while the QKD strand is unknown;
    who saw that strand still has to break both others. XOR lets whoever altered a QKD strand at one end shift the
    key by a difference they know: that is why strands are compared end to end before they can be issued.
    """
    key = _bits(strands, Origin.QKD, length)
    for index, bundle in enumerate(strands):
        start = index * STRAND_BYTES
        stop = min(start + STRAND_BYTES, length)
        mask = cat_kdf(
            HKDF_SHA384,
            _views(bundle, (Origin.CLASSICAL, Origin.PQC)),
            label=label,
            info=info + index.to_bytes(4, "big"),
            ma=transcript.initiator,
            mb=transcript.responder,
            length=stop - start,
        )
        for position, octet in enumerate(mask, start):
            key[position] ^= octet
        mask[:] = bytes(len(mask))
    return key
