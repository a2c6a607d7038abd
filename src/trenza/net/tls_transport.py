"""TLS as an asyncio transport: any asyncio.Protocol runs over it, under asyncio's own loop and uvloop alike.

Knows nothing of what the bytes mean. One write to the socket per turn of the loop, however many the application made;
memory is bounded in both directions by pausing (ours and the application's). What ends a connection ends it cleanly:
alerts and close_notify are sent, timers cancelled, and the application hears of it exactly once.
Standard: RFC 8446 (clause 6.1: close_notify, half-closed connections); interface: asyncio's Transport and Protocol.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from OpenSSL import SSL

from trenza.base.errors import AuthenticationError, PeerUnavailableError, RemoteProtocolError, TrenzaError
from trenza.net.gate import Gate, host_of
from trenza.net.tls import (
    PeerIdentity,
    RevocationCheck,
    Side,
    TlsContext,
    TlsStatistics,
    never_revoked,
    openssl_reason,
    peer_identity,
    server_name_indication,
    verify_name,
)
from trenza.net.turn import Turn, call_each

RECORD_BYTES = 16_384  # the largest plaintext of one TLS record
RECORD_HEAD_BYTES = 5  # type, version, length
FLUSH_BYTES = 65_536
WRITE_STEP_BYTES = 262_144  # encrypts at most this much before handing it on
MAX_HANDSHAKE_BYTES = 262_144  # an ML-DSA-65 chain with two intermediates is about 30 kB
CLOSE_TIMEOUT_S = 30.0  # for a peer that does not read what was sent before the close

ProtocolFactory = Callable[[], asyncio.Protocol]


@dataclass(slots=True)
class Terms:
    """What both ends of this process ask of a connection before the application sees it."""

    is_revoked: RevocationCheck = never_revoked
    expected_name: str | None = None
    gate: Gate = field(default_factory=Gate)
    """Counts who comes in at a listener, and bounds it; of a client it only says how long a handshake may take."""
    statistics: TlsStatistics = field(default_factory=TlsStatistics)
    sending: Turn[TlsTransport] = field(default_factory=lambda: Turn(_send))
    """When what connections have to say is encrypted and sent: after all of a listener have heard what there is."""

    def check(self, peer: PeerIdentity) -> None:
        """Refuse a revoked certificate or one for another name.

        Raises:
            AuthenticationError: the reason in its message.
        """
        if self.expected_name is not None:
            verify_name(peer.certificate, self.expected_name)
        if self.is_revoked(peer.fingerprint):
            raise AuthenticationError("the peer's certificate was revoked")


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """Stands between two parties: the socket's transport calls it as a Protocol, the application as a Transport.

    `get_extra_info("peer")` gives the verified PeerIdentity.
    """

    def __init__(
        self,
        context: TlsContext,
        application: ProtocolFactory,
        terms: Terms,
        established: asyncio.Future[asyncio.Protocol] | None = None,
    ) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._terms = terms
        self._make_application = application
        self._application: asyncio.Protocol | None = None
        self._established = established
        self._tls = SSL.Connection(context.openssl, None)
        self._side = context.side
        self._raw: asyncio.Transport | None = None
        self._peer: PeerIdentity | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: Exception | None = None
        self._handshake_bytes = 0
        self._shaking = False
        self._host: str | None = None  # by what the gate counts this connection
        self._heard_application = False
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._drain_due = False
        self._in_read = False
        self._drained = False  # OpenSSL holds no byte that it has not given us
        self._one_record = False  # what it holds is one whole record
        self._reading_paused = False
        self._writing_ended = False
        self._peer_ended = False
        self._closing = False

    # ---- called by the socket's transport ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast("asyncio.Transport", transport)
        _tune(transport)
        gate = self._terms.gate
        if self._side is Side.SERVER:
            host = host_of(transport.get_extra_info("peername"))
            if reason := gate.arrive(host, self._loop.time()):
                self._refuse(reason, PeerUnavailableError(reason, sent=False))
                return
            self._host = host
        self._shaking = True
        self._timer = self._loop.call_later(gate.limits.handshake_timeout_s, self._handshake_timed_out)
        if self._side is Side.SERVER:
            self._tls.set_accept_state()
            return
        self._tls.set_connect_state()
        name = server_name_indication(self._terms.expected_name) if self._terms.expected_name else None
        if name is not None:
            self._tls.set_tlsext_host_name(name)
        self._shake_hands()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._shaking:
            self._handshake_bytes += len(data)
            if self._handshake_bytes > MAX_HANDSHAKE_BYTES:
                self._refuse("handshake too large", RemoteProtocolError("the TLS handshake is too large"))
                return
        self._tls.bio_write(data)
        if self._shaking:
            self._shake_hands()
            if self._application is None:
                return
            self._drained = False
        self._one_record = self._drained and _is_one_record(data)
        self._drained = False
        self._read()

    def eof_received(self) -> bool:
        """The peer's socket ended; without close_notify the end could be an attacker's."""
        if self._application is None or self._closing:
            return False
        self._read()
        if self._peer_ended or self._closing:
            return not self._closing
        self._error = self._error or RemoteProtocolError("the peer ended the stream without close_notify")
        self._peer_ended = True
        return bool(self._application.eof_received()) and not (self._writing_ended or self._closing)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        application, self._application = self._application, None
        self._unsent.clear()
        if application is not None:
            self._terms.statistics.connections_open -= 1
            application.connection_lost(self._error or exc)
        else:
            self._fail_handshake(
                "closed by peer", PeerUnavailableError("the peer closed during the handshake", sent=False)
            )
        if self._host is not None:
            self._terms.gate.depart(self._host)
            self._host = None
        self._raw = None

    def pause_writing(self) -> None:
        if self._application is not None:
            self._application.pause_writing()

    def resume_writing(self) -> None:
        if self._application is not None:
            self._application.resume_writing()

    # ---- the handshake ----

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self.flush()
            return
        except SSL.Error as error:
            reason = openssl_reason(error)
            self.flush()  # the alert that tells the peer why
            self._refuse(reason, AuthenticationError(f"the TLS handshake failed: {reason}"))
            return
        self.flush()
        try:
            peer = peer_identity(self._tls)
            self._terms.check(peer)
        except AuthenticationError as error:
            self._end_stream()
            self._refuse(error.message, error)
            return
        self._accept(peer)

    def _accept(self, peer: PeerIdentity) -> None:
        self._peer = peer
        self._end_handshake()
        self._terms.statistics.completed[peer.group] += 1
        self._terms.statistics.connections_open += 1
        self._application = self._make_application()
        self._application.connection_made(self)
        established, self._established = self._established, None  # a future that keeps its result would keep us alive
        if established is not None and not established.done():
            established.set_result(self._application)

    def _end_handshake(self) -> None:
        if self._shaking:
            self._shaking = False
            if self._host is not None:
                self._terms.gate.shaken(self._host)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _handshake_timed_out(self) -> None:
        self._refuse("timeout", PeerUnavailableError("the TLS handshake took too long", sent=False))
        self.abort()

    def _refuse(self, reason: str, error: TrenzaError) -> None:
        self._fail_handshake(reason, error)
        self._closing = True
        if self._raw is not None:
            self._raw.close()
            self._timer = self._loop.call_later(CLOSE_TIMEOUT_S, self.abort)

    def _fail_handshake(self, reason: str, error: TrenzaError) -> None:
        if self._peer is not None or self._error is not None:
            return  # it succeeded, or its failure was told
        self._end_handshake()
        self._error = error
        self._terms.statistics.failed[reason] += 1
        established, self._established = self._established, None
        if established is not None and not established.done():
            established.set_exception(error)

    # ---- bytes inwards ----

    def _read(self) -> None:
        """Hand everything that can be decrypted to the application, until it pauses or closes."""
        heard = False
        self._in_read = True
        try:
            while not (self._reading_paused or self._closing):
                try:
                    plain = self._tls.recv(RECORD_BYTES)
                except SSL.WantReadError:
                    self._drained = True
                    break
                except SSL.ZeroReturnError:
                    self._peer_said_goodbye()
                    break
                except SSL.Error as error:
                    self._broken(error)
                    return
                heard = self._heard_application = True
                assert self._application is not None
                self._drained, self._one_record = self._one_record, False
                self._application.data_received(plain)
                if self._drained:
                    break  # to let OpenSSL find that there is no more costs as much as decrypting did
        finally:
            self._in_read = False
        if not (heard or self._unsent or self._closing):
            self.flush()  # an answer to KeyUpdate: otherwise it waits for our next write

    def _peer_said_goodbye(self) -> None:
        if self._peer_ended or self._application is None:
            return
        self._peer_ended = True
        if not self._application.eof_received() or self._writing_ended:
            self.close()

    def _broken(self, error: SSL.Error) -> None:
        reason = openssl_reason(error)
        if self._heard_application:
            self._error = RemoteProtocolError(f"TLS failed: {reason}")
        else:  # in TLS 1.3 a client learns only now that the server refused its certificate
            self._error = AuthenticationError(f"the TLS handshake was refused by the peer: {reason}")
        self._closing = True
        self.flush()
        if self._raw is not None:
            self._raw.close()
            self._timer = self._loop.call_later(CLOSE_TIMEOUT_S, self.abort)

    # ---- bytes outwards ----

    def seal(self) -> None:
        """Encrypt what was written; `flush` sends it."""
        self._drain_due = False
        if not self._unsent or self._raw is None:
            return
        unsent = self._unsent[0] if len(self._unsent) == 1 else b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_bytes = 0
        try:
            if len(unsent) <= WRITE_STEP_BYTES:
                self._tls.sendall(unsent)
                return
            whole = memoryview(unsent)
            for first in range(0, len(whole), WRITE_STEP_BYTES):
                self._tls.sendall(whole[first : first + WRITE_STEP_BYTES])
                self.flush()
        except SSL.Error as error:
            self._error = self._error or RemoteProtocolError(f"TLS failed: {openssl_reason(error)}")
            self.abort()

    def flush(self) -> None:
        """Move what OpenSSL wants sent to the socket."""
        if self._raw is None:
            return
        try:
            while True:
                record = self._tls.bio_read(FLUSH_BYTES)
                self._raw.write(record)
                if len(record) < FLUSH_BYTES:
                    return
        except SSL.WantReadError:
            return

    def _end_stream(self) -> None:
        """Send close_notify after all that was written."""
        if self._writing_ended:
            return
        self.seal()
        self.flush()
        self._writing_ended = True
        try:
            self._tls.shutdown()
        except SSL.Error:
            return  # the connection is broken already; nobody can be told
        self.flush()

    # ---- called by the application ----

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peer":
            return self._peer
        return self._raw.get_extra_info(name, default) if self._raw is not None else default

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        if self._writing_ended or self._closing or not data:
            return
        piece = data if type(data) is bytes else bytes(data)
        self._unsent.append(piece)
        self._unsent_bytes += len(piece)
        if not self._drain_due:
            self._drain_due = True
            self._terms.sending.soon(self)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Half-close: nothing more is sent; what the peer still says is heard until it ends too."""
        if self._writing_ended or self._closing:
            return
        if self._peer_ended:
            self.close()  # both directions have ended
            return
        self._end_stream()
        if self._raw is not None and self._raw.can_write_eof():
            self._raw.write_eof()

    def close(self) -> None:
        if self._closing:
            return
        self._end_stream()
        self._closing = True
        if self._raw is not None:
            self._raw.close()
            self._timer = self._loop.call_later(CLOSE_TIMEOUT_S, self.abort)

    def abort(self) -> None:
        self._closing = True
        if self._raw is not None:
            self._raw.abort()

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        if self._reading_paused or self._closing or self._raw is None:
            return
        self._reading_paused = True
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading_paused or self._closing or self._raw is None:
            return
        self._reading_paused = False
        self._raw.resume_reading()
        self._loop.call_soon(self._read_rest)  # what was decrypted or received before the pause

    def _read_rest(self) -> None:
        if not (self._closing or self._in_read):
            self._read()

    def is_reading(self) -> bool:
        return not (self._reading_paused or self._closing)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._application = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._application is not None, "the connection is not open"
        return self._application

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._raw is not None:
            self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes + (self._raw.get_write_buffer_size() if self._raw is not None else 0)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._raw.get_write_buffer_limits() if self._raw is not None else (0, 0)


def _send(due: Sequence[TlsTransport]) -> None:
    """Encrypt what all have written, then send it: a reader that the first record woke finds the others at hand."""
    call_each(transport.seal for transport in due)
    call_each(transport.flush for transport in due)


def _is_one_record(data: bytes) -> bool:
    """Tell whether `data` is one whole TLS record, no more and no less (RFC 8446 clause 5.1)."""
    return len(data) > RECORD_HEAD_BYTES and len(data) == RECORD_HEAD_BYTES + (data[3] << 8 | data[4])


def _tune(transport: asyncio.BaseTransport) -> None:
    """Send at once, and notice a peer whose machine vanished."""
    connected = transport.get_extra_info("socket")
    if connected is None or connected.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
