"""What the management door shows, made from what the node knows. Reads only; never a key bit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import msgspec

from trenza.base.errors import DeviceUnavailableError
from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds, Seconds
from trenza.core.chain import Checkpoint
from trenza.core.pads import UNIT_BYTES
from trenza.core.provenance import SegmentRecord
from trenza.kms.context import LinkEnd
from trenza.kms.explain import Explanation
from trenza.kms.exposed import Exposed, Page
from trenza.kms.node import Node
from trenza.kms.ports import ChainHead, LedgerEntry
from trenza.net.rpc_frames import MessageCounters
from trenza.net.tls import TlsStatistics
from trenza.wire import management as wire
from trenza.wire.etsi014.answers import rfc3339

_READING_TIMEOUT = Seconds(1.0)


async def status(
    node: Node,
    *,
    version: str,
    tls: Mapping[str, TlsStatistics],
    messages: Mapping[NodeId, Sequence[MessageCounters]],
    instance: wire.InstanceStatus | None = None,
) -> wire.NodeStatus:
    """Return the state of the whole node."""
    ctx = node.ctx
    head = await ctx.store.head()
    return wire.NodeStatus(
        node=ctx.name,
        version=version,
        epoch=ctx.presence.epoch,
        incarnation=ctx.presence.incarnation,
        book_version=ctx.book.version if ctx.has_book else 0,
        time=rfc3339(ctx.clock.now()),
        sessions=_sessions(node),
        pools=tuple(_pools(node)),
        links=await _links(node),
        tls=tuple(_tls(door, statistics) for door, statistics in tls.items()),
        messages=tuple(_messages(peer, counters) for peer, counters in messages.items()),
        counters=dict(sorted(ctx.counters.items())),
        troubles=dict(sorted(node.troubles.items())),
        ledger=wire.Head(head.sequence, head.hash.hex()),
        instance=instance,
    )


def health(node: Node) -> wire.Health:
    """Tell whether this node can issue keys, and what is missing."""
    if not node.ctx.has_book:
        return wire.Health(healthy=False, why=("no policy book yet",))
    partners = node.partners()
    silent = [peer for peer in partners if not node.sessions.has_lease(peer)]
    return wire.Health(
        healthy=not partners or len(silent) < len(partners),
        why=tuple(f"no live session with node {peer}" for peer in silent),
    )


def _sessions(node: Node) -> tuple[wire.SessionStatus, ...]:
    now = node.ctx.clock.elapsed()
    return tuple(
        wire.SessionStatus(
            peer, round(max(0.0, session.lease_until - now), 3), session.theirs.epoch, session.theirs.incarnation
        )
        for peer, session in sorted(node.ctx.sessions.items())
    )


def _pools(node: Node) -> Iterator[wire.PoolStatus]:
    me, pools = node.ctx.name, node.pools
    for peer in node.partners():
        mine, theirs = node.demand.mark(peer), pools.pair(peer).peer_stock
        for full, kind in ((True, "full"), (False, "plain")):
            if not node.demand.wanted(peer, full=full):
                continue
            granted = sum(
                window.count - window.issued
                for window in pools.pair(peer).held.values()
                if window.facts.full is full and window.closed is None
            )
            for issuer, mark, by_us in ((me, mine, 0), (peer, theirs, granted)):
                yield wire.PoolStatus(
                    peer=peer,
                    issuer=issuer,
                    kind=kind,
                    issuable=mark.full if full else mark.plain,
                    ungranted=pools.ungranted(peer, issuer, full=full),
                    granted_by_us=by_us,
                    per_second=round(mark.full_rate if full else mark.plain_rate, 3),
                )


async def _links(node: Node) -> tuple[wire.LinkStatus, ...]:
    ends = [end for _, end in sorted(node.ctx.links.items())]
    readings = await asyncio.gather(*(_reading(end) for end in ends))
    return tuple(
        wire.LinkStatus(end.link, end.peer, end.emulated, _stock(node, end), reading)
        for end, reading in zip(ends, readings, strict=True)
    )


def _stock(node: Node, end: LinkEnd) -> tuple[wire.StockStatus, ...]:
    bits = UNIT_BYTES * 8
    streams = [(sender, node.pads.stream(end.link, sender)) for sender in sorted((node.ctx.name, end.peer))]
    return tuple(
        wire.StockStatus(sender, stream.available() * bits, stream.available(reserve=True) * bits)
        for sender, stream in streams
    )


async def _reading(end: LinkEnd) -> wire.ReadingStatus | None:
    if end.telemetry is None:
        return None
    try:
        async with asyncio.timeout(_READING_TIMEOUT):
            told = await end.telemetry.read()
    except (DeviceUnavailableError, TimeoutError):
        return None
    return wire.ReadingStatus(told.state, told.qber, told.secret_bits_per_second, told.loss_db, told.alarms)


def _tls(door: str, statistics: TlsStatistics) -> wire.TlsStatus:
    return wire.TlsStatus(
        door,
        dict(statistics.completed),
        dict(statistics.failed),
        statistics.connections_open,
        dict(statistics.refused),
    )


def _messages(peer: NodeId, counters: Sequence[MessageCounters]) -> wire.MessagesStatus:
    return wire.MessagesStatus(
        peer, sum(one.messages_out for one in counters), sum(one.messages_in for one in counters)
    )


# --- provenance ----------------------------------------------------------------------------------------------------


def key(explanation: Explanation) -> wire.KeyStatement:
    """Return what protected a key."""
    segment = explanation.segment
    return wire.KeyStatement(
        key_ID=str(explanation.key_id),
        node=explanation.node,
        recipe=explanation.recipe,
        size=explanation.size,
        events=tuple(
            wire.Event(event.kind, rfc3339(event.time), event.sequence, _plain(event.record))
            for event in explanation.events
        ),
        segment=None if segment is None else _segment(segment),
        segment_digest=explanation.segment_digest.hex(),
        braids=tuple(str(braid) for braid in explanation.braids),
        issuer=explanation.issuer,
    )


def exposure(
    node: NodeId,
    since: Nanoseconds,
    until: Nanoseconds,
    page: Page,
    *,
    pruned_until: Nanoseconds | None,
) -> wire.Exposure:
    """Return which keys a node exposed in a time, as far as the records of then are still there: one page."""
    gap = None if pruned_until is None or pruned_until <= since else rfc3339(pruned_until)
    after = None if page.next is None else ".".join(map(str, page.next))
    return wire.Exposure(node, rfc3339(since), rfc3339(until), tuple(map(_exposed, page.found)), gap, after)


def _exposed(one: Exposed) -> wire.ExposedKeys:
    event = one.event
    return wire.ExposedKeys(
        event.kind, rfc3339(event.time), event.sequence, _plain(event.record), _segment(one.segment)
    )


def _segment(record: SegmentRecord) -> dict[str, Any]:
    """Return a segment's record, its time for people, and what follows from its hops."""
    followed = {"known_to": record.known_to, "supply": record.supply, "epsilon": record.epsilon}
    stated: dict[str, Any] = _plain(record)
    created = {"created": rfc3339(Nanoseconds(record.created)), "created_ns": record.created}
    return stated | created | {name: _plain(value) for name, value in followed.items()}


def _plain(value: Any) -> Any:
    """Return a record in JSON's types, all of it: bytes in hexadecimal."""
    match value:
        case bytes():
            return value.hex()
        case Enum():
            return value.value
        case msgspec.Struct():
            return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
        case tuple() | list():
            return [_plain(one) for one in value]
        case _:
            return value


# --- the ledger ----------------------------------------------------------------------------------------------------


def entries(found: Sequence[LedgerEntry], *, limit: int, start: ChainHead) -> wire.Entries:
    """Return one page of the ledger."""
    shown = tuple(
        wire.Entry(
            one.sequence, rfc3339(one.time), one.time, one.kind, one.body.hex(), one.hash.hex(), tuple(one.terms)
        )
        for one in found
    )
    last = found[-1].sequence if len(found) == limit else None
    return wire.Entries(shown, last, wire.Head(start.sequence, start.hash.hex()))


def checkpoints(signed: Iterable[Checkpoint]) -> wire.Checkpoints:
    """Return all checkpoints of this node."""
    return wire.Checkpoints(
        tuple(
            wire.SignedHead(one.node, one.sequence, one.hash.hex(), rfc3339(one.time), one.time, one.signature.hex())
            for one in signed
        )
    )
