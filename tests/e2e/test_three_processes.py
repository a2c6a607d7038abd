"""Three nodes and their devices, each a process of its own as on real sites; killed, restarted, restored from copies.

Alice and Bob have no link: what they share of QKD was carried by Relay. Applications fetch keys at both ends all the
while, and over the whole file no key is issued or delivered twice, and none differs.
"""

import shutil

import pytest
from tests.e2e import product
from tests.e2e.product import until
from tests.e2e.traffic import History, Traffic, fetch_what_waits

pytestmark = pytest.mark.slow

FORTH, BACK = ("sae-alice", "sae-bob"), ("sae-bob", "sae-alice")
SAE_OF = {"Alice": FORTH, "Bob": BACK}


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    with product.sites("three-nodes", tmp_path_factory.mktemp("three")) as made:
        made.start_devices()
        made.start("Alice", "Relay", "Bob")
        both_ways(made)
        yield made


@pytest.fixture(scope="module")
def history():
    return History()


@pytest.fixture(autouse=True)
def nothing_goes_wrong(sites, history):
    yield
    assert history.wrong == []
    with Traffic(sites.network, history, FORTH, BACK, clients=1):
        more(history, 20)
    assert history.wrong == []


def both_ways(sites):
    for pair in (FORTH, BACK):
        sites.until_issuable(*pair)


def more(history, pairs: int, *, within_s: float = 60.0) -> None:
    """Wait until so many more pairs were fetched."""
    wanted = history.counts["fetched"] + pairs
    until(f"{pairs} more pairs ({history.counts})", lambda: history.counts["fetched"] >= wanted, within_s=within_s)


def counter(sites, node: str, name: str) -> int:
    return sites.network.status(node)["counters"].get(name, 0)


def test_keys_are_relayed(sites, history):
    with Traffic(sites.network, history, FORTH, BACK):
        more(history, 100)
    assert history.counts["fetched"] == history.counts["issued"]
    assert counter(sites, "Relay", "relays_passed_on") > 0
    key_id = next(iter(history.issued))
    code, statement = sites.network.manage("Alice", f"/v1/keys/{key_id}")
    assert code == 200
    assert statement["segment"]["known_to"] == ["Relay"]
    assert len(statement["segment"]["hops"]) == 2


def test_a_relay_that_is_killed_stops_filling_and_not_issuing(sites, history):
    before = history.counts.copy()
    with Traffic(sites.network, history, FORTH, BACK, clients=1):
        more(history, 20)
        sites.processes["Relay"].kill()
        filled = counter(sites, "Alice", "segments_filled")
        more(history, 300)
    assert set(history.counts - before) == {"issued", "fetched"}, "no refusal, no key missing"
    assert not history.waiting
    sites.start("Relay")
    with Traffic(sites.network, history, FORTH, BACK, clients=1):
        until("filling goes on", lambda: counter(sites, "Alice", "segments_filled") > filled)


@pytest.mark.parametrize("node", ["Alice", "Bob"])
def test_a_node_that_is_killed_under_load_issues_and_delivers_nothing_twice(sites, history, node):
    with Traffic(sites.network, history, FORTH, BACK):
        more(history, 100)
        before = history.counts.copy()
        sites.processes[node].kill()
        unheard = ("enc without answer", "dec without answer")
        until("the clients notice", lambda: any(history.counts[one] > before[one] for one in unheard))
        sites.start(node)
        more(history, 100)
    assert history.counts["dec 400"] == history.counts["dec 401"] == 0, "a key that was issued is there at once"
    answers = fetch_what_waits(sites.network, history)
    assert set(answers) <= {"200", "400"}, (
        "400: the answer was lost with the process, so perhaps somebody has the key"
    )
    delivered = list(history.fetched)[-60:]
    for key_id in delivered:
        initiator, target = history.who[key_id]
        code, _ = sites.network.application(target).dec(initiator, key_id)
        assert code == 400, "delivered before the crash or after it, and so never again"


RESTORED = {
    "Alice": (["Alice"], ["data"]),
    "Bob": (["Bob"], ["data"]),
    "Alice and what should never be in a backup": (["Alice"], ["data", "anchor"]),
    "both at once": (["Alice", "Bob"], ["data"]),
}


@pytest.mark.parametrize(("nodes", "parts"), RESTORED.values(), ids=RESTORED)
def test_a_node_restored_from_an_old_copy_starts_a_new_life(sites, history, tmp_path, nodes, parts):
    epochs = {node: sites.network.status(node)["epoch"] for node in nodes}
    stop(sites, *nodes)
    for node in nodes:
        copy(sites.state.node(node), tmp_path / node, parts)
    sites.start(*nodes)
    both_ways(sites)
    with Traffic(sites.network, history, FORTH, BACK):
        more(history, 200)
    stop(sites, "Alice", "Bob")
    for node in nodes:
        copy(tmp_path / node, sites.state.node(node), parts)

    (alone, *_) = nodes
    initiator, target = SAE_OF[alone]
    sites.start(alone)
    door = sites.network.application(initiator)
    until("the door is open", lambda: is_open(door, target))
    code, _ = door.enc(target)
    assert code == 503, "what the copy holds is not issued: its far node granted no fresh window"

    sites.start(*{"Alice", "Bob"} - {alone})
    both_ways(sites)
    with Traffic(sites.network, history, FORTH, BACK):
        more(history, 200)
    assert not history.waiting
    for node in nodes:
        assert sites.network.status(node)["epoch"] > epochs[node]


def stop(sites, *nodes):
    for node in nodes:
        assert sites.processes[node].interrupt() == 0, sites.processes[node].said()


def copy(source, destination, parts):
    destination.mkdir(exist_ok=True)
    for part in parts:
        if (source / part).is_dir():
            shutil.rmtree(destination / part, ignore_errors=True)
            shutil.copytree(source / part, destination / part)
        else:
            shutil.copy2(source / part, destination / part)


def is_open(application, other):
    try:
        return application.status(other)[0] == 200
    except OSError:
        return False
