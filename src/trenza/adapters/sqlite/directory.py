"""The data directory: private to its owner and to one process at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from trenza.base.errors import StoreUnavailableError

STORE_NAME = "store.db"
LOCK_NAME = "lock"


class DataDirectory:
    """A directory held by this process: made if absent, mode 0700, locked until `release`.

    Raises:
        StoreUnavailableError: another process holds it, or it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            self._lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailableError(f"the data directory {path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            raise StoreUnavailableError(
                f"the data directory {path} is in use by process {holder}: one node, one process; stop that one first"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def store_file(self) -> Path:
        """Return the store's file, which exists from now on (mode 0600; SQLite gives its log the same)."""
        path = self.path / STORE_NAME
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fsync(directory)  # the name too must survive power loss
        os.close(directory)
        return path

    def release(self) -> None:
        os.close(self._lock)
