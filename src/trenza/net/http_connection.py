"""One HTTP/1.1 connection at the server's side: bytes in, requests in order to the handler, responses out.

Does not decide what is answered, except when the message itself breaks HTTP or a limit. What came before a broken
message is still answered; after the refusal nothing more is read and the connection closes, because where the next
message starts is unknown (request smuggling lives there).
Standard: RFC 9112 (2.2, 3.2, 6.3, 9.3, 9.6), RFC 9110 (10.1.1).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable
from typing import Protocol, cast

import httptools

from trenza.net.http import ErrorResponse, Handler, HttpLimits, Request, Response, encode_head
from trenza.net.tls import PeerIdentity, TlsStatistics
from trenza.net.tls_transport import RECORD_BYTES, TlsTransport
from trenza.net.turn import Turn

_AT_ONCE = 16
"""Answers that one connection is given before others have their turn."""


class Keeper(Protocol):
    """What a connection asks of the server that accepted it."""

    @property
    def handler(self) -> Handler: ...

    @property
    def error_response(self) -> ErrorResponse: ...

    @property
    def limits(self) -> HttpLimits: ...

    @property
    def date(self) -> bytes: ...

    @property
    def serving(self) -> Turn[HttpConnection]:
        """When what was asked is answered."""
        ...

    @property
    def statistics(self) -> TlsStatistics: ...

    def opened(self, connection: HttpConnection) -> str | None:
        """Take a connection in; return why it may not ask for anything, if it may not."""
        ...

    def closed(self, connection: HttpConnection) -> None:
        """Forget a connection that ended."""
        ...

    def run(self, answer: asyncio.Future[Response]) -> None:
        """Keep a called handler until it has answered."""
        ...

    def failed(self, error: Exception) -> Response:
        """Answer for a handler that crashed."""
        ...


class _RefusedError(Exception):
    """Stops the parser; what to answer is in the connection."""


class HttpConnection(asyncio.Protocol):
    """Reads ahead at most `max_pipelined` requests or one large body (and what one TLS record holds), serves one at a
    time.
    """

    def __init__(self, server: Keeper) -> None:
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: TlsTransport | None = None
        self._peer: PeerIdentity | None = None
        self._waiting: deque[tuple[Request, bool]] = deque()  # with: may more requests follow it
        self._waiting_bytes = 0  # of their bodies
        self._taken = False  # a request that has not been given its answer
        self._keep_alive = self._only_head = False  # of that one
        self._answer: asyncio.Future[Response] | None = None
        self._refusal: tuple[int, str] | None = None  # answered after all that was asked before it
        self._hearing = True
        self._said_all = False
        self._given = 0  # answers since others had their turn
        self._resting = False  # while they have it
        self._finishing = False
        self._continue_due = False
        self._writing_paused = False
        self._receiving = False
        self._in_head = False
        self._fed_bytes = 0
        self._idle_deadline = math.inf  # silent clients; also the linger after our last word
        self._read_deadline = math.inf  # a request that does not end
        self._write_deadline = math.inf  # an answer that is not read
        self._forget_message()

    def _forget_message(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0  # of the target and the fields
        self._body: list[bytes] = []
        self._body_bytes = 0

    @property
    def client(self) -> str:
        """Return whose connection this is."""
        assert self._peer is not None
        return self._peer.name

    # ---- the transport's calls ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("TlsTransport", transport)
        self._peer = transport.get_extra_info("peer")
        self._idle_deadline = self._loop.time() + self._limits.idle_timeout_s
        if refusal := self._server.opened(self):
            self._refuse(503, refusal)
            self.go_on()

    def data_received(self, data: bytes) -> None:
        if not self._hearing:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._hearing = False  # the request is served as if it had not asked; nothing can follow it
        except httptools.HttpParserInvalidMethodError:
            self._refuse(405, "method not allowed")
        except httptools.HttpParserCallbackError:
            if self._refusal is None:
                raise  # a mistake of ours
        except httptools.HttpParserError:
            if self._hearing:
                self._refuse(400, "malformed HTTP message")
        else:
            self._check_unfinished_head(len(data))
        if len(self._waiting) == 1 and self._hearing and self._answer is None:
            self._server.serving.soon(self)  # as almost always: it is answered when all have been heard
        else:
            self.go_on()

    def eof_received(self) -> bool:
        """The client has finished speaking; it still listens to the answers it is owed."""
        self._hearing = False
        self._receiving = False
        self._read_deadline = math.inf
        self.go_on()
        return self._transport is not None and not self._transport.is_closing()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._hearing = False
        self._waiting.clear()
        self._server.closed(self)

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._write_deadline = self._loop.time() + self._limits.request_timeout_s

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._write_deadline = math.inf
        self.go_on()

    # ---- the parser's calls ----

    def on_message_begin(self) -> None:
        self._receiving = self._in_head = True
        self._fed_bytes = 0
        self._read_deadline = self._loop.time() + self._limits.request_timeout_s
        self._idle_deadline = math.inf

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._head_bytes += len(url)
        if self._head_bytes > self._limits.max_header_bytes:
            self._stop(414, "request target too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer of a chunked body: none means anything to us
        self._head_bytes = head_bytes = self._head_bytes + len(name) + len(value) + 4
        if head_bytes > self._limits.max_header_bytes:
            self._stop(431, "header fields too large")
        key, headers = name.lower(), self._headers
        if key not in headers:
            headers[key] = value
        elif key == b"host":
            self._stop(400, "more than one host field")
        else:
            headers[key] += b", " + value

    def on_headers_complete(self) -> None:
        self._in_head = False
        headers = self._headers
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._stop(400, "HTTP version not supported")
        if version == "1.1" and b"host" not in headers:
            self._stop(400, "host field missing")
        length = int(headers.get(b"content-length", b"0"))
        if length > self._limits.max_body_bytes:
            self._stop(413, "body too large")
        has_body = length > 0 or b"transfer-encoding" in headers
        if has_body and self._parser.should_upgrade():
            self._stop(400, "no protocol upgrade here")  # the parser would take the body for the other protocol
        if has_body and version == "1.1" and headers.get(b"expect", b"").lower() == b"100-continue":
            self._continue_due = True

    def on_body(self, body: bytes) -> None:
        self._continue_due = False  # the client did not wait
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.max_body_bytes:
            self._stop(413, "body too large")
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._receiving = self._continue_due = False
        self._read_deadline = math.inf
        path, _, query = self._url.partition(b"?")
        if path[:1] != b"/" and path != b"*":
            path = self._path_of_absolute_target()
        assert self._peer is not None
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        request = Request(self._parser.get_method(), path, query, self._headers, body, self._peer)
        keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        self._hearing = self._hearing and keep_alive
        self._waiting.append((request, keep_alive))
        self._waiting_bytes += len(body)
        self._forget_message()

    def _path_of_absolute_target(self) -> bytes:
        """Return the path of `http://host/path`, which a server must accept too (RFC 9112 clause 3.2.2)."""
        try:
            return httptools.parse_url(self._url).path or b"/"
        except httptools.HttpParserInvalidURLError:
            self._stop(400, "malformed request target")
            raise AssertionError from None  # _stop raised

    def _check_unfinished_head(self, fed: int) -> None:
        """Bound what the parser keeps of a header field that never ends; it tells us only of finished ones."""
        if not (self._receiving and self._in_head):
            return
        self._fed_bytes += fed  # may count one record too much, where earlier messages were in it
        if self._fed_bytes > self._limits.max_header_bytes + RECORD_BYTES:
            self._refuse(431, "header fields too large")

    # ---- refusing ----

    def _stop(self, status: int, message: str) -> None:
        self._refuse(status, message)
        raise _RefusedError

    def _refuse(self, status: int, message: str) -> None:
        self._hearing = self._receiving = self._continue_due = False
        self._read_deadline = math.inf
        if self._refusal is None:
            self._refusal = (status, message)
            self._server.statistics.refused[message] += 1

    # ---- answering ----

    def take(self) -> Request | None:
        """Take the next request out, if there is one and it may be answered now; `give` its answer next."""
        if not self._waiting or self._taken or self._answer is not None:
            return None
        if self._writing_paused or self._said_all or self._resting:
            return None
        if self._transport is None or self._transport.is_closing():
            return None  # nobody would hear the answer
        self._taken = True
        request, self._keep_alive = self._waiting.popleft()
        self._waiting_bytes -= len(request.body)
        self._only_head = request.method == b"HEAD"
        return request

    def give(self, answer: Response | Awaitable[Response]) -> None:
        """Answer the request that was taken."""
        self._taken = False
        self._idle_deadline = math.inf
        close, only_head = not self._keep_alive, self._only_head
        if isinstance(answer, Response):
            self._write(answer, close=close, only_head=only_head)
            self._given += 1
            if self._given >= _AT_ONCE:
                self._rest()
            return
        self._answer = later = asyncio.ensure_future(answer)
        self._server.run(later)
        later.add_done_callback(lambda done: self._answered(done, close=close, only_head=only_head))

    def go_on(self) -> None:
        """Serve what waits, in order; then say what is left to say."""
        while (request := self.take()) is not None:
            try:
                self.give(self._server.handler(request))
            except Exception as error:  # noqa: BLE001 - whatever a handler does, its client gets an answer
                self.give(self._server.failed(error))
        if self._transport is None:
            return
        if len(self._waiting) >= self._limits.max_pipelined or self._waiting_bytes >= self._limits.max_body_bytes:
            self._transport.pause_reading()
        elif not self._transport.is_reading():
            self._transport.resume_reading()
            if self._receiving:  # the client could not go on while we did not read
                self._read_deadline = self._loop.time() + self._limits.request_timeout_s
        if self._waiting or self._answer is not None or self._said_all:
            return
        if self._continue_due:
            self._continue_due = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._refusal is not None:
            self._write(self._server.error_response(*self._refusal), close=True)
        elif not self._hearing or (self._finishing and not self._receiving):
            self._end()
        elif not self._receiving and self._idle_deadline is math.inf:
            self._idle_deadline = self._loop.time() + self._limits.idle_timeout_s

    def _rest(self) -> None:
        """Let others have their turn: who sends requests without end is one of many."""
        self._given, self._resting = 0, True
        self._loop.call_soon(self._rested)

    def _rested(self) -> None:
        self._resting = False
        self.go_on()

    def _answered(self, done: asyncio.Future[Response], *, close: bool, only_head: bool) -> None:
        self._answer = None
        if done.cancelled():
            self.abort()
            return
        error = done.exception()
        if error is not None and not isinstance(error, Exception):
            self.abort()
            raise error
        response = done.result() if error is None else self._server.failed(error)
        self._write(response, close=close, only_head=only_head)
        self.go_on()

    def _write(self, response: Response, *, close: bool, only_head: bool = False) -> None:
        if self._transport is None or self._said_all:
            return
        last = close or (self._finishing and not self._waiting and not self._receiving)
        head = encode_head(response, length=len(response.body), date=self._server.date, close=last)
        self._transport.write(head if only_head else head + response.body)
        if last:
            self._end()

    def _end(self) -> None:
        """Say goodbye, but read on for a moment: closing at once would reset what the client has not read yet."""
        if self._said_all or self._transport is None:
            return
        self._said_all = True
        self._hearing = False
        self._waiting.clear()
        self._idle_deadline = self._loop.time() + self._limits.linger_s
        self._transport.resume_reading()
        self._transport.write_eof()

    # ---- the server's calls ----

    def finish(self) -> None:
        """The server stops: answer what was asked, then close."""
        self._finishing = True
        self.go_on()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def check_deadline(self, now: float) -> None:
        """End what took too long."""
        if now > self._write_deadline:
            self._server.statistics.refused["answer not read"] += 1
            self.abort()
        elif now > self._idle_deadline:
            if self._said_all:
                self.abort()
            else:
                self._end()
        elif now > self._read_deadline and self._transport is not None and self._transport.is_reading():
            self._refuse(408, "the request took too long")
            self.go_on()
