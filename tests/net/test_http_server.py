import asyncio
import contextlib
import logging

import pytest

from trenza.net.http import HttpLimits, Request, Response
from trenza.net.http_server import HttpServer
from trenza.net.tls import server_context

GET = b"GET /api/v1/keys/sae%2D2/enc_keys?number=3 HTTP/1.1\r\nHost: norte\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


def in_our_form(status: int, message: str) -> Response:
    return Response(status, b'{"message":"%s"}' % message.encode())


def echo(request: Request) -> Response:
    return Response(200, request.body or request.path)


@contextlib.asynccontextmanager
async def serving(pki, handler=echo, **limits):
    context = server_context(pki.identity("norte"))
    server = HttpServer(handler, lambda: context, in_our_form, HttpLimits(**({"linger_s": 0.2} | limits)))
    port = await server.start("127.0.0.1")
    try:
        yield server, port
    finally:
        await server.stop()
    assert not server.connections
    assert server.statistics.connections_open == 0


def post(body: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join([b"POST /x HTTP/1.1", b"Host: norte", b"Content-Length: %d" % len(body), *fields, b"", body])


def test_a_handler_sees_the_whole_request_and_who_asks(run, pki, dial):
    async def story():
        seen = []

        def handler(request):
            seen.append(request)
            return Response(200, b"{}", headers=(("cache-control", "no-store"),))

        async with serving(pki, handler) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(
                b"POST /a%20b/c?x=1?&y=2 HTTP/1.1\r\nHost: h\r\nX-Two: 1\r\nx-two: 2\r\n"
                b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"
            )
            answer = await client.hear(b"{}")
            await client.hang_up()
        (request,) = seen
        assert (request.method, request.path, request.query) == (b"POST", b"/a%20b/c", b"x=1?&y=2")
        assert (request.body, request.content_type) == (b"[]", b"application/json")
        assert request.headers[b"x-two"] == b"1, 2"
        assert request.peer.name == "urn:trenza:node:sur"
        assert answer.startswith(OK)
        assert b"\r\ncontent-type: application/json\r\ncontent-length: 2\r\ncache-control: no-store\r\n\r\n" in answer
        assert b"\r\ndate: " in answer
        assert "[]" not in repr(request)

    run(story())


def test_pipelined_requests_are_answered_in_order(run, pki, dial):
    async def story():
        running = 0

        async def handler(request):
            nonlocal running
            running += 1
            assert running == 1
            await asyncio.sleep(0)
            running -= 1
            return Response(200, request.path)

        async with serving(pki, handler, max_pipelined=4) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(1000)))
            for number in range(1000):
                assert (await client.hear(b"\r\n\r\n/%d" % number)).startswith(OK)
            await client.hang_up()

    run(story())


def test_whoever_pipelines_without_end_lets_others_have_their_turn(run, pki, dial):
    async def story():
        loop, served, most = asyncio.get_running_loop(), 0, 0

        def next_turn():
            nonlocal served
            served = 0

        def handler(request):
            nonlocal served, most
            if not served:
                loop.call_soon(next_turn)
            served += 1
            most = max(most, served)
            return Response(200, request.path)

        async with serving(pki, handler) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(10_000)))
            for number in range(10_000):
                assert (await client.hear(b"\r\n\r\n/%d" % number)).startswith(OK)
            await client.hang_up()
        assert most <= 32

    run(story())


def test_what_was_pipelined_before_the_end_is_answered_to_the_last(run, pki, dial):
    async def story():
        async with serving(pki) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(99)))
            client.say(b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            heard = await client.hear_all()
        assert heard.count(OK) == 100
        assert heard.endswith(b"/last")

    run(story())


def test_synchronous_and_awaited_answers_keep_their_order(run, pki, dial):
    async def story():
        gate = asyncio.get_running_loop().create_future()

        def handler(request):
            return gate if request.path == b"/slow" else Response(200, request.path)

        async with serving(pki, handler) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\nGET /quick HTTP/1.1\r\nHost: h\r\n\r\n")
            asyncio.get_running_loop().call_later(0.02, gate.set_result, Response(200, b"slow"))
            assert b"slow" in await client.hear(b"/quick")
            await client.hang_up()

    run(story())


@pytest.mark.parametrize("size", [0, 1, 16_384, 8 << 20])
def test_bodies_of_every_size_come_back(run, pki, dial, size):
    async def story():
        body = b"k" * size
        async with serving(pki, lambda request: Response(200, request.body + b"!"), max_body_bytes=8 << 20) as (
            _,
            port,
        ):
            client = await dial(port, pki.identity("sur"))
            client.say(post(body))
            await client.hear(b"\r\n\r\n")
            assert await client.hear(b"!") == body + b"!"
            await client.hang_up()

    run(story())


def test_a_chunked_body_is_put_together(run, pki, dial):
    async def story():
        async with serving(pki) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
            client.say(b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nTrailer: x\r\n\r\n")
            await client.hear(b"\r\n\r\nabcde")
            await client.hang_up()

    run(story())


def test_a_client_that_waits_for_100_continue_gets_it(run, pki, dial):
    async def story():
        async with serving(pki) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            head, _, body = post(b"abc", b"Expect: 100-continue").partition(b"\r\n\r\n")
            client.say(head + b"\r\n\r\n")
            assert await client.hear(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.say(body)
            assert (await client.hear(b"\r\n\r\nabc")).startswith(OK)
            await client.hang_up()

    run(story())


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"FETCH / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 2000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 300 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000, 431),  # never ends
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"a" * 1001, 413),
    ],
)
def test_a_message_that_breaks_http_or_a_limit_is_refused_and_nothing_after_it_is_read(
    run, pki, dial, message, status
):
    async def story():
        asked = []

        def handler(request):
            asked.append(request.path)
            return Response(200, b"served")

        async with serving(pki, handler, max_header_bytes=1000, max_body_bytes=1000) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(GET + message + GET)
            answers = await client.hear_all()
        assert answers.count(b"HTTP/1.1 ") == 2
        first, second = answers.split(b"served")
        assert first.startswith(OK)
        assert second.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nconnection: close\r\n" in second
        assert b'{"message":"' in second
        assert len(asked) == 1

    run(story())


@pytest.mark.parametrize("verb", [b"HEAD", b"DELETE", b"PROPFIND"])
def test_every_verb_reaches_the_handler_and_head_gets_no_body(run, pki, dial, verb):
    async def story():
        async with serving(pki, lambda request: in_our_form(405, request.method.decode())) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(verb + b" / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            head, _, body = (await client.hear_all()).partition(b"\r\n\r\n")
        whole = b'{"message":"' + verb + b'"}'
        assert b"content-length: %d" % len(whole) in head
        assert body == (b"" if verb == b"HEAD" else whole)

    run(story())


def test_an_absolute_target_is_understood(run, pki, dial):
    async def story():
        async with serving(pki) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(b"GET https://norte:443/api/v1?x=1 HTTP/1.1\r\nHost: norte\r\n\r\n")
            assert await client.hear(b"/api/v1")
            await client.hang_up()

    run(story())


def test_a_request_to_upgrade_is_served_as_if_it_had_not_asked(run, pki, dial):
    async def story():
        async with serving(pki) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(b"GET /up HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI * HTTP/2.0")
            answer = await client.hear_all()
        assert answer.startswith(OK)
        assert answer.endswith(b"/up")

    run(story())


@pytest.mark.parametrize("version", [b"HTTP/1.0\r\n", b"HTTP/1.1\r\nConnection: close\r\n"])
def test_a_client_that_wants_one_answer_gets_it_and_the_end(run, pki, dial, version):
    async def story():
        async with serving(pki) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(b"GET /one " + version + b"Host: h\r\n\r\n")
            assert (await client.hear_all()).endswith(b"/one")

    run(story())


def test_a_half_closed_client_still_gets_its_answers(run, pki, dial):
    async def story():
        async def handler(request):
            await asyncio.sleep(0.02)
            return Response(200, request.path)

        async with serving(pki, handler) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(GET + GET)
            client.transport.write_eof()
            assert (await client.hear_all()).count(OK) == 2

    run(story())


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\nHost: a\r\nX: 1", post(b"abc")[:-1]])
def test_a_request_that_does_not_end_is_refused(run, pki, dial, start):
    async def story():
        async with serving(pki, request_timeout_s=0.05) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(start)
            assert (await client.hear_all()).startswith(b"HTTP/1.1 408 ")

    run(story())


def test_a_client_that_asks_nothing_is_closed_without_a_word(run, pki, dial):
    async def story():
        async with serving(pki, idle_timeout_s=0.05) as (_server, port):
            silent = await dial(port, pki.identity("sur"))
            dripping = await dial(port, pki.identity("sur"))
            dripping.say(b"\r\n")
            assert await silent.hear_all() == b""
            assert await dripping.hear_all() == b""
            asked = await dial(port, pki.identity("sur"))
            asked.say(GET)
            assert (await asked.hear_all()).count(OK) == 1

    run(story())


def test_a_client_that_does_not_read_is_cut(run, pki, dial):
    async def story():
        called = asyncio.Event()

        def handler(_request):
            called.set()
            return Response(200, b"x" * (16 << 20))

        async with serving(pki, handler, request_timeout_s=0.05) as (server, port):
            client = await dial(port, pki.identity("sur"))
            client.transport.pause_reading()
            client.say(GET)
            await called.wait()
            await server._until_idle()
            client.transport.abort()
            await client.lost

    run(story())


def test_a_handler_that_crashes_answers_503_and_its_traceback_is_logged_without_the_body(run, pki, dial, caplog):
    async def at_last(request):
        raise KeyError(request.path)

    def at_once(request):
        raise KeyError(request.path)

    async def story(handler):
        async with serving(pki, handler) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(post(b"key bytes"))
            answer = await client.hear(b'"}')
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"key management entity error" in answer
            client.say(GET)
            await client.hear(b"503")
            await client.hang_up()

    with caplog.at_level(logging.ERROR):
        run(story(at_once))
        run(story(at_last))
    assert len(caplog.records) == 4
    assert all(record.exc_info for record in caplog.records)
    assert "key bytes" not in caplog.text


def test_one_connection_too_many_is_told_so(run, pki, dial):
    async def story():
        async with serving(pki, max_connections=1) as (_server, port):
            first = await dial(port, pki.identity("sur"))
            first.say(GET)
            await first.hear(OK)
            second = await dial(port, pki.identity("sur"))
            second.say(GET)
            assert (await second.hear_all()).startswith(b"HTTP/1.1 503 ")
            await first.hang_up()

    run(story())


def test_a_handler_runs_to_its_end_when_its_client_is_gone(run, pki, dial):
    async def story():
        called, gate, recorded = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def handler(request):
            called.set()
            await gate.wait()
            recorded.set()
            return Response(200, request.path)

        async with serving(pki, handler) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(GET)
            await called.wait()
            client.transport.abort()
            await client.lost
            gate.set()
            await recorded.wait()

    run(story())


def test_stopping_finishes_what_was_asked_and_accepts_nothing_new(run, pki, dial):
    async def story():
        called, gate = asyncio.Event(), asyncio.Event()

        async def handler(request):
            called.set()
            await gate.wait()
            return Response(200, request.path)

        async with serving(pki, handler) as (server, port):
            idle = await dial(port, pki.identity("sur"))
            busy = await dial(port, pki.identity("sur"))
            busy.say(GET)
            await called.wait()
            stopping = asyncio.ensure_future(server.stop(grace_s=5))
            assert await idle.hear_all() == b""
            gate.set()
            answer = await busy.hear_all()
            assert answer.startswith(OK)
            assert b"connection: close" in answer
            await stopping
            with pytest.raises(Exception, match="cannot connect"):
                await dial(port, pki.identity("sur"))

    run(story())


def test_stopping_cuts_what_does_not_finish(run, pki, dial):
    async def story():
        called = asyncio.Event()

        async def handler(_request):
            called.set()
            await asyncio.Event().wait()

        async with serving(pki, handler) as (server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(GET)
            await called.wait()
            await server.stop(grace_s=0.02)
            assert await client.hear_all() == b""

    run(story())


def test_a_response_cannot_smuggle_a_header():
    with pytest.raises(ValueError, match="line break"):
        Response(200, headers=(("x", "1\r\nset-cookie: 2"),))


def test_no_content_has_no_length(run, pki, dial):
    async def story():
        async with serving(pki, lambda _: Response(204)) as (_server, port):
            client = await dial(port, pki.identity("sur"))
            client.say(GET)
            answer = await client.hear(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 204 ")
            assert b"content-length" not in answer
            await client.hang_up()

    run(story())


class Company:
    """Instead of a turn: waits until so many connections were asked something, so that they are answered together."""

    def __init__(self, server, number):
        self._server, self._number, self.due, self.has_some = server, number, [], asyncio.Event()

    def soon(self, connection):
        self.due.append(connection)
        self.has_some.set()
        if len(self.due) == self._number:
            asyncio.get_running_loop().call_soon(self._server._serve, self.due)


def test_requests_that_came_together_are_answered_together_each_its_own(run, pki, dial):
    async def story():
        rows = []

        async def later(request):
            await asyncio.sleep(0)
            return echo(request)

        def together(requests):
            rows.append(len(requests))
            return [later(one) if one.path == b"/1" else echo(one) for one in requests]

        async with serving(pki) as (server, port):
            server.together, server.serving = together, Company(server, 4)
            clients = [await dial(port, pki.identity("sur")) for _ in range(4)]
            for number, client in enumerate(clients[:3]):
                client.say(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number)
            clients[3].say(b"HEAD /3 HTTP/1.1\r\nHost: h\r\n\r\n")
            for number, client in enumerate(clients[:3]):
                assert (await client.hear(b"\r\n\r\n/%d" % number)).startswith(OK)
            assert (await clients[3].hear(b"\r\n\r\n")).startswith(OK)
            for client in clients:
                await client.hang_up()
        assert rows == [4]

    run(story())


def test_a_mistake_in_answering_together_is_every_ones_503_and_the_next_request_goes_on(run, pki, dial, caplog):
    async def story():
        def together(_requests):
            raise RuntimeError("a mistake")

        async with serving(pki) as (server, port):
            server.together, turn = together, server.serving
            server.serving = Company(server, 2)
            clients = [await dial(port, pki.identity("sur")) for _ in range(2)]
            for client in clients:
                client.say(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
            for client in clients:
                assert (await client.hear(b'error"}')).startswith(b"HTTP/1.1 503 ")
            server.serving = turn
            clients[0].say(b"GET /alone HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await clients[0].hear(b"/alone")).startswith(OK)
            for client in clients:
                await client.hang_up()

    with caplog.at_level(logging.CRITICAL):
        run(story())


def test_who_has_gone_before_all_are_answered_together_costs_the_others_nothing(run, pki, dial):
    async def story():
        async with serving(pki) as (server, port):
            server.together = lambda requests: [echo(one) for one in requests]
            server.serving = Company(server, 3)
            clients = [await dial(port, pki.identity("sur")) for _ in range(3)]
            clients[0].say(b"GET /0 HTTP/1.1\r\nHost: h\r\n\r\n")
            await server.serving.has_some.wait()
            server.serving.due[0].abort()
            for number in (1, 2):
                clients[number].say(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number)
            for number in (1, 2):
                assert (await clients[number].hear(b"\r\n\r\n/%d" % number)).startswith(OK)
            for client in clients:
                await client.hang_up()

    run(story())


@pytest.mark.parametrize("row", [1, 2])
def test_whose_connection_was_cut_a_moment_ago_is_not_answered_into_the_void(run, pki, dial, row):
    async def story():
        asked = []

        def handler(request):
            asked.append(request.path)
            return echo(request)

        async with serving(pki, handler) as (server, port):
            server.together, server.serving = lambda requests: [handler(one) for one in requests], Company(server, 3)
            clients = [await dial(port, pki.identity("sur")) for _ in range(row)]
            for number, client in enumerate(clients):
                client.say(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number)
            while len(server.serving.due) < row:
                server.serving.has_some.clear()
                await server.serving.has_some.wait()
            cut = next(one for one in server.serving.due if one._waiting[0][0].path == b"/0")
            cut.abort()
            server._serve(server.serving.due)
            for number, client in enumerate(clients[1:], 1):
                assert (await client.hear(b"\r\n\r\n/%d" % number)).startswith(OK)
            for client in clients:
                await client.hang_up()
        assert asked == [b"/1"][: row - 1]

    run(story())
