"""Plans: what the keys of one pair, recipe and size out of one segment have in common, computed once.

A plan gives exactly the keys that `core.combine` gives (a test compares them over all recipes): it only prepares what
does not change from key to key. The commonest combiner, CatKDF with HKDF-SHA384, has a short way; every other recipe
goes through `combine` itself. What `combine` checks is checked here too: origins and sizes when the plan is made,
dead strands at every key.
Source: ETSI TS 103 744 V1.2.1 clauses 7.2.3, 7.4.2 and 8.2.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from trenza.base.errors import MissingOriginError
from trenza.base.units import whole_bytes
from trenza.core.binding import KEY_ID_BYTES, BindingInfo
from trenza.core.combine import STANDARD_ORDER, combine, label_of
from trenza.core.kdf import lv
from trenza.core.recipe import Combiner
from trenza.core.segment import OpenSegment
from trenza.core.strand import NO_EXCHANGE, Origin

_SHA384 = SHA384()


class KeyPlan:
    """Makes the keys of one binding out of one open segment."""

    __slots__ = ("_context", "_extract", "_info", "_length", "_order", "_segment", "_tail", "_transcript", "slots")

    def __init__(self, segment: OpenSegment, info: BindingInfo) -> None:
        """Prepare.

        Args:
            segment: stays its owner's; once it is wiped the plan makes no key any more.
            info: what every key is bound to; its key ID is replaced for each.

        Raises:
            MissingOriginError: the segment lacks an origin of the recipe.
            InvalidRequestError: the recipe makes no key of that size.
        """
        recipe = info.recipe
        missing = recipe.origins.difference(segment.facts.record.origins)
        if missing:
            names = ", ".join(sorted(origin.value for origin in missing))
            raise MissingOriginError(f"recipe {recipe.name} needs a strand of origin {names}")
        self.slots = recipe.slots_for(info.size)
        self._segment = segment
        self._info = info
        self._length = whole_bytes(info.size)
        self._extract = HMAC(label_of(recipe), _SHA384)  # HKDF's first step is an HMAC under its salt, our label
        exchanged = not recipe.origins.isdisjoint({Origin.CLASSICAL, Origin.PQC})
        self._transcript = segment.transcript if exchanged else NO_EXCHANGE
        self._order: tuple[Origin, ...] = ()
        if recipe.combiner is Combiner.CATKDF_HKDF_SHA384:
            self._order = tuple(origin for origin in STANDARD_ORDER if origin in recipe.origins)
            before, after = info.halves()
            encoded = len(before) + KEY_ID_BYTES + len(after)
            self._context = hashlib.sha384(encoded.to_bytes(4, "big") + before)
            self._tail = after + lv(self._transcript.initiator) + lv(self._transcript.responder)

    def key(self, slot: int, key_id: bytes) -> bytearray:
        """Return the key with this ID out of the slots from `slot` on; the caller wipes it.

        Raises:
            ValueError: no such slot, or a strand was wiped, or is dead.
        """
        if not self._order:
            return self._combined(slot, key_id)
        context = self._context.copy()
        context.update(key_id + self._tail)
        extract = self._extract.copy()
        for strand in self._segment.each(slot, self._order):
            extract.update(strand)
        key = bytearray(self._length)
        HKDFExpand(_SHA384, self._length, context.digest()).derive_into(extract.finalize(), key)
        return key

    def _combined(self, slot: int, key_id: bytes) -> bytearray:
        info = replace(self._info, key_id=key_id)
        bundles = [self._segment.bundle(one, info.recipe.origins) for one in range(slot, slot + self.slots)]
        try:
            key = combine(bundles, recipe=info.recipe, transcript=self._transcript, info=info, size=info.size)
            return key.release()
        finally:
            for bundle in bundles:
                bundle.wipe()
