"""The side of calls between nodes that asks: many at once over one long-lived connection, each with a deadline.

Knows no messages, only bytes (`wire/peer` has the meaning). Repeats nothing by itself: a failed call says whether the
other node may have heard it (`PeerUnavailableError.sent`). The side that answers: `net/rpc_server`; frames:
`net/rpc_frames`.
"""

from __future__ import annotations

import asyncio

from trenza.base.errors import (
    AuthenticationError,
    PeerUnavailableError,
    RefusedError,
    RemoteProtocolError,
    TrenzaError,
)
from trenza.net.endpoints import connect
from trenza.net.rpc_frames import MAX_FRAME_BYTES, FramedProtocol, FrameKind, MessageCounters
from trenza.net.tls import (
    ContextProvider,
    PeerIdentity,
    RevocationCheck,
    TlsContext,
    TlsStatistics,
    never_revoked,
)
from trenza.net.tls_transport import Terms

FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 2.0


class _Link(FramedProtocol):
    """The client's end of one connection."""

    def __init__(self, max_frame_bytes: int, counters: MessageCounters) -> None:
        super().__init__(max_frame_bytes)
        self._loop = asyncio.get_running_loop()
        self._counters = counters
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._last_correlation = 0
        self._retiring = False
        self.peer: PeerIdentity | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.times_heard = 0
        self.heard = False
        self.lost = asyncio.Event()

    def opened(self, peer: PeerIdentity) -> None:
        self.peer = peer

    @property
    def usable(self) -> bool:
        return super().usable and not self._retiring

    async def until_writable(self) -> None:
        await self._writable.wait()

    def ask(self, body: bytes) -> tuple[int, asyncio.Future[bytes]]:
        """Send a request; the future gives its answer, and `forget` ends the wait."""
        self._last_correlation += 1
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._pending[self._last_correlation] = answer
        self.send(self._last_correlation, FrameKind.REQUEST, body)
        return self._last_correlation, answer

    def forget(self, correlation: int) -> None:
        self._pending.pop(correlation, None)
        self._retire()

    def _retire(self) -> None:
        if self._retiring and not self._pending:
            self.close()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self.times_heard += 1
        self.heard = True
        super().data_received(data)

    def frame_received(self, correlation: int, kind: FrameKind, body: bytes) -> None:
        if kind is FrameKind.REQUEST:
            raise RemoteProtocolError("a server sends no REQUEST")
        if kind is FrameKind.GOAWAY and correlation == 0:
            self._retiring = True
            self._retire()
            return
        if not 0 < correlation <= self._last_correlation:
            raise RemoteProtocolError("an answer to no request")
        answer = self._pending.pop(correlation, None)
        if answer is None or answer.done():
            return  # its caller has given up
        match kind:
            case FrameKind.RESPONSE:
                answer.set_result(body)
            case FrameKind.ERROR:
                code, _, message = body.decode(errors="replace").partition("\n")
                answer.set_exception(RefusedError(message, remote_code=code))
            case FrameKind.GOAWAY:
                answer.set_exception(PeerUnavailableError("the node is stopping", sent=False))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        self.lost.set()
        pending, self._pending = self._pending, {}
        for answer in pending.values():
            if answer.done():
                continue
            if self._protocol_error is not None:
                answer.set_exception(RemoteProtocolError(self._protocol_error.message))
            elif isinstance(exc, AuthenticationError):  # our certificate was refused: nothing was heard
                answer.set_exception(AuthenticationError(exc.message))
            else:
                answer.set_exception(PeerUnavailableError(f"the connection ended: {exc or 'closed'}", sent=True))


class RpcClient:
    """Calls one node; connects when first needed, and again when the connection was lost."""

    def __init__(
        self,
        context: TlsContext | ContextProvider,
        host: str,
        port: int,
        *,
        expected_uri: str,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        max_in_flight: int = 256,
        connect_timeout_s: float = 5.0,
        is_revoked: RevocationCheck = never_revoked,
    ) -> None:
        """Remember whom to call.

        Args:
            context: our certificate and whom we trust; a callable is asked for it at every new connection.
            host: where to connect.
            port: where to connect.
            expected_uri: the name in the other node's certificate, e.g. `urn:trenza:node:norte`.
            max_frame_bytes: of a request and of an answer.
            max_in_flight: calls that wait for an answer at once; more wait their turn.
            connect_timeout_s: for connecting and shaking hands.
            is_revoked: asked about the node's certificate.
        """
        self._context = context
        self._host = host
        self._port = port
        self._name = expected_uri
        self._max_frame_bytes = max_frame_bytes
        self._connect_timeout_s = connect_timeout_s
        self._terms = Terms(is_revoked=is_revoked, expected_name=expected_uri)
        self._turn = asyncio.Semaphore(max_in_flight)
        self._link: _Link | None = None
        self._links: set[_Link] = set()
        self._connecting: asyncio.Task[_Link] | None = None
        self._backoff_s = 0.0
        self._retry_at = 0.0
        self._closed = False
        self.counters = MessageCounters()

    @property
    def statistics(self) -> TlsStatistics:
        return self._terms.statistics

    @property
    def peer(self) -> PeerIdentity | None:
        """Return who answered at the last connection, as it was verified; None before the first."""
        return self._link.peer if self._link is not None else None

    async def call(self, body: bytes, *, timeout_s: float) -> bytes:
        """Send one request and wait for its answer.

        Args:
            body: at most a frame.
            timeout_s: for everything: a turn, connecting, the answer.

        Raises:
            PeerUnavailableError: no answer; `sent` False means the other node certainly did not look at the request.
            RefusedError: the other node answered with an error; its code is `remote_code`.
            AuthenticationError: one side refused the other's certificate; the request was not looked at.
            RemoteProtocolError: the other node sent nonsense; what it did is unknown.
        """
        link: _Link | None = None
        heard_before: int | None = None  # a count, since two moments may be the same on a coarse clock
        try:
            async with asyncio.timeout(timeout_s), self._turn:
                link = await self._usable_link()
                if not link.fits(body):
                    raise ValueError(f"a request of {len(body)} bytes does not fit into a frame")
                heard_before = link.times_heard
                correlation, answer = link.ask(body)
                try:
                    return await answer
                finally:
                    link.forget(correlation)
        except TimeoutError as error:
            if link is not None and link.times_heard == heard_before:
                link.abort()  # nothing came back at all: the next call shall not wait on a dead connection
            raise PeerUnavailableError(
                f"{self._name} did not answer in {timeout_s} s", sent=heard_before is not None
            ) from error

    async def aclose(self) -> None:
        """Close the connection; calls under way fail."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        for link in tuple(self._links):
            link.close()
        for link in tuple(self._links):
            await link.lost.wait()
        self._links.clear()

    async def _usable_link(self) -> _Link:
        if self._closed:
            raise PeerUnavailableError("the client is closed", sent=False)
        link = self._link
        if link is None or not link.usable:
            link = await self._shared_connect()
        await link.until_writable()
        if not link.usable:
            raise PeerUnavailableError(f"{self._name} closed the connection at once", sent=False)
        return link

    async def _shared_connect(self) -> _Link:
        """Connect once for all who wait; a caller that gives up does not take the others' connection away."""
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add_done_callback(self._connected)
        try:
            return await asyncio.shield(self._connecting)
        except asyncio.CancelledError:
            if self._closed:
                raise PeerUnavailableError("the client is closed", sent=False) from None
            raise

    async def _connect(self) -> _Link:
        loop = asyncio.get_running_loop()
        if self._link is not None and self._link.heard:
            self._backoff_s = 0.0
        elif self._link is not None:
            self._back_off()  # the node took the last connection and closed it without a word
        await asyncio.sleep(max(0.0, self._retry_at - loop.time()))
        try:
            link = await connect(
                lambda: _Link(self._max_frame_bytes, self.counters),
                self._context if isinstance(self._context, TlsContext) else self._context(),
                self._host,
                self._port,
                terms=self._terms,
                timeout_s=self._connect_timeout_s,
            )
        except TrenzaError:
            self._back_off()
            raise
        self._link = link
        self._links = {known for known in self._links if not known.lost.is_set()} | {link}
        return link

    def _back_off(self) -> None:
        self._link = None
        self._backoff_s = min(max(self._backoff_s * 2, FIRST_BACKOFF_S), LONGEST_BACKOFF_S)
        self._retry_at = asyncio.get_running_loop().time() + self._backoff_s

    def _connected(self, connecting: asyncio.Task[_Link]) -> None:
        self._connecting = None
        if not connecting.cancelled():
            connecting.exception()  # told to those who waited; if nobody did, to nobody
