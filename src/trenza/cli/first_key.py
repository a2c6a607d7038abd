"""The two `curl` lines that a newcomer pastes: a key for one application, then the same key for the other.

Chooses the pair of applications that is farthest apart, since crossing trusted nodes is what there is to see.
"""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from trenza.app.scenario import Scenario
from trenza.base.names import NodeId, SaeId
from trenza.wire.etsi014 import Method, path_of

PLACEHOLDER: Final = "KEY_ID"


def first_key_lines(scenario: Scenario, ready: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what to paste, or None where no two applications of different nodes may share keys.

    Args:
        scenario: the network.
        ready: its ready document.
    """
    pair = farthest_pair(scenario)
    if pair is None:
        return None
    initiator, target = pair
    return (
        _curl(ready, initiator, path_of(Method.GET_KEY, target)),
        _curl(ready, target, f"{path_of(Method.GET_KEY_WITH_IDS, initiator)}?key_ID={PLACEHOLDER}"),
    )


def farthest_pair(scenario: Scenario) -> tuple[SaeId, SaeId] | None:
    """Return the pair with the most links between its nodes, as far as its policy lets QKD bits travel."""
    node_of = {sae.name: sae.node for sae in scenario.saes}
    policies = {policy.name: policy for policy in scenario.policies}
    best: tuple[int, tuple[SaeId, SaeId]] | None = None
    for rule in scenario.rules:
        one, other = rule.between
        hops = _links_between(scenario, node_of[one], node_of[other])
        if hops in {None, 0} or hops > policies[rule.policy].max_hops:
            continue
        if best is None or hops > best[0]:
            best = (hops, (one, other))
    return best[1] if best is not None else None


def _links_between(scenario: Scenario, start: NodeId, end: NodeId) -> int | None:
    neighbours: dict[NodeId, list[NodeId]] = {node.name: [] for node in scenario.nodes}
    for link in scenario.links:
        neighbours[link.ends[0]].append(link.ends[1])
        neighbours[link.ends[1]].append(link.ends[0])
    hops = {start: 0}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        for neighbour in neighbours[node]:
            if neighbour not in hops:
                hops[neighbour] = hops[node] + 1
                queue.append(neighbour)
    return hops.get(end)


def _curl(ready: Mapping[str, Any], caller: SaeId, path: str) -> str:
    sae = ready["saes"][caller]
    url = ready["nodes"][sae["node"]]["etsi014"] + path
    words = ["curl", "--cert", sae["certificate"], "--key", sae["private_key"], "--cacert", sae["ca"], url]
    return shlex.join(map(str, words))
