"""Troubles that come together, and what the history is told of them."""

from __future__ import annotations

import asyncio
import random

from tests.simulation.networks import network

from trenza.lab.history import Forgot
from trenza.lab.loop import run
from trenza.lab.plan import SMALL, Plan
from trenza.lab.trouble import Troubles
from trenza.lab.world import World


def test_a_cloned_node_that_loses_its_anchor_too_still_has_two_lives_until_all_works_again() -> None:
    async def story() -> None:
        world = World(network("AB", "AB", {"A1 B1": "default"}), seed=1, settings=SMALL)
        await world.start_all()
        await world.until_ready()
        troubles = Troubles(world, Plan(), random.Random(1))
        cloning = asyncio.create_task(troubles._clone("clone", random.Random(1)))
        await asyncio.sleep(1.0)
        (clone,) = (event for event in world.history.events if isinstance(event, Forgot))
        troubles._forget(clone.node)  # as where the original lost its power
        await cloning
        troubles.note_recovered()
        await world.stop_all()
        told = [event.goes_on for event in world.history.events if isinstance(event, Forgot)]
        assert told == [True, True, False]

    run(story())
