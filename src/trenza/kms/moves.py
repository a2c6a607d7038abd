"""SAEs that a newer book serves at another node: the keys issued to them before stay where they are.

A key can be fetched at the node to which it was issued, and nowhere else. So when a book moves an SAE or its partner,
the node that served it goes on delivering what was issued until then, for as long as such a key may wait, and only to
an SAE that the book in force still knows, in a pair that it still lets share keys (docs/adr/0013-policy-book.md).
"""

from __future__ import annotations

from trenza.base.names import NodeId, SaeId
from trenza.base.units import Nanoseconds, Seconds, nanoseconds
from trenza.kms.context import Context
from trenza.kms.slots import Pair


def placed_before(ctx: Context, initiator: SaeId, target: SaeId) -> list[tuple[Pair, Nanoseconds]]:
    """Return a pair as earlier books placed it while this node served the target, newest first.

    Returns:
        Each with the moment until which its keys may be fetched.
    """
    book = ctx.book
    if book.policy_between(initiator, target) is None:
        return []
    seen = {(book.sae_by_name[initiator].node, book.sae_by_name[target].node)}
    found: list[tuple[Pair, Nanoseconds]] = []
    for former, replaced in zip(ctx.former_books, ctx.replaced, strict=True):
        policy = former.policy_between(initiator, target)
        first, second = former.sae_by_name.get(initiator), former.sae_by_name.get(target)
        if policy is None or first is None or second is None or second.node != ctx.name:
            continue
        place = first.node, second.node
        if place in seen or not book.node_by_name.keys() >= set(place):  # a node that was taken out is not trusted
            continue
        seen.add(place)
        until = replaced + nanoseconds(Seconds(float(policy.key_lifetime_s)))
        found.append((Pair(first, second, policy), Nanoseconds(until)))
    return found


def served_before(ctx: Context, sae: SaeId) -> NodeId | None:
    """Return the other node that served an SAE last and may still have keys for it."""
    now = ctx.clock.now()
    for former, replaced in zip(ctx.former_books, ctx.replaced, strict=True):
        entry = former.sae_by_name.get(sae)
        lifetime = nanoseconds(Seconds(float(former.longest_key_lifetime_s)))
        if entry is not None and entry.node != ctx.name and now <= replaced + lifetime:
            return entry.node
    return None
