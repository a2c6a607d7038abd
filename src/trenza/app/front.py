"""What an application door asks where the instance behind it changes its role: whichever stories serve now.

A request that comes while it is not known who leads waits a little, rather than being refused; one that is under way
when the role changes is finished by the stories it began with.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final
from uuid import UUID

from trenza.base.errors import UnavailableError
from trenza.base.names import SaeId
from trenza.core.delivery import DeliveredKey, IssueRequest, PairStatus
from trenza.kms.deliver import Delivery
from trenza.kms.orders import Order

_DRAIN_S: Final = 3.0
_SETTLES_WITHIN_S: Final = 4.0
_LOOK_S: Final = 0.01

Ready = Callable[[], Awaitable[None]]


class Front:
    """Implements serve.etsi014.KeyDelivery over stories that are replaced while it is used."""

    def __init__(self) -> None:
        self._delivery: Delivery | None = None
        self._settled = asyncio.Event()
        self._ready: Ready | None = None
        self._under_way: Counter[Delivery] = Counter()
        self._until_turn: set[asyncio.Timeout] = set()  # of those who wait for the present stories to be ready

    def turn_to(self, delivery: Delivery | None, ready: Ready | None = None) -> None:
        """Ask others from now on.

        Args:
            delivery: the stories; None: there are none for a moment.
            ready: waits until they may be asked; None: they may.
        """
        self._delivery, self._ready = delivery, ready
        waiting, self._until_turn = self._until_turn, set()
        for one in waiting:  # they wait for stories that are over
            one.reschedule(asyncio.get_running_loop().time())
        if delivery is None:
            self._settled.clear()
        else:
            self._settled.set()

    async def drained(self, delivery: Delivery) -> None:
        """Return when nobody asks these stories any more, or after a while."""
        end = asyncio.get_running_loop().time() + _DRAIN_S
        while self._under_way[delivery] and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110 - a role's end
            await asyncio.sleep(_LOOK_S)
        del self._under_way[delivery]

    async def status(self, caller: SaeId, target: SaeId) -> PairStatus:
        with self._asking(await self._someone()) as delivery:
            return await delivery.status(caller, target)

    async def issue(self, caller: SaeId, request: IssueRequest) -> Sequence[DeliveredKey]:
        with self._asking(await self._someone()) as delivery:
            return await delivery.issue(caller, request)

    def order(self, caller: SaeId, request: IssueRequest) -> Order | None:
        return None if self._delivery is None else self._delivery.order(caller, request)

    async def fetch(
        self, caller: SaeId, initiator: SaeId, key_ids: Sequence[UUID], *, tls_group: str
    ) -> Sequence[DeliveredKey]:
        with self._asking(await self._someone()) as delivery:
            return await delivery.fetch(caller, initiator, key_ids, tls_group=tls_group)

    async def _someone(self) -> Delivery:
        while True:
            if self._delivery is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SETTLES_WITHIN_S):
                        await self._settled.wait()
            if (delivery := self._delivery) is None:
                raise UnavailableError("this instance of the node changes its role; try again later")
            if self._ready is not None:
                await self._until_ready_or_turned(self._ready)
            if self._delivery is delivery:
                return delivery

    async def _until_ready_or_turned(self, ready: Ready) -> None:
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._until_turn.add(scope)
                await ready()
        except TimeoutError:
            pass  # others are asked now
        finally:
            self._until_turn.discard(scope)

    @contextlib.contextmanager
    def _asking(self, delivery: Delivery) -> Iterator[Delivery]:
        self._under_way[delivery] += 1
        try:
            yield delivery
        finally:
            self._under_way[delivery] -= 1
