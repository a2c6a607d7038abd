"""A small HTTP/1.1 client over TLS with our own certificate: one server, a few kept connections.

Repeats nothing by itself: an error says whether the request may have been heard (`PeerUnavailableError.sent`), and
only the caller knows whether asking twice is harmless. Follows no redirects, keeps no cookies, sends no HEAD.
Standard: RFC 9112; parsing by llhttp (httptools), strict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import httptools

from trenza.base.errors import AuthenticationError, PeerUnavailableError, RemoteProtocolError
from trenza.net.endpoints import connect
from trenza.net.http import JSON
from trenza.net.tls import ContextProvider, RevocationCheck, TlsContext, TlsStatistics, never_revoked
from trenza.net.tls_transport import Terms, TlsTransport

MAX_HEADER_BYTES = 64 * 1024
IDLE_S = 30.0  # shorter than servers keep a silent connection, so that we rarely write into one that is closing


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete answer; header names in lower case."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes = field(repr=False)


class _Exchange(asyncio.Protocol):
    """One connection: one request at a time, and its answer."""

    def __init__(self, max_body_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_body_bytes = max_body_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._transport: TlsTransport | None = None
        self._result: asyncio.Future[HttpResponse] | None = None
        self._in_body = False
        self.lost = asyncio.Event()
        self.idle_since = self._loop.time()
        self._forget_message()

    def _forget_message(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._fed_bytes = 0
        self._in_body = False

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes) -> asyncio.Future[HttpResponse]:
        """Send a request; the future gives its answer."""
        assert self._transport is not None
        assert self._result is None, "one request at a time"
        self._forget_message()
        self._result = self._loop.create_future()
        self._transport.write(request)
        return self._result

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("TlsTransport", transport)

    def data_received(self, data: bytes) -> None:
        if self._result is None:
            self.abort()  # an answer to nothing
            return
        self._fed_bytes += len(data)
        if not self._in_body and self._fed_bytes > 2 * MAX_HEADER_BYTES:
            self._fail(RemoteProtocolError("the response's header fields are too large"))
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(RemoteProtocolError("the server switched protocols"))
        except httptools.HttpParserError as error:
            self._fail(RemoteProtocolError(f"malformed HTTP response: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self._result is not None and self._ends_with_connection():
            self._finish()
        self._transport = None
        self.lost.set()
        if isinstance(exc, AuthenticationError):
            self._fail(exc)  # the server refused our certificate: nothing was heard
        else:
            self._fail(PeerUnavailableError(f"the connection ended before the answer: {exc or 'closed'}", sent=True))

    def _ends_with_connection(self) -> bool:
        return self._in_body and not {b"content-length", b"transfer-encoding"} & self._headers.keys()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            self._fail(RemoteProtocolError("the response's header fields are too large"))
            return
        key = name.lower()
        self._headers[key] = self._headers[key] + b", " + value if key in self._headers else value

    def on_headers_complete(self) -> None:
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._max_body_bytes:
            self._fail(RemoteProtocolError(f"the response's body exceeds {self._max_body_bytes} bytes"))
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        if 100 <= self._parser.get_status_code() < 200:
            self._forget_message()  # an interim response: the real one follows
            return
        keep = self._parser.should_keep_alive()
        self._finish()
        if not keep:
            self.close()

    def _finish(self) -> None:
        result, self._result = self._result, None
        if result is not None and not result.done():
            result.set_result(HttpResponse(self._parser.get_status_code(), self._headers, b"".join(self._body)))

    def _fail(self, error: Exception) -> None:
        result, self._result = self._result, None
        if result is not None and not result.done():
            result.set_exception(error)
        self.abort()


class HttpClient:
    """Asks one server; safe to use from many tasks of one loop."""

    def __init__(
        self,
        context: TlsContext | ContextProvider,
        host: str,
        port: int,
        *,
        expected_name: str | None = None,
        max_connections: int = 4,
        max_body_bytes: int = 4 * 1024 * 1024,
        connect_timeout_s: float = 5.0,
        is_revoked: RevocationCheck = never_revoked,
    ) -> None:
        """Remember whom to ask; connects when first asked.

        Args:
            context: our certificate and whom we trust; a callable is asked for it at every new connection.
            host: where to connect.
            port: where to connect.
            expected_name: what the server's certificate must name (see `tls.verify_name`); default: `host`.
            max_connections: requests that may be under way at once; more wait their turn.
            max_body_bytes: of a response.
            connect_timeout_s: for connecting and shaking hands.
            is_revoked: asked about the server's certificate.
        """
        self._context = context
        self._host = host
        self._port = port
        self._max_body_bytes = max_body_bytes
        self._connect_timeout_s = connect_timeout_s
        self._authority = (f"[{host}]" if ":" in host else host) + f":{port}"
        self._terms = Terms(is_revoked=is_revoked, expected_name=expected_name or host)
        self._turn = asyncio.Semaphore(max_connections)
        self._connections: set[_Exchange] = set()
        self._idle: list[_Exchange] = []
        self._closed = False

    @property
    def statistics(self) -> TlsStatistics:
        return self._terms.statistics

    async def request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        *,
        content_type: str = JSON,
        timeout_s: float = 10.0,
    ) -> HttpResponse:
        """Send one request and wait for its whole answer.

        Args:
            method: not HEAD.
            target: path and query, percent-encoded.
            body: None for none.
            content_type: of the body.
            timeout_s: for everything: a free connection, connecting, the answer.

        Raises:
            PeerUnavailableError: no answer; `sent` False means the server certainly did not hear the request.
            AuthenticationError: one side refused the other's certificate; the server did not hear the request.
            RemoteProtocolError: the answer is not HTTP, or larger than allowed; the server heard the request.
        """
        message = self._message(method, target, body, content_type)
        sent = False
        try:
            async with asyncio.timeout(timeout_s), self._turn:
                connection = await self._free_connection()
                try:
                    answer = connection.ask(message)
                    sent = True
                    response = await answer
                except BaseException:
                    connection.abort()
                    raise
                self._keep(connection)
                return response
        except TimeoutError as error:
            raise PeerUnavailableError(f"{self._authority} did not answer in {timeout_s} s", sent=sent) from error

    async def aclose(self) -> None:
        """Close every connection; requests under way fail."""
        self._closed = True
        for connection in tuple(self._connections):
            connection.close()
        for connection in tuple(self._connections):
            await connection.lost.wait()
        self._connections.clear()
        self._idle.clear()

    def _message(self, method: str, target: str, body: bytes | None, content_type: str) -> bytes:
        if method == "HEAD":
            raise ValueError("HEAD is not supported")
        lines = [f"{method} {target} HTTP/1.1", f"host: {self._authority}", "accept: application/json"]
        if body is not None:
            lines += [f"content-type: {content_type}", f"content-length: {len(body)}"]
        head = "\r\n".join(lines)
        if head.count("\r") != len(lines) - 1 or head.count("\n") != len(lines) - 1 or target.count(" "):
            raise ValueError("a method, target or content type has a space or a line break")
        return head.encode("ascii") + b"\r\n\r\n" + (body or b"")

    async def _free_connection(self) -> _Exchange:
        if self._closed:
            raise PeerUnavailableError("the client is closed", sent=False)
        now = asyncio.get_running_loop().time()
        self._connections = {connection for connection in self._connections if not connection.lost.is_set()}
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since < IDLE_S:
                return connection
            connection.close()
        connection = await connect(
            lambda: _Exchange(self._max_body_bytes),
            self._context if isinstance(self._context, TlsContext) else self._context(),
            self._host,
            self._port,
            terms=self._terms,
            timeout_s=self._connect_timeout_s,
        )
        if not connection.usable:
            raise PeerUnavailableError(f"{self._authority} closed the connection at once", sent=False)
        self._connections.add(connection)
        return connection

    def _keep(self, connection: _Exchange) -> None:
        if self._closed or not connection.usable:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)
