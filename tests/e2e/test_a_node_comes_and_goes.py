"""A whole site joins a running network and leaves it: node, link, application, book. The others never restart."""

import json
from pathlib import Path

import pytest
from cryptography import x509
from msgspec.structs import replace
from tests.e2e import product
from tests.e2e.product import until

from trenza.app.config import (
    ApplicationListener,
    DeviceEndConfig,
    DeviceHostConfig,
    DevicePairConfig,
    Identity,
    LinkConfig,
    Listener,
    NodeConfig,
    load_node_config,
    write_config,
)
from trenza.app.devices import device_identity, device_name
from trenza.app.network_files import Ports
from trenza.app.pki import CertificateAuthority, node_uri, sae_uri
from trenza.net.tls import fingerprint_of

pytestmark = pytest.mark.slow

OLD = ("Alice", "Bob")
NEW, LINK, SAE = "Carol", "Bob-Carol", "sae-carol"
HERE = {"dns_names": ["localhost"], "ips": ["127.0.0.1"]}


class Site:
    """The files of a node more, beside a network that runs, and the two processes there."""

    def __init__(self, network, folder: Path, ports: Ports) -> None:
        self._network = network
        self._folder = folder
        self._pki = network.state / "pki"
        self._internal, self._applications = (
            CertificateAuthority.load(self._pki / f"{name}-ca.pem", self._pki / f"{name}-ca.key")
            for name in ("internal", "application")
        )
        self.doors = {door: ports.address() for door in ("application", "peers", "management")}
        self.device_ends = [self._device_end(node, ports) for node in ("Bob", NEW)]
        self.sae = self._issued(self._applications, SAE, uris=[sae_uri(SAE)], server=False)
        self.peer_certificate, _ = self._peers = self._issued(self._internal, "peers", uris=[node_uri(NEW)], **HERE)

    def _issued(self, authority, name, **names) -> tuple[Path, Path]:
        files = (self._folder / f"{name}.pem", self._folder / f"{name}.key")
        authority.issue(name, **names).save(*files)
        return files

    def _device_end(self, node, ports) -> DeviceEndConfig:
        files = self._issued(self._internal, f"device-{node}", uris=[device_identity(LINK, node)])
        return DeviceEndConfig(node, device_name(LINK, node), ports.address(), ports.address(), *files)

    def link(self, near: str) -> LinkConfig:
        end = next(one for one in self.device_ends if one.node == near)
        far = next(one.node for one in self.device_ends if one.node != near)
        identity = device_identity(LINK, near)
        return LinkConfig(LINK, far, end.keys, identity, telemetry=end.telemetry, emulated=True)

    def start_devices(self) -> product.Process:
        pair = DevicePairConfig(LINK, "decoy-bb84-1ghz", 3.0, *self.device_ends, fixed_rate_bps=50_000_000)
        config = DeviceHostConfig(self._pki / "internal-ca.pem", (pair,))
        return self._started("devices", config)

    def start_node(self, book: Path) -> product.Process:
        internal, applications = self._pki / "internal-ca.pem", self._pki / "application-ca.pem"
        named = {"uris": [node_uri(NEW)], **HERE}
        application = self._issued(self._applications, "application", **named)
        config = NodeConfig(
            name=NEW,
            data_directory=self._folder / "data",
            node_key=self._folder / "node.key",
            anchor=self._folder / "anchor",
            officer=self._network.state / "officer.pem",
            book=book,
            application=ApplicationListener(*application, applications, self.doors["application"]),
            peers=Listener(*self._peers, internal, self.doors["peers"]),
            management=Listener(
                *self._issued(self._internal, "management", **named), internal, self.doors["management"]
            ),
            devices=Identity(*self._issued(self._internal, "devices", uris=[node_uri(NEW)]), internal),
            links=(self.link(NEW),),
            settings=load_node_config(self._network.state / "nodes/Alice/config.toml").settings,
        )
        return self._started("node", config)

    def _started(self, what, config) -> product.Process:
        path = self._folder / f"{what}.toml"
        write_config(config, path)
        return product.Process(self._folder / f"{what}.log", what, "--config", path)

    def seen_by_clients(self) -> product.Network:
        """Return the network with this site in it."""
        certificate, private_key = map(str, self.sae)
        told = {"node": NEW, "certificate": certificate, "private_key": private_key}
        ready = json.loads(json.dumps(self._network.ready))
        ready["nodes"][NEW] = {
            "etsi014": f"https://{self.doors['application']}",
            "management": f"https://{self.doors['management']}",
        }
        ready["saes"][SAE] = told | {"ca": str(self._pki / "application-ca.pem")}
        return product.Network(ready, self._network.state)


def with_the_site(site):
    def change(book):
        book["nodes"].append({"name": NEW, "peer_address": site.doors["peers"]})
        book["links"].append({"name": LINK, "ends": ["Bob", NEW], "evidence": "invented"})
        book["saes"].append({"name": SAE, "node": NEW})
        book["rules"].append({"between": ["sae-alice", SAE], "policy": "default"})

    return change


def without_the_site(site):
    revoked = fingerprint_of(x509.load_pem_x509_certificate(site.peer_certificate.read_bytes()))

    def change(book):
        for section, name in (("nodes", NEW), ("links", LINK), ("saes", SAE)):
            book[section] = [one for one in book[section] if one["name"] != name]
        book["rules"] = [one for one in book["rules"] if SAE not in one["between"]]
        book["revoked"].append(revoked)

    return change


def change_book(network, folder, change) -> Path:
    """Sign and install the next book at the nodes that run; return its file."""
    book = network.command_json("book", "show")
    change(book)
    draft, signed = folder / "draft.json", folder / "signed.json"
    draft.write_text(json.dumps(book))
    product.run("book", "sign", draft, "--bump", "--key", network.state / "officer.key", "-o", signed)
    version = network.command_json("book", "install", signed)["version"]
    assert [network.status(node)["book_version"] for node in OLD] == [version, version]
    return signed


def change_links_of_bob(network, change) -> str:
    path = network.state / "nodes/Bob/config.toml"
    config = load_node_config(path)
    write_config(replace(config, links=change(config.links)), path)
    return network.command("node", "reload", "Bob").stdout


def keys_flow(network, initiator, target):
    given = network.application(initiator).keys(target, number=3)
    assert network.application(target).fetch(initiator, *given) == given
    return given


def test_a_site_joins_and_leaves_while_the_others_run_on(tmp_path):
    ports = Ports()
    with product.up("two-nodes", tmp_path) as network:
        lives = [network.status(node)["incarnation"] for node in OLD]
        site = Site(network, tmp_path, ports)
        running = []
        try:
            joins(network, site, tmp_path, running)
            leaves(network, site, tmp_path, running)
        finally:
            for process in running:
                process.end()
            ports.release()
        assert [network.status(node)["incarnation"] for node in OLD] == lives, "nothing has restarted"
        assert not network.process.ended
        assert "Traceback" not in network.process.said()


def joins(network, site, folder, running):
    running.append(site.start_devices())
    book = change_book(network, folder, with_the_site(site))
    running.append(site.start_node(book))
    assert f"link {LINK} added" in change_links_of_bob(network, lambda links: (*links, site.link("Bob")))

    whole = site.seen_by_clients()
    for near, far in (("sae-alice", SAE), (SAE, "sae-alice")):
        until(f"keys from {near} to {far}", lambda near=near, far=far: stored(whole, running, near, far))
        keys_flow(whole, near, far)
    (key_id, *_) = keys_flow(whole, "sae-alice", SAE)
    _, statement = whole.manage("Alice", f"/v1/keys/{key_id}")
    assert [hop["link"] for hop in statement["segment"]["hops"]] == ["Alice-Bob", LINK]
    assert statement["segment"]["known_to"] == ["Bob"], "the relay"
    keys_flow(network, "sae-alice", "sae-bob")
    whole.close()


def stored(network, running, near, far) -> bool:
    for process in running:
        assert not process.ended, process.said()
    application = network.application(near)
    try:
        code, status = application.status(far)
    except OSError:
        return False  # its door is not open yet
    finally:
        application.close()
    return code == 200 and status["stored_key_count"] >= 8


def leaves(network, site, folder, running):
    change_book(network, folder, without_the_site(site))
    assert f"link {LINK} removed" in change_links_of_bob(
        network, lambda links: tuple(link for link in links if link.name != LINK)
    )
    alice = network.application("sae-alice")
    assert alice.enc(SAE)[0] == alice.status(SAE)[0] == 401
    for node in OLD:
        until(f"{node} has left {NEW}", lambda node=node: NEW not in peers_of(network.status(node)))
    while running:
        assert running.pop().interrupt() == 0
    assert {link["link"] for link in network.status("Bob")["links"]} == {"Alice-Bob"}
    keys_flow(network, "sae-alice", "sae-bob")
    keys_flow(network, "sae-bob", "sae-alice")


def peers_of(status) -> set[str]:
    tasks = {word for task in status["troubles"] for word in task.split()}
    return tasks | {one["peer"] for part in ("sessions", "pools", "links") for one in status[part]}
