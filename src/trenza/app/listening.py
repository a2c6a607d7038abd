"""Opening a port, and saying in a sentence why it cannot be opened: which setting it is of, and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Final, Protocol

from trenza.app.config import host_and_port
from trenza.base.errors import UnavailableError

_ADVICE: Final[Mapping[int, str]] = {
    errno.EADDRINUSE: "another process listens there: end it, or write another port",
    errno.EADDRNOTAVAIL: "this machine has no such address: write one of its own, or 0.0.0.0 for all of them",
    errno.EACCES: "this user may not open that port: write one of 1024 or more, or give the right to it",
}


class Server(Protocol):
    """What listens."""

    async def start(self, host: str, port: int = 0) -> int: ...


async def listen(server: Server, address: str, *, setting: str) -> None:
    """Let a server listen at `host:port`.

    Args:
        server: not started yet.
        address: as the configuration has it.
        setting: where the configuration has it.

    Raises:
        UnavailableError: it cannot listen there; says why and what to do.
    """
    try:
        await server.start(*host_and_port(address))
    except OSError as error:
        number = error.errno or 0
        why = _ADVICE.get(number) or os.strerror(number)
        raise UnavailableError(f'nothing can listen at {setting} = "{address}": {why}') from error
