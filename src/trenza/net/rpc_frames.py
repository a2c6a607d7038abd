"""Frames of the calls between nodes: what lies on the wire, and a protocol that cuts it.

A frame, integers big-endian:

    uint32  length of all that follows (9 bytes and the body)
    uint64  correlation id: chosen by the client, growing by one per call of a connection; repeated in the answer
    uint8   kind: 1 REQUEST, 2 RESPONSE, 3 ERROR, 4 GOAWAY
    ...     body: of REQUEST and RESPONSE, the caller's bytes; of ERROR, UTF-8 `code LF message`; of GOAWAY, nothing

REQUEST goes from client to server, the others back, in any order. GOAWAY with id 0: the server stops, send nothing
new here; with another id: the request of that id was not looked at. Anything else ends the connection.
"""

from __future__ import annotations

import asyncio
import enum
import struct
from abc import abstractmethod
from dataclasses import dataclass
from typing import cast

from trenza.base.errors import RemoteProtocolError
from trenza.net.tls import PeerIdentity
from trenza.net.tls_transport import TlsTransport

MAX_FRAME_BYTES = 4 * 1024 * 1024
_HEAD = struct.Struct(">IQB")
_LENGTH = struct.Struct(">I")
_FIXED_BYTES = _HEAD.size - _LENGTH.size


class FrameKind(enum.IntEnum):
    REQUEST = 1
    RESPONSE = 2
    ERROR = 3
    GOAWAY = 4


@dataclass(slots=True)
class MessageCounters:
    """Frames exchanged with one peer."""

    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class FramedProtocol(asyncio.Protocol):
    """One end of a connection that carries frames. The transport must be ours: `peer` is who it verified."""

    def __init__(self, max_frame_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()
        self._transport: TlsTransport | None = None
        self._counters = MessageCounters()
        self._protocol_error: RemoteProtocolError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("TlsTransport", transport)
        self.opened(transport.get_extra_info("peer"))

    @abstractmethod
    def opened(self, peer: PeerIdentity) -> None:
        """Hear who is at the other end."""

    @abstractmethod
    def frame_received(self, correlation: int, kind: FrameKind, body: bytes) -> None:
        """Take one frame; a RemoteProtocolError raised here ends the connection."""

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._counters.bytes_in += len(data)
        try:
            self._cut_frames()
        except RemoteProtocolError as error:
            self._protocol_error = error
            self._buffer.clear()
            self.abort()

    def _cut_frames(self) -> None:
        first = 0
        while len(self._buffer) - first >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, first)
            if not _FIXED_BYTES <= length <= self._max_frame_bytes:
                raise RemoteProtocolError(f"a frame of {length} bytes is not allowed")
            end = first + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            _, correlation, number = _HEAD.unpack_from(self._buffer, first)
            body = bytes(memoryview(self._buffer)[first + _HEAD.size : end])
            first = end
            self._counters.messages_in += 1
            self.frame_received(correlation, _kind(number), body)
        del self._buffer[:first]

    def fits(self, body: bytes) -> bool:
        """Tell whether a body can travel in one frame."""
        return len(body) + _FIXED_BYTES <= self._max_frame_bytes

    def send(self, correlation: int, kind: FrameKind, body: bytes = b"") -> None:
        """Send one frame; nothing happens if the connection has ended."""
        assert self.fits(body)
        if self._transport is None:
            return
        frame = _HEAD.pack(_FIXED_BYTES + len(body), correlation, kind) + body
        self._counters.messages_out += 1
        self._counters.bytes_out += len(frame)
        self._transport.write(frame)

    def close(self) -> None:
        """Say goodbye after all that was sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()


def _kind(number: int) -> FrameKind:
    try:
        return FrameKind(number)
    except ValueError:
        raise RemoteProtocolError(f"frame kind {number} is unknown") from None
