"""Where TLS connections come about: at an address that is listened at, or by connecting to one.

What runs over them is `net/tls_transport`; with which certificates, `net/tls`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar, cast

from trenza.base.errors import PeerUnavailableError
from trenza.net.tls import ContextProvider, TlsContext
from trenza.net.tls_transport import ProtocolFactory, Terms, TlsTransport

P = TypeVar("P", bound=asyncio.Protocol)


async def listen(
    application: ProtocolFactory,
    contexts: ContextProvider,
    host: str,
    port: int,
    *,
    terms: Terms | None = None,
    backlog: int = 512,
) -> asyncio.Server:
    """Accept TLS connections; each new one asks `contexts` for the settings that are valid now.

    Args:
        application: makes the protocol of one accepted connection, after the peer was verified.
        contexts: the server's settings.
        host: address to listen on.
        port: 0 for any free one.
        terms: revocation, limits and the statistics to count in.
        backlog: connections the kernel may queue.

    Raises:
        OSError: the address cannot be bound.
    """
    agreed = terms or Terms()
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: TlsTransport(contexts(), application, agreed), host, port, backlog=backlog
    )


async def connect(
    application: Callable[[], P], context: TlsContext, host: str, port: int, *, terms: Terms, timeout_s: float
) -> P:
    """Connect, shake hands and check the peer; return the application's protocol, already connected.

    Raises:
        AuthenticationError: the peer is not who `terms` expects, or refused us in the handshake.
        PeerUnavailableError: nobody answered in time; `sent` is False.
    """
    loop = asyncio.get_running_loop()
    established: asyncio.Future[asyncio.Protocol] = loop.create_future()
    transport = TlsTransport(context, application, terms, established)
    try:
        async with asyncio.timeout(timeout_s):
            await loop.create_connection(lambda: transport, host, port)
            return cast("P", await established)
    except (TimeoutError, OSError) as error:
        transport.abort()
        why = "timed out" if isinstance(error, TimeoutError) else str(error)
        raise PeerUnavailableError(f"cannot connect to {host} port {port}: {why}", sent=False) from error
    except BaseException:
        transport.abort()
        raise
