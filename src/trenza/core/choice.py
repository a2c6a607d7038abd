"""Which recipes and strands may serve a request: the policy's ladder and the caller's wishes, together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trenza.base.errors import InvalidRequestError
from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds, Seconds, nanoseconds
from trenza.core.delivery import Wishes
from trenza.core.policy import Policy
from trenza.core.recipe import LOCAL, Recipe
from trenza.core.segment import SegmentFacts

UNMET = "not all extension_mandatory request options could be met"
"""The sentence of ETSI GS QKD 014 V1.1.1 for a supported wish that cannot be met."""


def recipes_for(policy: Policy, wishes: Wishes, *, same_node: bool) -> tuple[Recipe, ...]:
    """Return the recipes of the policy's ladder that meet the wishes, best first; never one that is not in it.

    Args:
        policy: of the SAE pair.
        wishes: of the caller.
        same_node: whether one node serves both SAEs; then only LOCAL can, and otherwise never (decision 3).

    Raises:
        InvalidRequestError: the ladder has no such recipe.
    """
    fitting = tuple(
        recipe
        for recipe in policy.recipes
        if (recipe is LOCAL) == same_node
        and wishes.origins <= recipe.origins
        and wishes.recipe in {None, recipe.name}
    )
    if not fitting:
        raise InvalidRequestError(UNMET)
    return fitting


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Which segments somebody accepts: by the way their strands came, and by when they were made."""

    max_hops: int
    relays: frozenset[NodeId]  # that the QKD strands may cross; empty: any
    oldest: Nanoseconds

    def __call__(self, facts: SegmentFacts) -> bool:
        record = facts.record
        return record.created >= self.oldest and self.suits(len(record.hops), facts.known_to)

    def suits(self, hops: int, known_to: Sequence[str]) -> bool:
        """Tell whether strands that came this way are accepted, young enough or not."""
        return hops <= self.max_hops and (not self.relays or self.relays.issuperset(known_to))


@dataclass(frozen=True, slots=True)
class StrandKind:
    """Which strands suit: what a policy, or several alike, accept."""

    full: bool  # with QKD strands
    max_hops: int
    relays: frozenset[NodeId]  # that the QKD strands may cross; empty: any
    max_age_s: int

    @staticmethod
    def of(policy: Policy, *, full: bool) -> StrandKind:
        """Return the kind that `policy` accepts, with QKD strands or without; without them the way says nothing."""
        if not full:
            return StrandKind(full=False, max_hops=0, relays=frozenset(), max_age_s=policy.max_age_s)
        return StrandKind(
            full=True,
            max_hops=policy.max_hops,
            relays=frozenset(policy.allowed_nodes),
            max_age_s=policy.max_age_s,
        )

    def acceptance(self, *, oldest: Nanoseconds) -> Acceptance:
        """Return the test that a segment must pass: hops, relays, and made at `oldest` or later."""
        return Acceptance(self.max_hops, self.relays, oldest)


def acceptance(policy: Policy, wishes: Wishes, *, now: Nanoseconds) -> Acceptance:
    """Return the test that a segment must pass: hops, relays and age."""
    max_hops = policy.max_hops if wishes.max_hops is None else min(policy.max_hops, wishes.max_hops)
    age = Seconds(float(policy.max_age_s))
    if wishes.max_age is not None:
        age = min(age, wishes.max_age)
    return Acceptance(max_hops, frozenset(policy.allowed_nodes), Nanoseconds(now - nanoseconds(age)))
