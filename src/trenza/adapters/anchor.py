"""Remembers outside the data directory how far the store had got, so a restored copy is told from a restart.

`FileAnchor` is a page of a small file, mapped into memory and never synced: it survives the process and costs less
than a microsecond per commit group. It lies on the machine's own disk, outside the data directory and out of every
backup. After a power loss it may be behind the store, since nothing syncs it, and then a copy from the moments it has
forgotten passes for a restart; it is never ahead, because a group is remembered only once it is durable. With the
boot's identity (Linux, random(4)) as part of it, what it says ends with the boot; with PERSISTENT it outlives it.
`MemoryAnchor` is for the lab. Both implement kms.ports.Anchor.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from pathlib import Path

PERSISTENT = b"persistent"
"""Given as the boot's identity: what the anchor says survives reboots."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MAGIC = b"TRZAAN\x00\x01"
_COUNTER = struct.Struct("<Q")  # aligned, at offset 8: written in one store, so a kill leaves the old or the new
_SIZE = 256
_NAMED_AT = 16  # CRC-32 (4), boot identity (36), length of identity (1), identity
_MOST_IDENTITY = _SIZE - _NAMED_AT - 4 - 36 - 1


class MemoryAnchor:
    """An anchor that lives as long as the object: the lab's machine between two boots."""

    def __init__(self) -> None:
        self._known: tuple[bytes, int] | None = None

    def recall(self) -> tuple[bytes, int] | None:
        return self._known

    def remember(self, identity: bytes, counter: int) -> None:
        self._known = (identity, counter)


class FileAnchor:
    """An anchor in a file of mode 0600 that must lie outside the data directory and its backups."""

    def __init__(self, path: Path, *, boot_id: bytes | None = None) -> None:
        """Map the file, making it if absent.

        Args:
            path: of the file; its directory is made with mode 0700 if absent.
            boot_id: up to 36 bytes that differ from boot to boot; None asks the kernel; PERSISTENT outlives boots.

        Raises:
            OSError: the file cannot be made or mapped.
        """
        self._boot_id = (_BOOT_ID.read_bytes().strip() if boot_id is None else boot_id).ljust(36, b"\0")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            os.ftruncate(descriptor, _SIZE)
            os.posix_fallocate(descriptor, 0, _SIZE)  # a page that finds no room when it is written ends the process
            self._page = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        known = self.recall()
        self._identity = known[0] if known else None

    def recall(self) -> tuple[bytes, int] | None:
        named = self._page[_NAMED_AT + 4 :]
        (check,) = struct.unpack_from("<I", self._page, _NAMED_AT)
        if self._page[:8] != _MAGIC or check != zlib.crc32(named) or named[:36] != self._boot_id:
            return None
        (counter,) = _COUNTER.unpack_from(self._page, 8)
        return named[37 : 37 + named[36]], counter

    def remember(self, identity: bytes, counter: int) -> None:
        if identity != self._identity:
            self._name(identity)
        _COUNTER.pack_into(self._page, 8, counter)

    def close(self) -> None:
        self._page.close()

    def _name(self, identity: bytes) -> None:
        if len(identity) > _MOST_IDENTITY:
            raise ValueError(f"an identity has at most {_MOST_IDENTITY} bytes")
        self._page[:8] = bytes(8)  # a kill from here on leaves "nothing is known"
        named = (self._boot_id + bytes([len(identity)]) + identity).ljust(_SIZE - _NAMED_AT - 4, b"\0")
        self._page[_NAMED_AT:] = struct.pack("<I", zlib.crc32(named)) + named
        _COUNTER.pack_into(self._page, 8, 0)
        self._page[:8] = _MAGIC
        self._identity = identity
