"""What protected a key, as people and programs read it."""

import json
from uuid import uuid4

import pytest
from tests.cli.statements import exposed_keys, key_statement

KEY = uuid4()
PATH = f"/v1/keys/{KEY}"


def test_who_issued_a_key_is_told_whoever_issued_first_from_its_segment(network):
    network.answers[("Bob", PATH)] = {**key_statement(KEY, "Bob", "issued"), "issuer": "Bob"}
    told = " ".join(network.run("explain", str(KEY)).stdout.split())
    assert "Issued by Bob: sae-alice asked for it, sae-bob fetches it by its ID." in told


def test_both_ends_tell_the_same_story_of_a_key(network):
    network.answers[("Alice", PATH)] = key_statement(KEY, "Alice", "issued", sequence=7)
    network.answers[("Bob", PATH)] = key_statement(KEY, "Bob", "delivered", sequence=9)
    told = " ".join(network.run("explain", str(KEY)).stdout.split())
    for part in (
        "A 256-bit key of sae-alice and sae-bob, recipe hybrid-catkdf: CLASSICAL + PQC + QKD",
        "Strength: 256-bit.",
        "QKD Alice → Relay → Bob Relay",  # the path, and who saw the bits
        "ml-dsa-65 and root",
        "synthetic",
        "computational",  # how the second link's first authentication key was agreed
        "Alice and Bob tell the same story",
        "X25519MLKEM768",
        "not stated",
    ):
        assert part in told


def test_nodes_that_contradict_each_other_are_not_reconciled(network):
    network.answers[("Alice", PATH)] = key_statement(KEY, "Alice", "issued")
    other = key_statement(KEY, "Bob", "delivered", digest="ff" * 48)
    network.answers[("Bob", PATH)] = other
    assert "DIFFERENT" in network.run("explain", str(KEY)).stdout


def test_a_key_that_one_end_alone_knows_is_told_so(network):
    network.answers[("Alice", PATH)] = key_statement(KEY, "Alice", "issued")
    assert "Only Alice knows this key" in network.run("explain", str(KEY)).stdout


def test_a_key_carried_to_several_targets_names_what_carried_it(network):
    braid = str(uuid4())
    drawn = key_statement(KEY, "Alice", "issued", recipe="wrapped", drawn=True, braids=(braid,))
    network.answers[("Alice", PATH)] = drawn
    assert braid in network.run("explain", str(KEY)).stdout


def test_the_statements_are_passed_on_as_json(network):
    statement = key_statement(KEY, "Alice", "issued")
    network.answers[("Alice", PATH)] = statement
    document = network.run_json("explain", str(KEY))
    assert document["statements"] == [json.loads(json.dumps(statement))]


def test_a_key_that_nobody_knows_is_said_to_be_unknown(network):
    result = network.run("explain", str(KEY), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"] == "unknown-key"


def test_a_key_id_that_is_none_is_not_understood(network):
    assert network.run("explain", "my-key").exit_code == 2


def test_exposed_keys_are_listed_with_what_they_still_rest_on(network):
    keys = [exposed_keys(sequence=3), exposed_keys(sequence=2, recipe="qkd-only")]
    answer = {"node": "Bob", "since": "", "until": "", "exposed": keys}
    network.answers[("Alice", "/v1/exposed")] = answer
    network.answers[("Bob", "/v1/exposed")] = {**answer, "exposed": []}
    told = network.run("exposed", "Bob", "--since", "2026-01-01T01:00:00+01:00").stdout
    assert "CLASSICAL + PQC" in told
    assert "NOTHING" in told
    assert [asked[3] for asked in network.asked] == [{"node": "Bob", "since": "2026-01-01T00:00:00Z"}] * 2


def paged(node, query, _body):
    """Two pages at Alice's, the second of which one must ask for as the first says; one, and that empty, at Bob's."""
    answer = {"node": "Bob", "since": "", "until": "2026-02-01T00:00:00Z", "exposed": []}
    if node == "Bob":
        return answer
    if "after" not in query:
        return {**answer, "exposed": [exposed_keys(sequence=2)], "next": "7.9"}
    assert (query["after"], query["until"]) == ("7.9", "2026-02-01T00:00:00Z")
    return {**answer, "exposed": [exposed_keys(sequence=3, recipe="qkd-only")]}


def test_exposed_keys_are_read_to_their_last_page(network):
    network.answers[("*", "/v1/exposed")] = paged
    assert [one["sequence"] for one in network.run_json("exposed", "Bob")["exposed"]] == [2, 3]
    told = network.run("exposed", "Bob").stdout
    assert "CLASSICAL + PQC" in told
    assert "NOTHING" in told


def test_a_list_of_exposed_keys_that_breaks_off_is_no_document(network):
    def breaks_off(node, query, body):
        return None if "after" in query else paged(node, query, body)

    network.answers[("*", "/v1/exposed")] = breaks_off
    result = network.run("exposed", "Bob", "--json")
    assert result.exit_code == 1
    with pytest.raises(json.JSONDecodeError):
        json.loads(result.stdout)


def test_a_list_of_exposed_keys_that_may_lack_some_is_refused(network):
    network.answers[("Alice", "/v1/exposed")] = {"node": "Bob", "since": "", "until": "", "exposed": []}
    result = network.run("exposed", "Bob")
    assert result.exit_code == 1
    assert "node Bob" in result.stderr


@pytest.mark.parametrize("moment", ["yesterday", "2026-13-01"])
def test_a_moment_that_is_none_is_not_understood(network, moment):
    assert network.run("exposed", "Bob", "--since", moment).exit_code == 2


def test_a_node_that_does_not_exist_is_answered_with_those_that_do(network):
    assert "Alice, Bob" in network.run("exposed", "Carol").stderr
