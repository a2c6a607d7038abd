"""A TCP load balancer for tests: two instances of one node behind one address.

Takes connections in turn to whoever lets itself be connected to; whoever refuses is left out until it answers again.
Reads nothing of what passes, so TLS is between the client and the instance.
"""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Sequence
from typing import Self

Address = tuple[str, int]

PROBE_EVERY_S = 0.1
CONNECT_WITHIN_S = 1.0
_CHUNK = 65_536


class Balancer:
    """Forwards in a thread of its own while the `with` block lasts."""

    def __init__(self, backends: Sequence[Address]) -> None:
        self._backends = list(backends)
        self._turn = itertools.count()
        self._down: set[Address] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._opened = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="balancer")
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self.address: Address

    def __enter__(self) -> Self:
        self._thread.start()
        self._opened.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def down(self) -> frozenset[Address]:
        """The backends that are left out now."""
        return frozenset(self._down)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            connections.add(task)
            self._open.add(writer)
            try:
                await self._forward(reader, writer)
            finally:
                connections.discard(task)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.address = server.sockets[0].getsockname()[:2]
        probing = asyncio.create_task(self._probe())
        self._opened.set()
        await self._stop.wait()
        server.close()
        tasks = [probing, *connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._open:  # what was about to be closed when its task was cancelled
            writer.transport.abort()
        await asyncio.sleep(0)  # an aborted transport closes its socket in the loop's next turn

    async def _probe(self) -> None:
        """Take back who answers again."""
        while True:
            for backend in sorted(self._down):
                with contextlib.suppress(OSError, TimeoutError):
                    _reader, writer = await self._connect(backend)
                    await self._close(writer)
                    self._down.discard(backend)
            await asyncio.sleep(PROBE_EVERY_S)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        backend = await self._someone()
        if backend is None:
            await self._close(writer)
            return
        far_reader, far_writer = backend
        ways = [asyncio.create_task(_copy(reader, far_writer)), asyncio.create_task(_copy(far_reader, writer))]
        try:
            await asyncio.wait(ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await self._close(writer)
            await self._close(far_writer)

    async def _someone(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Return a connection to the next in turn that lets itself be connected to."""
        for _ in self._backends:
            backend = self._backends[next(self._turn) % len(self._backends)]
            if backend in self._down:
                continue
            try:
                return await self._connect(backend)
            except (OSError, TimeoutError):
                self._down.add(backend)
        return None

    async def _connect(self, backend: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(CONNECT_WITHIN_S):
            reader, writer = await asyncio.open_connection(*backend)
        self._open.add(writer)
        return reader, writer

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self._open.discard(writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        return
    writer.transport.abort()  # one way has broken: so has the other
