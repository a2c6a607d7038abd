"""The limits of a door: who is turned away before any TLS work, who is told so, and what is left of them."""

import asyncio
import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trenza.net.gate import Gate, GateLimits, host_of
from trenza.net.http import HttpLimits, Response
from trenza.net.http_server import HttpServer
from trenza.net.rpc_frames import FrameKind
from trenza.net.rpc_server import RpcServer
from trenza.net.tls import server_context

GET = b"GET / HTTP/1.1\r\nHost: norte\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


def in_our_form(status, message):
    return Response(status, message.encode())


@contextlib.asynccontextmanager
async def door(pki, handler=lambda _: Response(200, b"hello"), *, http=None, **limits):
    """Open an HTTP door with tiny limits; afterwards its gate has counted everybody out."""
    context = server_context(pki.identity("norte"))
    gate = Gate(GateLimits(**limits))
    server = HttpServer(handler, lambda: context, in_our_form, http or HttpLimits(linger_s=0.2), gate)
    port = await server.start("127.0.0.1")
    try:
        yield server, port
    finally:
        await server.stop()
    assert gate == Gate(gate.limits, _bucket=gate._bucket)


async def is_closed_at_once(port):
    """Connect without a word of TLS, and wait for the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    return True


async def until(true):
    """Let the server go on until it has noticed; `run` ends what never comes true."""
    while not true():  # noqa: ASYNC110 - what is awaited has no event of its own
        await asyncio.sleep(0.001)


async def greeted(dial, port, identity):
    client = await dial(port, identity)
    client.say(GET)
    await client.hear(b"hello")
    return client


# --- counting


def test_hosts_are_counted_by_what_one_stranger_can_have():
    assert host_of(("192.0.2.7", 1)) == host_of(("192.0.2.7", 2)) != host_of(("192.0.2.8", 1))
    assert host_of(("2001:db8::1", 1, 0, 0)) == host_of(("2001:db8::ffff:1", 1, 0, 0))
    assert host_of(("2001:db8::1", 1, 0, 0)) != host_of(("2001:db8:0:1::1", 1, 0, 0))
    assert host_of(("fe80::1%eth0", 1, 0, 2)) == host_of(("fe80::2", 1, 0, 2))
    assert host_of("") == host_of(None) == host_of(()) == ""


@given(st.lists(st.tuples(st.sampled_from(["arrive", "shaken", "depart"]), st.sampled_from("abc")), max_size=80))
def test_a_gate_never_lets_in_more_than_its_limits_and_forgets_who_left(steps):
    limits = GateLimits(
        max_connections=6, max_connections_per_address=4, max_handshakes=3, max_handshakes_per_address=2
    )
    gate, shaking, inside = Gate(limits), [], []
    for what, host in steps:
        if what == "arrive" and gate.arrive(host, 0.0) is None:
            shaking.append(host)
            inside.append(host)
        elif what == "shaken" and host in shaking:
            shaking.remove(host)
            gate.shaken(host)
        elif what == "depart" and inside.count(host) > shaking.count(host):
            inside.remove(host)
            gate.depart(host)
        assert len(inside) <= 6
        assert len(shaking) <= 3
        assert all(inside.count(one) <= 4 and shaking.count(one) <= 2 for one in "abc")
    for host in shaking:
        gate.shaken(host)
    for host in inside:
        gate.depart(host)
    assert gate == Gate(limits, _bucket=gate._bucket)


# --- strangers, before TLS


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_connections": 1}, "too many connections"),
        ({"max_connections_per_address": 1}, "too many connections from one address"),
        ({"handshake_burst": 1, "handshakes_per_second": 1e-6}, "too many handshakes in a second"),
    ],
)
def test_one_too_many_is_closed_before_any_tls(run, pki, dial, limits, reason):
    async def story():
        async with door(pki, **limits) as (server, port):
            first = await greeted(dial, port, pki.identity("sur"))
            assert await is_closed_at_once(port)
            assert server.statistics.failed == {reason: 1}
            first.say(GET)  # who is in is not disturbed
            await first.hear(b"hello")
            await first.hang_up()

    run(story())


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_handshakes": 1}, "too many handshakes"),
        ({"max_handshakes_per_address": 1}, "too many handshakes from one address"),
    ],
)
def test_who_does_not_finish_a_handshake_keeps_a_place_until_it_leaves(run, pki, dial, limits, reason):
    async def story():
        async with door(pki, **limits) as (server, port):
            _, silent = await asyncio.open_connection("127.0.0.1", port)
            assert await is_closed_at_once(port)
            assert server.statistics.failed == {reason: 1}
            silent.close()
            await silent.wait_closed()
            await until(lambda: not server.gate.handshakes)
            await (await greeted(dial, port, pki.identity("sur"))).hang_up()

    run(story())


def test_a_handshake_byte_by_byte_is_cut_in_time(run, pki):
    async def story():
        async with door(pki, handshake_timeout_s=0.1) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(ConnectionError):  # cut while a byte was still under way
                for byte in b"\x16\x03\x01\x40\x00" + bytes(10_000):
                    if reader.at_eof() or writer.is_closing():
                        break
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.01)
                assert await reader.read() == b""
            writer.close()
            assert server.statistics.failed == {"timeout": 1}

    run(story())


# --- clients, after TLS


def test_a_client_with_too_many_connections_is_told_and_others_are_served(run, pki, dial):
    async def story():
        async with door(pki, max_connections_per_client=1) as (server, port):
            first = await greeted(dial, port, pki.identity("sur"))
            second = await dial(port, pki.identity("sur"))
            second.say(GET)
            told = await second.hear_all()
            assert told.startswith(b"HTTP/1.1 503 ")
            assert told.endswith(b"too many connections of one client")
            await (await greeted(dial, port, pki.identity("este"))).hang_up()
            await first.hang_up()
            await until(lambda: not server.connections)
            await (await greeted(dial, port, pki.identity("sur"))).hang_up()
            assert server.statistics.refused == {"too many connections of one client": 1}

    run(story())


@pytest.mark.parametrize("start", [b"GET / HT", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nx"])
def test_a_request_that_does_not_end_is_counted(run, pki, dial, start):
    async def story():
        async with door(pki, http=HttpLimits(request_timeout_s=0.05, linger_s=0.2)) as (server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(start)
            assert (await client.hear_all()).startswith(b"HTTP/1.1 408 ")
            assert server.statistics.refused == {"the request took too long": 1}

    run(story())


def test_an_answer_that_is_not_read_is_counted(run, pki, dial):
    async def story():
        big = lambda _: Response(200, bytes(32 * 1024 * 1024))  # noqa: E731 - more than the sockets hold
        async with door(pki, big, http=HttpLimits(request_timeout_s=0.05, linger_s=0.2)) as (server, port):
            client = await dial(port, pki.identity("sur"))
            client.transport.pause_reading()
            client.say(GET)
            await until(lambda: server.statistics.refused)
            assert server.statistics.refused == {"answer not read": 1}
            client.transport.abort()

    run(story())


def test_large_bodies_are_not_read_ahead_by_the_dozen(run, pki, dial):
    async def story():
        go_on, most = asyncio.Event(), 0
        body = bytes(60_000)
        request = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n" + body

        async def handler(_request):
            await go_on.wait()
            return Response(200, b"hello")

        async with door(pki, handler, http=HttpLimits(max_body_bytes=60_000, linger_s=0.2)) as (server, port):
            client = await dial(port, pki.identity("sur"))
            for _ in range(8):
                client.say(request)
            await until(lambda: server.connections and next(iter(server.connections))._waiting)
            for _ in range(200):
                await asyncio.sleep(0)
                most = max(most, len(next(iter(server.connections))._waiting))
            assert most == 1
            go_on.set()
            for _ in range(8):
                await client.hear(b"hello")
            await client.hang_up()

    run(story())


# --- other nodes


@contextlib.asynccontextmanager
async def peers_door(pki, handler, **options):
    context = server_context(pki.identity("norte"))
    server = RpcServer(handler, lambda: context, **options)
    port = await server.start("127.0.0.1")
    try:
        yield server, port
    finally:
        await server.stop()
    assert server.gate == Gate(server.gate.limits, _bucket=server.gate._bucket)


def frame(kind, correlation, body=b""):
    return struct.pack(">IQB", 9 + len(body), correlation, kind) + body


async def echo(_peer, body):
    return body


def test_a_node_with_too_many_connections_is_sent_away(run, pki, dial):
    async def story():
        gate = Gate(GateLimits(max_connections_per_client=1))
        async with peers_door(pki, echo, gate=gate) as (server, port):
            first = await dial(port, pki.identity("sur"))
            first.say(frame(FrameKind.REQUEST, 1, b"hello"))
            await first.hear(b"hello")
            second = await dial(port, pki.identity("sur"))
            assert await second.hear_all() == frame(FrameKind.GOAWAY, 0)
            other = await dial(port, pki.identity("este"))
            other.say(frame(FrameKind.REQUEST, 1, b"hello"))
            await other.hear(b"hello")
            assert server.statistics.refused == {"too many connections of one client": 1}
            await first.hang_up()
            await other.hang_up()

    run(story())


def test_a_node_that_does_not_read_its_answers_is_cut_off(run, pki, dial):
    async def story():
        async def much(_peer, _body):
            return bytes(4_000_000)

        async with peers_door(pki, much, stall_timeout_s=0.05) as (server, port):
            client = await dial(port, pki.identity("sur"))
            client.transport.pause_reading()
            for correlation in range(1, 17):
                client.say(frame(FrameKind.REQUEST, correlation))
            await until(lambda: server.statistics.refused)
            assert server.statistics.refused == {"answer not read": 1}
            client.transport.abort()

    run(story())
