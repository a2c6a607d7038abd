"""When a network is ready: every rule's pair can issue in both directions what its policy names first. Pure.

What nodes can issue is read from the nodes themselves, or from what they tell their operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trenza.app.scenario_model import Scenario
from trenza.base.names import NodeId
from trenza.core.recipe import LOCAL
from trenza.kms.node import Node
from trenza.wire.management import NodeStatus


@dataclass(frozen=True, slots=True, order=True)
class Direction:
    """One node issues keys of a recipe for applications of another."""

    issuer: NodeId
    target: NodeId
    full: bool  # needs QKD
    recipe: str

    def __str__(self) -> str:
        return f"{self.issuer} to {self.target} ({self.recipe})"


def directions_of(scenario: Scenario) -> tuple[Direction, ...]:
    """Return what must be in stock, in the order of the rules; the same nodes and recipe once."""
    node_of = {sae.name: sae.node for sae in scenario.saes}
    policies = {policy.name: policy for policy in scenario.policies}
    found: dict[Direction, None] = {}
    for rule in scenario.rules:
        first, second = (node_of[sae] for sae in rule.between)
        recipes = [recipe for recipe in policies[rule.policy].recipes if recipe is not LOCAL]
        if first == second or not recipes:
            continue
        for issuer, target in ((first, second), (second, first)):
            found[Direction(issuer, target, recipes[0].needs_qkd, recipes[0].name)] = None
    return tuple(found)


def missing_in(directions: Sequence[Direction], nodes: Mapping[NodeId, Node]) -> list[Direction]:
    """Return the directions in which nothing can be issued now."""
    return [
        one
        for one in directions
        if not nodes[one.issuer].sessions.has_lease(one.target)
        or nodes[one.issuer].pools.issuable(one.target, full=one.full) == 0
    ]


def missing_by_status(directions: Sequence[Direction], told: Mapping[NodeId, NodeStatus | None]) -> list[Direction]:
    """Return the directions in which nothing can be issued, by what each node told last; None: it did not answer."""
    return [one for one in directions if not _can_issue(told.get(one.issuer), one)]


def _can_issue(status: NodeStatus | None, direction: Direction) -> bool:
    if status is None:
        return False
    peer, kind = direction.target, "full" if direction.full else "plain"
    leased = any(session.peer == peer and session.lease_s > 0 for session in status.sessions)
    return leased and any(
        (pool.peer, pool.issuer, pool.kind) == (peer, direction.issuer, kind) and pool.issuable
        for pool in status.pools
    )
