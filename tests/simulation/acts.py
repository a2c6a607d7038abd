"""What tests of histories do again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from trenza.app.scenario import Scenario
from trenza.base.errors import NotEnoughKeyError
from trenza.base.names import SaeId
from trenza.core.delivery import DeliveredKey, IssueRequest
from trenza.kms.context import Settings
from trenza.kms.node import Node
from trenza.lab.client import Client
from trenza.lab.history import violations
from trenza.lab.plan import SMALL
from trenza.lab.world import World


async def started(scenario: Scenario, *, seed: int = 1, settings: Settings = SMALL) -> World:
    """Bring a network to life."""
    world = World(scenario, seed=seed, settings=settings)
    await world.start_all()
    await world.until_ready(within=60.0)
    return world


def node_of(world: World, sae: str) -> Node:
    return world.node(next(entry.node for entry in world.scenario.saes if entry.name == sae))


async def issue(world: World, caller: str, target: str, **wanted: object) -> list[DeliveredKey]:
    """Issue keys at the caller's node; what it refuses is raised."""
    request = replace(IssueRequest(SaeId(target)), **wanted)
    return list(await node_of(world, caller).delivery.issue(SaeId(caller), request))


async def fetch(world: World, caller: str, initiator: str, key_ids: Sequence[UUID]) -> list[DeliveredKey]:
    """Fetch keys at the caller's node; what it refuses is raised."""
    delivery = node_of(world, caller).delivery
    return list(await delivery.fetch(SaeId(caller), SaeId(initiator), key_ids, tls_group="X25519MLKEM768"))


async def use_up(world: World, caller: str, target: str, *, number: int) -> None:
    """Issue until there is nothing left, however long it is stretched, and raise the refusal."""
    while True:
        try:
            await issue(world, caller, target, number=number)
        except NotEnoughKeyError as refusal:
            if refusal.retry_after is None:  # it is not only that the pair has had its share
                raise
        await asyncio.sleep(1.0)


async def judged(world: World, *pairs: tuple[str, str]) -> None:
    """See that every pair works again and that the history breaks no rule."""
    await asyncio.sleep(30.0)
    await world.until_ready(within=60.0)
    client = Client(world)
    for one, other in pairs:
        for caller, target in ((SaeId(one), SaeId(other)), (SaeId(other), SaeId(one))):
            keys = await client.issue(caller, IssueRequest(target, number=2))
            assert len(await client.fetch(target, caller, [key.key_id for key in keys])) == 2
    await world.stop_all()
    assert world.failures == {}
    assert violations(world.history) == []
