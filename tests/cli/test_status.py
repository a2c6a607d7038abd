"""What the nodes say of themselves, on one page."""

import json

from tests.cli.statements import node_status

from trenza.net.http import Response


def both_answer(network):
    network.answers[("Alice", "/v1/status")] = node_status("Alice", "Bob")
    network.answers[("Bob", "/v1/status")] = node_status("Bob", "Alice")


def test_nodes_pools_links_and_troubles_are_shown(network):
    both_answer(network)
    told = network.run("status").stdout
    for part in ("Alice - Bob", "2048", "2.1%", "12.3 kbit/s", "2 Mbit", "running", "not enough link key"):
        assert part in told


def test_the_instance_that_answers_is_shown_where_a_node_has_several(network):
    both_answer(network)
    assert "instance" not in network.run("status").stdout
    alice = node_status("Alice", "Bob") | {"instance": {"name": "alice-2", "role": "second"}}
    network.answers[("Alice", "/v1/status")] = alice
    assert "alice-2 (second)" in network.run("status").stdout
    told = json.loads(network.run("status", "--json").stdout)["nodes"]
    assert told["Alice"]["instance"] == {"name": "alice-2", "role": "second"}
    assert told["Bob"]["instance"] is None


def test_a_pool_is_shown_once_as_its_issuer_sees_it(network):
    both_answer(network)
    told = network.run("status").stdout
    assert told.count("Alice - Bob") == 2  # one for each direction
    assert "1024" not in told  # what the peer believed


def test_one_node_is_shown_with_its_connections_and_counters(network):
    both_answer(network)
    told = network.run("status", "Bob").stdout
    assert "X25519MLKEM768: 3" in told
    assert "keys_delivered" in told
    assert [asked[0] for asked in network.asked] == ["Bob"]


def test_a_node_that_does_not_answer_spoils_nothing_but_the_exit_status(network):
    network.answers[("Alice", "/v1/status")] = node_status("Alice", "Bob")
    network.answers[("Bob", "/v1/status")] = Response(200, b"<html>")
    result = network.run("status", "--json")
    assert result.exit_code == 1
    nodes = json.loads(result.stdout)["nodes"]
    assert nodes["Alice"]["ledger"]["sequence"] == 42
    assert nodes["Bob"]["error"] == "remote-protocol"
    assert "Bob" in json.loads(result.stderr)["message"]


def test_nodes_that_were_not_started_here_are_asked_through_a_document_that_names_their_doors(network, tmp_path):
    both_answer(network)
    document = json.loads((network.state / "ready.json").read_text())
    doors = tmp_path / "madrid.json"
    doors.write_text(json.dumps({"nodes": document["nodes"], "operator": document["operator"]}))
    result = network.run_alone("status", "--doors", str(doors), "--json")
    assert json.loads(result.stdout)["network"] == "madrid"
    refused = network.run_alone("sae", "new", "x", "--node", "Alice", "--with", "y", "--doors", str(doors))
    assert "trenza up" in refused.stderr
