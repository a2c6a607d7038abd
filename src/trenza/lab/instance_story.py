"""A story in which some nodes are several instances over one database."""

from __future__ import annotations

import random

from trenza.app.scenario import Scenario
from trenza.kms.context import Settings
from trenza.lab.balancer import Balancer
from trenza.lab.instance_trouble import InstanceTroubles
from trenza.lab.instances import InstancesWorld
from trenza.lab.story import Story


class InstanceStory(Story):
    """One seeded story over one scenario, every second node of which is two processes."""

    recorded_within = 25.0
    """A lead learns within twelve seconds that an instance is gone, and names what it left ten later."""

    def _begin(self, scenario: Scenario, seed: int, settings: Settings, chance: random.Random) -> None:
        world = InstancesWorld(scenario, seed=seed, settings=settings)
        self.world = world
        self.client = Balancer(world, chance=random.Random(f"balancer {seed}"))  # noqa: S311 - histories must repeat
        self.troubles = InstanceTroubles(world, self.plan, chance)
