"""A running network at one moment, for whoever draws it. Frozen values; numbers and names only, never a key bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trenza.base.names import LinkId, NodeId
from trenza.base.units import Bits, BitsPerSecond, Seconds


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node."""

    name: NodeId
    title: str
    region: str
    operator: str
    running: bool
    sessions: int  # live ones
    partners: int  # sessions it needs to serve its applications
    troubles: tuple[str, ...]  # what its tasks last failed with
    restarts: int = 0  # of its process, where it has one of its own


@dataclass(frozen=True, slots=True)
class LinkView:
    """One QKD link and the key in it."""

    name: LinkId
    ends: tuple[NodeId, NodeId]
    state: str  # of its devices: "starting" | "running" | "cut" | "qber-high" | "dead" | "disabled"
    rate: BitsPerSecond  # of the devices now
    stored: Bits | None  # in the devices, not yet fetched; None where they are another process's
    stock: tuple[Bits, Bits]  # traffic key the nodes hold: under which the first end sends, and the second


@dataclass(frozen=True, slots=True)
class PoolView:
    """What two nodes have ready for the first recipe of their applications' policies."""

    nodes: tuple[NodeId, NodeId]
    recipe: str
    stock: tuple[int, int]  # slots that the first can issue, granted or not, and the second
    target: int


@dataclass(frozen=True, slots=True)
class NetworkView:
    """The whole network. Counts grow from its start."""

    scenario: str
    title: str
    elapsed: Seconds  # since it was ready
    nodes: tuple[NodeView, ...]
    links: tuple[LinkView, ...]
    pools: tuple[PoolView, ...]
    keys_issued: int
    keys_delivered: int
    segments_filled: int
    relays: int  # strands carried over one hop
    handshakes: Mapping[str, int]  # between all parts, by TLS group
    messages: int  # between nodes
    counters: Mapping[str, int]  # of all nodes, summed
