"""Fetching: the target's keys, each handed out once, all of a request or none.

Keys lie in slots of windows that this node granted (kms.slots), or wait here (kms.waiting). What is not known here
may be known to another instance of the node, and what a node has forgotten, to its peers: until these are asked, no
key is called unknown (docs/adr/0022-instances.md, docs/adr/0023-counters-among-peers.md).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from trenza.base.errors import (
    InvalidRequestError,
    TrenzaError,
    UnauthorisedError,
    UnavailableError,
    UnknownKeyError,
)
from trenza.base.names import NodeId, SaeId
from trenza.base.rate import TokenBucket
from trenza.base.units import Seconds
from trenza.core.delivery import DeliveredKey
from trenza.kms.context import Context
from trenza.kms.moves import served_before
from trenza.kms.permits import Permits
from trenza.kms.slots import Found, Pair, Slots
from trenza.kms.waiting import WaitingKeys


class Fetching:
    """The target's side of delivery."""

    def __init__(self, ctx: Context, *, permits: Permits, slots: Slots, waiting: WaitingKeys) -> None:
        self._ctx = ctx
        self._permits = permits
        self._slots = slots
        self._waiting = waiting
        self._bad_ids: dict[SaeId, TokenBucket] = {}
        self._fetches = 0  # under way
        self._no_fetches = asyncio.Event()
        self.look_again: Callable[[SaeId, Sequence[UUID]], Awaitable[None]] | None = None
        """Reads what other instances of this node have written, when a key was not found; None: there are none."""
        self.is_current: Callable[[], bool] = lambda: self._ctx.clock.elapsed() < self._ctx.until
        """Tells whether this instance surely knows all that the node holds; else a key may only be unknown here."""
        self.vouches: Callable[[NodeId], bool] = lambda _: True
        """Tells whether a peer knows of nothing that this node has forgotten, or nothing can be forgotten."""
        self.on_delivered: Callable[[NodeId], None] = lambda _: None
        """Hears that keys of a peer were delivered, durably: a copy from before must not do it again."""

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
        pairs = self._permits.pairs_to_fetch(caller, initiator)
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
            found = self._slots.find(pair, self._permits.former_policies(pair), addressed) if addressed else []
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
