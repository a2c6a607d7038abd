"""An instance's seat on its machine: one process has it at a time, and knows which one had it before.

A file beside the anchor, locked for as long as the process lives. The kernel takes the lock back when that process
has ended, however it ended, and not before. So whoever sits here knows that the last who did is gone, and may take
over the lease of the lead that it still had (adapters.postgres.Lease.inherit). What the file says holds on this
machine until its next boot: a copied disk proves nobody's death.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from trenza.app.keeping import place_of
from trenza.base.errors import StoreUnavailableError

_PLACE_BYTES: Final = 16
_LIFE_BYTES: Final = 16


class Seat:
    """Held by this process from `take` until `leave`, or until it ends."""

    def __init__(self, anchor: Path) -> None:
        """Take hold of the seat beside an anchor.

        Raises:
            StoreUnavailableError: another process has it, or it cannot be made.
        """
        path = anchor.with_name(f"{anchor.name}.seat")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailableError(f"{path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise StoreUnavailableError(
                f"another process uses the anchor {anchor}: give each instance its own, or stop that one first"
            ) from None
        self._place = place_of(path.parent, path)

    def take(self, life: bytes) -> bytes | None:
        """Sit down as `life`; return the life that sat here last on this machine since it was booted, if any did."""
        said = os.pread(self._file, _PLACE_BYTES + _LIFE_BYTES + 1, 0)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, self._place.ljust(_PLACE_BYTES, b"\0") + life, 0)
        is_whole = len(said) == _PLACE_BYTES + _LIFE_BYTES
        return said[_PLACE_BYTES:] if is_whole and self._place and said.startswith(self._place) else None

    def leave(self) -> None:
        os.close(self._file)
