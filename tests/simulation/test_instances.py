"""Nodes of two instances over one database: no rule is broken, whatever dies, freezes or is away."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("asyncpg", reason="the extra `postgres` is not installed")

from trenza.app.scenario import load_scenario
from trenza.base.names import NodeId, SaeId
from trenza.core.delivery import DeliveredKey, IssueRequest
from trenza.lab.balancer import Balancer
from trenza.lab.history import Issued
from trenza.lab.instance_story import InstanceStory
from trenza.lab.instances import InstancesWorld, Seat
from trenza.lab.loop import run
from trenza.lab.plan import INSTANCE_TROUBLES, INSTANCES, SMALL
from trenza.lab.rules import what_left_is_in_the_ledger
from trenza.lab.stories import story_of
from trenza.lab.story import Outcome

RING = load_scenario("lab-ring")


def lived(seed: int) -> Outcome:
    async def story() -> Outcome:
        return await story_of(RING, seed=seed, plan=INSTANCES).run()

    return run(story())


@pytest.mark.parametrize("seed", [0, 23, 34, 55])
def test_no_rule_is_broken_where_instances_die_and_freeze(seed) -> None:
    outcome = lived(seed)
    assert outcome.broken == []
    assert outcome.issued >= INSTANCES.keys
    shared = [one for one in outcome.history.events if isinstance(one, Issued) and one.place is not None]
    assert {one.place.issuer for one in shared if one.place} >= {"A", "C"}  # the nodes that are two instances


class Beside:
    """Chance that brings every request to an instance that does not lead."""

    def choice(self, seats: list[Seat]) -> Seat:
        return next(seat for seat in seats if seat.instance is not None and seat.instance.leading is None)


def test_what_an_instance_gave_out_right_before_it_died_is_in_the_ledger_soon_though_its_window_stays() -> None:
    async def story() -> tuple[list[str], list[str]]:
        world = InstancesWorld(RING, seed=1, settings=SMALL)
        client = Balancer(world, chance=Beside())  # type: ignore[arg-type]  # nothing else is asked of it
        await world.start_all()
        await world.until_ready(within=120.0)
        one, other = SaeId("A1"), SaeId("C1")  # both nodes are two instances
        keys: list[DeliveredKey] = []
        while not keys:
            await asyncio.sleep(0.5)
            keys = await client.issue(one, IssueRequest(other, number=2, tls_group="lab"))
        assert await client.fetch(other, one, [key.key_id for key in keys])
        for name in ("A", "C"):
            await world.kill_instance(Beside().choice(world.pods[NodeId(name)].seats))
        at_once = [*what_left_is_in_the_ledger(world.history)]
        await asyncio.sleep(InstanceStory.recorded_within)
        soon = [*what_left_is_in_the_ledger(world.history)]
        await world.stop_all()
        return at_once, soon

    at_once, soon = run(story())
    assert len(at_once) == 4  # two keys, at both ends: they died before they wrote their records
    assert soon == []


@pytest.mark.slow
def test_no_rule_is_broken_in_many_seeds_and_every_kind_of_fault_fires() -> None:
    seeds = range(60, 80)
    outcomes = {seed: lived(seed) for seed in seeds}
    assert {seed: one.broken for seed, one in outcomes.items() if one.broken} == {}
    assert min(one.issued for one in outcomes.values()) >= INSTANCES.keys
    fired = {kind: sum(kind in one.fired for one in outcomes.values()) for kind in INSTANCE_TROUBLES}
    assert min(fired.values()) >= 0.3 * len(seeds), fired


_TRACE = """
from tests.simulation.test_instances import lived
from hashlib import sha256
print(sha256("\\n".join(lived(7).history.trace()).encode()).hexdigest())
"""


def test_one_seed_is_one_history_whatever_the_hash_seed() -> None:
    root = Path(__file__).parents[2]
    traces = set()
    for hash_seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{root}:{root / 'src'}"}
        done = subprocess.run(
            [sys.executable, "-c", _TRACE], env=environment, cwd=root, capture_output=True, text=True, check=True
        )
        traces.add(done.stdout)
    assert len(traces) == 1
    assert traces != {""}
