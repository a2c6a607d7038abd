"""Who may share keys with whom: pairs as the policy book places them, and as books before it did.

An unknown and a forbidden SAE get the same answer: a refusal says no more than it must.
"""

from __future__ import annotations

from typing import Final

from trenza.base.errors import UnauthorisedError
from trenza.base.names import SaeId
from trenza.base.units import Nanoseconds
from trenza.core.policy import Policy
from trenza.kms.context import Context
from trenza.kms.moves import placed_before
from trenza.kms.slots import Pair

_MOST_PAIRS: Final = 65_536  # remembered at once


class Permits:
    """What the books let the SAEs that are served here do."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._pairs: dict[tuple[int, SaeId, SaeId], Pair] = {}
        self._moved: dict[tuple[int, SaeId, SaeId], list[tuple[Pair, Nanoseconds]]] = {}

    def pair(self, caller: SaeId, initiator: SaeId, target: SaeId) -> Pair:
        """Return the pair if `caller` is served here and the book lets the two share keys."""
        book = self._ctx.book
        cached = self._pairs.get((book.version, initiator, target))
        if cached is None:
            policy = book.policy_between(initiator, target)
            first, second = book.sae_by_name.get(initiator), book.sae_by_name.get(target)
            if policy is None or first is None or second is None:
                raise UnauthorisedError("the policy book does not let this pair share keys")
            if len(self._pairs) >= _MOST_PAIRS:
                self._pairs.clear()
            cached = self._pairs[book.version, initiator, target] = Pair(first, second, policy)
        mine = cached.initiator if caller == initiator else cached.target
        if mine.node != self._ctx.name:
            raise UnauthorisedError("this SAE is served by another node")
        return cached

    def pairs_to_fetch(self, caller: SaeId, initiator: SaeId) -> list[Pair]:
        """Return the pair as the book places it, and as books before did: keys stay where they were issued to.

        Raises:
            UnauthorisedError: none of them is of an SAE that is, or was lately, served here.
        """
        book, now = self._ctx.book, self._ctx.clock.now()
        wanted = (book.version, initiator, caller)
        moved = self._moved.get(wanted)
        if moved is None:
            if len(self._moved) > _MOST_PAIRS:
                self._moved.clear()
            moved = self._moved[wanted] = placed_before(self._ctx, initiator, caller)
        former = [pair for pair, until in moved if now <= until]
        try:
            return [self.pair(caller, initiator, caller), *former]
        except UnauthorisedError:
            if not former:
                raise
            return former

    def former_policies(self, pair: Pair) -> list[Policy]:
        """Return what else the pair's keys were made under lately, newest first."""
        found: dict[bytes, Policy] = {}
        for book in self._ctx.former_books:
            policy = book.policy_between(pair.initiator.name, pair.target.name)
            if policy is not None and policy.digest != pair.policy.digest:
                found.setdefault(policy.digest, policy)
        return list(found.values())
