"""A story: seeded clients on a seeded network in seeded trouble, whose history the checkers then read.

The same seed gives the same story, event by event. What a client sees is written to the history as it sees it; what
the lab does to the network as well. After the trouble everything heals; then every pair must issue and fetch again
within a bound, and whatever was issued and can still be had is fetched.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from trenza.app.scenario import Scenario
from trenza.base.names import SaeId
from trenza.base.units import Bits
from trenza.core.delivery import IssueRequest
from trenza.core.policy import Rule
from trenza.core.recipe import LOCAL
from trenza.kms.context import Settings
from trenza.lab.client import Client
from trenza.lab.history import History, Issued, Refused
from trenza.lab.plan import SMALL, Plan
from trenza.lab.rules import balance, broken
from trenza.lab.trouble import Troubles
from trenza.lab.world import World

RECOVERY: Final = 60.0
"""Seconds after the healing within which every pair must issue and fetch again, in both directions."""

_BATCH: Final = 5
"""Keys fetched together at most."""


@dataclass(slots=True)
class Outcome:
    """What became of a story."""

    history: History
    broken: list[str]  # a sentence for every violation
    counters: Counter[str] = field(default_factory=Counter)  # of the nodes that lived at the end, added up
    fired: Counter[str] = field(default_factory=Counter)  # faults by kind
    seconds: float = 0.0  # of virtual time

    @property
    def issued(self) -> int:
        """Return how many keys left a node."""
        return sum(isinstance(event, Issued) for event in self.history.events)


@dataclass(frozen=True, slots=True)
class _Right:
    """A target's right to one key."""

    target: SaeId
    initiator: SaeId
    key_id: UUID


class Story:
    """One seeded story over one scenario."""

    recorded_within = 1.0
    """Seconds after which what is written behind must be in every ledger, while all is well."""

    def __init__(self, scenario: Scenario, *, seed: int, plan: Plan, settings: Settings = SMALL) -> None:
        self.plan = plan
        self._begin(scenario, seed, settings, random.Random(f"story {seed}"))  # noqa: S311 - it must repeat
        self.world.set_disk_delay(*plan.disk_delay)
        self._policies = {policy.name: policy for policy in scenario.policies}
        self._unfetched: list[_Right] = []
        self._fetched: list[_Right] = []

    def _begin(self, scenario: Scenario, seed: int, settings: Settings, chance: random.Random) -> None:
        self.world = World(scenario, seed=seed, settings=settings)
        self.client = Client(self.world)
        self.troubles = Troubles(self.world, self.plan, chance)

    async def run(self) -> Outcome:
        """Live through the story, heal, see that everything works again, and judge the history."""
        world, plan = self.world, self.plan
        self.troubles.prepare()
        await world.start_all()
        await world.until_ready(within=120.0)
        world.set_weather(plan.weather)
        end = world.clock.elapsed() + plan.seconds
        async with asyncio.TaskGroup() as group:
            for number in range(plan.clients):
                group.create_task(self._use(self._chance_of(number), end))
            group.create_task(self.troubles.run(end))
        await self.troubles.heal()
        lame = await self._recovered()
        self.troubles.note_recovered()
        await self._fetch_the_rest()
        await asyncio.sleep(self.recorded_within)
        counters = self._counters()
        await world.stop_all()
        return Outcome(world.history, [*lame, *self._judged()], counters, world.fired, world.clock.elapsed())

    def _chance_of(self, client: int) -> random.Random:
        return random.Random(f"client {self.world.seed} {client}")  # noqa: S311 - histories must repeat

    def _judged(self) -> list[str]:
        world = self.world
        fallen = [f"node {name} fell over: {error!r}" for name, error in sorted(world.failures.items())]
        told = broken(world.history, homes=world.homes, lease=world.settings.lease)
        return [*fallen, *world.lost, *told, *balance(world.history).broken()]

    # --- clients

    async def _use(self, chance: random.Random, end: float) -> None:
        while self.world.clock.elapsed() < end:
            await asyncio.sleep(chance.expovariate(1.0 / self.plan.pause))
            if self._unfetched and chance.random() < 0.55:
                await self._fetch(chance)
            else:
                await self._issue(chance)

    async def _issue(self, chance: random.Random) -> None:
        rule = chance.choice(self.world.scenario.rules)
        caller, target = chance.sample(rule.between, 2)
        policy = self._policies[rule.policy]
        others = [] if LOCAL in policy.recipes or chance.random() > 0.15 else self._other_targets(caller, target)
        size = Bits(chance.choice((policy.default_key_size, policy.min_key_size, policy.default_key_size + 264)))
        request = IssueRequest(
            target,
            number=chance.choice((1, 1, 2, 4, 6)),
            size=size,
            additional_targets=tuple(others),
            tls_group="lab",
        )
        for key in await self.client.issue(caller, request):
            self._unfetched += [_Right(each, caller, key.key_id) for each in (target, *others)]

    def _other_targets(self, caller: SaeId, target: SaeId) -> list[SaeId]:
        partners = [
            other
            for rule in self.world.scenario.rules
            for one, other in (rule.between, rule.between[::-1])
            if one == caller and other != target
        ]
        return partners[:1]

    async def _fetch(self, chance: random.Random) -> None:
        some = self._batch(self._unfetched.pop(chance.randrange(len(self._unfetched))), chance)
        await self.client.fetch(some[0].target, some[0].initiator, [each.key_id for each in some])
        self._fetched += some
        if chance.random() < 0.3:  # once more what was fetched, lately or long ago: it must be refused
            again = chance.choice((some[0], chance.choice(self._fetched)))
            await self.client.fetch(again.target, again.initiator, [again.key_id])

    def _batch(self, first: _Right, chance: random.Random | None) -> list[_Right]:
        """Take some rights that can be asked for in one request with `first`."""
        some = [first]
        for other in list(self._unfetched):
            alike = (other.target, other.initiator) == (first.target, first.initiator)
            if alike and len(some) < _BATCH and (chance is None or chance.random() < 0.5):
                self._unfetched.remove(other)
                some.append(other)
        return some

    # --- the end

    async def _recovered(self) -> list[str]:
        """Return which pairs do not work although nothing is in the way; the others issue until there is enough."""
        deadline = self.world.clock.elapsed() + RECOVERY
        directions = [
            (rule, caller, target)
            for rule in self.world.scenario.rules
            for caller, target in (rule.between, rule.between[::-1])
        ]
        lame = [
            f"{one} to {other}"
            for rule, one, other in directions
            if not await self._works(rule, one, other, deadline)
        ]
        chance = self._chance_of(self.plan.clients)
        while not lame and self._issued() < self.plan.keys and self.world.clock.elapsed() < deadline:
            await asyncio.sleep(self.plan.pause)
            await self._issue(chance)
        if not lame:
            return []
        troubles = {name: node.troubles for name, node in self.world.nodes()}
        return [f"no key within {RECOVERY:.0f} s although all is well: {', '.join(lame)} ({troubles})"]

    async def _works(self, rule: Rule, caller: SaeId, target: SaeId, deadline: float) -> bool:
        size = Bits(self._policies[rule.policy].default_key_size)
        while True:
            keys = await self.client.issue(caller, IssueRequest(target, size=size, tls_group="lab"))
            if keys and len(await self.client.fetch(target, caller, [key.key_id for key in keys])) == len(keys):
                return True
            if self.world.clock.elapsed() > deadline:
                return False
            await asyncio.sleep(0.5)

    def _issued(self) -> int:
        return sum(isinstance(event, Issued) for event in self.world.history.events)

    async def _fetch_the_rest(self) -> None:
        """Fetch all that nobody has asked for yet; the checkers say which of it must be there."""
        while self._unfetched:
            some = self._batch(self._unfetched.pop(), None)
            got = await self.client.fetch(some[0].target, some[0].initiator, [each.key_id for each in some])
            last = self.world.history.events[-1]
            if not got and len(some) > 1 and isinstance(last, Refused) and last.code == "unknown-key":
                for one in some:  # one that is lost hides the others
                    await self.client.fetch(one.target, one.initiator, [one.key_id])

    def _counters(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for _, node in self.world.nodes():
            found.update(node.ctx.counters)
        return found


async def live_through(scenario: Scenario, *, seed: int, plan: Plan | None = None) -> Outcome:
    """Run one story; call it in the lab's loop."""
    return await Story(scenario, seed=seed, plan=plan or Plan()).run()
