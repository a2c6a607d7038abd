"""Delivering keys to applications: who may ask, under which policy, and which recipe can serve (design decision 3).

The three stories of a key door: what may be expected (`status`), fresh keys for the initiator (`issue`), and the same
keys for the target (`fetch`). The caller is the SAE of the verified certificate. Refusals say no more than they must:
an unknown and a forbidden SAE get the same answer, and 401 goes before 400 before 503.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from uuid import UUID

from trenza.base.errors import (
    InvalidRequestError,
    NotEnoughKeyError,
    TrenzaError,
    UnauthorisedError,
    UnavailableError,
    UnknownKeyError,
)
from trenza.base.names import NodeId, SaeId
from trenza.base.rate import TokenBucket
from trenza.base.units import Bits, Nanoseconds, Seconds
from trenza.core.choice import UNMET, acceptance, recipes_for
from trenza.core.delivery import DeliveredKey, IssueRequest, PairStatus, Wishes
from trenza.core.keyid import SIZE_MAX
from trenza.core.policy import Policy, SaeEntry
from trenza.core.recipe import LOCAL, Recipe
from trenza.kms.context import Context
from trenza.kms.issuing import Issuing
from trenza.kms.moves import placed_before, served_before
from trenza.kms.orders import Lanes, Order
from trenza.kms.shares import Asked, Shares
from trenza.kms.slots import Found, Pair, Slots
from trenza.kms.waiting import WaitingKeys
from trenza.kms.wrap import MAC_BITS, Leg, Wrapped

_MOST_PAIRS: Final = 65_536  # remembered at once


class Delivery:
    """The key stories of one node."""

    def __init__(
        self,
        ctx: Context,
        *,
        issuing: Issuing,
        slots: Slots,
        wrapped: Wrapped,
        waiting: WaitingKeys,
        shares: Shares,
    ) -> None:
        self._ctx = ctx
        self._issuing = issuing
        self._slots = slots
        self._wrapped = wrapped
        self._waiting = waiting
        self._shares = shares
        self._lanes = Lanes(ctx, issuing)
        self._pairs: dict[tuple[int, SaeId, SaeId], Pair] = {}
        self._moved: dict[tuple[int, SaeId, SaeId], list[tuple[Pair, Nanoseconds]]] = {}
        self._bad_ids: dict[SaeId, TokenBucket] = {}
        self._fetches = 0  # under way
        self._no_fetches = asyncio.Event()
        self.look_again: Callable[[SaeId, Sequence[UUID]], Awaitable[None]] | None = None
        """Reads what other instances of this node have written, when a key was not found; None: there are none."""
        self.is_current: Callable[[], bool] = lambda: self._ctx.clock.elapsed() < self._ctx.until
        """Tells whether this instance surely knows all that the node holds; else a key may only be unknown here."""
        self.speaks_to_peers = True
        """False: beside the instance that leads, which alone can place a key at another node."""
        self.vouches: Callable[[NodeId], bool] = lambda _: True
        """Tells whether a peer knows of nothing that this node has forgotten, or nothing can be forgotten."""
        self.on_delivered: Callable[[NodeId], None] = lambda _: None
        """Hears that keys of a peer were delivered, durably: a copy from before must not do it again."""

    # --- who may ask

    def _pair(self, caller: SaeId, initiator: SaeId, target: SaeId) -> Pair:
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

    def _fetch_pairs(self, caller: SaeId, initiator: SaeId) -> list[Pair]:
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
            return [self._pair(caller, initiator, caller), *former]
        except UnauthorisedError:
            if not former:
                raise
            return former

    def _former_policies(self, pair: Pair) -> list[Policy]:
        """Return what else the pair's keys were made under lately, newest first."""
        found: dict[bytes, Policy] = {}
        for book in self._ctx.former_books:
            policy = book.policy_between(pair.initiator.name, pair.target.name)
            if policy is not None and policy.digest != pair.policy.digest:
                found.setdefault(policy.digest, policy)
        return list(found.values())

    # --- status

    async def status(self, caller: SaeId, target: SaeId) -> PairStatus:
        """Say what `caller` may expect of keys shared with `target` now.

        Raises:
            UnauthorisedError: the book does not let them share keys.
        """
        pair = self._pair(caller, caller, target)
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
        pair = self._pair(caller, caller, request.target)
        others = [self._pair(caller, caller, target) for target in request.additional_targets]
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
        pair = self._pair(caller, caller, request.target)
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
        """Hand the target the keys with these IDs, once: all of them, or none and nothing is consumed.

        Raises:
            UnauthorisedError: the caller is not a target of each of them.
            UnknownKeyError: one of them cannot be returned.
            UnavailableError: the node that issued them must be heard first, or too many IDs were unknown.
        """
        self._fetches += 1
        self._no_fetches.clear()
        try:
            return await self._fetched(caller, initiator, key_ids, tls_group)
        finally:
            self._fetches -= 1
            if not self._fetches:
                self._no_fetches.set()

    async def finished(self, *, within: Seconds) -> None:
        """Return when no fetch is under way any more, or after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self._fetches:
                    await self._no_fetches.wait()

    async def _fetched(
        self, caller: SaeId, initiator: SaeId, key_ids: Sequence[UUID], tls_group: str
    ) -> Sequence[DeliveredKey]:
        pairs = self._fetch_pairs(caller, initiator)
        most = self._ctx.settings.max_keys_per_request
        if len(key_ids) > most:
            raise InvalidRequestError(f"more key_IDs than max_key_per_request {most}")
        bucket = self._bad_ids.setdefault(caller, TokenBucket(per_second=10.0, burst=200.0))
        now = self._ctx.clock.elapsed()
        if not bucket.allows(now):
            raise UnavailableError("too many unknown key IDs were asked for; try again later")
        try:
            pair, found, waiting = await self._found(pairs, caller, key_ids)
        except (UnauthorisedError, UnknownKeyError) as error:
            bucket.spend(len(key_ids), now)
            self._ctx.counters["fetches_refused"] += 1
            former = served_before(self._ctx, caller)
            if isinstance(error, UnauthorisedError) or former is None:
                raise
            raise UnknownKeyError(error.message, details=({"former_KME_ID": former},)) from None
        keys = await self._deliver_all(pair, found, waiting, tls_group)
        self.on_delivered(pair.initiator.node)
        self._ctx.counters["keys_delivered"] += len(keys)
        if pair is not pairs[0] or pair.target.node != self._ctx.book.sae_by_name[caller].node:
            self._ctx.counters["keys_delivered_after_a_move"] += len(keys)
        return [keys[key_id] for key_id in key_ids]

    async def _found(
        self, pairs: Sequence[Pair], caller: SaeId, key_ids: Sequence[UUID]
    ) -> tuple[Pair, list[Found], list[UUID]]:
        """Reserve every key, or none; what is not known here may be known to another instance."""
        try:
            return self._find_in(pairs, caller, key_ids)
        except (UnauthorisedError, UnknownKeyError):
            if self.look_again is None:
                raise
        await self.look_again(caller, key_ids)
        try:
            return self._find_in(pairs, caller, key_ids)
        except (UnauthorisedError, UnknownKeyError):
            if self.is_current():
                raise
        raise UnavailableError("it is not known now which instance leads this node; try again later")

    def _find_in(
        self, pairs: Sequence[Pair], caller: SaeId, key_ids: Sequence[UUID]
    ) -> tuple[Pair, list[Found], list[UUID]]:
        """Reserve every key as of one and the same of these pairs.

        What the first says is the refusal, unless the keys may be of a node that must be met before.
        """
        refusal: TrenzaError | None = None
        for pair in pairs:
            try:
                self._refuse_unless_vouched(pair.initiator.node)
                found, waiting = self._find_all(pair, caller, key_ids)
            except (UnauthorisedError, UnknownKeyError, UnavailableError) as error:
                if refusal is None or (isinstance(refusal, UnknownKeyError) and isinstance(error, UnavailableError)):
                    refusal = error
            else:
                return pair, found, waiting
        assert refusal is not None
        if isinstance(refusal, UnavailableError):
            self._ctx.counters["fetches_before_meeting"] += 1
        raise refusal

    def _refuse_unless_vouched(self, peer: NodeId) -> None:
        if peer != self._ctx.name and not self.vouches(peer):
            raise UnavailableError(f"this node was started at another place and has not met node {peer} since")

    def _find_all(self, pair: Pair, caller: SaeId, key_ids: Sequence[UUID]) -> tuple[list[Found], list[UUID]]:
        """Reserve every key, or none."""
        waiting = [key_id for key_id in key_ids if self._waiting.holds(key_id, caller)]
        addressed = [key_id for key_id in key_ids if not self._waiting.holds(key_id, caller)]
        if any(self._waiting.owner_of(key_id.bytes) is not None for key_id in addressed):
            raise UnauthorisedError("a key of another pair was asked for")
        reserved: list[UUID] = []
        try:
            for key_id in waiting:
                self._waiting.reserve(key_id, pair.initiator.name, caller)
                reserved.append(key_id)
            found = self._slots.find(pair, self._former_policies(pair), addressed) if addressed else []
        except TrenzaError:
            for key_id in reserved:
                self._waiting.release(key_id, caller)
            raise
        return found, waiting

    async def _deliver_all(
        self, pair: Pair, found: Sequence[Found], waiting: Sequence[UUID], tls_group: str
    ) -> dict[UUID, DeliveredKey]:
        keys: dict[UUID, DeliveredKey] = {}
        try:
            if found:
                keys |= {key.key_id: key for key in await self._slots.deliver(found, tls_group=tls_group)}
            for key_id in waiting:
                keys[key_id] = await self._waiting.deliver(
                    key_id, pair.target.name, policy=pair.policy, tls_group=tls_group
                )
        except BaseException:
            for key in keys.values():
                key.key.wipe()
            for key_id in waiting:  # those that were committed are gone
                self._waiting.release(key_id, pair.target.name)
            raise
        return keys
