"""A story: seeded clients on a seeded network in seeded trouble, whose history the checkers then read.

The same seed gives the same story, event by event. What a client sees is written to the history as it sees it; what
the lab does to the network as well. After the trouble everything heals, and then every pair must be able to issue.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

from trenza.app.scenario import Scenario
from trenza.base.errors import TrenzaError
from trenza.base.names import NodeId, SaeId
from trenza.base.units import Bits
from trenza.core.delivery import DeliveredKey, IssueRequest
from trenza.core.policy import Policy
from trenza.core.recipe import LOCAL
from trenza.kms.context import Settings
from trenza.kms.node import Node
from trenza.lab.history import Delivered, History, Issued, Refused, Trouble, violations
from trenza.lab.network import Weather
from trenza.lab.world import Copy, World
from trenza.qkd.emulator.settings import End

T = TypeVar("T")

PATIENCE = 15.0
"""Seconds a client waits for an answer: a process that died under its request never gives one."""

SMALL = Settings(
    stock_target=48,
    segment_min=16,
    segment_max=48,
    window_slots=12,
    link_target_units=256,
    reserve_units=24,
    block_units=96,
)
"""Small stocks, so that windows, segments and blocks end often."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a story is and how bad it gets. Chances are per turn of trouble, one every two seconds or so."""

    seconds: float = 40.0
    clients: int = 3
    weather: Weather = field(default_factory=lambda: Weather(lose=0.03, repeat=0.03, delay=(0.0005, 0.05)))
    disk_delay: tuple[float, float] = (0.0, 0.02)
    crash: float = 0.3
    cut: float = 0.3
    device: float = 0.3
    restore: float = 0.15


@dataclass(slots=True)
class Outcome:
    """What became of a story."""

    history: History
    broken: list[str]
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Unfetched:
    """A key that waits for one of its targets, and when it was issued."""

    target: SaeId
    initiator: SaeId
    key_id: UUID
    issued: float


class Client:
    """One application's hand: asks a node of the world, waits so long, and writes down what it got."""

    def __init__(self, world: World, *, at: Node | None = None) -> None:
        """Be a client of the node that serves each caller, or of `at`, where two processes have one name."""
        self._world = world
        self._at = at

    def node_of(self, sae: SaeId) -> Node | None:
        """Return the node that serves an SAE, None while it is down."""
        if self._at is not None:
            return self._at
        name = next(entry.node for entry in self._world.scenario.saes if entry.name == sae)
        return self._world.machines[name].node

    async def issue(self, caller: SaeId, request: IssueRequest) -> list[DeliveredKey]:
        """Ask for keys; an empty list when there was no answer or a refusal."""
        node = self.node_of(caller)
        if node is None:
            return []
        asked = self._world.clock.elapsed()
        keys = await self._ask("issue", caller, request.target, lambda: node.delivery.issue(caller, request)) or []
        history = self._world.history
        targets = (request.target, *request.additional_targets)
        for key in keys:
            digest = history.digest(key.key)
            history.add(Issued(asked, key.key_id, caller, targets, key.facts.recipe, digest))
        return list(keys)

    async def fetch(self, caller: SaeId, initiator: SaeId, key_ids: list[UUID]) -> list[DeliveredKey]:
        """Fetch keys; an empty list when there was no answer or a refusal."""
        node = self.node_of(caller)
        if node is None:
            return []
        keys = (
            await self._ask(
                "fetch",
                caller,
                initiator,
                lambda: node.delivery.fetch(caller, initiator, key_ids, tls_group="lab"),
            )
            or []
        )
        history = self._world.history
        for key in keys:
            now = self._world.clock.elapsed()
            history.add(Delivered(now, key.key_id, initiator, caller, history.digest(key.key)))
        return list(keys)

    async def _ask(self, deed: str, caller: SaeId, other: SaeId, act: Callable[[], Awaitable[T]]) -> T | None:
        try:
            async with asyncio.timeout(PATIENCE):
                return await act()
        except TrenzaError as error:
            code = error.code
        except TimeoutError:
            code = "no answer"
        self._world.history.add(Refused(self._world.clock.elapsed(), deed, caller, other, code))
        return None


class Story:
    """One seeded story over one scenario."""

    def __init__(self, scenario: Scenario, *, seed: int, plan: Plan, settings: Settings = SMALL) -> None:
        self.plan = plan
        self.world = World(scenario, seed=seed, settings=settings)
        self.world.disk_delay = plan.disk_delay
        self.client = Client(self.world)
        self.counters: dict[str, int] = {}
        self._chance = random.Random(f"story {seed}")  # noqa: S311 - histories must repeat
        self._copies: dict[NodeId, Copy] = {}
        self._unfetched: list[_Unfetched] = []
        self._missed: list[str] = []
        self._forgot: dict[NodeId, float] = {}  # when a node last came back without its memory

    async def run(self) -> Outcome:
        """Live through the story, heal, see that everything works again, and judge the history."""
        world = self.world
        await world.start_all()
        await world.until_ready(within=120.0)
        world.set_weather(self.plan.weather)
        end = world.clock.elapsed() + self.plan.seconds
        async with asyncio.TaskGroup() as group:
            for number in range(self.plan.clients):
                chance = random.Random(f"client {world.seed} {number}")  # noqa: S311
                group.create_task(self._use(chance, end))
            group.create_task(self._trouble(end))
        await self._heal()
        broken = await self._recovered()
        await self._count_and_stop()
        broken += [f"node {name} fell over: {error!r}" for name, error in world.failures.items()]
        return Outcome(world.history, [*broken, *self._missed, *violations(world.history)], self.counters)

    # --- clients

    async def _use(self, chance: random.Random, end: float) -> None:
        while self.world.clock.elapsed() < end:
            await asyncio.sleep(chance.expovariate(4.0))
            if self._unfetched and chance.random() < 0.55:
                await self._fetch(chance)
            else:
                await self._issue(chance)

    async def _issue(self, chance: random.Random) -> None:
        rule = chance.choice(self.world.scenario.rules)
        caller, target = chance.sample(rule.between, 2)
        policy = self._policy(rule.policy)
        local = LOCAL in policy.recipes
        others = [] if local or chance.random() > 0.15 else self._other_targets(caller, target)
        size = Bits(chance.choice((policy.default_key_size, policy.min_key_size, policy.default_key_size + 264)))
        number = chance.choice((1, 1, 2, 5))
        request = IssueRequest(target, number=number, size=size, additional_targets=tuple(others), tls_group="lab")
        for key in await self.client.issue(caller, request):
            now = self.world.clock.elapsed()
            self._unfetched += [_Unfetched(each, caller, key.key_id, now) for each in (target, *others)]

    def _policy(self, name: str) -> Policy:
        return next(policy for policy in self.world.scenario.policies if policy.name == name)

    def _other_targets(self, caller: SaeId, target: SaeId) -> list[SaeId]:
        partners = [
            other
            for rule in self.world.scenario.rules
            for one, other in (rule.between, rule.between[::-1])
            if one == caller and other != target
        ]
        return partners[:1]

    async def _fetch(self, chance: random.Random) -> None:
        first = self._unfetched.pop(chance.randrange(len(self._unfetched)))
        some = [first]
        for other in list(self._unfetched):
            alike = (other.target, other.initiator) == (first.target, first.initiator)
            if alike and chance.random() < 0.5 and len(some) < 5:
                self._unfetched.remove(other)
                some.append(other)
        key_ids = [each.key_id for each in some]
        await self.client.fetch(first.target, first.initiator, key_ids)
        self._note_missed(some)
        if chance.random() < 0.3:
            await self.client.fetch(first.target, first.initiator, key_ids[:1])  # again: it must be refused

    def _note_missed(self, some: list[_Unfetched]) -> None:
        """Whoever asks first for a key that was issued gets it, unless one of its nodes lost its memory since."""
        last = self.world.history.events[-1]
        if not isinstance(last, Refused) or last.deed != "fetch" or last.code != "unknown-key":
            return
        first = some[0]
        nodes = [self.client.node_of(sae) for sae in (first.initiator, first.target)]
        forgot = max((self._forgot.get(node.ctx.name, 0.0) for node in nodes if node is not None), default=0.0)
        # for one lease, a node may issue to one that came back without its memory
        if all(node is not None and each.issued > forgot + SMALL.lease for node in nodes for each in some):
            keys = ", ".join(str(each.key_id) for each in some)
            pair = f"{first.initiator} to {first.target}"
            self._missed.append(f"{last.time:.3f}: issued by {pair} and not to be had: {keys}")

    # --- trouble

    def _note(self, what: str) -> None:
        self.world.history.add(Trouble(self.world.clock.elapsed(), what))

    async def _trouble(self, end: float) -> None:
        chance, plan = self._chance, self.plan
        deeds = (
            (plan.crash, self._crash),
            (plan.cut, self._cut),
            (plan.device, self._fail_device),
            (plan.restore, self._go_back),
        )
        while self.world.clock.elapsed() < end:
            await asyncio.sleep(chance.uniform(0.5, 3.0))
            for likely, deed in deeds:
                if chance.random() < likely:
                    await deed()

    def _any_node(self) -> NodeId:
        return self._chance.choice(sorted(self.world.machines))

    async def _crash(self) -> None:
        name = self._any_node()
        self._note(f"{name} crashes")
        await self.world.crash(name)
        await asyncio.sleep(self._chance.choice((0.1, 1.0, 8.0)))
        self._note(f"{name} starts")
        await self._start(name)

    async def _start(self, name: NodeId) -> None:
        if self.world.machines[name].node is None:
            await self.world.start(name)

    async def _cut(self) -> None:
        one, other = self._chance.sample(sorted(self.world.machines), 2)
        pair = frozenset((one, other))
        self._note(f"the network between {one} and {other} changes")
        self.world.network.cut ^= {pair}

    async def _fail_device(self) -> None:
        link = self._chance.choice(sorted(self.world.pairs))
        pair = self.world.pairs[link]
        deed = self._chance.choice((pair.cut, pair.repair, lambda: pair.kill(End.A), lambda: pair.revive(End.A)))
        self._note(f"the devices of {link} change")
        deed()

    async def _go_back(self) -> None:
        """Take a copy of a data directory, or put an earlier one in place; the anchor may be lost with it."""
        name = self._any_node()
        if name not in self._copies:
            self._note(f"{name} is copied")
            self._copies[name] = self.world.machines[name].copy()
            return
        anchor_too = self._chance.random() < 0.3
        self._note(f"{name} goes back to its copy{' and loses its anchor' if anchor_too else ''}")
        await self.world.crash(name)
        self.world.restore(name, self._copies.pop(name))
        self._forgot[name] = self.world.clock.elapsed()
        if anchor_too:
            self.world.lose_anchor(name)
        await self._start(name)
        self._forgot[name] = self.world.clock.elapsed()

    # --- the end

    async def _heal(self) -> None:
        self._note("all is well again")
        self.world.set_weather(Weather())
        self.world.network.cut.clear()
        for pair in self.world.pairs.values():
            pair.repair()
            pair.revive(End.A)
        for name in sorted(self.world.machines):
            await self._start(name)

    async def _recovered(self) -> list[str]:
        """Return what does not work although nothing is in the way."""
        await asyncio.sleep(20.0)
        try:
            await self.world.until_ready(within=120.0)
        except TimeoutError:
            missing = ", ".join(self.world.missing())
            return [f"cannot issue although all is well: {missing} ({self._troubles()})"]
        broken: list[str] = []
        for rule in self.world.scenario.rules:
            for caller, target in (rule.between, rule.between[::-1]):
                keys = await self.client.issue(caller, IssueRequest(target, tls_group="lab"))
                got = await self.client.fetch(target, caller, [key.key_id for key in keys]) if keys else []
                if len(got) != 1:
                    broken.append(
                        f"{caller} to {target}: {len(keys)} issued and {len(got)} fetched although all is well"
                    )
        return broken

    def _troubles(self) -> str:
        return str({name: machine.node.troubles for name, machine in self.world.machines.items() if machine.node})

    async def _count_and_stop(self) -> None:
        for machine in self.world.machines.values():
            if machine.node is not None:
                for name, count in machine.node.ctx.counters.items():
                    self.counters[name] = self.counters.get(name, 0) + count
        await self.world.stop_all()


async def live_through(scenario: Scenario, *, seed: int, plan: Plan | None = None) -> Outcome:
    """Run one story; call it in the lab's loop."""
    return await Story(scenario, seed=seed, plan=plan or Plan()).run()
