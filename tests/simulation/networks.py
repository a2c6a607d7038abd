"""Networks for histories: small, with every kind of pair that a policy can ask for."""

from __future__ import annotations

from trenza.app.scenario import Scenario
from trenza.app.scenario_model import Evidence, Link, Node, Sae
from trenza.base.names import LinkId, NodeId, SaeId
from trenza.core.policy import Policy, Rule

POLICIES = (
    Policy("default", ("hybrid-catkdf",)),
    Policy("bank", ("hybrid-catkdf",), max_hops=2),
    Policy("emergency", ("hybrid-catkdf", "exchange-catkdf")),
    Policy("classical", ("exchange-catkdf",)),
    Policy("pad", ("its",), max_key_size=1_024),
    Policy("raw", ("qkd-only",)),
    Policy("local", ("local",)),
)


def network(nodes: str, links: str, pairs: dict[str, str], *, rate: float = 2_000_000.0) -> Scenario:
    """Return a network.

    Args:
        nodes: their names, a letter each; every node serves the SAEs `<letter>1` and `<letter>2`.
        links: pairs of letters, as "AB BC".
        pairs: SAE pairs by policy, as {"A1 B1": "bank"}.
        rate: of every link, in bits a second.
    """
    invented = Evidence.INVENTED
    return Scenario(
        name="history",
        title="A network of the lab",
        nodes=tuple(Node(NodeId(name), "lab", "lab", invented) for name in nodes),
        links=tuple(
            Link(
                LinkId(link),
                (NodeId(link[0]), NodeId(link[1])),
                10.0,
                3.0,
                invented,
                invented,
                "decoy-bb84-1ghz",
                400_000,
                1.0,
                rate,
            )
            for link in links.split()
        ),
        saes=tuple(Sae(SaeId(f"{name}{number}"), NodeId(name)) for name in nodes for number in (1, 2)),
        policies=POLICIES,
        rules=tuple(Rule((SaeId(pair.split()[0]), SaeId(pair.split()[1])), policy) for pair, policy in pairs.items()),
    )


def ring() -> Scenario:
    """Four nodes in a ring: two paths between any two, and every kind of policy."""
    return network(
        "ABCD",
        "AB BC CD AD",
        {
            "A1 B1": "default",
            "A1 C1": "emergency",
            "B1 D1": "pad",
            "A2 D2": "raw",
            "C1 D1": "bank",
            "A1 A2": "local",
        },
    )
