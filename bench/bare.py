"""Bare: the least code that answers a constant over the same TLS, to say how much of the floor is ours.

One asyncio protocol with pyOpenSSL and httptools in it, on uvloop. It takes in target, fields and body, without which
nobody could answer anything; no limits, no deadlines, no half-closed streams, no routing, no JSON: nothing that a
server needs among strangers.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import cast

import constant
import httptools
from OpenSSL import SSL

from trenza.net.tls import TlsContext
from trenza.wire import etsi014

_BODY = etsi014.encode_container([constant.constant_key()])
ANSWER = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 10:00:00 GMT\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\ncache-control: no-store\r\n\r\n%b" % (len(_BODY), _BODY)
)


class Bare(asyncio.Protocol):
    """One connection."""

    def __init__(self, context: TlsContext) -> None:
        self._tls = SSL.Connection(context.openssl, None)
        self._tls.set_accept_state()
        self._parser = httptools.HttpRequestParser(self)
        self._shaken = False
        self._forget()

    def _forget(self) -> None:
        self._target = b""
        self._fields: dict[bytes, bytes] = {}
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._tls.bio_write(data)
        try:
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
                self._flush()
            while True:
                self._parser.feed_data(self._tls.recv(16_384))
        except SSL.WantReadError:
            if not self._shaken:
                self._flush()
        except SSL.Error:
            self._raw.close()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._forget()
        self._tls.send(ANSWER)
        self._raw.write(self._tls.bio_read(65_536))

    def _flush(self) -> None:
        with contextlib.suppress(SSL.WantReadError):
            self._raw.write(self._tls.bio_read(65_536))


async def listen(context: TlsContext) -> int:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Bare(context), constant.HOST, 0)
    return int(server.sockets[0].getsockname()[1])


if __name__ == "__main__":
    constant.run("bare", listen, __doc__)
