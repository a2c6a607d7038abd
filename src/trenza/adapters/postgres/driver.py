"""asyncpg, or a sentence that says where to get it; and which of its errors mean what to a store."""

from __future__ import annotations

from trenza.base.errors import StoreUnavailableError

try:
    import asyncpg
except ModuleNotFoundError as error:
    raise StoreUnavailableError(
        "a store in PostgreSQL needs asyncpg, which is not installed: pip install 'trenza[postgres]'"
    ) from error

FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""What a call to the server may end in, beside its answer. The driver calls it an internal error when the server had
said goodbye and the call came before the end of the connection was seen."""

LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    ConnectionError,
)
"""The connection is gone, for no reason that lies in what was asked."""

CALLERS_FAULT = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError, TypeError)
"""What is wrong with the values given, not with the server (the driver's own refusals are ValueErrors)."""

__all__ = ["CALLERS_FAULT", "FAILURES", "LOST", "asyncpg"]
