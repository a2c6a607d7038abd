"""A network drawn on a small screen, and told in lines where there is none."""

import dataclasses
import io

from rich.console import Console

from trenza.app.view import LinkView, NetworkView, NodeView, PoolView
from trenza.cli.changes import changes_between
from trenza.cli.picture import picture_of


def a_network(links: int = 2, **changed) -> NetworkView:
    view = NetworkView(
        scenario="spain",
        title="Spain",
        elapsed=3_725.4,
        nodes=(NodeView("Norte", "Norte", "Madrid", "telefonica", True, 2, 2, ()),),
        links=tuple(LinkView(f"link-{n}", ("Norte", "Sur"), "running", 12_345.0, 0, (n, n)) for n in range(links)),
        pools=tuple(PoolView(("Norte", f"Sur-{n}"), "hybrid-catkdf", (n, 2_048), 2_048) for n in range(links)),
        keys_issued=1_234,
        keys_delivered=1_200,
        segments_filled=3,
        relays=17,
        handshakes={"X25519MLKEM768": 8},
        messages=99,
        counters={},
    )
    return dataclasses.replace(view, **changed)


def drawn(view: NetworkView, height: int = 24) -> str:
    console = Console(file=io.StringIO(), width=120, height=height)
    console.print(picture_of(view, height=height))
    return console.file.getvalue()


def test_links_pools_and_counts_are_drawn():
    told = drawn(a_network())
    for part in ("Spain — running for 1:02:05", "12.3 kbit/s", "2,048", "1,234", "X25519MLKEM768: 8"):
        assert part in told


def test_a_large_network_fits_on_a_small_screen():
    told = drawn(a_network(links=47), height=24)
    assert len(told.splitlines()) <= 24
    assert "more links" in told
    assert "more pools" in told


def test_a_link_in_trouble_is_drawn_first():
    links = a_network(links=47).links
    broken = dataclasses.replace(links[0], name="broken", state="cut")
    told = drawn(dataclasses.replace(a_network(), links=(*links, broken)))
    assert "broken" in told


def test_a_trouble_is_told():
    node = NodeView("Norte", "", "", "", True, 0, 1, ("no route\x1b[2J",))
    assert "Norte: no route[2J" in drawn(a_network(nodes=(node,)))


def test_a_link_that_changes_its_state_is_an_event():
    before = a_network()
    cut = dataclasses.replace(before.links[0], state="cut")
    now = dataclasses.replace(before, links=(cut, before.links[1]))
    assert list(changes_between(before, now)) == ["link link-0: running -> cut; 0 bit and 0 bit in stock"]


def test_troubles_come_and_go():
    before = a_network()
    troubled = dataclasses.replace(before, nodes=(dataclasses.replace(before.nodes[0], troubles=("no key",)),))
    assert list(changes_between(before, troubled)) == ["node Norte: no key"]
    assert list(changes_between(troubled, before)) == ["node Norte: no longer: no key"]


def test_new_keys_are_counted_and_silence_is_nothing():
    before = a_network()
    assert list(changes_between(before, before)) == []
    assert list(changes_between(before, a_network(keys_issued=1_235))) == ["keys issued 1235, delivered 1200"]
