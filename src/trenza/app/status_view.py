"""A network drawn from what its nodes tell their operators, for whoever shares no memory with them. Pure."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from trenza.app.readiness import Direction
from trenza.app.scenario_model import Link, Node, Scenario
from trenza.app.view import LinkView, NetworkView, NodeView, PoolView
from trenza.base.names import NodeId
from trenza.base.units import Bits, BitsPerSecond, Seconds
from trenza.wire.management import LinkStatus, NodeStatus

_Told = Mapping[NodeId, NodeStatus | None]


def view_of(
    scenario: Scenario,
    told: _Told,
    directions: Sequence[Direction],
    *,
    since: float,
    restarts: Mapping[NodeId, int],
    running: Collection[NodeId],
) -> NetworkView:
    """Return the view of a network.

    Args:
        scenario: what there is.
        told: the last status of each node; None where it did not answer.
        directions: what the applications need.
        since: when the network was ready, on time.monotonic.
        restarts: of each node's process.
        running: the nodes whose process lives.
    """
    counters: Counter[str] = Counter()
    handshakes: Counter[str] = Counter()
    messages = 0
    for status in told.values():
        if status is None:
            continue
        counters.update(status.counters)
        messages += sum(one.sent for one in status.messages)
        for door in status.tls:  # each handshake once, where it was accepted; the devices tell nobody of theirs
            if not door.door.startswith("to ") or door.door == "to devices":
                handshakes.update(door.handshakes)
    return NetworkView(
        scenario=scenario.name,
        title=scenario.title,
        elapsed=Seconds(time.monotonic() - since),
        nodes=tuple(
            _node(site, told.get(site.name), restarts.get(site.name, 0), running=site.name in running)
            for site in scenario.nodes
        ),
        links=tuple(_link(link, told) for link in scenario.links),
        pools=_pools(directions, told, scenario.defaults.target_stock_keys),
        keys_issued=counters["keys_issued"],
        keys_delivered=counters["keys_delivered"],
        segments_filled=counters["segments_filled"],
        relays=counters["relays_carried"] + counters["relays_passed_on"],
        handshakes=dict(handshakes),
        messages=messages,
        counters=dict(counters),
    )


def _node(site: Node, status: NodeStatus | None, restarts: int, *, running: bool) -> NodeView:
    sessions = () if status is None else status.sessions
    troubles = {} if status is None else status.troubles
    partners = set() if status is None else {pool.peer for pool in status.pools}
    return NodeView(
        name=site.name,
        title=site.title or site.name,
        region=site.region,
        operator=site.operator,
        running=running and status is not None,
        sessions=sum(one.lease_s > 0 and one.peer in partners for one in sessions),
        partners=len(partners),
        troubles=tuple(f"{task}: {text}" for task, text in sorted(troubles.items())),
        restarts=restarts,
    )


def _link(link: Link, told: _Told) -> LinkView:
    ends = [_end(link, told.get(end)) for end in link.ends]
    reading = next((end.reading for end in ends if end is not None and end.reading is not None), None)
    stock = [
        next((one.traffic_bits for one in end.stock if one.sender == name), 0) if end is not None else 0
        for name, end in zip(link.ends, ends, strict=True)
    ]
    state = "unknown" if reading is None else reading.state
    rate = BitsPerSecond(0.0 if reading is None else reading.secret_bits_per_second or 0.0)
    return LinkView(link.name, link.ends, state, rate, None, (Bits(stock[0]), Bits(stock[1])))


def _end(link: Link, status: NodeStatus | None) -> LinkStatus | None:
    return None if status is None else next((one for one in status.links if one.link == link.name), None)


def _pools(directions: Sequence[Direction], told: _Told, target: int) -> tuple[PoolView, ...]:
    found: dict[tuple[NodeId, NodeId], PoolView] = {}
    for one in directions:
        first, second = sorted((one.issuer, one.target))
        stock = (_stock(told.get(first), second, full=one.full), _stock(told.get(second), first, full=one.full))
        found.setdefault((first, second), PoolView((first, second), one.recipe, stock, target))
    return tuple(found.values())


def _stock(issuer: NodeStatus | None, peer: NodeId, *, full: bool) -> int:
    """Return what a node can issue to another, granted or not, as it says itself."""
    if issuer is None:
        return 0
    kind = "full" if full else "plain"
    return sum(
        pool.issuable + pool.ungranted
        for pool in issuer.pools
        if (pool.peer, pool.issuer, pool.kind) == (peer, issuer.node, kind)
    )
