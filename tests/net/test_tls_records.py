"""However the network cuts and joins TLS records, and whenever its hearer pauses, every byte is heard in order."""

import asyncio
import contextlib
import random

import pytest
from OpenSSL import SSL

from trenza.net.tls import client_context, server_context
from trenza.net.tls_transport import Terms, TlsTransport


class Wire:
    """The socket's transport: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def get_extra_info(self, _name, default=None):
        return default

    def write(self, data):
        self.sent.append(bytes(data))

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass

    def close(self):
        pass

    def abort(self):
        pass


class Listener(asyncio.Protocol):
    """Hears, and pauses after every `pause_every`th piece."""

    def __init__(self, pause_every: int) -> None:
        self.heard = bytearray()
        self.pieces = 0
        self._pause_every = pause_every

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.heard += data
        self.pieces += 1
        if self._pause_every and self.pieces % self._pause_every == 0:
            self.transport.pause_reading()

    def never_pause(self):
        self._pause_every = 0


async def _connected(pki, listener):
    client = SSL.Connection(client_context(pki.identity("sur")).openssl, None)
    client.set_connect_state()
    wire = Wire()
    server = TlsTransport(server_context(pki.identity("norte")), lambda: listener, Terms())
    server.connection_made(wire)
    while not hasattr(listener, "transport"):
        with contextlib.suppress(SSL.WantReadError):
            client.do_handshake()
        server.data_received(client.bio_read(1 << 17))
        for sent in wire.sent:
            client.bio_write(sent)
        wire.sent.clear()
    return client, server


@pytest.mark.parametrize("pause_every", [0, 1, 3])
@pytest.mark.parametrize("seed", range(20))
def test_records_cut_and_joined_anyhow_are_heard_in_order(run, pki, seed, pause_every):
    async def story():
        chance, listener = random.Random(seed), Listener(pause_every)
        client, server = await _connected(pki, listener)
        said = bytearray()
        for _ in range(60):
            for _ in range(chance.choice([1, 1, 1, 2, 5])):
                message = chance.randbytes(chance.choice([1, 150, 16_384, 20_000]))
                client.sendall(message)
                said += message
            records = client.bio_read(1 << 18)
            if chance.random() < 0.5:
                at = chance.randrange(len(records) + 1)
                pieces = [records[:at], records[at:]]
            else:
                pieces = [records]
            for piece in pieces:
                if piece:
                    server.data_received(piece)
            if chance.random() < 0.5:
                server.resume_reading()
                await asyncio.sleep(0)
            if server.is_reading():
                assert len(listener.heard) == len(said), "bytes were left behind"
        while not server.is_reading():
            server.resume_reading()
            await asyncio.sleep(0)
        assert bytes(listener.heard) == bytes(said)
        server.abort()
        server.connection_lost(None)

    run(story())


def test_whole_records_that_come_while_paused_are_all_heard(run, pki):
    async def story():
        listener = Listener(pause_every=1)
        client, server = await _connected(pki, listener)
        for message in (b"one", b"two", b"three"):
            client.sendall(message)
            server.data_received(client.bio_read(1 << 17))
        assert bytes(listener.heard) == b"one"
        listener.never_pause()
        server.resume_reading()
        await asyncio.sleep(0)
        assert bytes(listener.heard) == b"onetwothree"
        server.abort()
        server.connection_lost(None)

    run(story())
