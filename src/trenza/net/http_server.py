"""A small HTTP/1.1 server: TLS with client certificates only, whole requests in, whole responses out.

Knows no routes and no JSON: one handler answers everything, and the door that owns the server says what its errors
look like. Requests of one connection are answered in their order, one at a time. A handler that was called runs to
its end even when its client has gone: what it did (a key taken) must be recorded.
Standard: RFC 9112; parsing by llhttp (httptools), strict.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from trenza.net.endpoints import listen
from trenza.net.gate import Gate
from trenza.net.http import Answers, ErrorResponse, Handler, HttpLimits, Response
from trenza.net.http_connection import HttpConnection
from trenza.net.tls import ContextProvider, RevocationCheck, TlsStatistics, never_revoked
from trenza.net.tls_transport import Terms
from trenza.net.turn import Turn, call_each

logger = logging.getLogger(__name__)

SHORTEST_SWEEP_S = 0.01
LONGEST_SWEEP_S = 1.0


@dataclass(slots=True, eq=False)
class HttpServer:
    """Listens at one address."""

    handler: Handler
    contexts: ContextProvider
    error_response: ErrorResponse
    limits: HttpLimits = field(default_factory=HttpLimits)
    gate: Gate = field(default_factory=Gate)
    is_revoked: RevocationCheck = never_revoked
    statistics: TlsStatistics = field(default_factory=TlsStatistics)
    together: Answers | None = None
    """What answers requests that came together, if that is more than to call the handler for each."""
    serving: Turn[HttpConnection] = field(init=False, repr=False)
    """When what was asked is answered: after all that came in this turn of the loop was heard."""
    date: bytes = field(default=b"", init=False)
    """The value of the Date field, renewed every second."""
    connections: set[HttpConnection] = field(default_factory=set, init=False, repr=False)
    running: set[asyncio.Future[Response]] = field(default_factory=set, init=False, repr=False)
    """Handlers that were called and have not answered."""
    stopping: bool = field(default=False, init=False)
    _terms: Terms = field(init=False, repr=False)
    _server: asyncio.Server | None = field(default=None, init=False, repr=False)
    _sweep: asyncio.TimerHandle | None = field(default=None, init=False, repr=False)
    _idle: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)

    def __post_init__(self) -> None:
        self.serving = Turn(self._serve)

    async def start(self, host: str, port: int = 0) -> int:
        """Listen; return the port (a free one if 0 was asked).

        Raises:
            OSError: the address cannot be bound.
        """
        assert self._server is None, "started twice"
        self.date = _date_now()
        self._terms = Terms(is_revoked=self.is_revoked, gate=self.gate, statistics=self.statistics)
        self._server = await listen(lambda: HttpConnection(self), self.contexts, host, port, terms=self._terms)
        self._sweep_connections()
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, grace_s: float = 5.0) -> None:
        """Accept nothing new, finish what was asked, close.

        Args:
            grace_s: after this long, connections are cut and handlers cancelled.
        """
        if self._server is None:
            return
        self.stopping = True
        self._server.close()
        for connection in tuple(self.connections):
            connection.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._until_idle()
        for connection in tuple(self.connections):
            connection.abort()
        for answer in tuple(self.running):
            answer.cancel()
        await self._until_idle()
        if self._sweep is not None:
            self._sweep.cancel()
        await self._server.wait_closed()
        self._server = None
        self.stopping = False

    async def _until_idle(self) -> None:
        while self.connections or self.running:
            self._idle.clear()
            await self._idle.wait()

    def _serve(self, due: Sequence[HttpConnection]) -> None:
        """Answer what connections were asked in this turn, and send the answers."""
        with self._terms.sending.gathered():
            self._answer(due)

    def _answer(self, due: Sequence[HttpConnection]) -> None:
        if self.together is not None and len(due) > 1:
            asked = [(connection, request) for connection in due if (request := connection.take()) is not None]
            try:
                answers = self.together([request for _, request in asked])
            except Exception as error:  # noqa: BLE001 - whatever a handler does, its clients get an answer
                answers = [self.failed(error)] * len(asked)
            given = zip(asked, answers, strict=True)
            call_each(partial(connection.give, answer) for (connection, _), answer in given)
        call_each(connection.go_on for connection in due)

    def run(self, answer: asyncio.Future[Response]) -> None:
        """Keep a called handler until it has answered."""
        self.running.add(answer)
        answer.add_done_callback(self._ran)

    def _ran(self, answer: asyncio.Future[Response]) -> None:
        self.running.discard(answer)
        self._wake()

    def opened(self, connection: HttpConnection) -> str | None:
        """Take a connection in; return why it may not ask for anything, if it may not."""
        self.connections.add(connection)
        among_its_own = self.gate.enter(connection.client)
        if self.stopping:
            return "the server stops"
        if len(self.connections) > self.limits.max_connections:
            return "too many connections"
        return None if among_its_own else "too many connections of one client"

    def closed(self, connection: HttpConnection) -> None:
        """Forget a connection that ended."""
        self.connections.discard(connection)
        self.gate.leave(connection.client)
        self._wake()

    def _wake(self) -> None:
        if not (self.connections or self.running):
            self._idle.set()

    def failed(self, error: Exception) -> Response:
        """Answer for a handler that crashed; the log has the traceback, never a body."""
        logger.error("a request handler failed", exc_info=error)
        return self.error_response(503, "key management entity error")

    def _sweep_connections(self) -> None:
        """Enforce every deadline with one timer: arming one per request would cost more than parsing it."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.date = _date_now()
        for connection in tuple(self.connections):
            connection.check_deadline(now)
        shortest = min(self.limits.idle_timeout_s, self.limits.request_timeout_s, self.limits.linger_s)
        period = min(max(shortest / 4, SHORTEST_SWEEP_S), LONGEST_SWEEP_S)
        self._sweep = loop.call_later(period, self._sweep_connections)


def _date_now() -> bytes:
    return email.utils.formatdate(usegmt=True).encode()
