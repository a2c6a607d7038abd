"""The clients of one node's QKD devices, made from its configuration and made anew where that changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trenza.adapters.etsi014_device import Etsi014Device
from trenza.adapters.telemetry_http import TelemetryHttp
from trenza.app.certificates import Certificates
from trenza.app.config import LinkConfig, NodeConfig, host_and_port
from trenza.base.names import LinkId
from trenza.kms.context import LinkEnd
from trenza.net.http_client import HttpClient
from trenza.net.tls import RevocationCheck, TlsStatistics


@dataclass(frozen=True, slots=True)
class _Clients:
    config: LinkConfig
    end: LinkEnd
    clients: tuple[HttpClient, ...]


class LinkClients:
    """All of one node's connections to its devices."""

    def __init__(self, certificates: Certificates, *, is_revoked: RevocationCheck) -> None:
        self._certificates = certificates
        self._is_revoked = is_revoked
        self._links: dict[LinkId, _Clients] = {}

    def ends(self, config: NodeConfig) -> dict[LinkId, LinkEnd]:
        """Return the node's end of every link it is configured with."""
        self._links = {link.name: self._made(link) for link in config.links}
        return {name: link.end for name, link in self._links.items()}

    async def follow(self, config: NodeConfig, ends: dict[LinkId, LinkEnd]) -> list[str]:
        """Change `ends` to what `config` says; return what changed, in words."""
        wanted = {link.name: link for link in config.links}
        changed: list[str] = []
        for name, known in tuple(self._links.items()):
            if wanted.get(name) != known.config:
                del self._links[name], ends[name]
                await self._close([known])
                changed.append(f"link {name} changed" if name in wanted else f"link {name} removed")
        for name, link in wanted.items():
            if name not in self._links:
                self._links[name] = self._made(link)
                ends[name] = self._links[name].end
                if f"link {name} changed" not in changed:
                    changed.append(f"link {name} added")
        return changed

    def statistics(self) -> list[TlsStatistics]:
        """Return what happened at the connections to each device port."""
        return [client.statistics for link in self._links.values() for client in link.clients]

    async def aclose(self) -> None:
        links, self._links = self._links, {}
        await self._close(links.values())

    @staticmethod
    async def _close(links: Iterable[_Clients]) -> None:
        for link in links:
            for client in link.clients:
                await client.aclose()

    def _made(self, link: LinkConfig) -> _Clients:
        keys = self._client(link, link.device, link.device_identity, connections=2)
        far = link.far_sae or link.peer
        device = Etsi014Device(keys, slave_sae_id=far, master_sae_id=link.far_sae_as_initiator or far)
        clients: tuple[HttpClient, ...] = (keys,)
        telemetry = None
        if link.telemetry:
            identity = link.telemetry_identity or link.device_identity
            reading = self._client(link, link.telemetry, identity, connections=1)
            clients, telemetry = (keys, reading), TelemetryHttp(reading)
        end = LinkEnd(link.name, link.peer, device, telemetry, emulated=link.emulated)
        return _Clients(link, end, clients)

    def _client(self, link: LinkConfig, address: str, identity: str, *, connections: int) -> HttpClient:
        return HttpClient(
            self._certificates.to_device(classical=link.classical_tls),
            *host_and_port(address),
            expected_name=identity,
            max_connections=connections,
            is_revoked=self._is_revoked,
        )
