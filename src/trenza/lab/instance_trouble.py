"""Trouble for nodes of several instances: processes die or freeze, and a database is away, late or another."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from trenza.base.names import NodeId
from trenza.base.units import Seconds
from trenza.lab.history import Forgot
from trenza.lab.instances import InstancesWorld, Pod, Seat
from trenza.lab.plan import Plan
from trenza.lab.trouble import Troubles

_RESTARTS: Final = (0.1, 1.0, 4.0)
_WATCH: Final = 0.5


class InstanceTroubles(Troubles):
    """The troubles of one story in which some nodes are several instances."""

    def __init__(self, world: InstancesWorld, plan: Plan, chance: random.Random) -> None:
        super().__init__(world, plan, chance)
        self._pods = world
        self._resting: set[str] = set()  # instances that are being stopped, or are to stay down for a while
        self._moved: set[NodeId] = set()  # nodes whose database is another, where not all instances know yet

    def prepare(self) -> None:
        super().prepare()
        for name in sorted(self._pods.pods):
            for seat in self._pods.pods[name].seats:
                seat.clock.skew = Seconds(self._chance.uniform(-self._plan.skew, self._plan.skew))

    def _pod(self, chance: random.Random) -> Pod:
        return self._pods.pods[chance.choice(sorted(self._pods.pods))]

    def _seat(self, chance: random.Random) -> Seat | None:
        """Choose an instance, half of the time one that leads."""
        pod = self._pod(chance)
        lead = pod.lead()
        if lead is not None and chance.random() < 0.5:
            return lead
        living = pod.living()
        return chance.choice(living) if living else None

    async def _supervise(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(super()._supervise())
            group.create_task(self._supervise_instances())

    async def _supervise_instances(self) -> None:
        while True:
            await asyncio.sleep(_WATCH)
            for name in sorted(self._pods.pods):
                for seat in self._pods.pods[name].seats:
                    if seat.process is None and seat.place not in self._resting:
                        await asyncio.sleep(self._chance.choice(_RESTARTS))
                        self._start_instance(self._pods.pods[name], seat)

    def _start_instance(self, pod: Pod, seat: Seat) -> None:
        if seat.process is None:
            self._note(f"{seat.place} starts")
            self._pods.start_instance(pod, seat)

    # --- instances

    async def _instance_killed(self, kind: str, chance: random.Random) -> None:
        seat = self._seat(chance)
        if seat is not None:
            self._fire(kind, seat.place)
            await self._pods.kill_instance(seat)

    async def _instance_stopped(self, kind: str, chance: random.Random) -> None:
        seat = self._seat(chance)
        if seat is None or seat.place in self._resting:
            return
        self._fire(kind, seat.place)
        self._resting.add(seat.place)
        await self._pods.stop_instance(seat)
        await asyncio.sleep(chance.uniform(0.1, 3.0))
        self._resting.discard(seat.place)

    async def _instance_paused(self, kind: str, chance: random.Random) -> None:
        """Freeze an instance for longer than the lead's lease, in the midst of whatever it does; then it goes on."""
        seat = self._seat(chance)
        if seat is None or seat.process is None:
            return
        process = seat.process
        self._fire(kind, seat.place)
        self._pods.freeze(process)
        await asyncio.sleep(chance.uniform(2.2, 8.0))
        if not process.dead:
            self._note(f"{seat.place} goes on")
            self._pods.thaw(process)

    # --- the database

    async def _database_cut(self, kind: str, chance: random.Random) -> None:
        pod = self._pod(chance)
        seat = chance.choice(pod.seats)
        self._note(f"{kind}: {seat.place}")
        pod.postgres.cut.add(seat.place)
        await asyncio.sleep(chance.uniform(1.0, 8.0))
        pod.postgres.cut.discard(seat.place)

    async def _database_restarted(self, kind: str, chance: random.Random) -> None:
        pod = self._pod(chance)
        if pod.postgres.is_up:
            self._note(f"{kind}: {pod.name}")
            pod.postgres.crash()
            await asyncio.sleep(chance.uniform(0.2, 4.0))
            pod.postgres.start()

    async def _database_failed_over(self, kind: str, chance: random.Random) -> None:
        """Promote a standby that lacks some of the last commits."""
        pod = self._pod(chance)
        if not pod.postgres.is_up or pod.name in self._moved:
            return
        lacks = pod.postgres.fail_over()
        self._fire(kind, f"{pod.name}, without its last {lacks} commits")
        self._moved.add(pod.name)
        self._pods.history.add(Forgot(self._pods.clock.elapsed(), pod.name, goes_on=True))

    async def _commit_answer_lost(self, kind: str, chance: random.Random) -> None:
        pod = self._pod(chance)
        self._note(f"{kind}: {pod.name}")
        pod.postgres.lose_answers = 0.3
        await asyncio.sleep(chance.uniform(2.0, 6.0))
        pod.postgres.lose_answers = 0.0

    # --- wires, where the machines are not all there is

    async def _network_cut(self, kind: str, chance: random.Random) -> None:
        pair = frozenset(chance.sample(self._pods.names, 2))
        self._note(f"{kind}: {' '.join(sorted(pair))}")
        self._pods.network.cut.add(pair)
        await asyncio.sleep(chance.uniform(2.0, 9.0))
        self._pods.network.cut.discard(pair)

    async def _network_cut_one_way(self, kind: str, chance: random.Random) -> None:
        one, other = chance.sample(self._pods.names, 2)
        self._note(f"{kind}: {one} to {other}")
        self._pods.network.cut_ways.add((one, other))
        await asyncio.sleep(chance.uniform(2.0, 9.0))
        self._pods.network.cut_ways.discard((one, other))

    # --- the end

    async def heal(self) -> None:
        await super().heal()
        self._resting.clear()
        for name in sorted(self._pods.pods):
            pod = self._pods.pods[name]
            pod.postgres.cut.clear()
            pod.postgres.lose_answers = 0.0
            if not pod.postgres.is_up:
                pod.postgres.start()
            for seat in pod.seats:
                if seat.process is not None:
                    self._pods.thaw(seat.process)
        self._healing = asyncio.get_running_loop().create_task(self._supervise_instances())

    def note_recovered(self) -> None:
        super().note_recovered()
        for name in sorted(self._moved):
            self._moved.discard(name)
            self._forget(name)
