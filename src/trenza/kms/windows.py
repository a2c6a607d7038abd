"""Windows between two nodes: asked for ahead of need, granted, and taken over.

One asks at a time: what is granted has an order. Which windows are needed is told by kms.demand, what is given by
kms.granting; how far the granter had got is durable here before a window is used (kms.reach).
"""

from __future__ import annotations

from trenza.base.errors import RemoteProtocolError
from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds, Seconds, nanoseconds
from trenza.core.choice import StrandKind
from trenza.kms.context import Context
from trenza.kms.demand import Demand
from trenza.kms.fill import Fill
from trenza.kms.pools import Pools
from trenza.kms.reach import Reach
from trenza.wire.peer import SegmentDrop, WindowAnswer, WindowRequest

_AT_ONCE = 4_096
"""Slots asked for by one message ahead of need, so that a request that lacks one need not wait for all of them."""


class Windows:
    """Both sides."""

    def __init__(self, ctx: Context, *, reach: Reach, pools: Pools, demand: Demand, fill: Fill) -> None:
        self._ctx = ctx
        self._reach = reach
        self._pools = pools
        self._demand = demand
        self._fill = fill

    async def ask(self, peer: NodeId) -> None:
        """Ask for windows of every kind of which too few slots are held."""
        asking = self._pools.pair(peer).asking
        for kind in self._demand.kinds(peer):
            async with asking:
                slots = dict(self._demand.windows_to_ask(peer)).get(kind, 0)
                more = slots > 0 and await self.ask_for(peer, kind, min(slots, _AT_ONCE))
            while more and (slots := slots - _AT_ONCE) > 0:
                async with asking:
                    more = await self.ask_for(peer, kind, min(slots, _AT_ONCE))

    async def ask_for(self, peer: NodeId, kind: StrandKind, slots: int) -> bool:
        """Ask for a window of one kind and take it over; tell whether there was one. The caller holds `asking`."""
        ctx = self._ctx
        oldest = max(0, ctx.clock.now() - nanoseconds(Seconds(float(kind.max_age_s))))
        accept = kind.acceptance(oldest=Nanoseconds(oldest))
        await self._pools.taking.open_next(peer, full=kind.full, accept=accept)
        request = WindowRequest(
            ctx.session(peer).id, kind.full, kind.max_hops, tuple(sorted(kind.relays)), oldest, slots
        )
        answer = await ctx.peers.call(peer, request, timeout=ctx.settings.call_timeout)
        if not isinstance(answer, WindowAnswer):
            raise RemoteProtocolError(f"node {peer} answered a window request with {type(answer).__name__}")
        await self._reach.note(peer, answer.reached)
        if not answer.grants:
            await self._pools.taking.write_off_ungrantable(peer, full=kind.full, accept=accept)
        for segment in dict.fromkeys(await self._pools.taking.accept(peer, answer.grants)):
            await self._fill.until_made(segment)
            if await self._pools.taking.accept(peer, [grant for grant in answer.grants if grant.segment == segment]):
                await ctx.peers.call(peer, SegmentDrop(segment), timeout=ctx.settings.call_timeout)
        return bool(answer.grants)

    async def handle(self, peer: NodeId, request: WindowRequest) -> WindowAnswer:
        """Grant a peer what it asks for, as far as there is any."""
        self._ctx.session_of(peer, request.session)
        wanted = min(request.slots, 64 * self._ctx.settings.window_slots)
        if wanted < 1:
            raise RemoteProtocolError("a window has at least one slot")
        kind = StrandKind(request.full, request.max_hops, frozenset(map(NodeId, request.relays)), 0)
        accept = kind.acceptance(oldest=Nanoseconds(request.oldest))
        grants = await self._pools.granting.grant(peer, full=kind.full, slots=wanted, accept=accept)
        return self._reach.with_reach(WindowAnswer(grants))
