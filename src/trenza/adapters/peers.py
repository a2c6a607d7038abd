"""The other nodes over the network: one connection each, made when it is first needed.

Implements kms.ports.Peers. Where a node is and what its certificate says comes from the policy book at every call, so
a new book takes effect at once. Repeats nothing: what is uncertain is the story's to resolve.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trenza.base.errors import AuthenticationError, PeerUnavailableError, RefusedError
from trenza.base.names import NodeId
from trenza.base.units import Seconds
from trenza.net.rpc_client import RpcClient
from trenza.net.rpc_frames import MessageCounters
from trenza.net.tls import ContextProvider, PeerIdentity, RevocationCheck, TlsStatistics, never_revoked
from trenza.wire.peer import PeerMessage, decode, encode


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a node listens for its peers, and the name its certificate must bear."""

    uri: str
    host: str
    port: int


class PeerConnections:
    """One node's connections to all others; used by one event loop."""

    def __init__(
        self,
        contexts: ContextProvider,
        address_of: Callable[[NodeId], PeerAddress | None],
        *,
        saw: Callable[[NodeId, PeerIdentity], None],
        is_revoked: RevocationCheck = never_revoked,
    ) -> None:
        """Begin without any connection.

        Args:
            contexts: this node's certificate and whom it trusts, asked for at every new connection.
            address_of: where a node is now; None where the policy book knows none of that name.
            saw: told who answered, after TLS has verified it and before the answer is read.
            is_revoked: tells of certificates that are refused, also on connections that are open.
        """
        self._contexts = contexts
        self._address_of = address_of
        self._saw = saw
        self._is_revoked = is_revoked
        self._clients: dict[NodeId, tuple[PeerAddress, RpcClient]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False

    async def call(self, peer: NodeId, message: PeerMessage, *, timeout: Seconds) -> PeerMessage:
        """Ask `peer`; see kms.ports.Peers."""
        client = self._client(peer)
        try:
            answer = await client.call(encode(message), timeout_s=timeout)
        except RefusedError as error:
            said = f"node {peer} refused: {error.message}"
            raise RefusedError(said, remote_code=error.remote_code) from None
        shown = client.peer
        if shown is not None:
            if self._is_revoked(shown.fingerprint):
                self._retire(peer)
                raise AuthenticationError(f"the certificate of node {peer} was revoked")
            self._saw(peer, shown)
        return decode(answer)

    @property
    def statistics(self) -> Mapping[NodeId, TlsStatistics]:
        """What happened at the connections to each node, since they were last pointed elsewhere."""
        return {peer: client.statistics for peer, (_, client) in sorted(self._clients.items())}

    @property
    def counters(self) -> Mapping[NodeId, MessageCounters]:
        return {peer: client.counters for peer, (_, client) in sorted(self._clients.items())}

    def reconnect(self) -> None:
        """Drop every connection, so that the next call shows the certificate that is valid now."""
        for peer in tuple(self._clients):
            self._retire(peer)

    async def aclose(self) -> None:
        """Close every connection; calls under way fail, and later ones too."""
        self._closed = True
        self.reconnect()
        while self._leaving:
            await asyncio.wait(self._leaving)

    def _client(self, peer: NodeId) -> RpcClient:
        address = self._address_of(peer)
        if self._closed or address is None:
            why = "this node is stopping" if self._closed else f"the policy book knows no node {peer}"
            raise PeerUnavailableError(why, sent=False)
        known = self._clients.get(peer)
        if known is not None and known[0] == address:
            return known[1]
        self._retire(peer)
        client = RpcClient(
            self._contexts, address.host, address.port, expected_uri=address.uri, is_revoked=self._is_revoked
        )
        self._clients[peer] = address, client
        return client

    def _retire(self, peer: NodeId) -> None:
        known = self._clients.pop(peer, None)
        if known is None:
            return
        closing = asyncio.get_running_loop().create_task(known[1].aclose())
        self._leaving.add(closing)
        closing.add_done_callback(self._leaving.discard)
