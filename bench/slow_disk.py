"""Runs `trenza` on a disk whose every sync takes some milliseconds longer: a busy disk, a mirror, a cloud volume.

    python bench/slow_disk.py 4 node --config FILE

SQLite gets a file layer whose `xSync` waits before it syncs, as the default of this process; the keyring's own syncs
(os.fsync and os.fdatasync) wait too. Nothing is skipped: each wait is followed by the disk's own sync. For
measurements only; production code knows nothing of it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import apsw

NAME = "slow"


class SlowFile(apsw.VFSFile):
    """The system's file, slower to sync."""

    def __init__(self, delay_s: float, base: str, name: apsw.URIFilename | str | None, flags: list[int]) -> None:
        super().__init__(base, name, flags)
        self._delay_s = delay_s

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        time.sleep(self._delay_s)
        super().xSync(flags)


class SlowDisk(apsw.VFS):
    """The system's file layer with slow syncs. Lives as long as it is registered: as long as somebody holds it."""

    def __init__(self, delay_s: float, *, name: str = NAME, for_all: bool = False) -> None:
        """Register it.

        Args:
            delay_s: added to each sync.
            name: by which `SqliteStore.open(vfs=...)` finds it.
            for_all: every connection of this process that names no other uses it.
        """
        self._base = apsw.vfs_names()[0]  # by its name: "" would be this one, once it is the default
        self._delay_s = delay_s
        super().__init__(name, self._base, makedefault=for_all)

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> SlowFile:  # noqa: N802 - SQLite's name
        return SlowFile(self._delay_s, self._base, name, flags)


def _slower(sync: Callable[[int], None], delay_s: float) -> Callable[[int], None]:
    def wait_and_sync(descriptor: int) -> None:
        time.sleep(delay_s)
        sync(descriptor)

    return wait_and_sync


def main() -> None:
    delay_s = float(sys.argv.pop(1)) / 1e3
    disk = SlowDisk(delay_s, for_all=True)
    os.fsync = _slower(os.fsync, delay_s)
    os.fdatasync = _slower(os.fdatasync, delay_s)
    from trenza.cli.main import main as trenza

    try:
        trenza()
    finally:
        disk.unregister()


if __name__ == "__main__":
    main()
