"""Ledgers checked away from the nodes that wrote them."""

import json
from types import SimpleNamespace

import pytest

from trenza.app.pki import CertificateAuthority, KeyType, node_uri
from trenza.core.chain import chain_hash, sign_checkpoint
from trenza.net.http import Response

COUNT = 2_500  # more than one page


@pytest.fixture(scope="module")
def signer():
    return CertificateAuthority.create("Alice", KeyType.ML_DSA_65).credential


@pytest.fixture
def ledger(network, tmp_path, signer):
    """Let Alice tell a ledger with a checkpoint in the middle."""
    entries, digest = [], bytes(48)
    for sequence in range(1, COUNT + 1):
        body = b"%d" % sequence
        digest = chain_hash(digest, sequence=sequence, time=sequence, kind="issued", body=body, terms=("a",))
        told = {"sequence": sequence, "time": "", "time_ns": sequence, "kind": "issued", "body": body.hex()}
        entries.append(told | {"hash": digest.hex(), "terms": ["a"]})

    def page(_node, query, _body):
        after, limit = int(query["after"]), int(query["limit"])
        found = entries[after : after + limit]
        return {"entries": found, "next_after": found[-1]["sequence"] if len(found) == limit else None}

    head = SimpleNamespace(sequence=2_000, hash=bytes.fromhex(entries[1_999]["hash"]))
    signed = sign_checkpoint(signer.private_key.sign, node="Alice", head=head, time=7)
    checkpoint = {"node": "Alice", "sequence": 2_000, "hash": head.hash.hex(), "time": "", "time_ns": 7}
    checkpoint["signature"] = signed.signature.hex()
    network.answers[("Alice", "/v1/ledger")] = page
    network.answers[("Alice", "/v1/checkpoints")] = {"checkpoints": [checkpoint]}
    signer.save(tmp_path / "alice.pem", tmp_path / "alice.key")
    return entries


def export(network, tmp_path):
    file = tmp_path / "alice.ledger"
    assert network.run("ledger", "export", "Alice", str(file)).exit_code == 0
    return file


def audit(network, tmp_path, file):
    return network.run_alone("audit", "--file", str(file), "--certificate", str(tmp_path / "alice.pem"), "--json")


def test_a_whole_ledger_passes_and_is_vouched_for_up_to_the_last_checkpoint(network, ledger, tmp_path):
    result = audit(network, tmp_path, export(network, tmp_path))
    assert result.exit_code == 0
    (verdict,) = json.loads(result.stdout)["nodes"].values()
    assert (verdict["whole"], verdict["entries"], verdict["vouched"]) == (True, COUNT, 2_000)


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (lambda document: document["entries"].pop(1_200), "entry 1201 is missing"),
        (lambda document: document["entries"][9].update(kind="delivered"), "entry 10 was altered"),
        (lambda document: document["entries"].__delitem__(slice(1_500, None)), "a checkpoint vouches for 2000"),
        (lambda document: document["checkpoints"][0].update(sequence=3), "is not signed by Alice"),
        (lambda document: document["checkpoints"][0].update(node="Bob"), "is that of Bob"),
        (lambda document: document["entries"][0].update(body="xyz"), "not hexadecimal"),
    ],
)
def test_what_was_done_to_a_ledger_is_named(network, ledger, tmp_path, tamper, told):
    file = export(network, tmp_path)
    document = json.loads(file.read_bytes())
    tamper(document)
    file.write_text(json.dumps(document))
    result = audit(network, tmp_path, file)
    assert result.exit_code == 1
    assert told in json.loads(result.stdout)["nodes"]["Alice"]["message"]
    assert json.loads(result.stderr)["error"] == "authentication"


def test_the_key_that_vouches_comes_from_elsewhere(network, ledger, tmp_path):
    result = network.run_alone("audit", "--file", str(export(network, tmp_path)))
    assert result.exit_code == 2
    assert "--certificate" in result.stderr


def test_evidence_is_not_overwritten(network, ledger, tmp_path):
    file = export(network, tmp_path)
    assert "not overwritten" in network.run("ledger", "export", "Alice", str(file)).stderr


def test_a_ledger_is_not_fetched_where_it_could_not_be_written(network, tmp_path):
    file = tmp_path / "nowhere" / "alice.ledger"
    result = network.run("ledger", "export", "Alice", str(file))
    assert result.exit_code == 1
    assert f"there is no directory {file.parent}" in result.stderr
    assert network.asked == []


def test_a_file_that_is_no_ledger_is_refused(network, tmp_path, ledger):
    file = tmp_path / "other.json"
    file.write_text('{"node": "Alice", "entries": [], "checkpoints": [], "format": "other"}')
    assert "its format is 'other'" in audit(network, tmp_path, file).stderr


def test_an_audit_of_the_network_fetches_every_ledger_and_tells_which_failed(network, ledger, tmp_path):
    network.answers[("Bob", "/v1/checkpoints")] = Response(503, b'{"error": "unavailable", "message": "busy"}')
    result = network.run("audit", "--json")
    verdicts = json.loads(result.stdout)["nodes"]
    assert result.exit_code == 1
    assert "busy" in verdicts["Bob"]["message"]


def test_a_node_that_does_not_answer_is_not_said_to_have_altered_its_ledger(network, ledger, tmp_path):
    network.answers[("Alice", "/v1/checkpoints")] = Response(503, b'{"error": "unavailable", "message": "busy"}')
    result = network.run("audit", "Alice", "--certificate", str(tmp_path / "alice.pem"), "--json")
    assert json.loads(result.stdout)["nodes"]["Alice"]["whole"] is None
    told = json.loads(result.stderr)
    assert (result.exit_code, told["error"]) == (1, "unavailable")
    assert "evidence" not in told["message"]


@pytest.mark.parametrize("certificate", ["absent.pem", "alice.key", "bob.pem"])
def test_a_wrong_certificate_is_no_word_against_a_ledger(network, ledger, tmp_path, certificate):
    authority = CertificateAuthority.create("Test nodes", KeyType.ML_DSA_65)
    authority.issue("Bob", uris=[node_uri("Bob")]).save(tmp_path / "bob.pem", tmp_path / "bob.key")
    words = ("--file", str(export(network, tmp_path)), "--certificate", str(tmp_path / certificate))
    for result in (network.run_alone("audit", *words), network.run("audit", "Alice", *words[2:])):
        assert result.exit_code == 2
        assert "--certificate" in result.stderr
        assert result.stdout == ""
