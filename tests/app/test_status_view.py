"""A network of processes is drawn from what its nodes tell, and what nobody tells is said to be unknown."""

import time

from trenza.app.readiness import directions_of, missing_by_status
from trenza.app.scenario import load_scenario
from trenza.app.status_view import view_of
from trenza.wire.management import (
    Head,
    LinkStatus,
    MessagesStatus,
    NodeStatus,
    PoolStatus,
    ReadingStatus,
    SessionStatus,
    StockStatus,
    TlsStatus,
)

SCENARIO = load_scenario("two-nodes")
DIRECTIONS = directions_of(SCENARIO)
(LINK,) = SCENARIO.links


def told(node, peer, *, lease_s=5.0, issuable=100, troubles=None, reading=True):
    return NodeStatus(
        node=node,
        version="0",
        epoch=1,
        incarnation=1,
        book_version=1,
        time="",
        sessions=(SessionStatus(peer, lease_s, 1, 1),),
        pools=(
            PoolStatus(peer, node, "full", issuable, 20, 0, 0.0),
            PoolStatus(peer, peer, "full", 7, 7, 7, 0.0),
        ),
        links=(
            LinkStatus(
                LINK.name,
                peer,
                True,
                (StockStatus(node, 512, 64), StockStatus(peer, 1024, 64)),
                ReadingStatus("running", 0.01, 1000.0, 3.0, ()) if reading else None,
            ),
        ),
        tls=(TlsStatus("peers", {"X25519MLKEM768": 2}, {}, 1), TlsStatus("to peers", {"X25519MLKEM768": 2}, {}, 1)),
        messages=(MessagesStatus(peer, 10, 12),),
        counters={"keys_issued": 3, "keys_delivered": 2},
        troubles=troubles or {},
        ledger=Head(1, ""),
    )


def view(statuses, running=("Alice", "Bob"), restarts=None):
    restarts = restarts or {}
    return view_of(SCENARIO, statuses, DIRECTIONS, since=time.monotonic(), restarts=restarts, running=running)


BOTH = {"Alice": told("Alice", "Bob"), "Bob": told("Bob", "Alice", issuable=50)}


def test_what_the_nodes_tell_is_drawn_and_summed():
    seen = view(BOTH, restarts={"Bob": 2})
    assert (seen.keys_issued, seen.keys_delivered, seen.messages) == (6, 4, 20)
    assert seen.handshakes == {"X25519MLKEM768": 4}, "each once, where it was accepted"
    (pool,) = seen.pools
    assert (pool.nodes, pool.stock) == (("Alice", "Bob"), (120, 70)), "as its issuer knows it"
    (link,) = seen.links
    assert (link.state, link.rate, link.stock, link.stored) == ("running", 1000.0, (512, 512), None)
    assert [(one.name, one.running, one.sessions, one.partners, one.restarts) for one in seen.nodes] == [
        ("Alice", True, 1, 1, 0),
        ("Bob", True, 1, 1, 2),
    ]


def test_a_node_that_does_not_answer_is_not_running_and_its_link_is_as_the_other_end_says():
    seen = view({"Alice": told("Alice", "Bob", troubles={"beat Bob": "cannot connect"}), "Bob": None})
    assert [one.running for one in seen.nodes] == [True, False]
    assert seen.nodes[0].troubles == ("beat Bob: cannot connect",)
    assert seen.links[0].state == "running"
    assert view({}).links[0].state == "unknown"


def test_a_direction_is_missing_without_a_lease_without_stock_and_without_an_answer():
    assert missing_by_status(DIRECTIONS, BOTH) == []
    forth, back = DIRECTIONS
    assert missing_by_status(DIRECTIONS, BOTH | {"Bob": None}) == [back]
    assert missing_by_status(DIRECTIONS, BOTH | {"Alice": told("Alice", "Bob", lease_s=0.0)}) == [forth]
    assert missing_by_status(DIRECTIONS, BOTH | {"Alice": told("Alice", "Bob", issuable=0)}) == [forth]
