"""The networks that are measured: a hub, its neighbours, links that never run dry, and applications as asked.

Nothing here is a real network.
"""

from __future__ import annotations

from trenza.app.scenario_model import Defaults, Evidence, Link, Node, Sae, Scenario
from trenza.base.names import LinkId, NodeId, SaeId
from trenza.core.policy import Policy, Rule

HUB, FIRST = NodeId("Alice"), NodeId("Bob")
INITIATOR, TARGET = SaeId("sae-alice"), SaeId("sae-bob")
POLICY = "default"
LINK_BPS = 400_000_000.0
STOCK_BITS = 25_600_000


def hub_and(neighbours: int = 1, *, near: int = 1, far: int = 1) -> Scenario:
    """Return a hub with `neighbours` neighbours and the rules between its applications and theirs.

    Args:
        neighbours: nodes beside the hub, each with a link of its own to it.
        near: applications at the hub.
        far: applications at the first neighbour, all of which may share keys with all of the hub. Further neighbours
            have one each.
    """
    names = [FIRST, *(NodeId(f"Bob-{number}") for number in range(2, neighbours + 1))]
    initiators = [_numbered(INITIATOR, number) for number in range(near)]
    targets = [_numbered(TARGET, number) for number in range(far)]
    others = {name: SaeId(f"sae-{name}") for name in names[1:]}
    rules = [Rule((one, other), POLICY) for one in initiators for other in targets]
    rules += [Rule((INITIATOR, other), POLICY) for other in others.values()]
    return Scenario(
        name=f"hub-{neighbours}",
        title="A hub and its neighbours",
        nodes=tuple(Node(name, "example", "here", Evidence.INVENTED) for name in (HUB, *names)),
        links=tuple(_link(name) for name in names),
        saes=tuple(Sae(sae, HUB) for sae in initiators)
        + tuple(Sae(sae, FIRST) for sae in targets)
        + tuple(Sae(sae, name) for name, sae in others.items()),
        policies=(Policy(name=POLICY, ladder=("hybrid-catkdf",)),),
        rules=tuple(rules),
        defaults=Defaults(target_stock_keys=2_048, min_segment_keys=64, max_segment_keys=1_024),
    )


def sae_pairs(near: int, far: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the initiators of `hub_and` with the targets of each."""
    targets = tuple(_numbered(TARGET, number) for number in range(far))
    return tuple((_numbered(INITIATOR, number), targets) for number in range(near))


def _numbered(name: SaeId, number: int) -> SaeId:
    return name if number == 0 else SaeId(f"{name}-{number}")


def _link(far: NodeId) -> Link:
    return Link(
        name=LinkId(f"{HUB}-{far}"),
        ends=(HUB, far),
        length_km=10.0,
        loss_db=3.0,
        evidence=Evidence.INVENTED,
        loss_evidence=Evidence.INVENTED,
        device_class=Defaults().device_class,
        initial_stock_bits=STOCK_BITS,
        time_factor=1.0,
        fixed_rate_bps=LINK_BPS,
    )
