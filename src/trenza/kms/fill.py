"""Filling: the leader of a pair makes segments, so that both can issue without asking anyone.

One segment at a time per pair: exchange, relay, compare, commit. The classical and post-quantum strands come from one
joint exchange, the QKD strands over the best path of links; both ends compare all of it under a key of the session,
which the QKD path never saw, before a slot may be issued (design decisions 2, 6, 7). What fails is burnt.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import defaultdict
from collections.abc import Callable

from trenza.base.errors import (
    AuthenticationError,
    NotEnoughKeyError,
    RefusedError,
    RemoteProtocolError,
    StaleError,
    TrenzaError,
    UnavailableError,
)
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.core.exchange import SCHEME, strand_blocks
from trenza.core.keyid import SLOTS_MAX
from trenza.core.path import Route, best_path
from trenza.core.provenance import FORMAT_VERSION, Hop, Lineage, SegmentRecord
from trenza.core.segment import FULL_ORIGINS, PLAIN_ORIGINS, assemble, comparison_tag
from trenza.core.strand import STRAND_BYTES, Origin, Supply
from trenza.kms.arrivals import Carried
from trenza.kms.context import Context
from trenza.kms.demand import Want
from trenza.kms.exchange import Agreed, Exchanges
from trenza.kms.levels import Levels
from trenza.kms.pools import Pools
from trenza.kms.relay import Relays
from trenza.wire.peer import (
    Done,
    HopRecord,
    SegmentAnswer,
    SegmentCommit,
    SegmentCommitted,
    SegmentDrop,
    SegmentOffer,
)

_PENDING_MAX = 8
"""Segments of one leader that wait for its commit; an honest one makes one at a time."""

_STOCK_MAX = 64
"""What this node holds of one kind and direction at most, in targets of its own: a leader could fill its disk."""


class Fill:
    """Filling the pools of this node's pairs."""

    def __init__(self, ctx: Context, *, pools: Pools, exchanges: Exchanges, relays: Relays, levels: Levels) -> None:
        self._ctx = ctx
        self._pools = pools
        self._exchanges = exchanges
        self._relays = relays
        self._levels = levels
        self._pending: defaultdict[NodeId, dict[bytes, Agreed]] = defaultdict(
            dict
        )  # by leader: exchanged, not committed
        self._making: dict[bytes, asyncio.Event] = {}  # segments this node leads; set when they are finished
        self.on_made: Callable[[NodeId], None] = lambda _: None
        """Hears that a segment was made with a peer, whose clock therefore tells about the same time."""

    # --- the leader's side

    def route(self, peer: NodeId, want: Want, units: int) -> Route | None:
        """Return the path that QKD strands would take to `peer` now, or None where none has `units`."""
        return best_path(
            self._ctx.name,
            peer,
            self._ctx.book.links,
            self._levels.view(),
            units,
            allowed_nodes=want.kind.relays,
            max_hops=want.kind.max_hops,
        )

    async def fill(self, peer: NodeId, want: Want) -> int:
        """Make one segment for `want`.

        Returns:
            The slots filled.

        Raises:
            NotEnoughKeyError: no path has enough link key now.
            TrenzaError: it failed; what was used for it is burnt.
        """
        slots, route = self._plan(peer, want)
        ctx = self._ctx
        segment = bytes(ctx.entropy.token(16))
        session = ctx.session(peer)
        finished = self._making[segment] = asyncio.Event()
        carried: Carried | None = None
        agreed: Agreed | None = None
        try:
            agreed = await self._exchange(peer, session.id, segment)
            if route is not None:
                carried = await self._relays.carry(segment, route.nodes, slots)
            record = self._record(peer, want, segment, slots, agreed, () if carried is None else carried.hops)
            await self._compare(peer, session.id, record, agreed, carried)
        except TrenzaError:
            ctx.counters["fills_failed"] += 1
            await self._drop(peer, segment)
            raise
        finally:
            del self._making[segment]
            finished.set()
            if agreed is not None:
                agreed.wipe()
            if carried is not None:
                carried.strand.wipe()
        return slots

    async def until_made(self, segment: bytes) -> None:
        """Return when a segment that the follower holds already is held here too, or is known not to be made."""
        finished = self._making.get(segment)
        if finished is not None:
            await finished.wait()

    def _plan(self, peer: NodeId, want: Want) -> tuple[int, Route | None]:
        """Return how many slots to make, and over which path."""
        settings = self._ctx.settings
        most = min(settings.segment_max, SLOTS_MAX, max(want.slots, settings.segment_min))
        if not want.kind.full:
            return most, None
        size = most
        while size >= settings.segment_min:
            route = self.route(peer, want, size)
            if route is not None:
                return size, route
            size //= 2
        raise NotEnoughKeyError(f"no path to node {peer} has {settings.segment_min} units of link key now")

    async def _exchange(self, peer: NodeId, session: bytes, segment: bytes) -> Agreed:
        """Run the joint exchange for a segment.

        Raises:
            StaleError: the two ends hold different roots, as after an offer that overtook another; only the hello of
                a new session can set that right.
        """
        offer, begun = self._exchanges.begin(peer, context=session + segment)
        message = SegmentOffer(session, segment, offer)
        try:
            answer = await self._ctx.peers.call(peer, message, timeout=self._ctx.settings.call_timeout)
            if not isinstance(answer, SegmentAnswer):
                raise RemoteProtocolError(f"node {peer} answered a segment offer with {type(answer).__name__}")
            return await self._exchanges.finish(peer, begun, answer.exchange, context=b"")
        except RemoteProtocolError as error:
            code = error.remote_code if isinstance(error, RefusedError) else error.code
            if code in {AuthenticationError.code, StaleError.code}:
                raise StaleError(f"this node and node {peer} are out of step: {error.message}") from error
            raise

    def _record(
        self, peer: NodeId, want: Want, segment: bytes, slots: int, agreed: Agreed, hops: tuple[HopRecord, ...]
    ) -> SegmentRecord:
        transcript = agreed.transcript
        return SegmentRecord(
            version=FORMAT_VERSION,
            segment=segment,
            leader=self._ctx.name,
            follower=peer,
            issuer=want.issuer,
            slots=slots,
            origins=FULL_ORIGINS if want.kind.full else PLAIN_ORIGINS,
            lineage=Lineage(
                agreed.exchange_id, SCHEME, transcript.initiator + transcript.responder, agreed.authentication
            ),
            hops=tuple(_hop_of(hop) for hop in hops),
            created=self._ctx.clock.now(),
            uncertainty=self._ctx.settings.clock_uncertainty,
        )

    async def _compare(
        self, peer: NodeId, session: bytes, record: SegmentRecord, agreed: Agreed, carried: Carried | None
    ) -> None:
        """Let the follower compare and commit first, then check its tag and commit here."""
        ctx = self._ctx
        encoded = record.encode()
        material = _material(agreed, record.slots, None if carried is None else carried.strand)
        try:
            verify_key = ctx.session_of(peer, session).verify_key
            tag = comparison_tag(material, encoded, verify_key=verify_key, role=b"leader")
            expected = comparison_tag(material, encoded, verify_key=verify_key, role=b"follower")
            message = SegmentCommit(session, record.segment, encoded, tag)
            answer = await ctx.peers.call(peer, message, timeout=ctx.settings.call_timeout)
            if not isinstance(answer, SegmentCommitted) or not hmac.compare_digest(answer.tag, expected):
                raise AuthenticationError(f"node {peer} holds other strands than this node")
            await self._pools.add_segment(peer, encoded, material)
            self.on_made(peer)
        finally:
            material.wipe()

    async def _drop(self, peer: NodeId, segment: bytes) -> None:
        """Tell the follower that a segment will not be; if it does not hear, the next session settles it."""
        try:
            await self._ctx.peers.call(peer, SegmentDrop(segment), timeout=self._ctx.settings.call_timeout)
        except TrenzaError:
            self._ctx.counters["drops_unheard"] += 1

    # --- the follower's side

    async def handle_offer(self, peer: NodeId, message: SegmentOffer) -> SegmentAnswer:
        """Answer the exchange for a new segment."""
        self._ctx.session_of(peer, message.session)
        self._refuse_unless_leader(peer)
        context = message.session + message.segment
        exchange, agreed = await self._exchanges.answer(peer, message.exchange, context=context)
        pending = self._pending[peer]
        self._forget(peer, message.segment)
        while len(pending) >= _PENDING_MAX:
            self._forget(peer, next(iter(pending)))
        pending[message.segment] = agreed
        return SegmentAnswer(exchange)

    async def handle_commit(self, peer: NodeId, message: SegmentCommit) -> SegmentCommitted:
        """Compare the strands and their record with the leader's; commit only what is equal."""
        ctx = self._ctx
        session = ctx.session_of(peer, message.session)
        self._refuse_unless_leader(peer)
        agreed = self._pending[peer].pop(message.segment, None)
        if agreed is None:
            raise RemoteProtocolError("no such segment is being filled")
        carried = self._relays.take_arrived(message.segment, peer)
        try:
            record = SegmentRecord.decode(message.provenance)
            self._check_record(peer, message.segment, record, agreed, carried)
            self._refuse_if_full(peer, record)
            material = _material(agreed, record.slots, None if carried is None else carried.strand)
            try:
                tag = comparison_tag(material, message.provenance, verify_key=session.verify_key, role=b"leader")
                if not hmac.compare_digest(tag, message.tag):
                    ctx.counters["segments_refused"] += 1
                    raise AuthenticationError("the strands of this segment differ between its two ends")
                answer = comparison_tag(material, message.provenance, verify_key=session.verify_key, role=b"follower")
                await self._pools.add_segment(peer, message.provenance, material)
                self.on_made(peer)
            finally:
                material.wipe()
        finally:
            agreed.wipe()
            if carried is not None:
                carried.strand.wipe()
        return SegmentCommitted(answer)

    def _refuse_if_full(self, peer: NodeId, record: SegmentRecord) -> None:
        issuer, full = NodeId(record.issuer), Origin.QKD in record.origins
        stock = self._pools.ungranted(peer, issuer, full=full)
        if issuer == peer:
            stock += self._pools.granting.unissued(peer, full=full, accept=lambda _: True)
        if stock + record.slots > _STOCK_MAX * self._ctx.settings.stock_target + self._ctx.settings.segment_max:
            self._ctx.counters["segments_beyond_stock"] += 1
            raise UnavailableError("this node holds as many strands of that kind as it will")

    async def handle_drop(self, peer: NodeId, message: SegmentDrop) -> Done:
        """Forget what there is of a segment."""
        self._forget(peer, message.segment)
        carried = self._relays.take_arrived(message.segment, peer)
        if carried is not None:
            carried.strand.wipe()
        segment = self._pools.pair(peer).segments.get(message.segment)
        if segment is not None:
            await self._pools.drop_segment(segment)
        return Done()

    def forget(self) -> None:
        """Wipe what is half done: part of dropping all strands."""
        for peer, pending in self._pending.items():
            for segment in list(pending):
                self._forget(peer, segment)

    def _forget(self, peer: NodeId, segment: bytes) -> None:
        agreed = self._pending[peer].pop(segment, None)
        if agreed is not None:
            agreed.wipe()

    def _refuse_unless_leader(self, peer: NodeId) -> None:
        if self._ctx.leads(peer):
            raise RemoteProtocolError(f"node {peer} does not lead this pair")

    def _check_record(
        self, peer: NodeId, segment: bytes, record: SegmentRecord, agreed: Agreed, carried: Carried | None
    ) -> None:
        """Refuse a record that tells another story than this node has seen."""
        ctx = self._ctx
        transcript = agreed.transcript
        hops = () if carried is None else tuple(_hop_of(hop) for hop in carried.hops)
        truths = (
            record.segment == segment,
            record.leader == peer,
            record.follower == ctx.name,
            record.issuer in {peer, ctx.name},
            0 < record.slots <= min(ctx.settings.segment_max, SLOTS_MAX),
            record.origins == (PLAIN_ORIGINS if carried is None else FULL_ORIGINS),
            record.lineage.exchange == agreed.exchange_id,
            record.lineage.transcript == transcript.initiator + transcript.responder,
            record.lineage.authentication == agreed.authentication,
            record.hops == hops,
            carried is None or len(carried.strand) == record.slots * STRAND_BYTES,
            abs(record.created - ctx.clock.now()) <= ctx.settings.clock_tolerance,
        )
        if not all(truths):
            ctx.counters["segments_refused"] += 1
            raise RemoteProtocolError("the segment's record does not tell what this node has seen")


def _material(agreed: Agreed, slots: int, qkd: Secret | None) -> Secret:
    classical, pqc = strand_blocks(agreed.secrets, agreed.transcript, slots=slots)
    material = assemble(agreed.transcript, classical, pqc, qkd)
    classical.wipe()
    pqc.wipe()
    return material


def _hop_of(hop: HopRecord) -> Hop:
    return Hop(hop.link, hop.sender, hop.receiver, Supply(hop.supply), hop.emulated, hop.bootstrap, hop.epsilon)
