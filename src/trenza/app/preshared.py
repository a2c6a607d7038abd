"""Secrets that this node and another were given by hand: the first end-to-end roots of their pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trenza.app.config import NodeConfig
from trenza.base.errors import InvalidDocumentError
from trenza.base.names import NodeId
from trenza.base.secret import Secret

_PRESHARED_BYTES: Final = range(32, 65)


def preshared_of(config: NodeConfig) -> dict[NodeId, Secret]:
    """Return the secrets that were installed by hand, by peer.

    Raises:
        InvalidDocumentError: a file holds no such secret, or others may read it.
    """
    return {one.node: _preshared_secret(one.file) for one in config.preshared}


def _preshared_secret(file: Path) -> Secret:
    with file.open("rb", buffering=0) as opened:
        buffer = bytearray(_PRESHARED_BYTES.stop)
        length = opened.readinto(buffer)
    mistakes = []
    if file.stat().st_mode & 0o077:
        mistakes.append("others than its owner may read it: chmod 600")
    if length not in _PRESHARED_BYTES:
        mistakes.append(f"it does not hold {_PRESHARED_BYTES.start} to {_PRESHARED_BYTES.stop - 1} bytes")
    if mistakes:
        buffer[:] = bytes(len(buffer))
        raise InvalidDocumentError(f"the preshared secret {file}", tuple(mistakes))
    secret = Secret(buffer[:length])
    buffer[:] = bytes(len(buffer))
    return secret
