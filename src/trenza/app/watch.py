"""Asking the nodes of a network how they are, as their operator: for whoever started them as processes.

Every question is a request to a management door. A node that does not answer is starting, or dead: both are None.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Final

import msgspec

from trenza.app.config import NodeConfig
from trenza.app.network_files import SaeFiles
from trenza.app.pki import node_uri
from trenza.base.errors import TrenzaError
from trenza.base.names import NodeId
from trenza.net.http_client import HttpClient
from trenza.net.tls import TlsIdentity, client_context
from trenza.wire.management import NodeStatus

_TIMEOUT_S: Final = 5.0
_LARGEST_ANSWER_BYTES: Final = 16 * 1024 * 1024


class Watch:
    """The management doors of some nodes of this machine."""

    def __init__(self, operator: SaeFiles, nodes: Mapping[NodeId, NodeConfig]) -> None:
        context = client_context(TlsIdentity(operator.certificate, operator.private_key, operator.ca))
        self._clients = {
            name: HttpClient(
                context,
                *config.management.host_and_port,
                expected_name=node_uri(name),
                max_body_bytes=_LARGEST_ANSWER_BYTES,
            )
            for name, config in nodes.items()
        }

    async def is_open(self, node: NodeId) -> bool:
        """Tell whether a node answers its operators: the last but one door that it opens."""
        return await self._answer(node, "/v1/health") is not None

    async def status(self, node: NodeId) -> NodeStatus | None:
        """Return what a node tells of itself."""
        body = await self._answer(node, "/v1/status")
        try:
            return None if body is None else msgspec.json.decode(body, type=NodeStatus)
        except msgspec.DecodeError:
            return None

    async def statuses(self, nodes: Iterable[NodeId]) -> dict[NodeId, NodeStatus | None]:
        """Return what several nodes tell, asked all at once."""
        asked = list(nodes)
        return dict(zip(asked, await asyncio.gather(*map(self.status, asked)), strict=True))

    async def aclose(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))

    async def _answer(self, node: NodeId, path: str) -> bytes | None:
        try:
            response = await self._clients[node].request("GET", path, None, timeout_s=_TIMEOUT_S)
        except TrenzaError:
            return None
        return response.body if response.status in (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE) else None
