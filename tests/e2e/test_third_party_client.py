"""Somebody else's client, unchanged: the PyPI package etsi-qkd-014-client against a running network."""

import base64
from urllib.parse import urlsplit

import pytest

client = pytest.importorskip("etsi_qkd_014_client")
data = pytest.importorskip("etsi_qkd_014_client.data")


@pytest.fixture
def alice(two_nodes):
    return at(two_nodes, "sae-alice")


@pytest.fixture
def bob(two_nodes):
    return at(two_nodes, "sae-bob")


def at(network, sae):
    files = network.ready["saes"][sae]
    door = urlsplit(network.ready["nodes"][files["node"]]["etsi014"]).netloc
    return client.QKD014Client(door, files["certificate"], files["private_key"], files["ca"])


def bits(container):
    return [(key.key_id, base64.b64decode(key.key)) for key in container.keys]


def test_it_reads_the_status(alice):
    code, status = alice.get_status("sae-bob")
    assert code == 200
    assert (status.source_kme_id, status.target_kme_id) == ("Alice", "Bob")
    assert (status.master_sae_id, status.slave_sae_id) == ("sae-alice", "sae-bob")
    assert status.key_size == 256
    assert 0 < status.stored_key_count <= status.max_key_count


def test_both_ends_get_the_same_key(alice, bob):
    code, given = alice.get_key("sae-bob")
    assert code == 200
    ((key_id, key),) = bits(given)
    code, fetched = bob.get_key_with_key_IDs("sae-alice", [key_id])
    assert code == 200
    assert bits(fetched) == [(key_id, key)]
    assert len(key) == 32


def test_many_keys_of_another_size_come_in_the_order_asked_for(alice, bob):
    code, given = alice.get_key("sae-bob", number=7, size=512)
    assert code == 200
    keys = bits(given)
    assert len({key for _, key in keys}) == len({key_id for key_id, _ in keys}) == 7
    assert {len(key) for _, key in keys} == {64}
    code, fetched = bob.get_key_with_key_IDs("sae-alice", [key_id for key_id, _ in reversed(keys)])
    assert code == 200
    assert bits(fetched) == keys[::-1]


def test_one_key_goes_to_two_targets(two_nodes, alice, bob):
    code, given = alice.get_key("sae-bob", additional_slave_sae_ids=["sae-bob-2"])
    assert code == 200
    ((key_id, key),) = bits(given)
    for target in (bob, at(two_nodes, "sae-bob-2")):
        code, fetched = target.get_key_with_key_IDs("sae-alice", [key_id])
        assert code == 200, fetched
        assert bits(fetched) == [(key_id, key)]


def test_it_reads_refusals(alice, bob):
    code, error = alice.get_key("sae-bob", size=257)
    assert (code, error.message) == (400, "size shall be a multiple of 8")
    code, error = bob.get_key_with_key_IDs("sae-alice", ["550e8400-e29b-41d4-a716-446655440000"])
    assert (code, error.message) == (400, "one or more keys specified are not found on KME")
    code, error = alice.get_key("nobody")
    assert (code, error.message) == (401, "unauthorised")
