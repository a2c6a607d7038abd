"""A port that cannot be opened is told in a sentence: which setting it is of, why, and what to do."""

import asyncio
import errno
import socket

import pytest

from trenza.app.listening import listen
from trenza.base.errors import UnavailableError


class Opens:
    """Really listens, as servers do."""

    async def start(self, host, port=0):
        server = await asyncio.start_server(lambda *_: None, host, port)
        server.close()
        await server.wait_closed()
        return port


class Fails:
    def __init__(self, number):
        self.number = number

    async def start(self, host, port=0):
        raise OSError(self.number, "refused")


def test_a_port_that_is_taken_is_told_with_its_setting_and_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UnavailableError) as told:
            asyncio.run(listen(Opens(), address, setting="peers.address"))
    assert told.value.message.startswith(f'nothing can listen at peers.address = "{address}": another process')
    assert told.value.message.endswith("end it, or write another port")


def test_an_address_of_another_machine_is_told():
    with pytest.raises(UnavailableError, match="this machine has no such address"):
        asyncio.run(listen(Opens(), "192.0.2.1:7000", setting="peers.address"))


def test_what_nobody_has_thought_of_is_told_in_the_words_of_the_system():
    with pytest.raises(UnavailableError, match="Too many open files"):
        asyncio.run(listen(Fails(errno.EMFILE), "127.0.0.1:7000", setting="peers.address"))


def test_a_port_that_is_free_is_opened():
    asyncio.run(listen(Opens(), "127.0.0.1:0", setting="peers.address"))
