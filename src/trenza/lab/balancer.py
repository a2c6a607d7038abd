"""Applications of a node that is several instances: a balancer brings each request to one that listens.

It knows TCP and no more. A connection that breaks because its instance died is made again to another one, and the
request is sent again over it; so it is with one that nobody answers for long, as where an instance is frozen.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final
from uuid import UUID

from trenza.base.errors import TrenzaError
from trenza.base.names import NodeId, SaeId
from trenza.core.delivery import DeliveredKey, IssueRequest
from trenza.kms.node import Node
from trenza.lab.client import PATIENCE, Client, place_of
from trenza.lab.history import Delivered, Issued, Place, Refused
from trenza.lab.instances import InstancesWorld, LabInstance, Pod, Seat

Deed = Callable[[LabInstance], Coroutine[Any, Any, Sequence[DeliveredKey]]]

_TRIES: Final = 3
BROKEN: Final = "no answer"


class Balancer(Client):
    """An application that may speak for any SAE, at nodes of one instance or several."""

    def __init__(self, world: InstancesWorld, *, chance: random.Random) -> None:
        super().__init__(world)
        self._world: InstancesWorld = world
        self._chance = chance

    def _pod(self, sae: SaeId) -> Pod | None:
        return self._world.pods.get(self._world.homes[sae])

    async def issue(self, caller: SaeId, request: IssueRequest) -> list[DeliveredKey]:
        pod = self._pod(caller)
        if pod is None:
            return await super().issue(caller, request)
        asked = self._world.clock.elapsed()
        keys, node = await self._through(
            pod, "issue", caller, request.target, (), lambda at: _issue(at, caller, request)
        )
        history, targets = self._world.history, (request.target, *request.additional_targets)
        for key in keys:
            place = self._place(node, key, caller, request.target)
            digest = history.digest(key.key)
            history.add(Issued(asked, key.key_id, caller, targets, key.facts.recipe, digest, place))
        return keys

    async def fetch(self, caller: SaeId, initiator: SaeId, key_ids: list[UUID]) -> list[DeliveredKey]:
        pod = self._pod(caller)
        if pod is None:
            return await super().fetch(caller, initiator, key_ids)
        keys, node = await self._through(
            pod, "fetch", caller, initiator, tuple(key_ids), lambda at: _fetch(at, caller, initiator, key_ids)
        )
        history = self._world.history
        for key in keys:
            now, place = self._world.clock.elapsed(), self._place(node, key, initiator, caller)
            history.add(Delivered(now, key.key_id, initiator, caller, history.digest(key.key), place))
        return keys

    async def _through(
        self, pod: Pod, deed: str, caller: SaeId, other: SaeId, key_ids: tuple[UUID, ...], act: Deed
    ) -> tuple[list[DeliveredKey], Node | None]:
        """Ask one instance after the other until one answers, whatever it says."""
        asked: set[str] = set()
        for _ in range(_TRIES):
            living = pod.living()
            fresh = [seat for seat in living if seat.place not in asked] or living
            if not fresh:
                return [], None
            seat = self._chance.choice(fresh)
            asked.add(seat.place)
            instance = seat.instance
            assert instance is not None
            node = instance.node
            try:
                return list(await self._ask_at(seat, act(instance))), node
            except TrenzaError as error:
                code = error.code
            except TimeoutError:
                code = BROKEN
            except Exception as error:  # noqa: BLE001 - no application may see this, and the history goes on
                code = "fell over"
                self._world.failures.setdefault(NodeId(seat.place), error)
            self._world.history.add(Refused(self._world.clock.elapsed(), deed, caller, other, code, key_ids))
            if code != BROKEN:
                break
        return [], None

    async def _ask_at(self, seat: Seat, deed: Coroutine[Any, Any, Sequence[DeliveredKey]]) -> Sequence[DeliveredKey]:
        """Return the answer of an instance.

        Raises:
            TimeoutError: the connection broke, or nothing came over it for long.
        """
        process = seat.process
        assert process is not None, "an instance lives in a process"
        asking = asyncio.ensure_future(process.ask(deed))
        broken = asyncio.ensure_future(process.ended.wait())
        done, _ = await asyncio.wait([asking, broken], timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        broken.cancel()
        if asking in done:
            return asking.result()
        asking.cancel()
        raise TimeoutError

    def _place(self, node: Node | None, key: DeliveredKey, initiator: SaeId, target: SaeId) -> Place | None:
        """Return where a key's slots lie, as whichever instance knows the keys of its ID says."""
        nodes = [] if node is None else [node]
        for sae in (initiator, target):
            pod = self._pod(sae)
            seats = pod.living() if pod is not None else []
            nodes += [seat.instance.node for seat in seats if seat.instance is not None]
        for one in nodes:
            if one.ctx.has_book and (place := place_of(one, key, initiator, target)) is not None:
                return place
        return None


async def _issue(at: LabInstance, caller: SaeId, request: IssueRequest) -> Sequence[DeliveredKey]:
    return await at.front.issue(caller, request)


async def _fetch(at: LabInstance, caller: SaeId, initiator: SaeId, key_ids: list[UUID]) -> Sequence[DeliveredKey]:
    return await at.front.fetch(caller, initiator, key_ids, tls_group="lab")
