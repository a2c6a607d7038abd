"""Plans: what the keys of one recipe, size and policy out of one segment have in common, computed once.

Whose they are is the other half, computed once for each pair (`core.binding.Parties`): many pairs that draw on one
segment in turn cost no more than one. A plan gives exactly the keys that `core.combine` gives (a test compares them
over all recipes): it only prepares what does not change from key to key. The commonest combiner, CatKDF with
HKDF-SHA384, has a short way; every other recipe goes through `combine` itself. What `combine` checks is checked here
too: origins and sizes when the plan is made, dead strands at every key.
Source: ETSI TS 103 744 V1.2.1 clauses 7.2.3, 7.4.2 and 8.2.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from trenza.base.errors import MissingOriginError
from trenza.base.names import NodeId, SaeId
from trenza.base.units import Bits, whole_bytes
from trenza.core.binding import KEY_ID_BYTES, BindingInfo, Parties, before_parties
from trenza.core.combine import STANDARD_ORDER, combine, label_of
from trenza.core.kdf import lv
from trenza.core.recipe import Combiner, Recipe
from trenza.core.segment import OpenSegment
from trenza.core.strand import NO_EXCHANGE, Origin

_SHA384 = SHA384()
_NOBODY = Parties(NodeId(""), NodeId(""), SaeId(""), SaeId(""))


class KeyPlan:
    """Makes the keys of one recipe, size and policy out of one open segment."""

    __slots__ = (
        "_begin",
        "_encoded",
        "_end",
        "_extract",
        "_length",
        "_order",
        "_policy",
        "_recipe",
        "_segment",
        "_size",
        "_transcript",
        "slots",
    )

    def __init__(self, segment: OpenSegment, recipe: Recipe, size: Bits, *, policy: bytes) -> None:
        """Prepare.

        Args:
            segment: stays its owner's; once it is wiped the plan makes no key any more.
            recipe: of every key.
            size: of every key.
            policy: the digest of the policy to which every key is bound.

        Raises:
            MissingOriginError: the segment lacks an origin of the recipe.
            InvalidRequestError: the recipe makes no key of that size.
        """
        missing = recipe.origins.difference(segment.facts.record.origins)
        if missing:
            names = ", ".join(sorted(origin.value for origin in missing))
            raise MissingOriginError(f"recipe {recipe.name} needs a strand of origin {names}")
        self.slots = recipe.slots_for(size)
        self._segment = segment
        self._recipe = recipe
        self._size = size
        self._policy = policy
        self._length = whole_bytes(size)
        self._extract = HMAC(label_of(recipe), _SHA384)  # HKDF's first step is an HMAC under its salt, our label
        exchanged = not recipe.origins.isdisjoint({Origin.CLASSICAL, Origin.PQC})
        self._transcript = segment.transcript if exchanged else NO_EXCHANGE
        self._order: tuple[Origin, ...] = ()
        if recipe.combiner is Combiner.CATKDF_HKDF_SHA384:
            self._order = tuple(origin for origin in STANDARD_ORDER if origin in recipe.origins)
            after = self._info(_NOBODY, bytes(KEY_ID_BYTES)).after_key_id()
            self._begin = before_parties(recipe)
            self._end = after + lv(self._transcript.initiator) + lv(self._transcript.responder)
            self._encoded = len(self._begin) + KEY_ID_BYTES + len(after)  # what is bound, but for the parties

    def key(self, slot: int, key_id: bytes, parties: Parties) -> bytearray:
        """Return the pair's key with this ID out of the slots from `slot` on; the caller wipes it.

        Raises:
            ValueError: no such slot, or a strand was wiped, or is dead.
        """
        if not self._order:
            return self._combined(slot, key_id, parties)
        whose = parties.encoded
        encoded = (self._encoded + len(whose)).to_bytes(4, "big")
        context = hashlib.sha384(b"".join((encoded, self._begin, whose, key_id, self._end)))
        extract = self._extract.copy()
        for strand in self._segment.each(slot, self._order):
            extract.update(strand)
        key = bytearray(self._length)
        HKDFExpand(_SHA384, self._length, context.digest()).derive_into(extract.finalize(), key)
        return key

    def _combined(self, slot: int, key_id: bytes, parties: Parties) -> bytearray:
        info, recipe = self._info(parties, key_id), self._recipe
        bundles = [self._segment.bundle(one, recipe.origins) for one in range(slot, slot + self.slots)]
        try:
            key = combine(bundles, recipe=recipe, transcript=self._transcript, info=info, size=self._size)
            return key.release()
        finally:
            for bundle in bundles:
                bundle.wipe()

    def _info(self, parties: Parties, key_id: bytes) -> BindingInfo:
        return BindingInfo(
            recipe=self._recipe,
            initiator_node=parties.initiator_node,
            target_node=parties.target_node,
            initiator_sae=parties.initiator_sae,
            target_sae=parties.target_sae,
            key_id=key_id,
            policy_digest=self._policy,
            provenance_digest=self._segment.facts.digest,
            size=self._size,
        )
