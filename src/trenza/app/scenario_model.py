"""A network as data: the values a scenario file is read into.

Values only: `app/scenario.py` reads them, `app/scenario_checks.py` finds the mistakes between them. A scenario says
what the network is; where each node listens and which certificates it has are said when it is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum, unique
from typing import Annotated

import msgspec

from trenza.base.names import LinkId, NodeId, SaeId, TenantId
from trenza.core.keyid import SLOTS_MAX
from trenza.core.policy import Book, LinkEntry, NodeEntry, Policy, Rule, SaeEntry, TenantEntry

Whole = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=10**6)]
SegmentSize = Annotated[int, msgspec.Meta(ge=1, le=SLOTS_MAX)]
Factor = Annotated[float, msgspec.Meta(gt=0, le=10**6)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=10**12)]
Length = Annotated[float, msgspec.Meta(ge=0, le=100_000)]
Loss = Annotated[float, msgspec.Meta(ge=0, le=200)]
Text = Annotated[str, msgspec.Meta(min_length=1)]


@unique
class Evidence(StrEnum):
    """How far a figure or a site can be relied upon; shown wherever it is."""

    PUBLISHED = "published"
    """Printed in a public source."""

    ESTIMATED = "estimated"
    """The thing exists publicly; the figure is ours."""

    INVENTED = "invented"
    """Ours altogether: plausible, and nobody's network."""


class Defaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds where nothing else is said; the last three are those of a link."""

    target_stock_keys: Positive = 2_048
    """Keys of 256 bits that each pair of nodes keeps ready, per recipe that its policies name."""

    min_segment_keys: Positive = 64
    """Fill no less than this at a time."""

    max_segment_keys: SegmentSize = 1_024
    """Fill no more than this at a time."""

    device_class: str = "decoy-bb84-1ghz"
    initial_stock_bits: Whole = 0
    time_factor: Factor = 1.0


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site with a KMS. `evidence` speaks of the site's part in a QKD network, not of the building."""

    name: NodeId
    operator: Text
    region: Text
    evidence: Evidence
    title: str = ""
    note: str = ""


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two nodes joined by a pair of QKD devices."""

    name: LinkId
    ends: tuple[NodeId, NodeId]
    length_km: Length
    loss_db: Loss
    evidence: Evidence
    """Of the link and its length."""

    loss_evidence: Evidence
    device_class: str
    """What is emulated; `technology` is what stands there, where that is known."""

    initial_stock_bits: Whole
    """Key made before the story begins; provenance calls it `warm`."""

    time_factor: Factor
    """Multiplies the rate; key of any factor but 1 is `synthetic`."""

    fixed_rate_bps: Rate | None = None
    """Replaces the physics' rate; the key is `synthetic`."""

    technology: str = ""
    note: str = ""


class Sae(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An application and the node that serves it."""

    name: SaeId
    node: NodeId
    title: str = ""
    identity: str = ""
    tenant: TenantId = TenantId("default")


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole network: sites, links, applications, and who may share keys with whom."""

    name: Text
    title: Text
    nodes: tuple[Node, ...]
    links: tuple[Link, ...] = ()
    saes: tuple[Sae, ...] = ()
    policies: tuple[Policy, ...] = ()
    rules: tuple[Rule, ...] = ()
    tenants: tuple[TenantEntry, ...] = ()
    defaults: Defaults = Defaults()
    attribution: str = ""
    """Whose figures these are; shown wherever they are."""

    def book(self, version: int, peer_addresses: Mapping[NodeId, str]) -> Book:
        """Return the policy book of this network, for the key officer to sign.

        Args:
            version: the book's version, greater than that of every book before it.
            peer_addresses: host:port of every node's listener for its peers.

        Raises:
            KeyError: a node has no address.
        """
        return Book(
            version=version,
            nodes=tuple(NodeEntry(n.name, peer_addresses[n.name], operator=n.operator) for n in self.nodes),
            links=tuple(
                LinkEntry(link.name, link.ends, device_class=link.device_class, evidence=link.evidence.value)
                for link in self.links
            ),
            saes=tuple(SaeEntry(s.name, s.node, identity=s.identity, tenant=s.tenant) for s in self.saes),
            policies=self.policies,
            rules=self.rules,
            tenants=self.tenants,
        )

    def links_of(self, node: NodeId) -> Iterator[Link]:
        """Yield the links that end at `node`."""
        return (link for link in self.links if node in link.ends)
