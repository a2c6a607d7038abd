"""The node key: 32 bytes that wrap all segment keys, in a file that belongs outside the data directory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from trenza.base.entropy import Entropy
from trenza.base.errors import InvalidDocumentError, StoreUnavailableError
from trenza.base.secret import Secret

NODE_KEY_BYTES = 32


def load_node_key(path: Path, entropy: Entropy) -> Secret:
    """Read the node key, or make one if the file is absent.

    Args:
        path: of the file, mode 0600; it comes into being whole or not at all.
        entropy: where a new key comes from.

    Returns:
        The key; the caller wipes it once the sealer is open.

    Raises:
        InvalidDocumentError: others may read the file, or it does not hold 32 bytes.
        StoreUnavailableError: it cannot be read or made.
    """
    try:
        if not path.exists():
            _create(path, entropy)
        return _read(path)
    except OSError as error:
        raise StoreUnavailableError(f"the node key {path} cannot be read or made: {error.strerror}") from error


def _read(path: Path) -> Secret:
    key = bytearray(NODE_KEY_BYTES)
    with path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise InvalidDocumentError(f"the node key {path}", ("others than its owner may read it: chmod 600",))
        size = os.fstat(file.fileno()).st_size
        if size != NODE_KEY_BYTES or file.readinto(key) != NODE_KEY_BYTES:
            raise InvalidDocumentError(f"the node key {path}", (f"it holds {size} bytes, not {NODE_KEY_BYTES}",))
    return Secret(key)


def _create(path: Path, entropy: Entropy) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)  # left by a crash of an earlier process of the same number
    key = entropy.token(NODE_KEY_BYTES)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, key)
        os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):  # another process was first: its key stands
            os.link(draft, path)
    finally:
        key[:] = bytes(len(key))
        os.close(descriptor)
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fsync(directory)
    os.close(directory)
