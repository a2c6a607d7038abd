"""Where the keyring's bytes are: a file overwritten in place, or memory for the lab.

Knows nothing of what a slot means; writes are durable when `write` returns, in the order in which it was called.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from trenza.base.errors import StoreUnavailableError

Write = tuple[int, bytes]
"""An offset and what to put there."""


class Slots(Protocol):
    """Fixed places of bytes that survive."""

    def content(self) -> bytes:
        """Return everything; called once, at the start."""
        ...

    async def write(self, writes: Sequence[Write]) -> None:
        """Put bytes in their places.

        Raises:
            StoreUnavailableError: they may or may not be there.
        """
        ...

    async def close(self) -> None: ...


class MemorySlots:
    """Slots in memory: what `content` returns is the lab's disk."""

    def __init__(self, image: bytes = b"") -> None:
        self._content = bytearray(image)

    def content(self) -> bytes:
        return bytes(self._content)

    async def write(self, writes: Sequence[Write]) -> None:
        for offset, places in writes:
            end = offset + len(places)
            self._content.extend(bytes(max(0, end - len(self._content))))
            self._content[offset:end] = places

    async def close(self) -> None:
        """Nothing to let go of."""


class FileSlots:
    """Slots in a file of mode 0600, held by one process. All writes that wait share one fdatasync, off the loop."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            StoreUnavailableError: another process holds it, or the disk fails.
        """
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailableError(f"the keyring {path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(self._file, 0o600)
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            os.fsync(directory)  # the name too must survive power loss
            os.close(directory)
        except BlockingIOError:
            os.close(self._file)
            raise StoreUnavailableError(f"the keyring {path} is in use by another process") from None
        except OSError as error:
            os.close(self._file)
            raise StoreUnavailableError(f"the keyring {path} cannot be used: {error.strerror}") from error
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trenza-keyring")
        self._waiting: list[tuple[Sequence[Write], asyncio.Future[None]]] = []
        self._writing: asyncio.Future[None] | None = None
        self._closed = False

    def content(self) -> bytes:
        return os.pread(self._file, os.fstat(self._file).st_size, 0)

    async def write(self, writes: Sequence[Write]) -> None:
        if self._closed:
            raise StoreUnavailableError("the keyring is closed")
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((writes, durable))
        if self._writing is None:
            self._write_waiting()
        await durable

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        while self._writing is not None:  # by the time this group is written, the next may have begun
            await asyncio.wait([self._writing])
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file when nothing is being written."""
        self._closed = True
        self._disk.shutdown()
        os.close(self._file)

    def _write_waiting(self) -> None:
        group, self._waiting = self._waiting, []
        writes = [write for one, _ in group for write in one]
        self._writing = asyncio.get_running_loop().run_in_executor(self._disk, self._write_durably, writes)
        self._writing.add_done_callback(lambda written: self._written(written, [durable for _, durable in group]))

    def _write_durably(self, writes: list[Write]) -> None:
        for offset, places in writes:
            if os.pwrite(self._file, places, offset) != len(places):
                raise OSError(None, "the disk took only a part")
        os.fdatasync(self._file)

    def _written(self, written: asyncio.Future[None], group: list[asyncio.Future[None]]) -> None:
        self._writing = None
        if self._waiting:
            self._write_waiting()
        error = written.exception()
        for durable in group:
            if durable.done():
                continue
            if error is None:
                durable.set_result(None)
            else:
                durable.set_exception(StoreUnavailableError(f"the keyring could not be written: {error}"))
