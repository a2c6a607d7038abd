import asyncio
import contextlib
import socket

import pytest

from trenza.base.errors import AuthenticationError, PeerUnavailableError, RemoteProtocolError
from trenza.net.endpoints import listen
from trenza.net.http import HttpLimits, Response
from trenza.net.http_client import HttpClient
from trenza.net.http_server import HttpServer
from trenza.net.tls import client_context, server_context


def in_our_form(status, message):
    return Response(status, message.encode())


@contextlib.asynccontextmanager
async def asking(pki, handler, *, limits=None, **options):
    context = server_context(pki.identity("norte"))
    server = HttpServer(handler, lambda: context, in_our_form, limits or HttpLimits(linger_s=0.2))
    port = await server.start("127.0.0.1")
    client = HttpClient(client_context(pki.identity("sur")), "127.0.0.1", port, **options)
    try:
        yield client, server
    finally:
        await client.aclose()
        await server.stop()


class Scripted(asyncio.Protocol):
    """A server that answers whatever it is asked with the same bytes."""

    def __init__(self, answer, *, close):
        self.answer, self.close = answer, close

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, _data):
        self.transport.write(self.answer)
        if self.close:
            self.transport.close()


@contextlib.asynccontextmanager
async def scripted(pki, answer, *, close=True, **options):
    context = server_context(pki.identity("norte"))
    server = await listen(lambda: Scripted(answer, close=close), lambda: context, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = HttpClient(client_context(pki.identity("sur")), "127.0.0.1", port, **options)
    try:
        yield client
    finally:
        await client.aclose()
        server.close()


def test_an_answer_comes_whole_and_the_connection_is_kept(run, pki):
    async def story():
        def handler(request):
            return Response(200, request.method + b" " + request.path + b"?" + request.query + b" " + request.body)

        async with asking(pki, handler) as (client, server):
            first = await client.request("GET", "/a%20b?x=1")
            second = await client.request("POST", "/c", b"[]")
            assert server.statistics.handshakes_completed == 1
        assert (first.status, first.body) == (200, b"GET /a%20b?x=1 ")
        assert first.headers[b"content-type"] == b"application/json"
        assert second.body == b"POST /c? []"
        assert client.statistics.completed == {"X25519MLKEM768": 1}

    run(story())


def test_many_tasks_share_a_few_connections(run, pki):
    async def story():
        async def handler(request):
            await asyncio.sleep(0)
            return Response(200, request.path)

        async with asking(pki, handler, max_connections=3) as (client, server):
            answers = await asyncio.gather(*(client.request("GET", f"/{number}") for number in range(50)))
            assert server.statistics.handshakes_completed <= 3
        assert [answer.body for answer in answers] == [b"/%d" % number for number in range(50)]

    run(story())


def test_eight_mebibytes_go_and_come_back(run, pki):
    async def story():
        big = bytes(8 << 20)
        limits = HttpLimits(max_body_bytes=len(big), linger_s=0.2)
        async with asking(pki, lambda r: Response(200, r.body), limits=limits, max_body_bytes=len(big)) as (
            client,
            _,
        ):
            assert (await client.request("POST", "/", big)).body == big

    run(story())


def test_a_server_with_another_name_is_not_asked(run, pki):
    async def story():
        asked = []
        async with asking(pki, asked.append, expected_name="urn:trenza:node:este") as (client, _server):
            with pytest.raises(AuthenticationError, match="not for urn:trenza:node:este"):
                await client.request("GET", "/")
        assert asked == []

    run(story())


def test_a_server_that_refuses_our_certificate_did_not_hear_us(run, pki):
    async def story():
        context = server_context(pki.identity("norte"))
        server = HttpServer(lambda _: Response(200), lambda: context, in_our_form)
        port = await server.start("127.0.0.1")
        client = HttpClient(client_context(pki.expired("yesterday")), "127.0.0.1", port)
        with pytest.raises(AuthenticationError):
            await client.request("GET", "/")
        await client.aclose()
        await server.stop()

    run(story())


def test_nobody_listening_means_never_sent(run, pki):
    async def story():
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            client = HttpClient(client_context(pki.identity("sur")), *reserved.getsockname())
            with pytest.raises(PeerUnavailableError) as caught:
                await client.request("GET", "/")
            assert caught.value.sent is False
        await client.aclose()

    run(story())


def test_no_answer_in_time_means_perhaps_heard(run, pki):
    async def story():
        gate = asyncio.Event()
        gate.set()

        async def handler(_request):
            await gate.wait()
            return Response(200)

        async with asking(pki, handler) as (client, server):
            assert (await client.request("GET", "/")).status == 200  # from now on it is connected
            (first,) = server.connections
            gate.clear()
            with pytest.raises(PeerUnavailableError, match="did not answer") as caught:
                await client.request("GET", "/", timeout_s=0.05)
            assert caught.value.sent is True
            gate.set()
            assert (await client.request("GET", "/")).status == 200
            assert server.connections - {first}, "it is connected anew"

    run(story())


def test_waiting_for_a_turn_in_vain_means_never_sent(run, pki):
    async def story():
        called, gate = asyncio.Event(), asyncio.Event()

        async def handler(_request):
            called.set()
            await gate.wait()
            return Response(200)

        async with asking(pki, handler, max_connections=1) as (client, _server):
            first = asyncio.ensure_future(client.request("GET", "/"))
            await called.wait()
            with pytest.raises(PeerUnavailableError) as caught:
                await client.request("GET", "/", timeout_s=0.02)
            assert caught.value.sent is False
            gate.set()
            assert (await first).status == 200

    run(story())


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"])
def test_a_connection_that_ends_too_early_means_perhaps_heard(run, pki, answer):
    async def story():
        async with scripted(pki, answer) as client:
            with pytest.raises(PeerUnavailableError) as caught:
                await client.request("GET", "/")
            assert caught.value.sent is True

    run(story())


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"b" * 200_000,
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
)
def test_an_answer_that_is_not_http_or_too_large_is_refused(run, pki, answer):
    async def story():
        async with scripted(pki, answer, close=False, max_body_bytes=1000) as client:
            with pytest.raises(RemoteProtocolError):
                await client.request("GET", "/")

    run(story())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nhello",  # ends with the connection
    ],
)
def test_every_framing_of_an_answer_is_understood(run, pki, answer):
    async def story():
        async with scripted(pki, answer) as client:
            assert (await client.request("GET", "/")).body == b"hello"

    run(story())


def test_a_client_survives_the_restart_of_its_server(run, pki):
    async def story():
        context = server_context(pki.identity("norte"))

        def server():
            return HttpServer(lambda r: Response(200, r.path), lambda: context, in_our_form, HttpLimits(linger_s=0.2))

        first = server()
        port = await first.start("127.0.0.1")
        client = HttpClient(client_context(pki.identity("sur")), "127.0.0.1", port)
        assert (await client.request("GET", "/1")).body == b"/1"
        await first.stop()
        second = server()
        await second.start("127.0.0.1", port)
        assert (await client.request("GET", "/2")).body == b"/2"
        await client.aclose()
        await second.stop()

    run(story())


def test_a_closed_client_asks_nothing(run, pki):
    async def story():
        client = HttpClient(client_context(pki.identity("sur")), "127.0.0.1", 1)
        await client.aclose()
        with pytest.raises(PeerUnavailableError, match="closed") as caught:
            await client.request("GET", "/")
        assert caught.value.sent is False

    run(story())


@pytest.mark.parametrize(("method", "target"), [("HEAD", "/"), ("GET", "/ HTTP/1.1\r\nx: y"), ("GET", "/a b")])
def test_a_request_that_cannot_be_written_is_the_callers_mistake(run, pki, method, target):
    async def story():
        client = HttpClient(client_context(pki.identity("sur")), "127.0.0.1", 1)
        with pytest.raises(ValueError, match=r"HEAD|space"):
            await client.request(method, target)

    run(story())
