"""What protected a key, in words: the nodes' statements about it turned into sentences and tables for people.

Says nothing that the statements do not say, and leaves nothing out that weakens the key: a trusted node that saw its
QKD bits, an emulated link, an unauthenticated exchange.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.table import Table

from trenza.base.units import NANOSECONDS_PER_SECOND, Bits
from trenza.cli.output import table
from trenza.cli.records import HopTold, SegmentTold, UseTold, told
from trenza.core.recipe import Combiner, Recipe, recipe_named
from trenza.core.strand import Origin
from trenza.wire.management import KeyStatement

_WAYS: Final = {
    Combiner.RANDOM: "drawn from the node's random generator",
    Combiner.QKD_BITS: "the QKD bits themselves, with nothing mixed in",
    Combiner.ITS_XOR: "the QKD bits, each masked by a key made of the other strands",
}


def told_of(statements: Sequence[KeyStatement]) -> Iterator[str | Table]:
    """Yield what the nodes that know a key tell of it.

    Args:
        statements: one of each node that knows the key; at least one.
    """
    first = statements[0]
    recipe = recipe_named(first.recipe)
    yield from _opening(first, recipe, statements)
    segment = next((one.segment for one in statements if one.segment is not None), None)
    if segment is not None:
        yield from _strands(told(segment, SegmentTold), recipe)
    elif first.braids:
        yield "It travelled to its targets under these keys, each of which can be explained:"
        yield table(("carried under",), [(braid,) for braid in first.braids])
    else:
        yield "It never left the node where it was drawn."
    yield _events(statements)
    yield _agreement(statements)


def _opening(first: KeyStatement, recipe: Recipe, statements: Sequence[KeyStatement]) -> Iterator[str]:
    use = next((told(event.record, UseTold) for one in statements for event in one.events), None)
    way = _WAYS.get(recipe.combiner, f"braided with {recipe.combiner.value}")
    yield (
        f"A {first.size}-bit key{f' of {use.initiator} and {use.target}' if use else ''}, "
        f"recipe {recipe.name}: {_named(recipe)}, {way}. Strength: {recipe.strength(Bits(first.size))}."
    )
    issuer = next((one.issuer for one in statements if one.issuer is not None), None)
    if use is not None and issuer is not None:
        yield f"Issued by {issuer}: {use.initiator} asked for it, {use.target} fetches it by its ID."
    if use is not None:
        yield f"Policy: {use.policy} (digest {use.policy_digest[:16]}…, bound into the key)."


def _named(recipe: Recipe) -> str:
    return " + ".join(sorted(origin.name for origin in recipe.origins))


def _strands(segment: SegmentTold, recipe: Recipe) -> Iterator[str | Table]:
    exchange = f"exchange {segment.lineage.exchange[:16]}… ({segment.lineage.scheme})"
    rows = []
    for origin in sorted(recipe.origins, key=lambda origin: origin.name):
        if origin is Origin.QKD:
            nodes = [segment.hops[0].sender, *(hop.receiver for hop in segment.hops)] if segment.hops else []
            rows.append((origin.name, " → ".join(nodes), ", ".join(segment.known_to) or "nobody"))
        else:
            rows.append((origin.name, exchange, "nobody"))
    yield table(("strand", "from", "seen by, beside the two ends"), rows)
    if segment.hops and recipe.needs_qkd:
        columns = ("link", "from", "to", "supply", "emulated", "first authentication", "ε")
        yield table(columns, [_hop(hop) for hop in segment.hops])
    authentication = " and ".join(segment.lineage.authentication)
    yield (
        f"The exchange was authenticated by {authentication}." if authentication else "Its exchange was NOT verified."
    )
    supply = f" Supply: {segment.supply}; ε: {_epsilon(segment.epsilon)}." if recipe.needs_qkd else ""
    yield (
        f"{segment.leader} and {segment.follower} compared the strands before use; they exist since "
        f"{segment.created} ± {_seconds(segment.uncertainty)}.{supply}"
    )


def _hop(hop: HopTold) -> tuple[str, ...]:
    emulated = "yes" if hop.emulated else "no"
    return (hop.link, hop.sender, hop.receiver, hop.supply, emulated, hop.bootstrap, _epsilon(hop.epsilon))


def _events(statements: Sequence[KeyStatement]) -> Table:
    rows: list[tuple[str, str, str, int, str]] = []
    for one in statements:
        for event in one.events:
            use = told(event.record, UseTold)
            moment = f"{event.time} ± {_seconds(use.uncertainty)}"
            rows.append((one.node, event.kind, moment, event.sequence, use.tls_group or "not told"))
    columns = ("node", "what", "when", "ledger entry ", "application's TLS")
    rows.sort(key=lambda row: row[2])
    return table(columns, rows)


def _agreement(statements: Sequence[KeyStatement]) -> str:
    digests = {one.segment_digest for one in statements if one.segment_digest}
    nodes = " and ".join(one.node for one in statements)
    if len(digests) > 1:
        return f"{nodes} tell DIFFERENT stories of its strands: run `trenza audit`."
    if len(statements) == 1:
        return f"Only {nodes} knows this key."
    digest = f" Its digest, bound into the key: {digests.pop()[:32]}…" if digests else ""
    return f"{nodes} tell the same story.{digest}"


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / NANOSECONDS_PER_SECOND:g} s"


def _epsilon(value: float | None) -> str:
    return "not stated" if value is None else f"{value:.1e}"
