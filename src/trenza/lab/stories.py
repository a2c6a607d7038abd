"""Which kind of story a plan asks for."""

from __future__ import annotations

from trenza.app.scenario import Scenario
from trenza.lab.plan import Plan
from trenza.lab.story import Story


def story_of(scenario: Scenario, *, seed: int, plan: Plan) -> Story:
    """Return a story of that plan.

    Raises:
        StoreUnavailableError: it has nodes of several instances, and the extra `postgres` is not installed.
    """
    if not plan.has_instances:
        return Story(scenario, seed=seed, plan=plan)
    from trenza.lab.instance_story import InstanceStory  # what it imports takes the driver

    return InstanceStory(scenario, seed=seed, plan=plan)
