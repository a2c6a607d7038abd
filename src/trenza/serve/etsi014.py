"""The application door: ETSI GS QKD 014 in front of a node's delivery story.

Translates the standard's words (master, slave, Keys) to the house's (initiator, target) and back; decides nothing.
Who calls is known from the verified certificate alone; which pairs may share what is the story's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar
from uuid import UUID

from trenza.base.errors import InvalidRequestError, NotEnoughKeyError
from trenza.base.names import SaeId
from trenza.base.units import Bits, Seconds
from trenza.core.delivery import DeliveredKey, IssueRequest, KeyFacts, PairStatus, Wishes
from trenza.core.strand import Origin
from trenza.serve._etsi014_http import DEADLINE, KeyDoor
from trenza.serve.identity import Callers
from trenza.wire import etsi014
from trenza.wire.etsi014 import Demands, Key, KeyExtension, KeyRequest, Status

_NO_DEMANDS = Demands()
_NO_WISHES = Wishes()
_MILLISECONDS_PER_SECOND = 1_000
_MOST_TAILS = 256
_Amount = TypeVar("_Amount", int, Seconds)


class FreshKey(Protocol):
    """A key that has just been made; the door wipes it."""

    @property
    def number(self) -> int: ...

    @property
    def key(self) -> bytearray: ...

    @property
    def facts(self) -> KeyFacts: ...


class Order(Protocol):
    """A request for one key that is made again and again."""

    @property
    def is_good(self) -> bool: ...

    def serve(self, number: int) -> Sequence[FreshKey]:
        """Return `number` fresh keys; fewer, or none, where the rest must be asked again by `issue`."""
        ...


class KeyDelivery(Protocol):
    """The stories behind this door.

    Contract: raises TrenzaErrors only, UnauthorisedError before any other; delivers all keys asked for or raises and
    delivers none; a key ID is fetched once by each SAE it was issued for, and a refused fetch consumes nothing.
    The delivered keys are the door's, which wipes them.
    """

    async def status(self, caller: SaeId, target: SaeId) -> PairStatus:
        """Return what `caller` may expect as the initiator.

        Raises:
            UnauthorisedError: `caller` is not served here, or the book does not let the two share keys.
        """
        ...

    async def issue(self, caller: SaeId, request: IssueRequest) -> Sequence[DeliveredKey]:
        """Deliver fresh keys.

        Raises:
            InvalidRequestError: no recipe of the pair's policy meets the wishes, or no stock ever holds the request.
            NotEnoughKeyError: one would, and its strands do not suffice now.
        """
        ...

    def order(self, caller: SaeId, request: IssueRequest) -> Order | None:
        """Return what answers the same request again and again without waiting; None where there is no such way.

        Raises:
            UnauthorisedError, InvalidRequestError: as `issue`.
        """
        ...

    async def fetch(
        self, caller: SaeId, initiator: SaeId, key_ids: Sequence[UUID], *, tls_group: str
    ) -> Sequence[DeliveredKey]:
        """Deliver the target's copies of these keys, in this order.

        Raises:
            UnauthorisedError: `caller` is not one of those that `initiator` asked these keys for.
            UnknownKeyError: not all of them can be delivered.
        """
        ...


def application_door(delivery: KeyDelivery, callers: Callers, *, deadline: Seconds = DEADLINE) -> KeyDoor:
    """Return the handler for a node's application listener."""
    return KeyDoor(_Applications(delivery), callers, deadline=deadline)


class _Applications:
    """GS QKD 014's methods in terms of the stories."""

    def __init__(self, delivery: KeyDelivery) -> None:
        self._delivery = delivery
        self._tails = _Tails()

    async def status(self, caller: SaeId, other: SaeId) -> Status:
        return _status(await self._delivery.status(caller, other))

    async def get_key(self, caller: SaeId, other: SaeId, request: KeyRequest, *, tls_group: str) -> list[Key]:
        """Issue keys as wished if that can be, else as demanded: an optional extension never costs the key."""
        demanded = _demanded(other, request, tls_group)
        if request.optional == _NO_DEMANDS:
            return _keys(await self._delivery.issue(caller, demanded))
        wished = replace(demanded, wishes=_joined(demanded.wishes, _wishes(request.optional)))
        try:
            return _keys(await self._delivery.issue(caller, wished))
        except (InvalidRequestError, NotEnoughKeyError):  # and if the wishes were not to blame, it comes again
            return _keys(await self._delivery.issue(caller, demanded))

    def order(self, caller: SaeId, other: SaeId, request: KeyRequest, *, tls_group: str) -> _Standing | None:
        if request.optional != _NO_DEMANDS:
            return None
        order = self._delivery.order(caller, _demanded(other, request, tls_group))
        return None if order is None else _Standing(order, self._tails)

    async def get_key_with_ids(
        self, caller: SaeId, other: SaeId, key_ids: Sequence[UUID], *, tls_group: str
    ) -> list[Key]:
        return _keys(await self._delivery.fetch(caller, other, key_ids, tls_group=tls_group))


def _demanded(other: SaeId, request: KeyRequest, tls_group: str) -> IssueRequest:
    return IssueRequest(
        target=other,
        number=request.number,
        size=None if request.size is None else Bits(request.size),
        additional_targets=tuple(SaeId(sae_id) for sae_id in request.additional_slave_sae_ids),
        wishes=_wishes(request.mandatory),
        tls_group=tls_group,
    )


class _Tails:
    """What follows the keys in their answers: keys of one second share what is told of them, whatever their pair."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[KeyFacts, bytes]] = {}  # by the identity of the facts, which stay alive with it

    def of(self, facts: KeyFacts) -> bytes:
        made = self._made.get(id(facts))
        if made is not None:
            return made[1]
        if len(self._made) >= _MOST_TAILS:
            self._made.clear()
        tail = etsi014.key_tail(_told(facts))
        self._made[id(facts)] = facts, tail
        return tail


class _Standing:
    """An order whose answers are written in the standard's words."""

    __slots__ = ("_order", "_tails")

    def __init__(self, order: Order, tails: _Tails) -> None:
        self._order = order
        self._tails = tails

    @property
    def is_good(self) -> bool:
        return self._order.is_good

    def containers(self, number: int) -> list[bytes]:
        keys = self._order.serve(number)
        try:
            return [etsi014.container_of_one(one.number, one.key, self._tails.of(one.facts)) for one in keys]
        finally:
            for one in keys:
                one.key[:] = bytes(len(one.key))


def _wishes(demands: Demands) -> Wishes:
    if demands == _NO_DEMANDS:
        return _NO_WISHES
    age = demands.max_age_ms
    return Wishes(
        origins=frozenset(Origin(origin) for origin in demands.origins),
        recipe=demands.recipe,
        max_hops=demands.max_hops,
        max_age=None if age is None else Seconds(age / _MILLISECONDS_PER_SECOND),
    )


def _joined(demanded: Wishes, wished: Wishes) -> Wishes:
    """Return wishes that fulfil both; where they contradict each other, what is demanded stands."""
    return Wishes(
        origins=demanded.origins | wished.origins,
        recipe=demanded.recipe or wished.recipe,
        max_hops=_lesser(demanded.max_hops, wished.max_hops),
        max_age=_lesser(demanded.max_age, wished.max_age),
    )


def _lesser(one: _Amount | None, other: _Amount | None) -> _Amount | None:
    return min((amount for amount in (one, other) if amount is not None), default=None)


def _status(pair: PairStatus) -> Status:
    return Status(
        source_kme_id=pair.source_node,
        target_kme_id=pair.target_node,
        master_sae_id=pair.initiator,
        slave_sae_id=pair.target,
        key_size=pair.default_size,
        stored_key_count=pair.stored_key_count,
        max_key_count=pair.max_key_count,
        max_key_per_request=pair.max_keys_per_request,
        max_key_size=pair.max_key_size,
        min_key_size=pair.min_key_size,
        max_sae_id_count=pair.max_additional_targets,
    )


def _keys(delivered: Sequence[DeliveredKey]) -> list[Key]:
    return [Key(one.key_id, one.key, _told(one.facts)) for one in delivered]


def _told(facts: KeyFacts) -> KeyExtension:
    return KeyExtension(
        recipe=facts.recipe,
        origins=tuple(origin.value for origin in facts.origins),
        supply=None if facts.supply is None else facts.supply.value,
        strength=facts.strength,
        hops=facts.hops,
        created=facts.created,
        expires=facts.expires,
    )
