"""One application's hand in the lab: asks a node, waits so long, and writes down what it got."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar
from uuid import UUID

from trenza.base.errors import TrenzaError
from trenza.base.names import SaeId
from trenza.core.delivery import DeliveredKey, IssueRequest
from trenza.core.keyid import read_key_id, verify_key_id
from trenza.core.recipe import recipe_of_code
from trenza.kms.node import Node
from trenza.kms.slots import Pair
from trenza.lab.history import Delivered, Issued, Place, Reach, Refused
from trenza.lab.machine import Machine
from trenza.lab.world import World

T = TypeVar("T")

PATIENCE: Final = 15.0
"""Seconds a client waits for an answer: a process that died under its request never gives one."""


class Client:
    """An application that may speak for any SAE of the world."""

    def __init__(self, world: World, *, at: Machine | None = None) -> None:
        """Be a client of the node that serves each caller, or of that on `at`, where two machines have one name."""
        self._world = world
        self._at = at

    def _machine(self, sae: SaeId) -> Machine:
        return self._at or self._world.machines[self._world.homes[sae]]

    async def issue(self, caller: SaeId, request: IssueRequest) -> list[DeliveredKey]:
        """Ask for keys; an empty list when there was no answer or a refusal."""
        node = self._machine(caller).node
        if node is None:
            return []
        asked = self._world.clock.elapsed()

        async def deed() -> list[DeliveredKey]:
            return list(await node.delivery.issue(caller, request))

        keys = await self._ask("issue", caller, request.target, deed, ()) or []
        history = self._world.history
        targets = (request.target, *request.additional_targets)
        for key in keys:
            digest = history.digest(key.key)
            place = place_of(node, key, caller, request.target)
            history.add(Issued(asked, key.key_id, caller, targets, key.facts.recipe, digest, place))
        return keys

    async def fetch(self, caller: SaeId, initiator: SaeId, key_ids: list[UUID]) -> list[DeliveredKey]:
        """Fetch keys; an empty list when there was no answer or a refusal."""
        node = self._machine(caller).node
        if node is None:
            return []

        async def deed() -> list[DeliveredKey]:
            return list(await node.delivery.fetch(caller, initiator, key_ids, tls_group="lab"))

        life, peer = node.ctx.presence, self._world.homes[initiator]
        keys = await self._ask("fetch", caller, initiator, deed, tuple(key_ids)) or []
        by = Reach(node.ctx.name, peer, life, node.ctx.store.counter())
        history = self._world.history
        for key in keys:
            now, digest = self._world.clock.elapsed(), history.digest(key.key)
            place = place_of(node, key, initiator, caller)
            history.add(Delivered(now, key.key_id, initiator, caller, digest, place, by))
        return keys

    async def _ask(
        self,
        deed: str,
        caller: SaeId,
        other: SaeId,
        act: Callable[[], Coroutine[Any, Any, T]],
        key_ids: tuple[UUID, ...],
    ) -> T | None:
        machine = self._machine(caller)
        process = machine.process
        assert process is not None, "a node lives in a process"
        try:
            async with asyncio.timeout(PATIENCE):
                return await process.ask(act())
        except TrenzaError as error:
            code = error.code
        except TimeoutError:
            code = "no answer"
        except Exception as error:  # noqa: BLE001 - no application may see this, and the history goes on
            code = "fell over"
            self._world.failures.setdefault(machine.name, error)
        self._world.history.add(Refused(self._world.clock.elapsed(), deed, caller, other, code, key_ids))
        return None


def place_of(node: Node, key: DeliveredKey, initiator: SaeId, target: SaeId) -> Place | None:
    """Return which slots a key that `node` has just issued or delivered is made of; None for one that was drawn.

    Read from the key's ID under the keys that the two nodes have for it, where one of these has sealed it.
    """
    ctx = node.ctx
    for book in (ctx.book, *ctx.former_books):
        policy = book.policy_between(initiator, target)
        if policy is None:
            continue
        pair = Pair(book.sae_by_name[initiator], book.sae_by_name[target], policy)
        issuer, holder = pair.initiator.node, pair.target.node
        for keys in node.id_keys.all_of(holder if issuer == ctx.name else issuer):
            side = keys.mine if issuer == ctx.name else keys.theirs
            address = read_key_id(key.key_id, side)
            if verify_key_id(key.key_id, address, side, binding=pair.binding):
                count = recipe_of_code(address.recipe).slots_for(address.size)
                return Place(issuer, holder, address.window, address.slot, count)
    return None
