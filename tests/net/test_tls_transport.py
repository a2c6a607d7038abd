import asyncio
import contextlib
import gc
import os
import socket
import ssl
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from trenza.base.errors import AuthenticationError, PeerUnavailableError, RemoteProtocolError, TrenzaError
from trenza.net.endpoints import connect, listen
from trenza.net.gate import Gate, GateLimits
from trenza.net.tls import Groups, OldestTls, PeerIdentity, client_context, fingerprint_of, server_context
from trenza.net.tls_transport import MAX_HANDSHAKE_BYTES, Terms, TlsTransport

MIB = 1 << 20


class Echo(asyncio.Protocol):
    """Sends back what it hears, no faster than it is read; says goodbye when the other side does."""

    def __init__(self, door: "Door") -> None:
        self.door = door

    def connection_made(self, transport):
        self.transport = transport
        self.door.peers.append(transport.get_extra_info("peer"))

    def data_received(self, data):
        self.door.heard.append(data)
        self.transport.write(data)

    def pause_writing(self):
        self.door.paused.set()
        self.transport.pause_reading()

    def resume_writing(self):
        self.transport.resume_reading()

    def eof_received(self):
        return False

    def connection_lost(self, exc):
        self.door.ended.append(exc)
        self.door.quiet.set()


@dataclass
class Door:
    port: int = 0
    terms: Terms = field(default_factory=Terms)
    peers: list[PeerIdentity] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)
    ended: list[Exception | None] = field(default_factory=list)
    paused: asyncio.Event = field(default_factory=asyncio.Event)
    quiet: asyncio.Event = field(default_factory=asyncio.Event)


class Caller(asyncio.Protocol):
    """Collects what it hears."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.more = asyncio.Event()
        self.can_write = asyncio.Event()
        self.can_write.set()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.peer = transport.get_extra_info("peer")

    def data_received(self, data):
        self.heard += data
        self.more.set()

    def pause_writing(self):
        self.can_write.clear()

    def resume_writing(self):
        self.can_write.set()

    def connection_lost(self, exc):
        self.lost.set_result(exc)
        self.more.set()

    async def hear(self, count):
        while len(self.heard) < count:
            assert not self.lost.done(), "the connection ended too early"
            self.more.clear()
            await self.more.wait()
        return bytes(self.heard)

    async def hang_up(self):
        self.transport.close()
        await self.lost


@contextlib.asynccontextmanager
async def echo_door(context, **terms) -> AsyncIterator[Door]:
    door = Door(terms=Terms(**terms))
    provider = context if callable(context) else lambda: context
    server = await listen(lambda: Echo(door), provider, "127.0.0.1", 0, terms=door.terms)
    door.port = server.sockets[0].getsockname()[1]
    try:
        yield door
    finally:
        server.close()


async def call(context, door, **terms) -> Caller:
    return await connect(Caller, context, "127.0.0.1", door.port, terms=Terms(**terms), timeout_s=5)


async def is_refused(context, door) -> Exception:
    """In TLS 1.3 a client may learn only after its own handshake that the server refused it."""
    try:
        caller = await call(context, door)
    except TrenzaError as error:
        return error
    caller.transport.write(b"hello")
    error = await caller.lost
    assert not caller.heard
    return error


@pytest.mark.parametrize("chain", ["pki", "ml_dsa_pki"])
def test_both_ends_know_each_other_over_the_hybrid_group(run, request, chain):
    pki = request.getfixturevalue(chain)

    async def story():
        norte, sur = pki.identity("norte"), pki.identity("sur")
        async with echo_door(server_context(norte)) as door:
            caller = await call(client_context(sur), door, expected_name="urn:trenza:node:norte")
            caller.transport.write(b"hola")
            assert await caller.hear(4) == b"hola"
            assert door.terms.statistics.connections_open == 1
            await caller.hang_up()
            await door.quiet.wait()
        (seen,) = door.peers
        assert (seen.group, seen.tls_version) == ("X25519MLKEM768", "TLSv1.3")
        assert seen.uris == ("urn:trenza:node:sur",)
        assert seen.name == "urn:trenza:node:sur"
        assert seen.fingerprint == fingerprint_of(seen.certificate)
        assert caller.peer.uris == ("urn:trenza:node:norte",)
        assert door.ended == [None]
        assert door.terms.statistics.completed == {"X25519MLKEM768": 1}
        assert door.terms.statistics.connections_open == 0

    run(story())


def test_a_client_without_a_certificate_is_refused(run, pki):
    async def story():
        bare = ssl.create_default_context(cafile=pki.trust_file)
        context = server_context(pki.identity("norte"), groups=Groups.HYBRID_PREFERRED)
        async with echo_door(context) as door:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", door.port, ssl=bare, server_hostname="localhost"
            )
            with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
                await reader.read()
            writer.close()
            with contextlib.suppress(ssl.SSLError):
                await writer.wait_closed()
        assert door.peers == []
        assert door.terms.statistics.failed == {"peer did not return a certificate": 1}

    run(story())


@pytest.mark.parametrize("who", ["foreign", "expired", "server only", "revoked"])
def test_a_client_with_a_bad_certificate_is_refused(run, pki, foreign_pki, who):
    async def story():
        match who:
            case "foreign":
                client = foreign_pki.identity("intruder", trust_file=pki.trust_file)
            case "expired":
                client = pki.expired("yesterday")
            case "server only":
                client = pki.identity("server-only", client=False)
            case _:
                client = pki.identity("revoked")
        revoked = {fingerprint_of(_certificate(pki.identity("revoked")))}
        async with echo_door(server_context(pki.identity("norte")), is_revoked=revoked.__contains__) as door:
            await is_refused(client_context(client), door)
        assert door.peers == []
        assert door.heard == []
        assert door.terms.statistics.handshakes_failed == 1
        assert door.terms.statistics.handshakes_completed == 0

    run(story())


def _certificate(identity):
    from cryptography import x509

    return x509.load_pem_x509_certificate(identity.certificate_file.read_bytes())


@pytest.mark.parametrize("who", ["foreign", "expired", "client only", "revoked", "another node"])
def test_a_server_with_a_bad_certificate_is_refused(run, pki, foreign_pki, who):
    async def story():
        revoked: set[str] = set()
        match who:
            case "foreign":
                server = foreign_pki.identity("impostor", trust_file=pki.trust_file)
            case "expired":
                server = pki.expired("yesterday")
            case "client only":
                server = pki.identity("client-only", server=False)
            case "revoked":
                server = pki.identity("revoked")
                revoked = {fingerprint_of(_certificate(server))}
            case _:
                server = pki.identity("este")
        name = f"urn:trenza:node:{server.certificate_file.stem}" if who != "another node" else "urn:trenza:node:norte"
        async with echo_door(server_context(server)) as door:
            with pytest.raises(AuthenticationError):
                await call(
                    client_context(pki.identity("sur")), door, expected_name=name, is_revoked=revoked.__contains__
                )

    run(story())


@pytest.mark.parametrize("name", ["127.0.0.1", "LOCALHOST", "urn:trenza:node:norte"])
def test_a_name_of_the_certificate_is_accepted(run, pki, name):
    async def story():
        async with echo_door(server_context(pki.identity("norte"))) as door:
            caller = await call(client_context(pki.identity("sur")), door, expected_name=name)
            await caller.hang_up()

    run(story())


@pytest.mark.parametrize("name", ["127.0.0.2", "localhos", "host", "urn:trenza:node:nort", "norte"])
def test_another_name_is_refused(run, pki, name):
    async def story():
        async with echo_door(server_context(pki.identity("norte"))) as door:
            with pytest.raises(AuthenticationError, match="not for"):
                await call(client_context(pki.identity("sur")), door, expected_name=name)

    run(story())


def _stdlib_client(pki, name="sur", newest=ssl.TLSVersion.TLSv1_3):
    identity = pki.identity(name)
    context = ssl.create_default_context(cafile=identity.trust_file)
    context.load_cert_chain(identity.certificate_file, identity.private_key_file)
    context.maximum_version = newest
    if newest is ssl.TLSVersion.TLSv1_3:  # in TLS 1.2 this list also says which certificate curves are understood
        with contextlib.suppress(ssl.SSLError):  # Python 3.11.2 knows no such name; its OpenSSL offers X25519 anyway
            context.set_ecdh_curve("X25519")
    return context


def test_a_hybrid_only_server_refuses_a_classical_client(run, pki):
    async def story():
        async with echo_door(server_context(pki.identity("norte"))) as door:
            with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
                await asyncio.open_connection(
                    "127.0.0.1", door.port, ssl=_stdlib_client(pki), server_hostname="localhost"
                )
        assert door.peers == []
        assert door.terms.statistics.handshakes_failed == 1

    run(story())


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
def test_a_door_that_allows_it_serves_a_classical_client_and_knows_it(run, pki, newest):
    async def story():
        context = server_context(pki.identity("norte"), groups=Groups.HYBRID_PREFERRED, oldest=OldestTls.TLS_1_2)
        async with echo_door(context) as door:
            client = _stdlib_client(pki, newest=newest)
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", door.port, ssl=client, server_hostname="localhost"
            )
            writer.write(b"hola")
            assert await reader.readexactly(4) == b"hola"
            writer.close()
            await writer.wait_closed()
            await door.quiet.wait()
        (seen,) = door.peers
        assert seen.group.lower() == "x25519"
        assert seen.tls_version == {ssl.TLSVersion.TLSv1_3: "TLSv1.3", ssl.TLSVersion.TLSv1_2: "TLSv1.2"}[newest]

    run(story())


def test_tls_1_2_is_refused_unless_allowed(run, pki):
    async def story():
        context = server_context(pki.identity("norte"), groups=Groups.HYBRID_PREFERRED)
        client = _stdlib_client(pki, newest=ssl.TLSVersion.TLSv1_2)
        async with echo_door(context) as door:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", door.port, ssl=client, server_hostname="localhost")
        assert door.peers == []

    run(story())


def test_our_client_prefers_the_hybrid_group_where_both_can(run, pki):
    async def story():
        async with echo_door(server_context(pki.identity("norte"), groups=Groups.HYBRID_PREFERRED)) as door:
            caller = await call(client_context(pki.identity("sur"), groups=Groups.HYBRID_PREFERRED), door)
            assert caller.peer.group == "X25519MLKEM768"
            await caller.hang_up()

    run(story())


def test_no_session_is_resumed(run, pki):
    client = _stdlib_client(pki)

    def visit(port, session):
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            client.wrap_socket(plain, server_hostname="localhost", session=session) as wrapped,
        ):
            wrapped.sendall(b"hola")
            assert wrapped.recv(4) == b"hola"
            return wrapped.session, wrapped.session_reused

    async def story():
        context = server_context(pki.identity("norte"), groups=Groups.HYBRID_PREFERRED)
        async with echo_door(context) as door:
            session, _ = await asyncio.to_thread(visit, door.port, None)
            _, reused = await asyncio.to_thread(visit, door.port, session)
        assert reused is False
        assert len(door.peers) == 2

    run(story())


def test_eight_mebibytes_come_back_through_back_pressure(run, pki):
    async def story():
        sent = bytes(range(256)) * (8 * MIB // 256)
        async with echo_door(server_context(pki.identity("norte"))) as door:
            caller = await call(client_context(pki.identity("sur")), door)
            caller.transport.pause_reading()  # so that the echo cannot be read and the far end must pause
            view = memoryview(sent)
            sender = asyncio.create_task(_send(caller, view))
            await door.paused.wait()
            caller.transport.resume_reading()
            await sender
            assert await caller.hear(len(sent)) == sent
            await caller.hang_up()

    run(story())


async def _send(caller, view):
    for first in range(0, len(view), 100_000):
        await caller.can_write.wait()
        caller.transport.write(view[first : first + 100_000])


def test_one_write_of_eight_mebibytes_arrives_whole(run, pki):
    async def story():
        sent = b"x" * (8 * MIB)
        async with echo_door(server_context(pki.identity("norte"))) as door:
            caller = await call(client_context(pki.identity("sur")), door)
            caller.transport.write(sent)
            assert caller.transport.get_write_buffer_size() == len(sent)
            assert await caller.hear(len(sent)) == sent
            await caller.hang_up()

    run(story())


def test_many_small_writes_leave_as_one_record(run, pki):
    async def story():
        async with echo_door(server_context(pki.identity("norte"))) as door:
            caller = await call(client_context(pki.identity("sur")), door)
            for letter in b"hola":
                caller.transport.write(bytes([letter]))
            assert await caller.hear(4) == b"hola"
            await caller.hang_up()
        assert door.heard == [b"hola"]

    run(story())


class Late(Echo):
    """Answers only after the other side finished speaking."""

    def data_received(self, data):
        self.door.heard.append(data)

    def eof_received(self):
        self.transport.write(b"".join(self.door.heard)[::-1])
        self.transport.write_eof()
        return True


def test_a_half_closed_client_still_gets_its_answer(run, pki):
    async def story():
        door = Door()
        context = server_context(pki.identity("norte"))
        server = await listen(lambda: Late(door), lambda: context, "127.0.0.1", 0, terms=door.terms)
        door.port = server.sockets[0].getsockname()[1]
        caller = await call(client_context(pki.identity("sur")), door)
        caller.transport.write(b"hola")
        caller.transport.write_eof()
        caller.transport.write(b"not sent any more")
        assert await caller.lost is None
        assert caller.heard == b"aloh"
        server.close()
        await door.quiet.wait()

    run(story())


def test_an_end_without_close_notify_is_told_as_such(run, pki):
    async def story():
        async with echo_door(server_context(pki.identity("norte"))) as door:
            caller = await call(client_context(pki.identity("sur")), door)
            caller.transport.write(b"hola")
            await caller.hear(4)
            with socket.socket(fileno=os.dup(caller.transport.get_extra_info("socket").fileno())) as below:
                below.shutdown(socket.SHUT_WR)  # as an attacker on the path could
            await door.quiet.wait()
            await caller.lost
        (error,) = door.ended
        assert isinstance(error, RemoteProtocolError)
        assert "close_notify" in str(error)

    run(story())


def test_a_client_that_does_not_shake_hands_is_closed(run, pki):
    async def story():
        gate = Gate(GateLimits(handshake_timeout_s=0.05))
        async with echo_door(server_context(pki.identity("norte")), gate=gate) as door:
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert door.terms.statistics.failed == {"timeout": 1}
        assert (gate.handshakes, gate.connections) == (0, 0)

    run(story())


def test_what_is_not_tls_is_closed(run, pki):
    async def story():
        async with echo_door(server_context(pki.identity("norte"))) as door:
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: norte\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
        assert door.terms.statistics.handshakes_failed == 1
        assert door.peers == []

    run(story())


def test_an_endless_handshake_is_closed(run, pki):
    async def story():
        async with echo_door(server_context(pki.identity("norte"))) as door:
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            # A record header that promises a handshake message of 16 MiB, fragment after fragment.
            fragment = b"\x16\x03\x01\x40\x00" + b"\x01\xff\xff\xff" + bytes(16_380)
            with contextlib.suppress(ConnectionError):
                for _ in range(2 * MAX_HANDSHAKE_BYTES // len(fragment)):
                    writer.write(fragment)
                    await writer.drain()
                await reader.read()
            writer.close()
        assert door.terms.statistics.handshakes_failed == 1

    run(story())


def test_a_client_gives_up_on_a_server_that_does_not_answer(run, pki):
    async def story():
        client = client_context(pki.identity("sur"))
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(PeerUnavailableError) as caught:
            await connect(Caller, client, *silent.getsockname(), terms=Terms(), timeout_s=0.05)
        assert caught.value.sent is False

    run(story())


def test_nobody_listening_is_a_request_never_sent(run, pki):
    async def story():
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            door = Door(port=reserved.getsockname()[1])
            with pytest.raises(PeerUnavailableError) as caught:
                await call(client_context(pki.identity("sur")), door)
        assert caught.value.sent is False

    run(story())


def test_a_server_changes_its_certificate_without_a_restart(run, pki):
    async def story():
        current = [server_context(pki.identity("norte"))]
        async with echo_door(lambda: current[0]) as door:
            before = await call(client_context(pki.identity("sur")), door, expected_name="urn:trenza:node:norte")
            current[0] = server_context(pki.identity("este"))
            after = await call(client_context(pki.identity("sur")), door, expected_name="urn:trenza:node:este")
            before.transport.write(b"still here")
            assert await before.hear(10) == b"still here"
            await before.hang_up()
            await after.hang_up()

    run(story())


def test_the_transport_says_what_it_is(run, pki):
    async def story():
        async with echo_door(server_context(pki.identity("norte"))) as door:
            caller = await call(client_context(pki.identity("sur")), door)
            transport = caller.transport
            assert isinstance(transport, TlsTransport)
            assert transport.get_protocol() is caller
            assert transport.get_extra_info("peername")[1] == door.port
            assert transport.get_extra_info("unknown", 7) == 7
            assert transport.is_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            transport.resume_reading()
            assert not transport.is_closing()
            await caller.hang_up()
            assert transport.is_closing()
            transport.write(b"into the void")

    run(story())


def test_a_connection_that_ended_is_freed_without_the_garbage_collector(run, pki):
    async def story():
        async with echo_door(server_context(pki.identity("norte"))) as door:
            caller = await call(client_context(pki.identity("sur")), door)
            kept = weakref.ref(caller.transport)
            await caller.hang_up()
            await door.quiet.wait()
            del caller
            await asyncio.sleep(0)  # the loop lets go of what it called last
        assert kept() is None

    gc.collect()
    gc.disable()
    try:
        run(story())
    finally:
        gc.enable()
