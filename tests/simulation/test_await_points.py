"""A node dies at any await of a small history: keys agree, nothing is used twice, and it issues again."""

from __future__ import annotations

import pytest
from tests.simulation.test_crash_points import judged, lived

from trenza.base.names import NodeId
from trenza.lab.loop import run

CHUNKS = 16
TURNS = 3


async def steps_of_all() -> dict[NodeId, int]:
    world = await lived(turns=TURNS)
    counts = {name: one.process.steps for name, one in world.machines.items() if one.process is not None}
    await judged(world)
    return counts


STEPS = run(steps_of_all())


def died_at(name: NodeId, step: int) -> None:
    async def story() -> None:
        world = await lived(name, fatal_step=step, turns=TURNS)
        await judged(world)
        assert world.machines[name].lives == 2, "it did not die"

    run(story())


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_a_node_may_die_at_any_await(name) -> None:
    for step in range(3, STEPS[name], STEPS[name] // 3):
        died_at(NodeId(name), step)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A", "B", "C"])
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_node_may_die_at_every_await(name, chunk) -> None:
    for step in range(1 + chunk, STEPS[name] + 1, CHUNKS):
        died_at(NodeId(name), step)
