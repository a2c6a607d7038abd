"""Delivering keys to applications: what may be expected, and under which recipe keys are issued (design decision 3).

The three stories of a key door: what may be expected (`status`), fresh keys for the initiator (`issue`), and the same
keys for the target (`fetch`; kms.fetching). The caller is the SAE of the verified certificate; who may ask is
kms.permits. Refusals come in the standard's order: 401 goes before 400 before 503.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from trenza.base.errors import (
    InvalidRequestError,
    NotEnoughKeyError,
    TrenzaError,
    UnavailableError,
)
from trenza.base.names import SaeId
from trenza.base.units import Bits
from trenza.core.choice import UNMET, acceptance, recipes_for
from trenza.core.delivery import DeliveredKey, IssueRequest, PairStatus, Wishes
from trenza.core.keyid import SIZE_MAX
from trenza.core.policy import SaeEntry
from trenza.core.recipe import LOCAL, Recipe
from trenza.kms.context import Context
from trenza.kms.fetching import Fetching
from trenza.kms.issuing import Issuing
from trenza.kms.orders import Lanes, Order
from trenza.kms.permits import Permits
from trenza.kms.shares import Asked, Shares
from trenza.kms.slots import Pair
from trenza.kms.waiting import WaitingKeys
from trenza.kms.wrap import MAC_BITS, Leg, Wrapped


class Delivery:
    """The key stories of one node."""

    def __init__(
        self,
        ctx: Context,
        *,
        permits: Permits,
        issuing: Issuing,
        fetching: Fetching,
        wrapped: Wrapped,
        waiting: WaitingKeys,
        shares: Shares,
    ) -> None:
        self._ctx = ctx
        self._permits = permits
        self._issuing = issuing
        self._fetching = fetching
        self._wrapped = wrapped
        self._waiting = waiting
        self._shares = shares
        self._lanes = Lanes(ctx, issuing)
        self.speaks_to_peers = True
        """False: beside the instance that leads, which alone can place a key at another node."""

    # --- status

    async def status(self, caller: SaeId, target: SaeId) -> PairStatus:
        """Say what `caller` may expect of keys shared with `target` now.

        Raises:
            UnauthorisedError: the book does not let them share keys.
        """
        pair = self._permits.pair(caller, caller, target)
        policy, settings = pair.policy, self._ctx.settings
        size = Bits(policy.default_key_size)
        most = self._waiting.most
        return PairStatus(
            source_node=self._ctx.name,
            target_node=pair.target.node,
            initiator=caller,
            target=target,
            default_size=size,
            stored_key_count=min(most, self._stored(pair, size)),
            max_key_count=most,
            max_keys_per_request=settings.max_keys_per_request,
            max_key_size=Bits(policy.max_key_size),
            min_key_size=Bits(policy.min_key_size),
            max_additional_targets=settings.max_additional_targets,
        )

    def _stored(self, pair: Pair, size: Bits) -> int:
        """Count what the ladder's recipes could issue; recipes that draw on the same strands are counted once."""
        if pair.initiator.node == pair.target.node:
            if LOCAL not in pair.policy.recipes:
                return 0
            return self._waiting.room(pair.initiator.name, pair.target.name)
        accept = acceptance(pair.policy, Wishes(), now=self._ctx.clock.now())
        by_kind: dict[bool, int] = {}
        for recipe in pair.policy.recipes:
            if recipe is not LOCAL:
                full = recipe.needs_qkd
                count = self._issuing.available(pair, recipe, size, accept)
                by_kind[full] = max(by_kind.get(full, 0), count)
        return sum(by_kind.values())

    # --- issue

    async def issue(self, caller: SaeId, request: IssueRequest) -> Sequence[DeliveredKey]:
        """Issue fresh keys to the initiator; each target can fetch them from then on.

        Raises:
            UnauthorisedError: a pair the book does not allow.
            InvalidRequestError: sizes, numbers or wishes that can never be served.
            NotEnoughKeyError: no recipe of the ladder can serve now.
        """
        pair = self._permits.pair(caller, caller, request.target)
        others = [self._permits.pair(caller, caller, target) for target in request.additional_targets]
        size = self._checked_size(request, [pair, *others])
        self._check_number(request, caller)
        if others or pair.initiator.node == pair.target.node:
            return await self._issue_drawn(pair.initiator, [pair, *others], request, size)
        return await self._issue_from_slots(pair, request, size)

    def order(self, caller: SaeId, request: IssueRequest) -> Order | None:
        """Return what answers the same request again and again without waiting; None where there is no such way.

        Raises:
            UnauthorisedError, InvalidRequestError: as `issue`.
        """
        pair = self._permits.pair(caller, caller, request.target)
        if request.additional_targets or request.number != 1 or pair.initiator.node == pair.target.node:
            return None
        size = self._checked_size(request, [pair])
        if size > SIZE_MAX:
            return None
        recipe = recipes_for(pair.policy, request.wishes, same_node=False)[0]
        lane = self._lanes.lane(pair.target.node, pair.policy, recipe, size, request.wishes)
        desk = self._issuing.desk(pair, recipe, size, request.tls_group)
        asked = Asked.of(1, size, full=recipe.needs_qkd, slots_per_key=lane.slots)
        return Order(self._ctx.clock, lane, desk, self._shares, pair, asked)

    def _checked_size(self, request: IssueRequest, pairs: Sequence[Pair]) -> Bits:
        size = Bits(pairs[0].policy.default_key_size) if request.size is None else request.size
        if size <= 0:
            raise InvalidRequestError("size shall be a positive number of bits")
        if size % 8:
            raise InvalidRequestError("size shall be a multiple of 8")
        smallest = max(pair.policy.min_key_size for pair in pairs)
        largest = min(pair.policy.max_key_size for pair in pairs)
        if len(pairs) > 1:  # the braid that carries it holds a MAC key as well
            largest = min(largest, SIZE_MAX - MAC_BITS)
        if not smallest <= size <= largest:
            raise InvalidRequestError(
                f"size is outside the limits of this SAE pair: min_key_size {smallest}, max_key_size {largest}",
                details=({"min_key_size": smallest, "max_key_size": largest},),
            )
        return size

    def _check_number(self, request: IssueRequest, caller: SaeId) -> None:
        most = self._ctx.settings.max_keys_per_request
        if not 1 <= request.number <= most:
            raise InvalidRequestError(
                f"number is outside the limits: 1 to max_key_per_request {most}",
                details=({"max_key_per_request": most},),
            )
        if len(request.additional_targets) > self._ctx.settings.max_additional_targets:
            most = self._ctx.settings.max_additional_targets
            raise InvalidRequestError(f"more additional_slave_SAE_IDs than max_SAE_ID_count {most}")
        everyone = [caller, request.target, *request.additional_targets]
        if len(set(everyone)) != len(everyone):
            raise InvalidRequestError("additional_slave_SAE_IDs name an SAE twice, or the master itself")

    async def _issue_from_slots(self, pair: Pair, request: IssueRequest, size: Bits) -> list[DeliveredKey]:
        recipes = recipes_for(pair.policy, request.wishes, same_node=False)
        accept = acceptance(pair.policy, request.wishes, now=self._ctx.clock.now())
        now = self._ctx.clock.elapsed()
        kept: NotEnoughKeyError | None = None
        for rung, recipe in enumerate(recipes):
            asked = Asked.of(request.number, size, full=recipe.needs_qkd, slots_per_key=recipe.slots_for(size))
            try:
                self._shares.admit(pair, asked, now)
            except NotEnoughKeyError as error:  # of these strands; others may do
                kept = error
                continue
            try:
                keys = await self._issuing.issue(
                    pair, recipe, number=request.number, size=size, accept=accept, tls_group=request.tls_group
                )
            except NotEnoughKeyError:
                self._shares.give_back(pair, asked, now)
                continue
            self._ctx.counters["keys_issued"] += len(keys)
            if rung:
                self._ctx.counters["keys_issued_below_first_rung"] += len(keys)
            return [key.delivered() for key in keys]
        if kept is not None:
            self._ctx.counters["requests_without_key"] += 1
            raise kept
        raise self._nothing(pair, recipes, request, size)

    def _nothing(self, pair: Pair, recipes: Sequence[Recipe], request: IssueRequest, size: Bits) -> TrenzaError:
        """Explain why no recipe could serve: a wish that no stock meets, or too little stock."""
        now = self._ctx.clock.now()
        wished = acceptance(pair.policy, request.wishes, now=now)
        anyhow = acceptance(pair.policy, Wishes(), now=now)
        available = max(self._issuing.available(pair, recipe, size, wished) for recipe in recipes)
        otherwise = max(self._issuing.available(pair, recipe, size, anyhow) for recipe in recipes)
        self._ctx.counters["requests_without_key"] += 1
        if not available and otherwise >= request.number:
            return InvalidRequestError(UNMET)
        return NotEnoughKeyError(
            "not enough keys are available now; try again later",
            details=({"available": available}, {"requested": request.number}),
        )

    async def _issue_drawn(
        self, initiator: SaeEntry, pairs: Sequence[Pair], request: IssueRequest, size: Bits
    ) -> list[DeliveredKey]:
        """Issue keys that are drawn here: LOCAL, or for several targets."""
        if not self.speaks_to_peers and any(pair.target.node != self._ctx.name for pair in pairs):
            raise UnavailableError(
                "this instance of the node does not lead, and cannot place a key at another node: "
                "ask again over a new connection"
            )
        legs = [self._leg(pair, request.wishes, size) for pair in pairs]
        asked = [(leg.pair, self._asked_of(leg, request.number, size)) for leg in legs]
        now = self._ctx.clock.elapsed()
        self._shares.admit_all(asked, now)
        try:
            keys = await self._wrapped.issue(
                initiator,
                legs,
                number=request.number,
                size=size,
                wishes=request.wishes,
                tls_group=request.tls_group,
            )
        except NotEnoughKeyError:
            for pair, given in asked:
                self._shares.give_back(pair, given, now)
            self._ctx.counters["requests_without_key"] += 1
            raise
        self._ctx.counters["keys_issued"] += len(keys)
        return keys

    def _leg(self, pair: Pair, wishes: Wishes, size: Bits) -> Leg:
        same_node = pair.initiator.node == pair.target.node
        recipes = recipes_for(pair.policy, wishes, same_node=same_node)
        if same_node:
            return Leg(pair, None)
        accept = acceptance(pair.policy, wishes, now=self._ctx.clock.now())
        for recipe in recipes:
            if self._issuing.available(pair, recipe, Bits(size + MAC_BITS), accept):
                return Leg(pair, recipe)
        raise self._nothing(pair, recipes, IssueRequest(pair.target.name, wishes=wishes), size)

    @staticmethod
    def _asked_of(leg: Leg, number: int, size: Bits) -> Asked:
        """Return what a leg uses: the slots of the braids that carry the keys, or none where they never travel."""
        if leg.recipe is None:
            return Asked.of(number, size)
        per_key = leg.recipe.slots_for(Bits(size + MAC_BITS))
        return Asked.of(number, size, full=leg.recipe.needs_qkd, slots_per_key=per_key)

    # --- fetch

    async def fetch(
        self, caller: SaeId, initiator: SaeId, key_ids: Sequence[UUID], *, tls_group: str
    ) -> Sequence[DeliveredKey]:
        """Hand the target the keys with these IDs, once (kms.fetching).

        Raises:
            UnauthorisedError, UnknownKeyError, UnavailableError: as there.
        """
        return await self._fetching.fetch(caller, initiator, key_ids, tls_group=tls_group)
