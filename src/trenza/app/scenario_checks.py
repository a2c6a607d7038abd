"""What is wrong with a scenario whose entries are each well formed: mistakes between them.

Pure. What a policy book may not say is asked of `core/policy`; only what a book does not know is judged here:
device classes, stock levels, whether the links make one network. Each mistake names its place, so that the reader can
tell the line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from trenza.app.scenario_lines import Place
from trenza.app.scenario_model import Link, Node, Sae, Scenario
from trenza.app.scenario_unread import is_unread, without_its_name
from trenza.base.names import NodeId
from trenza.base.units import Decibel
from trenza.core.policy import Policy, Rule, TenantEntry, mistakes_in
from trenza.core.recipe import LOCAL
from trenza.qkd.physics.devices import DeviceClass

Entry = Node | Link | Sae | Policy | Rule | TenantEntry
SECTIONS: Mapping[str, type[Entry]] = {
    "nodes": Node,
    "links": Link,
    "saes": Sae,
    "policies": Policy,
    "rules": Rule,
    "tenants": TenantEntry,
}

_UNKNOWN = re.compile(r"no (node|SAE|policy|tenant) is called (.+)$")
_KEY_OF_REFERENCE = {"links": "ends", "saes": "node", "rules": "between", "policies": "allowed_nodes"}


@dataclass(frozen=True, slots=True)
class Draft:
    """A scenario that may still contradict itself."""

    scenario: Scenario
    places: Mapping[str, Sequence[Place]]
    """Per section, the place of each entry, in the scenario's order."""

    unread: Collection[str]
    """Sections, and names of entries, that could not be read; what refers to them is no further mistake."""


def label_of(section: str, entry: Entry) -> str:
    """Return how mistakes call `entry`, as `core/policy` does."""
    return f"rules {' - '.join(entry.between)}" if isinstance(entry, Rule) else f"{section}.{entry.name}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a clause that names what `word` was perhaps meant to be, or else what there is."""
    names = sorted({name for name in known if not is_unread(name)})
    if near := difflib.get_close_matches(word, names, n=1):
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(names)}" if 0 < len(names) <= 16 else ""


def mistakes_between(draft: Draft, device_classes: Mapping[str, DeviceClass]) -> Iterator[tuple[Place, str]]:
    """Yield the place and the sentence of every mistake but those of stand-ins."""
    for place, mistake in _all_between(draft, device_classes):
        told = without_its_name(place, mistake)
        if not is_unread(told):
            yield place, told


def _all_between(draft: Draft, device_classes: Mapping[str, DeviceClass]) -> Iterator[tuple[Place, str]]:
    yield from _mistakes_of_the_book(draft)
    yield from _mistakes_of_the_defaults(draft.scenario)
    for place, link in zip(draft.places["links"], draft.scenario.links, strict=True):
        yield from _mistakes_of_the_devices(place, link, device_classes)
    yield from _rules_that_serve_nobody(draft)
    yield from _islands(draft)


def _mistakes_of_the_book(draft: Draft) -> Iterator[tuple[Place, str]]:
    scenario = draft.scenario
    names: Mapping[str, Sequence[str]] = {
        "node": [node.name for node in scenario.nodes],
        "SAE": [sae.name for sae in scenario.saes],
        "policy": [policy.name for policy in scenario.policies],
        "tenant": [tenant.name for tenant in scenario.tenants],
    }
    places = _places_by_label(draft)
    for mistake in mistakes_in(scenario.book(1, {node.name: "unknown:0" for node in scenario.nodes})):
        unknown = _UNKNOWN.search(mistake)
        if unknown and unknown[2] in draft.unread:
            continue
        labels = [label for label in places if mistake.startswith(label)]
        place = places[max(labels, key=len)] if labels else ()
        yield _key_meant(place, mistake), mistake + (did_you_mean(unknown[2], names[unknown[1]]) if unknown else "")


def _places_by_label(draft: Draft) -> dict[str, Place]:
    """Return the place meant by a sentence of `core/policy`, by how the sentence begins."""
    found: dict[str, Place] = {}
    for section in SECTIONS:
        entries: Sequence[Entry] = getattr(draft.scenario, section)
        for place, entry in zip(draft.places[section], entries, strict=True):
            found.setdefault(f"{label_of(section, entry)}:", place)
            if isinstance(entry, Rule):
                found[f"rules: {' - '.join(sorted(entry.between))} appears"] = place
                continue
            found[f"{section}: {entry.name} appears"] = (*place, "name")  # the last one is the one too many
            found[f"{section}: {entry.name!r} is not a name"] = (*place, "name")
            if isinstance(entry, Sae):
                identity = entry.identity or f"urn:trenza:sae:{entry.name}"
                found[f"identities: {identity} appears"] = (*place, "identity")
    return found


def _key_meant(place: Place, mistake: str) -> Place:
    if "recipe" in mistake:
        return (*place, "ladder")
    if "no policy is called" in mistake:
        return (*place, "policy")
    if "no tenant is called" in mistake:
        return (*place, "tenant")
    if _UNKNOWN.search(mistake) and place:
        return (*place, _KEY_OF_REFERENCE[str(place[0])])
    return place


def _mistakes_of_the_defaults(scenario: Scenario) -> Iterator[tuple[Place, str]]:
    levels = scenario.defaults
    if not levels.min_segment_keys <= levels.max_segment_keys <= levels.target_stock_keys:
        yield ("defaults",), "defaults: min_segment_keys <= max_segment_keys <= target_stock_keys"


def _mistakes_of_the_devices(
    place: Place, link: Link, device_classes: Mapping[str, DeviceClass]
) -> Iterator[tuple[Place, str]]:
    devices = device_classes.get(link.device_class)
    if devices is None:
        hint = did_you_mean(link.device_class, device_classes)
        yield (*place, "device_class"), f"links.{link.name}: no device class is called {link.device_class!r}{hint}"
    elif link.fixed_rate_bps is None and devices.expected(Decibel(link.loss_db)).secret_bits_per_second <= 0:
        remedy = "choose other devices, put a node between, or set fixed_rate_bps"
        why = f"{link.device_class} makes no key over {link.loss_db:g} dB; {remedy}"
        yield (*place, "loss_db"), f"links.{link.name}: {why}"


def _rules_that_serve_nobody(draft: Draft) -> Iterator[tuple[Place, str]]:
    node_of = {sae.name: sae.node for sae in draft.scenario.saes}
    ladder_of = {policy.name: policy.ladder for policy in draft.scenario.policies}
    for place, rule in zip(draft.places["rules"], draft.scenario.rules, strict=True):
        one, other = rule.between
        if one == other or not {one, other} <= node_of.keys() or not ladder_of.get(rule.policy):
            continue  # a mistake already told
        if any(map(is_unread, (node_of[one], node_of[other], *ladder_of[rule.policy]))):
            continue  # so is that
        ladder, where = ladder_of[rule.policy], label_of("rules", rule)
        if node_of[one] == node_of[other] and LOCAL.name not in ladder:
            why = f"both are served by {node_of[one]}, and policy {rule.policy} does not name the recipe {LOCAL.name}"
            yield (*place, "policy"), f"{where}: {why}"
        if node_of[one] != node_of[other] and set(ladder) == {LOCAL.name}:
            yield (*place, "policy"), f"{where}: policy {rule.policy} is for SAEs of one node, these are of two"


def _islands(draft: Draft) -> Iterator[tuple[Place, str]]:
    """Yield every part of the network that cannot reach its first node."""
    nodes = {node.name for node in draft.scenario.nodes}
    if (
        not nodes
        or draft.unread
        or any(map(is_unread, nodes))
        or any(end not in nodes for link in draft.scenario.links for end in link.ends)
    ):
        return  # told already; what would be said here could be a mere consequence
    first = draft.scenario.nodes[0].name
    seen = _reachable(draft.scenario, first)
    for place, node in zip(draft.places["nodes"], draft.scenario.nodes, strict=True):
        if node.name not in seen:
            island = _reachable(draft.scenario, node.name)
            seen |= island
            yield place, f"nodes.{node.name}: no link leads from {', '.join(sorted(island))} to {first}"


def _reachable(scenario: Scenario, start: NodeId) -> set[NodeId]:
    seen, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        for link in scenario.links_of(here):
            fresh = set(link.ends) - seen
            seen |= fresh
            waiting += sorted(fresh)
    return seen
