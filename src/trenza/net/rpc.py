"""Calls between nodes: many at once over one long-lived connection, each with a deadline.

Knows no messages, only bytes (`wire/peer` has the meaning). Repeats nothing by itself: a failed call says whether the
other node may have heard it (`PeerUnavailableError.sent`). Frames: `net/rpc_frames`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from trenza.base.errors import (
    AuthenticationError,
    PeerUnavailableError,
    RefusedError,
    RemoteProtocolError,
    TrenzaError,
)
from trenza.net.gate import Gate
from trenza.net.rpc_frames import MAX_FRAME_BYTES, FramedProtocol, FrameKind, MessageCounters
from trenza.net.tls import (
    ContextProvider,
    PeerIdentity,
    RevocationCheck,
    TlsContext,
    TlsStatistics,
    never_revoked,
)
from trenza.net.tls_transport import Terms, connect, listen

logger = logging.getLogger(__name__)

MAX_ERROR_CHARACTERS = 2000
MAX_COUNTED_PEERS = 10_000
FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 2.0

RpcHandler = Callable[[PeerIdentity, bytes], Awaitable[bytes]]
"""Answers one call. A TrenzaError it raises reaches the caller as code and message; anything else as `internal`."""


@dataclass(slots=True, eq=False)
class RpcServer:
    """Answers the calls of other nodes; those of one connection run side by side."""

    handler: RpcHandler
    contexts: ContextProvider
    max_frame_bytes: int = MAX_FRAME_BYTES
    max_running: int = 64
    """Calls of one connection that run at once; beyond these its bytes wait in the network."""
    stall_timeout_s: float = 30.0
    """A node that does not read its answers for so long is cut off."""
    gate: Gate = field(default_factory=Gate)
    is_revoked: RevocationCheck = never_revoked
    statistics: TlsStatistics = field(default_factory=TlsStatistics)
    counters: dict[str, MessageCounters] = field(default_factory=dict)
    """Frames exchanged, by the peer's name."""
    stopping: bool = field(default=False, init=False)
    connections: set[_ServedConnection] = field(default_factory=set, init=False, repr=False)
    tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False, repr=False)
    _server: asyncio.Server | None = field(default=None, init=False, repr=False)
    _idle: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)

    async def start(self, host: str, port: int = 0) -> int:
        """Listen; return the port (a free one if 0 was asked).

        Raises:
            OSError: the address cannot be bound.
        """
        assert self._server is None, "started twice"
        terms = Terms(is_revoked=self.is_revoked, gate=self.gate, statistics=self.statistics)
        self._server = await listen(lambda: _ServedConnection(self), self.contexts, host, port, terms=terms)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no new calls, finish those that run, close.

        Args:
            grace_s: after this long, connections are cut and handlers cancelled.
        """
        if self._server is None:
            return
        self.stopping = True
        self._server.close()
        for connection in tuple(self.connections):
            connection.send(0, FrameKind.GOAWAY)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._until_idle()
        for connection in tuple(self.connections):
            connection.abort()
        for task in tuple(self.tasks):
            task.cancel()
        await self._until_idle()
        await self._server.wait_closed()
        self._server = None
        self.stopping = False

    def counters_of(self, peer: PeerIdentity) -> MessageCounters:
        """Return where the frames exchanged with a peer are counted; those with too many names, under none."""
        if peer.name not in self.counters and len(self.counters) >= MAX_COUNTED_PEERS:
            return MessageCounters()
        return self.counters.setdefault(peer.name, MessageCounters())

    def renew(self) -> None:
        """Let every client finish what it asked and connect anew, so that it sees the certificate valid now."""
        for connection in tuple(self.connections):
            connection.send(0, FrameKind.GOAWAY)

    async def _until_idle(self) -> None:
        while self.connections or self.tasks:
            self._idle.clear()
            await self._idle.wait()

    def wake(self) -> None:
        """Notice that a connection or a handler ended."""
        if not (self.connections or self.tasks):
            self._idle.set()


class _ServedConnection(FramedProtocol):
    """One client of an RpcServer."""

    def __init__(self, server: RpcServer) -> None:
        super().__init__(server.max_frame_bytes)
        self._server = server
        self._peer: PeerIdentity | None = None
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._running = 0
        self._writing_paused = False
        self._stalled: asyncio.TimerHandle | None = None

    def opened(self, peer: PeerIdentity) -> None:
        self._peer = peer
        self._counters = self._server.counters_of(peer)
        self._server.connections.add(self)
        among_its_own = self._server.gate.enter(peer.name)
        if self._server.stopping or not among_its_own:
            self.send(0, FrameKind.GOAWAY)
        if not among_its_own:
            self._server.statistics.refused["too many connections of one client"] += 1
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        reason = self._protocol_error or exc
        if reason is not None and self._peer is not None:
            logger.info("the connection from %s ended: %s", self._peer.name, reason)
        self._transport = None
        self._waiting.clear()
        self._stop_waiting()
        self._server.connections.discard(self)
        if self._peer is not None:
            self._server.gate.leave(self._peer.name)
        self._server.wake()

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._stop_waiting()
        self._stalled = asyncio.get_running_loop().call_later(self._server.stall_timeout_s, self._give_up)

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._stop_waiting()
        self._start_more()

    def _stop_waiting(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _give_up(self) -> None:
        self._server.statistics.refused["answer not read"] += 1
        self.abort()

    def frame_received(self, correlation: int, kind: FrameKind, body: bytes) -> None:
        if kind is not FrameKind.REQUEST:
            raise RemoteProtocolError(f"a client sends no {kind.name}")
        if self._server.stopping:
            self.send(correlation, FrameKind.GOAWAY)
            return
        self._waiting.append((correlation, body))
        self._start_more()

    def _start_more(self) -> None:
        while self._waiting and self._running < self._server.max_running and not self._writing_paused:
            correlation, body = self._waiting.popleft()
            self._running += 1
            task = asyncio.get_running_loop().create_task(self._answer(correlation, body))
            self._server.tasks.add(task)
            task.add_done_callback(self._finished)
        if self._transport is None:
            return
        if self._waiting:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running -= 1
        self._server.tasks.discard(task)
        self._start_more()
        self._server.wake()

    async def _answer(self, correlation: int, body: bytes) -> None:
        """Run the handler to its end, even when its caller has gone: what it did must be recorded."""
        assert self._peer is not None
        try:
            answer = await self._server.handler(self._peer, body)
            if not self.fits(answer):
                raise ValueError(f"an answer of {len(answer)} bytes does not fit into a frame")
        except TrenzaError as error:
            self._send_error(correlation, error.code, error.message)
        except Exception:
            logger.exception("a call of %s failed", self._peer.name)
            self._send_error(correlation, "internal", "the node failed; its log says why")
        else:
            self.send(correlation, FrameKind.RESPONSE, answer)

    def _send_error(self, correlation: int, code: str, message: str) -> None:
        body = f"{code}\n{message[:MAX_ERROR_CHARACTERS]}".encode(errors="replace")
        self.send(correlation, FrameKind.ERROR, body if self.fits(body) else code.encode())


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
