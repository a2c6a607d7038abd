"""Everything a scenario's network needs on disk before it starts: certificates, the signed book, configurations.

Writes files and reserves ports; opens nothing. What is written is what real sites would have: `trenza node` runs any
node of it alone. Private keys are new at every writing and readable by their owner only.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from trenza.app.config import (
    ApplicationListener,
    DatabaseConfig,
    DeviceEndConfig,
    DeviceHostConfig,
    DevicePairConfig,
    Identity,
    LinkConfig,
    Listener,
    NodeConfig,
    write_config,
)
from trenza.app.devices import device_identity, device_name
from trenza.app.network_database import schema_of
from trenza.app.pki import CertificateAuthority, KeyType, create_officer_key, node_uri, operator_uri, sae_uri
from trenza.app.scenario_model import Link, Scenario
from trenza.app.state_directory import StateDirectory, file_name
from trenza.base.names import LinkId, NodeId, SaeId
from trenza.core.policy import SignedBook, bytes_to_sign, message_of

HOST: Final = "127.0.0.1"
OPERATOR: Final = "local"
_DOORS: Final = ("application", "peers", "management")
_PORTS: Final = ("keys", "telemetry")
_HERE: Final = ("localhost",)


class Ports:
    """Free ports of the loopback that nobody else is given while this process keeps them.

    A port is bound and never listened on: whoever knows its number may then listen there, also again after a
    restart, while the kernel hands it to nobody who asks for any free one.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def address(self) -> str:
        """Return host:port of a free port."""
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # lets a listener share it, on Linux
        self._held.append(held)
        held.bind((HOST, 0))
        return f"{HOST}:{held.getsockname()[1]}"

    def release(self) -> None:
        for held in self._held:
            held.close()
        self._held.clear()


@dataclass(frozen=True, slots=True)
class SaeFiles:
    """Who an application is: what its client shows and trusts."""

    certificate: Path
    private_key: Path
    ca: Path


@dataclass(slots=True)
class NetworkFiles:
    """Writes the files of one network into its state directory, and says where they are."""

    scenario: Scenario
    state: StateDirectory
    ports: Ports
    database: Path | None = None  # the nodes' memory is there: a file as in their configuration
    _addresses: dict[tuple[str, ...], str] = field(default_factory=dict)

    def write(self) -> None:
        """Write everything; the state directory was cleared before."""
        pki = self.state.pki
        for folder in (pki / "nodes", pki / "devices", pki / "saes"):
            folder.mkdir(mode=0o700, parents=True)
        internal = self._authority("internal", KeyType.ML_DSA_65)
        applications = self._authority("application", KeyType.ECDSA_P256)
        self._issue_all(internal, applications)
        self._write_book()
        for node in self.scenario.nodes:
            self.state.node(node.name).mkdir(mode=0o700, parents=True)
            write_config(self.node_config(node.name), self.state.node_config(node.name))
        write_config(self.device_config(), self.state.devices)

    def ready_document(self, nodes: Mapping[NodeId, NodeConfig]) -> dict[str, Any]:
        """Return where everything is; `nodes` and `saes` are a public contract, whatever is added beside them."""
        return {
            "nodes": {
                name: {
                    "etsi014": f"https://{config.application.address}",
                    "management": f"https://{config.management.address}",
                    "peers": config.peers.address,
                }
                for name, config in nodes.items()
            },
            "saes": {sae.name: {"node": sae.node} | _paths(self.sae(sae.name)) for sae in self.scenario.saes},
            "operator": _paths(self.operator),
            "scenario": self.scenario.name,
            "state": str(self.state.path),
        }

    # --- certificates

    @property
    def internal_trust(self) -> Path:
        return self.state.pki / "internal-ca.pem"

    @property
    def operator(self) -> SaeFiles:
        """Return who the operator is, for the management doors."""
        return SaeFiles(*self._pair(self.state.pki / "operator"), self.internal_trust)

    def sae(self, name: SaeId) -> SaeFiles:
        """Return who an application is, for the application doors."""
        return SaeFiles(*self._pair(self.state.pki / "saes" / file_name(name)), self._application_trust)

    @property
    def _application_trust(self) -> Path:
        return self.state.pki / "application-ca.pem"

    def _authority(self, name: str, key_type: KeyType) -> CertificateAuthority:
        authority = CertificateAuthority.create(f"Trenza {self.scenario.name} {name}", key_type)
        authority.save(*self._pair(self.state.pki / f"{name}-ca"))
        return authority

    def _issue_all(self, internal: CertificateAuthority, applications: CertificateAuthority) -> None:
        for node in self.scenario.nodes:
            uris = (node_uri(node.name),)
            for purpose in ("peers", "management", "devices"):
                credential = internal.issue(f"{node.name} {purpose}", uris=uris, dns_names=_HERE, ips=(HOST,))
                credential.save(*self._of_node(node.name, purpose))
            credential = applications.issue(node.name, uris=uris, dns_names=_HERE, ips=(HOST,))
            credential.save(*self._of_node(node.name, "application"))
        for link in self.scenario.links:
            for end in link.ends:
                device = internal.issue(device_name(link.name, end), uris=(device_identity(link.name, end),))
                device.save(*self._of_device(link.name, end))
        for sae in self.scenario.saes:
            identity = sae.identity or sae_uri(sae.name)
            is_uri = ":" in identity
            credential = applications.issue(
                sae.name,
                uris=(identity,) if is_uri else (),
                dns_names=() if is_uri else (identity,),
                server=False,
            )
            credential.save(*self._pair(self.state.pki / "saes" / file_name(sae.name)))
        operator = internal.issue(f"operator {OPERATOR}", uris=(operator_uri(OPERATOR),), server=False)
        operator.save(self.operator.certificate, self.operator.private_key)

    @staticmethod
    def _pair(stem: Path) -> tuple[Path, Path]:
        """Return the files of a certificate and its private key."""
        return stem.with_name(f"{stem.name}.pem"), stem.with_name(f"{stem.name}.key")

    def _of_node(self, node: NodeId, purpose: str) -> tuple[Path, Path]:
        return self._pair(self.state.pki / "nodes" / f"{file_name(node)}.{purpose}")

    def _of_device(self, link: LinkId, node: NodeId) -> tuple[Path, Path]:
        return self._pair(self.state.pki / "devices" / file_name(device_name(link, node)))

    # --- the book

    def _write_book(self) -> None:
        officer = create_officer_key(self.state.officer_key, self.state.officer)
        addresses = {node.name: self.address(node.name, "peers") for node in self.scenario.nodes}
        body = bytes_to_sign(self.scenario.book(1, addresses))
        self.state.book.write_bytes(SignedBook(body, officer.sign(message_of(body))).encode())

    # --- configurations

    def address(self, *what: str) -> str:
        """Return where something listens: (node, door) or (link, node, port)."""
        if what not in self._addresses:
            self._addresses[what] = self.ports.address()
        return self._addresses[what]

    def node_config(self, name: NodeId) -> NodeConfig:
        """Return the configuration of one node."""
        folder, defaults = self.state.node(name), self.scenario.defaults
        application, peers, management = (self._of_node(name, door) for door in _DOORS)
        schema = schema_of(self.scenario.name, name)
        return NodeConfig(
            name=name,
            data_directory=folder / "data",
            node_key=folder / "node.key",
            anchor=folder / "anchor",
            database=None if self.database is None else DatabaseConfig(self.database, schema),
            officer=self.state.officer,
            book=self.state.book,
            application=ApplicationListener(*application, self._application_trust, self.address(name, "application")),
            peers=Listener(*peers, self.internal_trust, self.address(name, "peers")),
            management=Listener(*management, self.internal_trust, self.address(name, "management")),
            devices=Identity(*self._of_node(name, "devices"), self.internal_trust),
            links=tuple(self._link_config(link, name) for link in self.scenario.links_of(name)),
            settings={
                "stock_target": defaults.target_stock_keys,
                "segment_min": defaults.min_segment_keys,
                "segment_max": defaults.max_segment_keys,
                "levels_interval": 0.5,  # a path of twelve links is known within six seconds
            },
        )

    def _link_config(self, link: Link, node: NodeId) -> LinkConfig:
        keys, telemetry = (self.address(link.name, node, port) for port in _PORTS)
        return LinkConfig(
            name=link.name,
            peer=link.ends[1] if link.ends[0] == node else link.ends[0],
            device=keys,
            device_identity=device_identity(link.name, node),
            telemetry=telemetry,
            emulated=True,
        )

    def device_config(self) -> DeviceHostConfig:
        """Return the configuration of all emulated devices."""
        return DeviceHostConfig(
            trust=self.internal_trust,
            pairs=tuple(self._pair_config(link) for link in self.scenario.links),
            operators=(operator_uri(OPERATOR),),
        )

    def _pair_config(self, link: Link) -> DevicePairConfig:
        a, b = (self._end_config(link, end) for end in link.ends)
        return DevicePairConfig(
            link=link.name,
            device_class=link.device_class,
            loss_db=link.loss_db,
            a=a,
            b=b,
            initial_stock_bits=link.initial_stock_bits,
            time_factor=link.time_factor,
            fixed_rate_bps=link.fixed_rate_bps,
        )

    def _end_config(self, link: Link, node: NodeId) -> DeviceEndConfig:
        keys, telemetry = (self.address(link.name, node, port) for port in _PORTS)
        return DeviceEndConfig(node, device_name(link.name, node), keys, telemetry, *self._of_device(link.name, node))


def _paths(files: SaeFiles) -> dict[str, str]:
    named = {"certificate": files.certificate, "private_key": files.private_key, "ca": files.ca}
    return {name: str(path) for name, path in named.items()}
