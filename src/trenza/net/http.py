"""HTTP messages as both ends see them, and the limits that keep a stranger's message small.

No sockets and no JSON. Standard: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from trenza.net.tls import PeerIdentity

JSON = "application/json"


class Request(msgspec.Struct, gc=False):
    """One complete request; `path` and `query` are as they came, percent-encoding and all."""

    method: bytes
    path: bytes
    query: bytes
    headers: Mapping[bytes, bytes]
    """Names in lower case; repeated fields joined by a comma."""
    body: bytes
    peer: PeerIdentity

    def __repr__(self) -> str:
        return f"<Request {self.method!r} {self.path!r}>"  # a body may name keys

    @property
    def content_type(self) -> bytes:
        return self.headers.get(b"content-type", b"")


class Response(msgspec.Struct, frozen=True, gc=False):
    """What a door answers. Length, date and connection fields are the server's business."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _encode_fields(self.content_type, self.headers)

    def __repr__(self) -> str:
        return f"<Response {self.status}>"  # a body may hold keys


Handler = Callable[[Request], Response | Awaitable[Response]]
"""Answers one request, at once or later; only what it awaits costs a task."""

Answers = Callable[[Sequence[Request]], Sequence[Response | Awaitable[Response]]]
"""Answers requests of several connections that came together, one each, in their order: what they have in common is
looked at once. Raises nothing but for a mistake of ours, and then none is answered.
"""

ErrorResponse = Callable[[int, str], Response]
"""Puts a status and a sentence into the error body of the door's standard."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one stranger may ask of us."""

    max_header_bytes: int = 16 * 1024  # request line and header fields
    max_body_bytes: int = 1024 * 1024
    max_connections: int = 10_000
    max_pipelined: int = 16  # requests read ahead on one connection before reading pauses
    idle_timeout_s: float = 75.0
    request_timeout_s: float = 10.0  # from a request's first byte to its last, and for reading the answer
    linger_s: float = 2.0  # to let a refused client read why


def encode_head(response: Response, *, length: int, date: bytes, close: bool) -> bytes:
    """Return the status line and header fields of a response, up to and with the empty line."""
    media_type, fields = _encode_fields(response.content_type, response.headers)
    return b"".join(
        (
            _STATUS_LINES.get(response.status) or b"HTTP/1.1 %d \r\n" % response.status,
            b"date: ",
            date,
            b"\r\n",
            media_type,
            b"" if response.status == HTTPStatus.NO_CONTENT else b"content-length: %d\r\n" % length,
            fields,
            b"connection: close\r\n\r\n" if close else b"\r\n",
        )
    )


@functools.lru_cache(maxsize=256)
def _encode_fields(content_type: str, headers: tuple[tuple[str, str], ...]) -> tuple[bytes, bytes]:
    """Return the lines of a door's content type and other fields; almost always the same few, so remembered.

    Raises:
        ValueError: a field could break out of its line, or is not Latin-1.
    """
    fields = (("content-type", content_type), *headers)
    if any(character in "\r\n\0" for name, value in fields for character in name + value):
        raise ValueError("a header field has a line break")
    media_type, *others = (f"{name}: {value}\r\n".encode("latin-1") for name, value in fields)
    return media_type, b"".join(others)


_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
