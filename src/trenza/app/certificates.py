"""The TLS settings of one node, loaded from its files, all of them replaced at once when the files change.

Between our own parts: TLS 1.3 and X25519MLKEM768 only. The application door and a vendor's device may be declared
exceptions in the configuration (design decision 16).
"""

from __future__ import annotations

from dataclasses import dataclass

from trenza.app.config import NodeConfig
from trenza.base.errors import InvalidDocumentError
from trenza.net.tls import ContextProvider, Groups, TlsContext, client_context, server_context


@dataclass(frozen=True, slots=True)
class _Contexts:
    application: TlsContext
    peers: TlsContext
    to_peers: TlsContext
    management: TlsContext
    to_devices: dict[bool, TlsContext]  # by whether the device knows classical TLS only


class Certificates:
    """What the doors and clients of a node ask for at every new connection."""

    def __init__(self, config: NodeConfig) -> None:
        """Load all files.

        Raises:
            InvalidDocumentError: they cannot be used.
        """
        self._now = _load(config)

    def reload(self, config: NodeConfig) -> None:
        """Load all files anew; if one cannot be used, nothing changes.

        Raises:
            InvalidDocumentError: they cannot be used.
        """
        self._now = _load(config)

    def application(self) -> TlsContext:
        return self._now.application

    def peers(self) -> TlsContext:
        return self._now.peers

    def to_peers(self) -> TlsContext:
        return self._now.to_peers

    def management(self) -> TlsContext:
        return self._now.management

    def to_device(self, *, classical: bool) -> ContextProvider:
        return lambda: self._now.to_devices[classical]


def _load(config: NodeConfig) -> _Contexts:
    application = config.application
    try:
        to_devices = {}
        if config.devices is not None:
            for classical, groups in ((False, Groups.HYBRID_ONLY), (True, Groups.HYBRID_PREFERRED)):
                to_devices[classical] = client_context(config.devices.files, groups=groups)
        return _Contexts(
            application=server_context(application.files, groups=application.groups, oldest=application.oldest),
            peers=server_context(config.peers.files),
            to_peers=client_context(config.peers.files),
            management=server_context(config.management.files),
            to_devices=to_devices,
        )
    except (OSError, ValueError) as error:
        raise InvalidDocumentError(f"the certificates of node {config.name}", (str(error),)) from None
