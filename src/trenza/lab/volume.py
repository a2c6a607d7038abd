"""A volume that forgets what was written and not yet synced, under the store of production (an SQLite file layer).

Process and machine die differently. A killed process leaves all it wrote: the operating system still has it. A
machine without power leaves what was synced, and of every later write all, nothing, or a part: sectors of 512 bytes
are whole, nothing else is (sqlite.org/atomiccommit.html, section 3).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any, Final

import apsw

from trenza.adapters.sqlite import InlineStore, schema

STORE, KEYRING = "store.db", "keyring"
SECTOR: Final = 512

_LAYER: Final = "trenza-lab"
_MOVE_AFTER: Final = 64
_NEVER: Final = 1 << 30
_PAGE: Final = 1_024  # a property of the file; small, because the lab's stores are


class File:
    """Bytes, and what to undo where they were not synced."""

    __slots__ = ("_undo", "live", "volume")

    def __init__(self, volume: Volume, content: bytes = b"") -> None:
        self.volume = volume
        self.live = bytearray(content)
        self._undo: list[tuple[int, bytes, bytes]] = []  # offset, what was written, what was there

    def write(self, data: bytes, offset: int) -> None:
        self.volume.spend_power()
        data, live = bytes(data), self.live
        end, size = offset + len(data), len(live)
        self._undo.append((offset, data, b"" if offset >= size else bytes(live[offset:end])))
        if offset > size:
            live.extend(bytes(offset - size))
        live[offset:end] = data

    def truncate(self, size: int) -> None:
        """Cut the file; at once for good, so a truncation is never lost here though it might be."""
        self.sync()
        del self.live[size:]

    def sync(self) -> None:
        self.volume.spend_power()
        self._undo.clear()

    def without_power(self, chance: random.Random) -> bytes:
        """Return what a reboot finds."""
        left = bytearray(self.live)
        for offset, data, before in reversed(self._undo):
            left[offset : offset + len(data)] = before
        for offset, data, _ in self._undo:
            fate = chance.randrange(3)
            if fate == 0:
                continue
            end = offset + len(data)
            if fate == 1:
                end = chance.randrange(offset, end + 1) // SECTOR * SECTOR
            kept = max(0, end - offset)
            left.extend(bytes(max(0, offset - len(left))))
            left[offset : offset + kept] = data[:kept]
        return bytes(left)

    # --- SQLite's words for it

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802 - apsw's names
        return bytes(self.live[offset : offset + amount])

    xWrite = write  # noqa: N815

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self.truncate(size)

    def xSync(self, _flags: int) -> bool:  # noqa: N802
        self.sync()
        return True

    def xFileSize(self) -> int:  # noqa: N802
        return len(self.live)

    def xLock(self, _level: int) -> None:  # noqa: N802
        """One process has the volume."""

    def xUnlock(self, _level: int) -> None:  # noqa: N802
        """One process has the volume."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xFileControl(self, _op: int, _ptr: int) -> bool:  # noqa: N802
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        return SECTOR

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return 0

    def xClose(self) -> None:  # noqa: N802
        """The volume keeps the file."""


class Volume:
    """A machine's data directory while a process is on it."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = {name: File(self, content) for name, content in (files or {}).items()}
        self._power = _NEVER

    def file(self, name: str) -> File:
        if name not in self.files:
            self.files[name] = File(self)
        return self.files[name]

    def fail_after(self, writes: int) -> None:
        """Let the power fail during one of the next writes: it and all that follow raise."""
        self._power = writes

    def spend_power(self) -> None:
        self._power -= 1
        if self._power < 0:
            raise apsw.IOError("the power has failed")

    def after_kill(self) -> dict[str, bytes]:
        """Return what is there after the process was killed: all it wrote."""
        return {name: bytes(file.live) for name, file in self.files.items()}

    def after_power_loss(self, chance: random.Random) -> dict[str, bytes]:
        """Return what is there after the machine lost its power."""
        return {name: self.files[name].without_power(chance) for name in sorted(self.files)}


class _Layer(apsw.VFS):
    """All volumes of this program as one SQLite file layer; a file's path begins with the number of its volume."""

    def __init__(self) -> None:
        self.volumes: dict[str, Volume] = {}
        self.numbers = itertools.count()
        super().__init__(_LAYER, base="", iVersion=2)
        apsw.connection_hooks.append(_set_up)

    def _file(self, path: str) -> tuple[Volume, str]:
        number, _, name = path.strip("/").partition("/")
        return self.volumes[number], name

    def xOpen(self, name: Any, _flags: list[int]) -> Any:  # noqa: N802 - apsw's names
        volume, file = self._file(name.filename() if isinstance(name, apsw.URIFilename) else name)
        return volume.file(file)

    def xDelete(self, name: str, _sync: bool) -> None:  # noqa: N802
        volume, file = self._file(name)
        volume.files.pop(file, None)

    def xAccess(self, name: str, _flags: int) -> bool:  # noqa: N802
        volume, file = self._file(name)
        return file in volume.files

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return name


def _set_up(connection: apsw.Connection) -> None:
    """Set up a connection to a volume before anything reads it; a log without shared memory needs a single user."""
    if connection.open_vfs == _LAYER:
        connection.execute(f"PRAGMA locking_mode=EXCLUSIVE; PRAGMA page_size={_PAGE}")


_layer: _Layer | None = None


class VolumeStore:
    """The store of production on a volume."""

    def __init__(self, volume: Volume, connection: apsw.Connection, number: str) -> None:
        self._connection = connection
        self._number = number
        self.volume = volume
        self._since_moved = 0
        self.inner = InlineStore(connection)

    @classmethod
    def open(cls, volume: Volume) -> VolumeStore:
        """Open the store of a volume, as a process does when it starts."""
        global _layer  # noqa: PLW0603 - SQLite's file layers are the program's
        _layer = _layer or _Layer()
        number = str(next(_layer.numbers))
        _layer.volumes[number] = volume
        volume.file(STORE)
        connection = schema.connect(f"/{number}/{STORE}", vfs=_LAYER)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        return cls(volume, connection, number)

    def tidy(self) -> None:
        """Move the log into the main file now and then, as production's writer does."""
        self._since_moved += 1
        if self._since_moved >= _MOVE_AFTER:
            self._since_moved = 0
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def image(self) -> bytes:
        """Return the store as one file, as a backup does."""
        return self._connection.serialize("main")

    def abandon(self) -> None:
        """Let go of the volume, which nobody may look at any more."""
        assert _layer is not None
        self.volume.files = {}
        self.volume.fail_after(_NEVER)
        self._connection.close(force=True)
        del _layer.volumes[self._number]


class VolumeSlots:
    """The keyring's places on a volume: adapters.keyring's Slots."""

    def __init__(self, volume: Volume, pause: Any) -> None:
        """Use the volume's keyring file.

        Args:
            volume: where it is.
            pause: awaited between writing and syncing.
        """
        self._file = volume.file(KEYRING)
        self._pause = pause

    def content(self) -> bytes:
        return bytes(self._file.live)

    async def write(self, writes: Sequence[tuple[int, bytes]]) -> None:
        for offset, places in writes:
            self._file.write(places, offset)
        await self._pause()
        self._file.sync()

    async def close(self) -> None:
        """Nothing to let go of."""
