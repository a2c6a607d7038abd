"""Randomness as a port: the system's generator in production, a seeded one in the lab only."""

from __future__ import annotations

import secrets
from typing import Protocol


class Entropy(Protocol):
    """Where unpredictable bytes come from."""

    def token(self, count: int) -> bytearray:
        """Return `count` unpredictable bytes; the caller owns them.

        Raises:
            EntropyError: the generator failed its health test; no key output is possible.
        """
        ...


class SystemEntropy:
    """The operating system's generator (getrandom on Linux)."""

    def token(self, count: int) -> bytearray:
        return bytearray(secrets.token_bytes(count))
