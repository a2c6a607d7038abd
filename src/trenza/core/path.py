"""Which way a strand is carried: over the links with plenty of key, and past as few nodes as possible.

Pure. Advice from others about levels comes in as a mapping; it can make a path worse, never unsafe, since every
node checks routes against the signed book.

What is best, in this order:
    1. plenty: the narrowest link of the path, counted in doublings of what is needed, up to eight times; beyond
       that more key is no advantage. So a path is not sent a long way round for a little more key.
    2. exposure: fewest relays, since every relay sees the strand.
    3. the names of the nodes in alphabetical order, so that the same facts always give the same path.
Paths that cannot carry all units are no paths. Source: widest-path routing in coarse classes; the exact widest path
(Pollack 1960) is given up in favour of rule 2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from trenza.base.names import LinkId, NodeId
from trenza.core.policy import LinkEntry

_CLASSES = 4
"""Enough for 1, 2, 4, or 8 times what is needed."""


@dataclass(frozen=True, slots=True)
class Route:
    """A way through the network: the nodes from end to end, and what its narrowest link holds."""

    nodes: tuple[NodeId, ...]
    width: int  # units

    @property
    def hops(self) -> int:
        return len(self.nodes) - 1

    @property
    def relays(self) -> tuple[NodeId, ...]:
        return self.nodes[1:-1]


def best_path(
    source: NodeId,
    target: NodeId,
    links: Iterable[LinkEntry],
    available: Mapping[tuple[LinkId, NodeId], int],
    units: int,
    *,
    allowed_nodes: Collection[NodeId] = (),
    max_hops: int,
    avoid_nodes: Collection[NodeId] = (),
    avoid_links: Collection[LinkId] = (),
) -> Route | None:
    """Return the best route that can carry `units` now, or None.

    Args:
        source: where the strand begins.
        target: where it ends; another node than `source`.
        links: the book's.
        available: traffic units by link and sending end; a link that is not named holds none.
        units: how many are needed, at least 1.
        allowed_nodes: relays that may see the strand; empty: any. The two ends need not be named.
        max_hops: links crossed at most.
        avoid_nodes: relays not to use, such as those of another share's path.
        avoid_links: links not to use.
    """
    assert source != target
    assert units > 0
    widths = _widths(links, available, avoid_links)
    relays = {
        node
        for pair in widths
        for node in pair
        if node not in avoid_nodes and (not allowed_nodes or node in allowed_nodes)
    }
    usable = {
        (sender, receiver): width
        for (sender, receiver), width in widths.items()
        if (sender in relays or sender == source) and (receiver in relays or receiver == target)
    }
    for times in (1 << exponent for exponent in reversed(range(_CLASSES))):
        wide = {pair: width for pair, width in usable.items() if width >= units * times}
        if nodes := _shortest(source, target, wide, max_hops):
            return Route(nodes, min(wide[pair] for pair in pairwise(nodes)))
    return None


def _widths(
    links: Iterable[LinkEntry], available: Mapping[tuple[LinkId, NodeId], int], avoid_links: Collection[LinkId]
) -> dict[tuple[NodeId, NodeId], int]:
    """Return what can be sent from node to node; of parallel links a strand takes the fullest."""
    widths: dict[tuple[NodeId, NodeId], int] = {}
    for link in links:
        if link.name in avoid_links:
            continue
        one, other = link.ends
        for sender, receiver in ((one, other), (other, one)):
            width = available.get((link.name, sender), 0)
            widths[sender, receiver] = max(width, widths.get((sender, receiver), 0))
    return widths


def _shortest(
    source: NodeId, target: NodeId, pairs: Collection[tuple[NodeId, NodeId]], max_hops: int
) -> tuple[NodeId, ...] | None:
    """Return the path of fewest hops, the first by name among equals: distances from the far end, then downhill."""
    senders_to: defaultdict[NodeId, list[NodeId]] = defaultdict(list)
    receivers_of: defaultdict[NodeId, list[NodeId]] = defaultdict(list)
    for sender, receiver in pairs:
        senders_to[receiver].append(sender)
        receivers_of[sender].append(receiver)
    distance = {target: 0}
    frontier = [target]
    while frontier and source not in distance:
        reached = sorted({sender for node in frontier for sender in senders_to[node]} - distance.keys())
        distance |= dict.fromkeys(reached, distance[frontier[0]] + 1)
        frontier = reached
    if distance.get(source, max_hops + 1) > max_hops:
        return None
    nodes = [source]
    while nodes[-1] != target:
        here = nodes[-1]
        nodes.append(min(near for near in receivers_of[here] if distance.get(near) == distance[here] - 1))
    return tuple(nodes)
