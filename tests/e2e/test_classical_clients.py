"""An application whose TLS knows no post-quantum group: served on the loopback, and the ledger says so."""

import json
import shutil
import subprocess

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here"),
]


@pytest.mark.parametrize(("curves", "told"), [("X25519", "x25519"), ("P-256", "secp256r1")])
def test_curl_with_one_classical_group_gets_a_key_and_explain_names_the_group(two_nodes, curves, told):
    files = two_nodes.ready["saes"]["sae-alice"]
    door = two_nodes.ready["nodes"][files["node"]]["etsi014"]
    shown = ["--cert", files["certificate"], "--key", files["private_key"], "--cacert", files["ca"]]
    command = ["curl", "-sS", "--fail", "--curves", curves, *shown, f"{door}/api/v1/keys/sae-bob/enc_keys"]
    given = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)
    key_id = given["keys"][0]["key_ID"]
    two_nodes.application("sae-bob").fetch("sae-alice", key_id)

    events = {
        event["kind"]: event["record"]["tls_group"]
        for statement in two_nodes.command_json("explain", key_id)["statements"]
        for event in statement["events"]
    }
    assert events["issued"] == told
    assert told in two_nodes.command("explain", key_id).stdout
