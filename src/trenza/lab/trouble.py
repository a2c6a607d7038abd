"""Trouble: what the lab does to a network, seeded, each kind in its own time; and the healing of all of it.

Every kind counts itself when it takes effect, not when it is tried. A process that died is started again after a
while, as a supervisor does. Kinds overlap as chance has it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from trenza.base.names import NodeId, SaeId
from trenza.base.units import Seconds
from trenza.core.delivery import IssueRequest
from trenza.lab.client import Client
from trenza.lab.disk import DeathAt
from trenza.lab.history import Forgot, Issued, Trouble, WentBack
from trenza.lab.machine import Copy, Machine
from trenza.lab.network import Weather
from trenza.lab.plan import Plan
from trenza.lab.world import World
from trenza.qkd.emulator.settings import End

_RESTARTS: Final = (0.1, 1.0, 4.0)
_WATCH: Final = 0.5
_LATELY: Final = 50
"""Keys, the last that were issued, among which applications of a copy look for those that they may fetch."""


class Troubles:
    """The troubles of one story."""

    def __init__(self, world: World, plan: Plan, chance: random.Random) -> None:
        self._world = world
        self._plan = plan
        self._chance = chance
        self._copies: dict[NodeId, Copy] = {}
        self._starting: set[NodeId] = set()
        self._busy: set[NodeId] = set()  # being restored, copied or stopped: not to be started by the supervisor
        self._absent: set[NodeId] = set()
        self._cloned: set[NodeId] = set()  # or put back with their anchors: what they hold they may drop later on
        self._rewinding = asyncio.Lock()
        """Held while a machine may go back with its anchor: two that do so at once have no witness of each other."""

    def prepare(self) -> None:
        """Set what holds from before the first start: every machine's clock is a little off."""
        for name in sorted(self._world.machines):
            skew = self._chance.uniform(-self._plan.skew, self._plan.skew)
            drift = self._chance.uniform(-self._plan.drift, self._plan.drift)
            self._world.set_clock(name, Seconds(skew), drift)
            if skew:
                self._world.fired["clock skew"] += 1

    async def run(self, end: float) -> None:
        """Bring trouble until `end`."""
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._supervise())
            now = self._world.clock.elapsed()
            deeds = []
            for kind, expected in sorted(self._plan.troubles.items()):
                times = int(expected) + (self._chance.random() < expected % 1)
                for _ in range(times):
                    at = self._chance.uniform(now, now + (end - now) * 0.9)
                    chance = random.Random(f"{kind} {self._chance.random()}")  # noqa: S311 - histories must repeat
                    deeds.append(group.create_task(self._bring(kind, at, chance)))
            if deeds:
                await asyncio.wait(deeds)
            await asyncio.sleep(max(0.0, end - self._world.clock.elapsed()))
            watch.cancel()

    async def _bring(self, kind: str, at: float, chance: random.Random) -> None:
        await asyncio.sleep(at - self._world.clock.elapsed())
        deed: Callable[[str, random.Random], Awaitable[None]] = getattr(self, "_" + kind.replace(" ", "_"))
        await deed(kind, chance)

    def _note(self, what: str) -> None:
        self._world.history.add(Trouble(self._world.clock.elapsed(), what))

    def _fire(self, kind: str, where: str) -> None:
        self._world.fired[kind] += 1
        self._note(f"{kind}: {where}")

    def _comes(self, kind: str) -> bool:
        """Tell whether the plan has trouble of that kind, so that it may come with another."""
        return self._plan.troubles.get(kind, 0.0) > 0.0

    def _living(self, chance: random.Random) -> Machine | None:
        living = [one for one in self._world.machines.values() if one.node is not None and one.name not in self._busy]
        return chance.choice(sorted(living, key=lambda one: one.name)) if living else None

    # --- processes

    async def _supervise(self) -> None:
        """Start again what died."""
        while True:
            await asyncio.sleep(_WATCH)
            for name in sorted(self._world.machines):
                machine = self._world.machines[name]
                if machine.process is None and name not in self._busy:
                    await asyncio.sleep(self._chance.choice(_RESTARTS))
                    await self._start(name)

    async def _start(self, name: NodeId) -> None:
        if self._world.machines[name].process is None and name not in self._starting:
            self._starting.add(name)
            self._note(f"{name} starts")
            await self._world.start(name)
            self._starting.discard(name)

    async def _kill(self, kind: str, chance: random.Random) -> None:
        machine = self._living(chance)
        if machine is None or machine.store is None:
            return
        if chance.random() < 0.5:
            await machine.store.busy()
        if machine.node is not None:
            self._fire(kind, machine.name)
            await self._world.crash(machine.name)

    async def _power_loss(self, kind: str, chance: random.Random) -> None:
        machine = self._living(chance)
        if machine is None or machine.store is None:
            return
        await machine.store.busy()
        if machine.node is None:
            return
        self._fire(kind, machine.name)
        await self._world.crash(machine.name, power=True)
        if machine.process is not None:
            return  # somebody has started it again while the last of it unwound
        anchor = chance.randrange(3)  # its page may be lost, as old as chance has it, or as it was
        if anchor == 0:
            self._world.lose_anchor(machine.name)
            self._forget(machine.name)
        elif anchor == 1:
            machine.anchor.fall_behind(chance)

    async def _death_at_a_commit(self, _kind: str, chance: random.Random) -> None:
        machine = self._living(chance)
        if machine is not None and machine.store is not None:
            death = DeathAt(machine.store.commits + chance.randint(1, 12), chance.choice(("before", "after")))
            machine.death = machine.store.death = death

    async def _death_at_an_await(self, _kind: str, chance: random.Random) -> None:
        machine = self._living(chance)
        if machine is not None and machine.process is not None:
            machine.process.fatal_step = machine.process.steps + chance.randint(1, 300)

    async def _stop(self, kind: str, chance: random.Random) -> None:
        machine = self._living(chance)
        if machine is None:
            return
        self._fire(kind, machine.name)
        self._busy.add(machine.name)
        await self._world.stop(machine.name)
        await asyncio.sleep(chance.uniform(0.1, 3.0))
        self._busy.discard(machine.name)

    async def _absence(self, kind: str, chance: random.Random) -> None:
        """A node is out of everybody's reach for long; its own applications still reach it."""
        name = chance.choice(sorted(self._world.machines))
        if self._absent:
            return
        self._fire(kind, name)
        self._absent.add(name)
        others = [
            (one, other) for one in self._world.machines for other in self._world.machines if name in (one, other)
        ]
        self._world.network.cut_off.update(others)
        await asyncio.sleep(chance.uniform(8.0, 16.0))
        self._world.network.cut_off.difference_update(others)
        self._absent.discard(name)

    # --- wires

    async def _network_cut(self, kind: str, chance: random.Random) -> None:
        pair = frozenset(chance.sample(sorted(self._world.machines), 2))
        self._note(f"{kind}: {' '.join(sorted(pair))}")
        self._world.network.cut.add(pair)
        await asyncio.sleep(chance.uniform(2.0, 9.0))
        self._world.network.cut.discard(pair)

    async def _network_cut_one_way(self, kind: str, chance: random.Random) -> None:
        one, other = chance.sample(sorted(self._world.machines), 2)
        self._note(f"{kind}: {one} to {other}")
        self._world.network.cut_ways.add((one, other))
        await asyncio.sleep(chance.uniform(2.0, 9.0))
        self._world.network.cut_ways.discard((one, other))

    # --- devices

    async def _device_cut(self, kind: str, chance: random.Random) -> None:
        link = chance.choice(sorted(self._world.pairs))
        self._fire(kind, link)
        self._world.pairs[link].cut()
        await asyncio.sleep(chance.uniform(2.0, 12.0))
        self._world.pairs[link].repair()

    async def _device_dead(self, kind: str, chance: random.Random) -> None:
        link, end = chance.choice(sorted(self._world.pairs)), chance.choice((End.A, End.B))
        self._fire(kind, link)
        self._world.pairs[link].kill(end)
        await asyncio.sleep(chance.uniform(2.0, 12.0))
        self._world.pairs[link].revive(end)

    async def _device_mute(self, _kind: str, chance: random.Random) -> None:
        link = chance.choice(sorted(self._world.scenario.links, key=lambda one: one.name))
        machine = self._world.machines[chance.choice(link.ends)]
        self._note(f"device mute: {link.name} at {machine.name}")
        machine.mute.add(link.name)
        self._world.pairs[link.name].unmute()
        await asyncio.sleep(chance.uniform(8.0, 20.0))
        machine.mute.discard(link.name)

    # --- disks and clocks

    async def _slow_disk(self, kind: str, chance: random.Random) -> None:
        machine = self._living(chance)
        if machine is not None:
            self._note(f"{kind}: {machine.name}")
            machine.health.slow = True
            await asyncio.sleep(chance.uniform(2.0, 6.0))
            machine.health.slow = False

    async def _full_disk(self, kind: str, chance: random.Random) -> None:
        machine = self._living(chance)
        if machine is not None:
            self._note(f"{kind}: {machine.name}")
            machine.health.full = True
            await asyncio.sleep(chance.uniform(2.0, 5.0))
            machine.health.full = False

    async def _clock_jump(self, kind: str, chance: random.Random) -> None:
        name = chance.choice(sorted(self._world.machines))
        self._fire(kind, name)
        clock = self._world.machines[name].clock
        clock.skew = Seconds(chance.uniform(-self._plan.skew, self._plan.skew))

    # --- memories

    def _forget(self, name: NodeId) -> None:
        """Note that a node may have lost what it held, and loses more as long as two machines have been it."""
        self._world.history.add(Forgot(self._world.clock.elapsed(), name, name in self._cloned))

    def _went_back(self, name: NodeId, since: float) -> None:
        """Note that a node knows nothing any more of what it did since then, and that its anchor cannot tell it."""
        self._world.history.add(WentBack(self._world.clock.elapsed(), name, since))

    async def _restore(
        self, kind: str, chance: random.Random, *, anchor_lost: bool = False, anchor_too: bool = False
    ) -> None:
        """Take a copy of a data directory, and some time later put it in place of what is there then."""
        machine = self._living(chance)
        if machine is None:
            return
        name = machine.name
        self._note(f"{name} is copied")
        copy, anchor, since = machine.copy(), machine.anchor.recall(), self._world.clock.elapsed()
        await asyncio.sleep(chance.uniform(0.5, 6.0))
        if name in self._busy:
            return
        self._busy.add(name)
        self._fire(kind, name)
        await self._world.crash(name)
        if anchor_too:
            self._world.restore_whole(name, copy, anchor)
            self._went_back(name, since)
            self._cloned.add(name)  # it drops all it has where it meets who knows better
        else:
            self._world.restore(name, copy)
        if anchor_lost:
            self._world.lose_anchor(name)
        self._forget(name)
        await asyncio.sleep(chance.choice(_RESTARTS))
        if self._comes("death at a commit") and chance.random() < 0.5:  # while it drops what it held
            machine.death = DeathAt(machine.commits + chance.randint(1, 12), chance.choice(("before", "after")))
        await self._start(name)
        self._forget(name)
        self._busy.discard(name)

    async def _restore_without_anchor(self, kind: str, chance: random.Random) -> None:
        await self._restore(kind, chance, anchor_lost=True)

    async def _whole_machine_restored(self, kind: str, chance: random.Random) -> None:
        """Put a snapshot of a virtual machine in place: the anchor went back too, and only its peers can tell."""
        async with self._rewinding:
            await self._restore(kind, chance, anchor_too=True)

    async def _clone(self, kind: str, chance: random.Random) -> None:
        """Two machines run on one node's memory; now the one is heard, now the other."""
        if chance.random() < 0.5:
            async with self._rewinding:
                await self._cloned_as(kind, chance, anchor_too=True)
        else:
            await self._cloned_as(kind, chance, anchor_too=False)

    async def _cloned_as(self, kind: str, chance: random.Random, *, anchor_too: bool) -> None:
        machine = self._living(chance)
        if machine is None:
            return
        name = machine.name
        self._busy.add(name)
        self._fire(kind, name)
        self._cloned.add(name)  # whichever learns of the other drops all it has
        self._forget(name)
        since = self._world.clock.elapsed()
        is_cut_off = anchor_too and chance.random() < 0.5
        clone = await self._world.start_clone(name, anchor_too=anchor_too, cut_off=is_cut_off)
        if anchor_too and not is_cut_off:  # the original goes on for a while, and what it does the copy misses
            await asyncio.sleep(chance.uniform(0.5, 4.0))
        for turn in range(1 if is_cut_off else chance.randint(1, 3)):
            heard = (clone, machine)[turn % 2]
            if heard.node is not None:
                self._world.attach(heard)
            if anchor_too:
                self._went_back(name, since)
            for _ in range(12 if anchor_too else 4):
                await asyncio.sleep(chance.uniform(0.3, 1.5))
                if clone.node is not None:
                    await self._use(clone, chance)
        if self._comes("kill") and chance.random() < 0.5:
            await self._start_anew(machine)
            await asyncio.sleep(chance.uniform(0.5, 3.0))
        self._note(f"{clone.place} ends")
        await self._world.stop_clone(clone)
        if anchor_too:
            self._went_back(name, since)
        self._busy.discard(name)

    async def _start_anew(self, machine: Machine) -> None:
        """Kill an original that was copied, and start it: it counts its lives as the clone does."""
        self._fire("kill", machine.place)
        await self._world.crash(machine.name)
        await self._start(machine.name)

    async def _use(self, machine: Machine, chance: random.Random) -> None:
        """Let an application of a node ask this machine for a key: a fresh one, or one that it may fetch."""
        if chance.random() < 0.5:
            await self._use_issued(machine, chance)
            return
        pairs = [
            (caller, target)
            for rule in self._world.scenario.rules
            for caller, target in (rule.between, rule.between[::-1])
            if self._world.homes[caller] == machine.name
        ]
        if pairs:
            caller, target = chance.choice(pairs)
            await Client(self._world, at=machine).issue(SaeId(caller), IssueRequest(SaeId(target), tls_group="lab"))

    async def _use_issued(self, machine: Machine, chance: random.Random) -> None:
        lately = [one for one in self._world.history.events if isinstance(one, Issued)][-_LATELY:]
        found = [
            (one, target) for one in lately for target in one.targets if self._world.homes[target] == machine.name
        ]
        if found:
            issued, target = chance.choice(found)
            await Client(self._world, at=machine).fetch(target, issued.initiator, [issued.key_id])

    # --- the end

    def note_recovered(self) -> None:
        """All works again: from now on no node has reasons to drop anything."""
        for name in sorted(self._cloned):
            self._cloned.discard(name)
            self._forget(name)

    async def heal(self) -> None:
        """Let everything be well again."""
        world = self._world
        self._note("all is well again")
        world.set_weather(Weather())
        world.network.cut.clear()
        world.network.cut_ways.clear()
        world.network.cut_off.clear()
        for pair in world.pairs.values():
            pair.repair()
            for end in (End.A, End.B):
                pair.revive(end)
        for name in sorted(world.machines):
            machine = world.machines[name]
            machine.death = None
            machine.health.slow = machine.health.full = False
            machine.mute.clear()
            if machine.process is not None:
                machine.process.fatal_step = 0
            if machine.store is not None:
                machine.store.death = None
            await self._start(name)
