"""Asking the management doors of a network, all nodes at once.

Shows the operator's certificate and accepts post-quantum key exchange only. Answers are JSON documents; a refusal
keeps the node's own code and sentence.
Documents: `wire/management`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Self, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from trenza.app.pki import node_uri
from trenza.base.errors import (
    InvalidDocumentError,
    InvalidRequestError,
    RefusedError,
    RemoteProtocolError,
    TrenzaError,
)
from trenza.base.names import NodeId
from trenza.cli.state import Files, Ready, SaeFiles
from trenza.net.http_client import HttpClient
from trenza.net.tls import TlsContext, TlsIdentity, client_context
from trenza.wire.management import Refusal

_T = TypeVar("_T", bound=msgspec.Struct)

Query = Mapping[str, str | int | None]
"""Parameters of a request; those that are None are left out."""

TIMEOUT_S = 30.0
LARGEST_ANSWER_BYTES = 64 * 1024 * 1024
NO_QUERY: Query = MappingProxyType({})


def context_of(files: Files | SaeFiles) -> TlsContext:
    """Return what a client needs to be who the files say.

    Raises:
        InvalidDocumentError: a file is missing or cannot be used.
    """
    try:
        return client_context(TlsIdentity(files.certificate, files.private_key, files.ca))
    except (OSError, ValueError) as error:
        raise InvalidDocumentError("the identity", (str(error),)) from None


def client_of(node: NodeId, url: str, context: TlsContext) -> HttpClient:
    """Return connections to a node's door at `https://host:port`; another node's certificate is refused there.

    Raises:
        InvalidDocumentError: the address is none.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.hostname is None:
        raise InvalidDocumentError("the ready document", (f"{url} is not https://HOST:PORT",))
    return HttpClient(
        context,
        parts.hostname,
        parts.port or 443,
        expected_name=node_uri(node),
        max_body_bytes=LARGEST_ANSWER_BYTES,
    )


class Doors:
    """The management doors of one network. Use with `async with`."""

    def __init__(self, ready: Ready) -> None:
        context = context_of(ready.operator)
        self._clients = {node: client_of(node, doors.management, context) for node, doors in ready.nodes.items()}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))

    @property
    def nodes(self) -> Sequence[NodeId]:
        return sorted(self._clients)

    def check(self, node: str) -> NodeId:
        """Return `node` if the network has it.

        Raises:
            InvalidRequestError: it has not; those it has are listed.
        """
        if node not in self._clients:
            raise InvalidRequestError(f"no node is called {node}; there are {', '.join(self.nodes)}")
        return NodeId(node)

    async def ask(
        self,
        node: NodeId,
        path: str,
        kind: type[_T],
        *,
        method: str = "GET",
        body: bytes | None = None,
        query: Query = NO_QUERY,
    ) -> _T:
        """Return a node's answer, which is a `kind`.

        Raises:
            RefusedError: the node refused, with its code.
            PeerUnavailableError, AuthenticationError, RemoteProtocolError: there is no answer to read.
        """
        asked = {name: value for name, value in query.items() if value is not None}
        target = f"{path}?{urlencode(asked)}" if asked else path
        response = await self._clients[node].request(method, target, body, timeout_s=TIMEOUT_S)
        try:
            if response.status == HTTPStatus.OK:
                return msgspec.json.decode(response.body, type=kind)
            refusal = msgspec.json.decode(response.body, type=Refusal)
        except msgspec.DecodeError as error:
            raise RemoteProtocolError(
                f"node {node} answered {response.status} with something else: {error}"
            ) from None
        raise RefusedError(f"node {node}: {refusal.message}", remote_code=refusal.error)

    async def ask_all(
        self,
        path: str,
        kind: type[_T],
        *,
        nodes: Sequence[NodeId] | None = None,
        method: str = "GET",
        body: bytes | None = None,
        query: Query = NO_QUERY,
    ) -> dict[NodeId, _T | TrenzaError]:
        """Return every node's answer, or the error that stands in its place."""
        asked = self.nodes if nodes is None else nodes

        async def answer(node: NodeId) -> _T | TrenzaError:
            try:
                return await self.ask(node, path, kind, method=method, body=body, query=query)
            except TrenzaError as error:
                return error

        return dict(zip(asked, await asyncio.gather(*map(answer, asked)), strict=True))
