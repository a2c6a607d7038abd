"""The node key in a file: 32 bytes that wrap all segment keys, on another medium than the data, best.

`HeldNodeKey` wraps with AES-256-GCM-SIV (RFC 8452); it bears that a keyring restored from a copy repeats a nonce.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from trenza.base.entropy import Entropy
from trenza.base.errors import AuthenticationError, InvalidDocumentError, StoreUnavailableError
from trenza.base.secret import Secret

NODE_KEY_BYTES = 32
_TAG = 16


class HeldNodeKey:
    """A node key in this process's memory. Implements kms.ports.NodeKey."""

    is_at_hand = True

    def __init__(self, key: Secret) -> None:
        """Take the key over: 32 bytes, which the caller may wipe from now on."""
        self._wrapping = AESGCMSIV(key.view())

    def wrap(self, key: bytearray, *, nonce: bytes, context: bytes) -> bytes:
        return self._wrapping.encrypt(nonce, key, context)

    def unwrap(self, wrapped: bytes, *, nonce: bytes, context: bytes) -> bytearray:
        key = bytearray(max(0, len(wrapped) - _TAG))
        try:
            self._wrapping.decrypt_into(nonce, wrapped, context, key)
        except InvalidTag:
            raise AuthenticationError("wrapped under another node key, or altered") from None
        return key

    def close(self) -> None:
        """Nothing to leave: the library keeps its copy of the key until it is collected."""


def load_node_key(path: Path, entropy: Entropy | None) -> Secret:
    """Read the node key, or make one if the file is absent.

    Args:
        path: of the file, mode 0600; it comes into being whole or not at all.
        entropy: where a new key comes from; None: none is made.

    Returns:
        The key; the caller wipes it once the sealer is open.

    Raises:
        InvalidDocumentError: others may read the file, or it does not hold 32 bytes.
        StoreUnavailableError: it cannot be read or made.
    """
    try:
        if entropy is not None and not path.exists():
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
