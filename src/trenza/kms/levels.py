"""Levels: how much key every link of the network holds, told from neighbour to neighbour, for choosing paths.

Each end of a link states what it can send under; newer statements replace older ones and travel on. This is advice:
a wrong level makes a worse path, never an unsafe one (core/path, kms/relay). Little is said: a level is stated anew
when it has changed by an eighth, become empty or stopped being so, or is five seconds old. What is not heard again
in twenty seconds is forgotten, so the links of a dead node go out of use.

Neighbours also tell each other which shared blocks they no longer hold (kms/pads).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from trenza.base.errors import TrenzaError
from trenza.base.names import LinkId, NodeId
from trenza.base.units import NANOSECONDS_PER_SECOND, Seconds
from trenza.kms.context import Context
from trenza.kms.pads import Pads, Said
from trenza.wire.peer import Done, LinkLevel, LinkLevels

_Name = tuple[LinkId, NodeId]

_RESTATED_AFTER = Seconds(5.0)
_FORGOTTEN_AFTER = Seconds(20.0)
_CLOCKS_APART = 300 * NANOSECONDS_PER_SECOND
"""A sequence is the stating node's clock; one from further ahead is not believed, or it would silence all others."""


@dataclass(frozen=True, slots=True)
class _Heard:
    level: LinkLevel
    since: Seconds  # on Clock.elapsed
    teller: NodeId  # whom it need not be told


class Levels:
    """The story that keeps neighbours' views of the network's key alike."""

    def __init__(self, ctx: Context, pads: Pads) -> None:
        self._ctx = ctx
        self._pads = pads
        self._heard: dict[_Name, _Heard] = {}
        self.news = False  # whether something came or went that neighbours should hear of at once
        self._told: dict[NodeId, dict[_Name, int]] = {}  # sequence each neighbour has heard from this node
        self._told_in: dict[NodeId, bytes] = {}  # in which session

    def view(self) -> Mapping[_Name, int]:
        """Return the traffic units that can be sent, by link and sending end; this node's own are exact."""
        self._forget()
        others = {name: _usable(heard.level.units, heard.level.reserve) for name, heard in self._heard.items()}
        return others | {name: _usable(said.traffic, said.reserve) for name, said in self._own().items()}

    async def tick(self) -> None:
        """State this node's levels where it is time, and tell neighbours what they have not heard."""
        self.news = False
        self._forget()
        for name, said in self._own().items():
            self._state(name, said)
        neighbours = sorted({end.peer for end in self._ctx.links.values()})
        for peer in neighbours:
            session = self._ctx.sessions.get(peer)
            if session is None or session.id != self._told_in.get(peer):
                self._told.pop(peer, None)  # it may have forgotten, too
            if session is not None:
                self._told_in[peer] = session.id
        async with asyncio.TaskGroup() as group:
            for peer in neighbours:
                if peer in self._ctx.sessions:
                    group.create_task(self._tell(peer))

    async def handle(self, peer: NodeId, message: LinkLevels) -> Done:
        """Take what is newer than what is known, and drop the blocks that the neighbour no longer holds.

        Levels of links or ends that the book does not know, and of this node itself, are passed over.
        """
        links, now, clock = self._ctx.book.link_by_name, self._ctx.clock.elapsed(), self._ctx.clock.now()
        for level in message.levels:
            name = LinkId(level.link), NodeId(level.sender)
            link, heard = links.get(name[0]), self._heard.get(name)
            if link is None or name[1] not in link.ends or name[1] == self._ctx.name:
                continue
            if level.sequence > clock + _CLOCKS_APART or (heard and level.sequence <= heard.level.sequence):
                continue
            before = _usable(heard.level.units, heard.level.reserve) if heard else 0
            self.news = self.news or (before == 0) != (_usable(level.units, level.reserve) == 0)
            self._heard[name] = _Heard(level, now, peer)
            if name[1] == peer and name[0] in self._ctx.links:
                self._pads.said[name] = Said(level.units, level.reserve)
        await self._pads.hear_gone(peer, message.gone)
        return Done()

    def _own(self) -> dict[_Name, Said]:
        me = self._ctx.name
        streams = {(link, me): self._pads.stream(link, me) for link in sorted(self._ctx.links)}
        return {name: Said(each.available(), each.available(reserve=True)) for name, each in streams.items()}

    def _state(self, name: _Name, said: Said) -> None:
        """State a level of this node's anew, if it differs enough or is old."""
        now, heard = self._ctx.clock.elapsed(), self._heard.get(name)
        if heard is not None and now - heard.since < _RESTATED_AFTER:
            level = heard.level
            if not _differs(level.units, said.traffic) and not _differs(level.reserve, said.reserve):
                return
        sequence = max(self._ctx.clock.now(), heard.level.sequence + 1 if heard else 0)
        level = LinkLevel(name[0], name[1], said.traffic, said.reserve, sequence)
        self._heard[name] = _Heard(level, now, self._ctx.name)

    async def _tell(self, peer: NodeId) -> None:
        told, gone = self._told.setdefault(peer, {}), self._pads.gone(peer)
        levels = tuple(
            heard.level
            for name, heard in sorted(self._heard.items())
            if peer not in {heard.teller, name[1]} and heard.level.sequence > told.get(name, 0)
        )
        if not levels and not gone:
            return
        try:
            await self._ctx.peers.call(peer, LinkLevels(levels, gone), timeout=self._ctx.settings.call_timeout)
        except TrenzaError:
            self._ctx.counters["levels_untold"] += 1  # the next tick tells what is then new
            return
        told |= {(LinkId(level.link), NodeId(level.sender)): level.sequence for level in levels}
        self._pads.told(peer, gone)

    def _forget(self) -> None:
        oldest = self._ctx.clock.elapsed() - _FORGOTTEN_AFTER
        for name in [name for name, heard in self._heard.items() if heard.since < oldest]:
            del self._heard[name]


def _usable(units: int, reserve: int) -> int:
    """Return the units that can be sent: none without a unit of the reserve to authenticate them."""
    return units if reserve else 0


def _differs(before: int, now: int) -> bool:
    return abs(now - before) * 8 > before or (now == 0) != (before == 0)
