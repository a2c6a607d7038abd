"""The door for other nodes: who calls, what they say, one story, the answer.

The caller is the node whose URI the verified certificate bears and the policy book knows; never what a message says.
Protocol: `wire/peer`, in the frames of `net/rpc_frames`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from trenza.base.errors import UnauthorisedError
from trenza.base.names import NodeId
from trenza.core.policy import Book
from trenza.net.tls import PeerIdentity, RevocationCheck, never_revoked
from trenza.serve.identity import NameKind, certificate_identity
from trenza.wire.peer import PeerMessage, decode, encode

Handle = Callable[[NodeId, PeerMessage], Awaitable[PeerMessage]]


class PeerDoor:
    """A handler for net.rpc_server.RpcServer."""

    def __init__(
        self,
        handle: Handle,
        book: Callable[[], Book],
        *,
        saw: Callable[[NodeId, PeerIdentity], None],
        is_revoked: RevocationCheck = never_revoked,
    ) -> None:
        """Open the door.

        Args:
            handle: answers one message of a node.
            book: the policy book in force; raises UnavailableError while there is none.
            saw: told who calls, before the message is looked at: its signatures are checked by this certificate.
            is_revoked: tells of certificates that are refused, also on connections that are open.
        """
        self._handle = handle
        self._book = book
        self._saw = saw
        self._is_revoked = is_revoked

    async def __call__(self, peer: PeerIdentity, body: bytes) -> bytes:
        """Answer one message.

        Raises:
            UnauthorisedError: the caller is no node of the book.
            TrenzaError: the story's.
        """
        node = self._node(peer)
        self._saw(node, peer)
        return encode(await self._handle(node, decode(body)))

    def _node(self, peer: PeerIdentity) -> NodeId:
        if self._is_revoked(peer.fingerprint):
            raise UnauthorisedError("the certificate is revoked")
        entry = self._book().node_by_uri.get(certificate_identity(peer.certificate, (NameKind.URI,)))
        if entry is None:
            raise UnauthorisedError("the policy book knows no node of this certificate")
        return entry.name
