"""The national network on this machine, as `trenza up spain` starts it: what it promises, measured from outside."""

import base64
import json
import shutil
import subprocess
import threading
import time
from collections import Counter

import pytest
from tests.e2e import product
from tests.e2e.product import HYBRID, group_members, until

from trenza.app.scenario import load_scenario

pytestmark = pytest.mark.slow

HEADQUARTERS, BARCELONA, SECOND = "bank-torrejon", "bank-barcelona", "bank-alcobendas"
FIRST_KEY_WITHIN_S = 20.0
MEMORY_BYTES = 1.5 * 1024**3
CONNECTIONS, PAIRS = 16, 10_000
HOPS = 9


@pytest.fixture(scope="module")
def spain(tmp_path_factory):
    began = time.monotonic()
    with product.up("spain", tmp_path_factory.mktemp("spain")) as network:
        network.first_container = network.application(HEADQUARTERS).enc(BARCELONA)
        network.started_s = time.monotonic() - began
        yield network


def test_the_first_key_between_torrejon_and_barcelona_comes_in_time(spain, figure):
    code, container = spain.first_container
    assert code == 200
    (given,) = container["keys"]
    told = given["key_extension"]
    assert told["trenza_recipe"] == "hybrid-catkdf"
    assert set(told["trenza_origins"]) == {"qkd", "pqc", "classical"}
    assert told["trenza_supply"] == "warm"
    assert told["trenza_hops"] == HOPS
    assert told["trenza_strength"]
    fetched = spain.application(BARCELONA).fetch(HEADQUARTERS, given["key_ID"])
    assert fetched == product.bits_of(container)
    assert {len(key) for key in fetched.values()} == {32}
    figure(f"Spain: from the command to the first key: {spain.started_s:.1f} s")
    assert spain.started_s < FIRST_KEY_WITHIN_S


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_plain_curl_fetches_the_same_key_at_both_ends(spain):
    (given,) = curl(spain, HEADQUARTERS, BARCELONA, "enc_keys")["keys"]
    (fetched,) = curl(spain, BARCELONA, HEADQUARTERS, f"dec_keys?key_ID={given['key_ID']}")["keys"]
    assert (fetched["key_ID"], fetched["key"]) == (given["key_ID"], given["key"])
    assert len(base64.b64decode(given["key"])) == 32


def curl(network, caller, other, what):
    files = network.ready["saes"][caller]
    door = network.ready["nodes"][files["node"]]["etsi014"]
    words = ["--cert", files["certificate"], "--key", files["private_key"], "--cacert", files["ca"]]
    command = ["curl", "--silent", "--show-error", "--fail", *words, f"{door}/api/v1/keys/{other}/{what}"]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)


def test_one_key_goes_to_two_cities(spain):
    """Several targets: all or nothing, each by a braid of its own."""
    code, container = spain.application(HEADQUARTERS).enc(BARCELONA, number=3, additional_slave_SAE_IDs=[SECOND])
    assert code == 200, container
    given = product.bits_of(container)
    assert len(given) == 3
    for target in (BARCELONA, SECOND):
        assert spain.application(target).fetch(HEADQUARTERS, *given) == given
        assert spain.application(target).dec(HEADQUARTERS, *given)[0] == 400


class Pairs:
    """Clients that fetch each key at both ends at once, and compare everything with everything."""

    def __init__(self, network, pairs: int) -> None:
        self._network = network
        self._left = pairs
        self._lock = threading.Lock()
        self.issued: dict[str, bytes] = {}
        self.counts: Counter[str] = Counter()

    def run(self, clients: int) -> float:
        """Return how long it took."""
        began = time.monotonic()
        threads = [threading.Thread(target=self._client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - began

    def _client(self) -> None:
        near, far = self._network.application(HEADQUARTERS), self._network.application(BARCELONA)
        while self._take():
            code, container = near.enc(BARCELONA)
            if code != 200:
                self._count(f"enc {code}")
                continue
            ((key_id, key),) = product.bits_of(container).items()
            code, container = far.dec(HEADQUARTERS, key_id)
            same = code == 200 and product.bits_of(container) == {key_id: key}
            self._note(key_id, key, "same" if same else "different" if code == 200 else f"dec {code}")

    def _take(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _note(self, key_id: str, key: bytes, what: str) -> None:
        with self._lock:
            self.counts[what] += 1
            self.counts["repeated ID"] += key_id in self.issued
            self.issued[key_id] = key


def test_ten_thousand_pairs_over_sixteen_connections_lack_nothing(spain, figure):
    pairs = Pairs(spain, PAIRS)
    took_s = pairs.run(CONNECTIONS)  # to either node
    figure(f"Spain: {PAIRS} pairs in {took_s:.1f} s: {PAIRS / took_s:.0f} pairs/s")
    assert +pairs.counts == {"same": PAIRS}, "0 missing, 0 different, 0 repeated"
    assert len(set(pairs.issued.values())) == PAIRS


def test_explain_tells_what_protected_a_key(spain):
    (key_id,) = given = spain.application(HEADQUARTERS).keys(BARCELONA)
    spain.application(BARCELONA).fetch(HEADQUARTERS, *given)
    told = spain.command_json("explain", key_id)
    events = {one["node"]: [event["kind"] for event in one["events"]] for one in told["statements"]}
    assert events == {"Torrejon": ["issued"], "CTTI": ["delivered"]}
    first, second = (one["segment"] for one in told["statements"])
    assert first == second
    relays = [hop["receiver"] for hop in first["hops"][:-1]]
    assert len(first["hops"]) == HOPS
    assert {hop["supply"] for hop in first["hops"]} <= {"warm", "live"}
    assert sorted(first["known_to"]) == sorted(relays)
    assert {"Zaragoza", "Lleida"} < set(relays)
    assert "ml-dsa-65" in first["lineage"]["authentication"]

    spoken = spain.command("explain", key_id).stdout
    assert "hybrid-catkdf" in spoken
    assert all(relay in spoken for relay in relays)


def test_the_keys_that_a_relay_could_have_seen_the_qkd_of_are_listed(spain):
    (key_id,) = spain.application(HEADQUARTERS).keys(BARCELONA)
    statements = {one["node"]: one for one in spain.command_json("explain", key_id)["statements"]}
    (event,) = statements["Torrejon"]["events"]
    code, exposure = spain.manage("Torrejon", f"/v1/exposed?node=Zaragoza&since={event['time']}")
    assert code == 200
    listed = [one for one in exposure["exposed"] if one["sequence"] == event["sequence"]]
    assert [one["record"]["slots"] for one in listed] == [event["record"]["slots"]]
    told = spain.command_json("exposed", "Zaragoza", "--since", event["time"])
    assert [one for one in told["exposed"] if (one["told_by"], one["sequence"]) == ("Torrejon", event["sequence"])]
    code, elsewhere = spain.manage("Torrejon", f"/v1/exposed?node=INTA-2&since={event['time']}")
    assert (code, elsewhere["exposed"]) == (200, [])


def test_everything_between_our_own_parts_is_post_quantum_and_counted(spain):
    told = spain.command_json("status")["nodes"]
    assert len(told) == len(spain.ready["nodes"]) == 40
    sides = Counter()
    for name, status in told.items():
        doors = {one["door"]: one for one in status["tls"]}
        for door in ("peers", "to peers", "to devices", "management"):
            assert set(doors[door]["handshakes"]) <= {HYBRID}, (name, door)
        assert doors["to devices"]["handshakes"][HYBRID] >= len(status["links"]), "each device by a connection"
        talked = {one["peer"]: one for one in status["messages"]}
        for link in status["links"]:
            sides[link["link"]] += 1
            assert talked[link["peer"]]["sent"] > 0, (name, link["link"])
            assert talked[link["peer"]]["received"] > 0, (name, link["link"])
            assert link["reading"]["state"] == "running", "what its device says over the telemetry port"
    assert set(sides.values()) == {2}
    assert len(sides) == 47
    peers = sum(
        one["handshakes"].get(HYBRID, 0) for told_ in told.values() for one in told_["tls"] if one["door"] == "peers"
    )
    assert peers >= 47, "at least one connection a link"


def test_whatever_one_node_says_to_another_crosses_a_socket_and_arrives(spain):
    """Per ordered pair, neighbours and partners alike: as many messages arrive as are sent.

    The nodes talk on while they are asked, so two rounds of asking bracket the truth: what has arrived by the first
    was sent by the second, and what was sent by the first arrives in the end. Nothing is allowed for beyond that.
    """
    scenario = load_scenario("spain")
    at = {sae.name: sae.node for sae in scenario.saes}
    pairs = {link.ends for link in scenario.links} | {
        tuple(at[sae] for sae in rule.between) for rule in scenario.rules
    }
    ordered = {pair for a, b in pairs if a != b for pair in ((a, b), (b, a))}
    assert len(ordered) > 2 * len(scenario.links), "partners that share no link talk too"

    sent, received = messages(spain)
    assert {pair for pair in ordered if not sent[pair]} == set(), "everyone who should talk does"
    sent_later, _ = messages(spain)
    assert {pair: told for pair, told in received.items() if told > sent_later[pair]} == {}

    def missing():
        _, received_later = messages(spain)
        return {pair: told - received_later[pair] for pair, told in sent.items() if told > received_later[pair]}

    until("all that was sent has arrived", lambda: not missing())


def messages(network):
    """Return what was sent and what was received, by (who sends, who receives)."""
    sent, received = Counter(), Counter()
    for node, status in network.command_json("status")["nodes"].items():
        for one in status["messages"]:
            sent[node, one["peer"]] += one["sent"]
            received[one["peer"], node] += one["received"]
    return sent, received


def test_every_device_is_asked_for_keys_over_its_own_connection(spain):
    """Link key of a node comes from the device beside it and from nowhere else: where there is some, it was asked."""
    silent = []
    devices = 0
    for name, status in spain.command_json("status")["nodes"].items():
        for link in status["links"]:
            devices += 1
            bits = sum(stock["traffic_bits"] + stock["reserve_bits"] for stock in link["stock"])
            if not bits or link["reading"] is None:  # keys over one port, telemetry over the other
                silent.append((name, link["link"]))
    assert silent == []
    assert devices == 2 * len(load_scenario("spain").links)


def test_the_command_line_fetches_and_compares(spain):
    told = spain.command_json("key", "get", "--from", "ministry-interior", "--to", "ministry-cpd")
    (key,) = told["keys"]
    assert key["equal"]
    assert key["recipe"] in {"its", "hybrid-catkdf"}
    told = spain.command_json("key", "get", "--from", "desk-one", "--to", "desk-two")
    assert [key["recipe"] for key in told["keys"]] == ["local"]


def test_the_whole_network_fits_into_memory(spain, figure):
    peak = spain.process.peak_memory_bytes()
    figure(f"Spain: peak memory of the whole network: {peak / 1024**2:.0f} MiB")
    assert peak < MEMORY_BYTES


def test_ctrl_c_ends_everything_in_good_order(spain):
    """The last test of this file: the network is gone afterwards."""
    group = spain.process.pid
    addresses = [spain.application(sae).address for sae in (HEADQUARTERS, BARCELONA)]
    spain.close()
    assert spain.process.interrupt() == 0, spain.process.said()
    assert group_members(group) == []
    assert not (spain.state / "ready.json").exists()
    assert not (spain.state.parent / "ready.json").exists()
    for address in addresses:
        with pytest.raises(ConnectionRefusedError):
            product.connect(address)
    assert "Traceback" not in spain.process.said()
    until("no network in the directory", lambda: product.run("ps", ok=False).returncode == 0)
