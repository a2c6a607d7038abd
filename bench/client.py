"""The load's end of a connection: as little code as asks and reads an answer, so that the load is no limit.

It verifies the server's certificate chain and shows its own, but reads only what our servers write: a status line,
fields with a `content-length` in lower case, a body. It is no HTTP client for anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from OpenSSL import SSL

from trenza.net.tls import Groups, TlsContext, TlsIdentity, client_context
from trenza.wire.etsi014 import Method, path_of

Answered = Callable[[int, bytes], None]
"""Told the status and the body; status 0 says that the connection is gone."""

_LENGTH = b"content-length: "
_RECORD_BYTES = 16_384


class Line(asyncio.Protocol):
    """One kept connection: one question at a time."""

    def __init__(self, context: TlsContext) -> None:
        self._tls = SSL.Connection(context.openssl, None)
        self._raw: asyncio.Transport | None = None
        self._answered: Answered | None = None
        self._heard = b""
        self._shaken = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked_ns = 0

    def ask(self, request: bytes, answered: Answered) -> None:
        self._answered = answered
        if self._raw is None:
            self._end(0, b"")
            return
        self.asked_ns = time.perf_counter_ns()
        self._tls.send(request)
        self._raw.write(self._tls.bio_read(_RECORD_BYTES * 4))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast("asyncio.Transport", transport)
        self._tls.set_connect_state()
        self._shake_hands()

    def connection_lost(self, exc: Exception | None) -> None:
        self._raw = None
        if not self.ready.done():
            self.ready.set_exception(exc or ConnectionResetError("the server closed during the handshake"))
        self._end(0, b"")

    def data_received(self, data: bytes) -> None:
        self._tls.bio_write(data)
        if not self._shaken:
            self._shake_hands()
            return
        while self._answered is not None:
            try:
                self._hear(self._tls.recv(_RECORD_BYTES))
            except SSL.WantReadError:
                return
            except SSL.Error:
                self.close()
                return

    def close(self) -> None:
        if self._raw is not None:
            self._raw.close()

    def _shake_hands(self) -> None:
        assert self._raw is not None
        try:
            self._tls.do_handshake()
            self._shaken = True
        except SSL.WantReadError:
            pass
        except SSL.Error:
            self.close()
            return
        with contextlib.suppress(SSL.WantReadError):
            self._raw.write(self._tls.bio_read(_RECORD_BYTES * 4))
        if self._shaken and not self.ready.done():
            self.ready.set_result(None)

    def _hear(self, plain: bytes) -> None:
        heard = self._heard + plain
        body_at = heard.find(b"\r\n\r\n") + 4
        length_at = heard.find(_LENGTH) + len(_LENGTH)
        if body_at < 4 or len(heard) < body_at + int(heard[length_at : heard.index(b"\r", length_at)]):
            self._heard = heard
            return
        self._heard = b""
        self._end(int(heard[9:12]), heard[body_at:])

    def _end(self, status: int, body: bytes) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(status, body)


class Doors:
    """Where the application doors of a ready document are, and how to be one of its applications."""

    def __init__(self, ready: dict[str, Any]) -> None:
        self._ready = ready
        self._contexts: dict[str, TlsContext] = {}

    async def line(self, caller: str) -> Line:
        """Connect to the node that serves `caller`."""
        url = urlsplit(self._url(caller))
        context = self._context(caller)
        _, line = await asyncio.get_running_loop().create_connection(lambda: Line(context), url.hostname, url.port)
        await line.ready
        return line

    def head(self, caller: str, method: Method, other: str) -> bytes:
        """Return the head of a request up to the length of its body."""
        netloc = urlsplit(self._url(caller)).netloc
        text = f"POST {path_of(method, other)} HTTP/1.1\r\nhost: {netloc}\r\ncontent-type: application/json\r\n"
        return text.encode() + b"content-length: "

    def _url(self, caller: str) -> str:
        return str(self._ready["nodes"][self._ready["saes"][caller]["node"]]["etsi014"])

    def _context(self, caller: str) -> TlsContext:
        if caller not in self._contexts:
            sae = self._ready["saes"][caller]
            identity = TlsIdentity(Path(sae["certificate"]), Path(sae["private_key"]), Path(sae["ca"]))
            self._contexts[caller] = client_context(identity, groups=Groups.HYBRID_ONLY)
        return self._contexts[caller]
