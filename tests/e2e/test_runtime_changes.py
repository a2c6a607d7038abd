"""What an operator changes while everything runs: applications, policies, links, certificates. Nothing restarts."""

import contextlib
import http.client
import json
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from msgspec.structs import replace
from tests.e2e import product
from tests.e2e.product import until

from trenza.app.config import (
    DeviceEndConfig,
    DeviceHostConfig,
    DevicePairConfig,
    LinkConfig,
    load_node_config,
    write_config,
)
from trenza.app.devices import device_identity, device_name
from trenza.app.network_files import Ports
from trenza.app.pki import CertificateAuthority, create_officer_key, node_uri, sae_uri
from trenza.net.tls import fingerprint_of

NODES = ("Alice", "Bob")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    with product.up("two-nodes", tmp_path_factory.mktemp("changing")) as running:
        before = [running.status(node)["incarnation"] for node in NODES]
        yield running
        assert [running.status(node)["incarnation"] for node in NODES] == before, "nothing has restarted"


@pytest.fixture
def change_book(network, tmp_path):
    """Sign and install a book that differs from the present one; return its version."""

    def changed(change) -> int:
        book = network.command_json("book", "show")
        change(book)
        draft, signed = tmp_path / "draft.json", tmp_path / "signed.json"
        draft.write_text(json.dumps(book))
        product.run("book", "sign", draft, "--bump", "--key", network.state / "officer.key", "-o", signed)
        return network.command_json("book", "install", signed)["version"]

    return changed


def reread(network):
    network.ready = json.loads((network.state / "ready.json").read_text())


def keys_flow(network, initiator="sae-alice", target="sae-bob", **members):
    given = network.application(initiator).keys(target, **members)
    assert network.application(target).fetch(initiator, *given) == given
    return given


def recipe_of(container):
    return container["keys"][0]["key_extension"]["trenza_recipe"]


def authority(network, name):
    return CertificateAuthority.load(network.state / f"pki/{name}-ca.pem", network.state / f"pki/{name}-ca.key")


# --- applications --------------------------------------------------------------------------------------------------


def test_an_application_is_added_and_taken_away(network):
    bob = network.application("sae-bob")
    assert bob.status("sae-carol")[0] == 401

    network.command("sae", "new", "sae-carol", "--node", "Alice", "--with", "sae-bob")
    reread(network)
    keys_flow(network, "sae-carol", "sae-bob")
    keys_flow(network, "sae-bob", "sae-carol")
    carol = network.application("sae-carol")
    left = carol.keys("sae-bob")

    network.command("sae", "revoke", "sae-carol")
    assert carol.status("sae-bob")[0] == 401, "on the connection that was open"
    for code, document in (bob.enc("sae-carol"), bob.dec("sae-carol", *left), bob.status("sae-carol")):
        assert (code, document["message"]) == (401, "unauthorised")
    carol.close()
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        carol.status("sae-bob")
    keys_flow(network)


def test_a_revoked_certificate_is_refused_and_its_successor_taken(network, change_book, tmp_path):
    files = network.ready["saes"]["sae-alice-2"]
    fingerprint = fingerprint_of(x509.load_pem_x509_certificate(Path(files["certificate"]).read_bytes()))
    old = network.application("sae-alice-2")
    assert old.status("sae-bob-2")[0] == 200
    change_book(lambda book: book["revoked"].append(fingerprint))
    assert old.status("sae-bob-2")[0] == 401, "on the connection that was open"
    old.close()
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        old.status("sae-bob-2")

    successor = authority(network, "application").issue("new", uris=[sae_uri("sae-alice-2")], server=False)
    successor.save(tmp_path / "new.pem", tmp_path / "new.key")
    shown = {"certificate": str(tmp_path / "new.pem"), "private_key": str(tmp_path / "new.key")}
    given = network.application("sae-alice-2", **shown).keys("sae-bob-2")
    assert network.application("sae-bob-2").fetch("sae-alice-2", *given) == given


# --- policies ------------------------------------------------------------------------------------------------------


def test_a_changed_ladder_is_followed_and_keys_issued_before_stay_fetchable(network, change_book):
    def with_ladder(*recipes):
        def change(book):
            next(one for one in book["policies"] if one["name"] == "default")["ladder"] = recipes

        return change

    alice, bob = network.application("sae-alice"), network.application("sae-bob")
    before = alice.keys("sae-bob", number=5)
    version = change_book(with_ladder("exchange-catkdf", "hybrid-catkdf"))
    assert [network.status(node)["book_version"] for node in NODES] == [version, version]

    def issued():
        code, container = alice.enc("sae-bob")
        return container if code == 200 else None

    container = until("a key under the new policy", issued)
    until("the new first rung is filled", lambda: recipe_of(alice.enc("sae-bob")[1]) == "exchange-catkdf")
    assert bob.fetch("sae-alice", *before) == before
    given = product.bits_of(container)
    assert bob.fetch("sae-alice", *given) == given
    keys_flow(network)

    between = alice.keys("sae-bob", number=2)
    change_book(with_ladder("hybrid-catkdf"))
    assert bob.fetch("sae-alice", *between) == between
    code, container = alice.enc("sae-bob")
    assert (code, recipe_of(container)) == (200, "hybrid-catkdf")
    assert set(container["keys"][0]["key_extension"]["trenza_origins"]) == {"qkd", "pqc", "classical"}


def test_a_pair_without_a_rule_any_more_gets_nothing(network, change_book):
    def without_rule(book):
        book["rules"] = [one for one in book["rules"] if set(one["between"]) != {"sae-alice", "sae-bob-2"}]

    keys_flow(network, "sae-alice", "sae-bob-2")
    left = network.application("sae-alice").keys("sae-bob-2")
    change_book(without_rule)
    assert network.application("sae-alice").enc("sae-bob-2")[0] == 401
    assert network.application("sae-bob-2").dec("sae-alice", *left)[0] == 401
    keys_flow(network)


# --- books that are not taken --------------------------------------------------------------------------------------


def test_a_replayed_book_is_refused(network, change_book, tmp_path):
    old = (network.state / "book.json").read_bytes()
    present = change_book(lambda _book: None)
    for text in (old, (network.state / "book.json").read_bytes()):
        code, refusal = network.manage("Alice", "/v1/book", method="PUT", body=text)
        assert (code, refusal["error"]) == (409, "stale")
        assert f"not newer than version {present}" in refusal["message"]
    (tmp_path / "old.json").write_bytes(old)
    refused = network.command("book", "install", tmp_path / "old.json", ok=False)
    assert refused.returncode != 0
    assert "not newer than" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_book_of_another_officer_is_refused(network, tmp_path):
    book = network.command_json("book", "show")
    (tmp_path / "draft.json").write_text(json.dumps(book))
    create_officer_key(tmp_path / "other.key", tmp_path / "other.pem")
    words = ("--bump", "--key", tmp_path / "other.key", "-o", tmp_path / "signed.json")
    product.run("book", "sign", tmp_path / "draft.json", *words)
    refused = network.command("book", "install", tmp_path / "signed.json", ok=False)
    assert refused.returncode != 0
    assert "not signed by the key officer" in refused.stderr
    assert [network.status(node)["book_version"] for node in NODES] == [book["version"]] * 2


def test_an_altered_book_is_refused(network):
    book = json.loads((network.state / "book.json").read_bytes())
    book["body"] = book["body"][:-8] + "AAAAAAA="
    code, refusal = network.manage("Bob", "/v1/book", method="PUT", body=json.dumps(book).encode())
    assert (code, refusal["error"]) == (422, "authentication")


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"body": 7}', b"\xff"])
def test_what_is_no_book_is_refused(network, text):
    code, refusal = network.manage("Bob", "/v1/book", method="PUT", body=text)
    assert (code, refusal["error"]) == (422, "invalid-document")
    assert refusal["mistakes"]


def test_a_book_with_mistakes_is_not_even_signed(network, tmp_path):
    book = network.command_json("book", "show")
    book["rules"].append({"between": ["sae-alice", "nobody"], "policy": "none"})
    (tmp_path / "draft.json").write_text(json.dumps(book))
    words = ("--bump", "--key", network.state / "officer.key", "-o", tmp_path / "signed.json")
    refused = product.run("book", "sign", tmp_path / "draft.json", *words, ok=False)
    assert refused.returncode != 0
    assert "no SAE is called nobody" in refused.stderr
    assert "no policy is called none" in refused.stderr
    assert not (tmp_path / "signed.json").exists()


# --- certificates --------------------------------------------------------------------------------------------------


def replaced(network, issuer, certificate: Path, private_key: Path, **said):
    """Put a new certificate and key in the place of old ones, each file whole at every moment."""
    new = certificate.with_suffix(".new")
    authority(network, issuer).issue("renewed", **said).save(new, new.with_suffix(".newkey"))
    new.with_suffix(".newkey").replace(private_key)
    new.replace(certificate)


def test_a_renewed_certificate_is_shown_to_new_connections(network):
    config = load_node_config(network.state / "nodes/Alice/config.toml")
    alice = network.application("sae-alice")
    assert alice.status("sae-bob")[0] == 200
    old = alice.presented_certificate()
    names = {"uris": [node_uri("Alice")], "dns_names": ["localhost"], "ips": ["127.0.0.1"]}
    replaced(network, "application", config.application.certificate, config.application.private_key, **names)
    assert alice.presented_certificate() == old, "nobody has said so yet"
    assert "certificates loaded" in network.command("node", "reload", "Alice").stdout

    expected = x509.load_pem_x509_certificate(config.application.certificate.read_bytes())
    assert x509.load_der_x509_certificate(alice.presented_certificate()) == expected
    assert alice.status("sae-bob")[0] == 200, "on the connection that was open"
    keys_flow(network)


def test_a_renewed_identity_among_the_nodes_is_followed(network):
    config = load_node_config(network.state / "nodes/Bob/config.toml")
    names = {"uris": [node_uri("Bob")], "dns_names": ["localhost"], "ips": ["127.0.0.1"]}
    replaced(network, "internal", config.peers.certificate, config.peers.private_key, **names)
    filled = network.status("Alice")["counters"]["segments_filled"]
    network.command("node", "reload")
    drained_until(network, lambda: network.status("Alice")["counters"]["segments_filled"] > filled + 1)
    keys_flow(network)


def test_files_that_do_not_fit_each_other_change_nothing(network):
    config = load_node_config(network.state / "nodes/Alice/config.toml")
    certificate = config.application.certificate
    good = certificate.read_bytes()
    try:
        certificate.write_bytes(Path(network.ready["saes"]["sae-bob"]["certificate"]).read_bytes())
        refused = network.command("node", "reload", "Alice", ok=False)
        assert refused.returncode != 0
        assert "certificates of node Alice" in refused.stderr
        keys_flow(network)
    finally:
        certificate.write_bytes(good)
    network.command("node", "reload", "Alice")


def drained_until(network, condition):
    """Use keys up until something has happened: filling begins when stock has run low."""
    alice = network.application("sae-alice")

    def look():
        with contextlib.suppress(AssertionError):  # a moment without keys, while sessions are made anew
            alice.keys("sae-bob", number=128)
        return condition()

    until("filling", look)


# --- links ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_link_is_added_and_the_old_one_removed(network, change_book, tmp_path):
    ports = Ports()
    try:
        pair = second_pair(network, tmp_path, ports)
        write_config(pair, tmp_path / "devices.toml")
        devices = product.Process(tmp_path / "log", "devices", "--config", tmp_path / "devices.toml")
        try:
            changes_of_links(network, change_book, pair)
        finally:
            devices.end()
    finally:
        ports.release()


def changes_of_links(network, change_book, pair):
    change_book(lambda book: book["links"].append({"name": "Second", "ends": NODES, "evidence": "invented"}))
    for near, far, end in (("Alice", "Bob", pair.pairs[0].a), ("Bob", "Alice", pair.pairs[0].b)):
        identity = device_identity("Second", near)
        link = LinkConfig("Second", far, end.keys, identity, telemetry=end.telemetry, emulated=True)
        configure(network, near, lambda links, link=link: (*links, link))
        assert "link Second added" in network.command("node", "reload", near).stdout

    def stocked():
        links = [links_of(network, node) for node in NODES]
        return all("Second" in one and all(s["traffic_bits"] for s in one["Second"]["stock"]) for one in links)

    until("key of the second link at both ends", stocked)
    assert links_of(network, "Alice")["Second"]["reading"]["state"] == "running"

    for node in NODES:
        configure(network, node, lambda links: tuple(link for link in links if link.name == "Second"))
        assert "link Alice-Bob removed" in network.command("node", "reload", node).stdout
        assert set(links_of(network, node)) == {"Second"}

    def made_of_the_second():
        code, container = network.application("sae-alice").enc("sae-bob", number=128)
        if code != 200:
            return False
        _, statement = network.manage("Alice", f"/v1/keys/{container['keys'][0]['key_ID']}")
        return [hop["link"] for hop in statement["segment"]["hops"]] == ["Second"]

    until("keys of the second link alone", made_of_the_second, within_s=120)
    keys_flow(network)


def links_of(network, node):
    return {link["link"]: link for link in network.status(node)["links"]}


def configure(network, node, change):
    path = network.state / "nodes" / node / "config.toml"
    config = load_node_config(path)
    write_config(replace(config, links=change(config.links)), path)


def second_pair(network, folder, ports):
    """Return what a second pair of emulated devices is told."""
    internal = authority(network, "internal")
    ends = []
    for node in NODES:
        files = (folder / f"{node}.pem", folder / f"{node}.key")
        internal.issue(node, uris=[device_identity("Second", node)]).save(*files)
        ends.append(DeviceEndConfig(node, device_name("Second", node), ports.address(), ports.address(), *files))
    pair = DevicePairConfig("Second", "decoy-bb84-1ghz", 3.0, *ends, fixed_rate_bps=50_000_000)
    return DeviceHostConfig(network.state / "pki/internal-ca.pem", (pair,))
