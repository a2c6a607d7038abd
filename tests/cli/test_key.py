"""Keys for two applications, fetched and compared by one command."""

import base64
import json


def test_keys_are_fetched_at_both_ends_and_compared(network):
    document = network.run_json("key", "get", "--from", "sae-alice", "--to", "sae-bob", "--number", "3")
    assert len(document["keys"]) == 3
    assert all(key["equal"] and key["bits"] == 256 for key in document["keys"])
    assert document["keys"][0]["recipe"] == "hybrid-catkdf"
    assert document["keys"][0]["origins"] == ["qkd", "pqc"]
    assert document["tls_group"] == {"from": "X25519MLKEM768", "to": "X25519MLKEM768"}


def test_the_key_itself_is_shown_only_when_asked_for(network):
    plain = network.run("key", "get", "--from", "sae-alice", "--to", "sae-bob")
    as_json = network.run("key", "get", "--from", "sae-alice", "--to", "sae-bob", "--json")
    shown = network.run("key", "get", "--from", "sae-alice", "--to", "sae-bob", "--show-key")
    first, second, third = (base64.b64encode(key).decode() for key in network.keys.values())
    assert first not in plain.output
    assert "yes" in plain.output
    assert second not in as_json.output
    assert third in shown.output


def test_keys_that_differ_are_a_failure(network):
    network.alters_keys = True
    result = network.run("key", "get", "--from", "sae-alice", "--to", "sae-bob", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["keys"][0]["equal"] is False
    assert json.loads(result.stderr)["error"] == "remote-protocol"


def test_what_the_node_says_is_what_people_read(network):
    result = network.run("key", "get", "--from", "sae-alice", "--to", "sae-bob", "--recipe", "its")
    assert result.exit_code == 1
    assert "not all extension_mandatory request options could be met" in result.stderr
    assert "extension_mandatory_unmet: recipe" in result.stderr


def test_an_application_that_does_not_exist_is_answered_with_those_that_do(network):
    result = network.run("key", "get", "--from", "sae-alicia", "--to", "sae-bob")
    assert result.exit_code == 1
    assert "sae-alice, sae-bob" in result.stderr


def test_an_application_that_names_itself_is_told_whom_else_it_may_name(network):
    result = network.run("key", "get", "--from", "sae-alice", "--to", "sae-alice")
    assert result.exit_code == 1
    assert "let --to be another application (sae-bob" in result.stderr


def test_a_size_is_asked_for_in_bits(network):
    document = network.run_json("key", "get", "--from", "sae-alice", "--to", "sae-bob", "--size", "512")
    assert document["keys"][0]["bits"] == 512


def test_another_node_at_the_same_address_is_refused(network):
    ready = json.loads((network.state / "ready.json").read_text())
    ready["nodes"]["Bob"] = ready["nodes"]["Alice"]
    (network.state / "ready.json").write_text(json.dumps(ready))
    result = network.run("key", "get", "--from", "sae-alice", "--to", "sae-bob", "--json")
    assert json.loads(result.stderr)["error"] == "authentication"
