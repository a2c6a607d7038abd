"""The side of calls between nodes that answers: many at once over each connection.

Knows no messages, only bytes (`wire/peer` has the meaning). A call that was begun runs to its end, even when its
caller has gone. The side that asks: `net/rpc_client`; frames: `net/rpc_frames`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from trenza.base.errors import RemoteProtocolError, TrenzaError
from trenza.net.endpoints import listen
from trenza.net.gate import Gate
from trenza.net.rpc_frames import MAX_FRAME_BYTES, FramedProtocol, FrameKind, MessageCounters
from trenza.net.tls import ContextProvider, PeerIdentity, RevocationCheck, TlsStatistics, never_revoked
from trenza.net.tls_transport import Terms

logger = logging.getLogger(__name__)

MAX_ERROR_CHARACTERS = 2000
MAX_COUNTED_PEERS = 10_000

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
