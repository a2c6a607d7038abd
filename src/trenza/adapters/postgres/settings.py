"""Where a node's database is. The file that says so is a secret where it holds a password.

What crosses the wire to PostgreSQL is sealed or public to an auditor, but who can alter it can stop the node: so
beyond this machine TLS with the server's name checked is demanded. PostgreSQL's TLS knows no post-quantum groups yet:
one of the exceptions that design decision 16 has written down (docs/threat-model.md).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from trenza.base.errors import InvalidDocumentError, StoreUnavailableError

_SCHEMES = ("postgresql", "postgres")
_LONGEST_NAME = 63  # bytes of an identifier (NAMEDATALEN - 1): a longer one would be cut, and two nodes share tables


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """How to reach the database, and which schema in it is the node's."""

    dsn: str = field(repr=False)  # may hold a password: never printed
    schema: str

    @classmethod
    def load(cls, dsn_file: Path, *, schema: str) -> PostgresSettings:
        """Read the address of the database.

        Args:
            dsn_file: one line, postgresql://USER[:PASSWORD]@HOST[:PORT]/DATABASE[?sslmode=verify-full&…] as libpq
                knows it; mode 0600. The password may also be in the file that `passfile=` names.
            schema: of this node alone; its name is the best there is.

        Raises:
            InvalidDocumentError: others may read the file, or what it says is not acceptable; all mistakes.
            StoreUnavailableError: the file cannot be read.
        """
        try:
            shared = bool(dsn_file.stat().st_mode & 0o077)
            dsn = dsn_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise StoreUnavailableError(f"{dsn_file} cannot be read: {error.strerror}") from error
        mistakes = ["others than its owner may read it: chmod 600"] if shared else []
        mistakes += _mistakes(dsn, schema)
        if mistakes:
            raise InvalidDocumentError(f"the database address in {dsn_file}", tuple(mistakes))
        return cls(dsn, schema)


def _mistakes(dsn: str, schema: str) -> list[str]:
    if not 0 < len(schema.encode()) <= _LONGEST_NAME or "\0" in schema:
        return [f"the schema's name has {len(schema.encode())} bytes, not 1 to {_LONGEST_NAME}: give a shorter one"]
    try:
        parts = urlsplit(dsn)
        asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    except ValueError:
        return ["it is not an address"]
    if parts.scheme not in _SCHEMES:
        return ["it does not begin with postgresql://"]
    named = asked.get("host", parts.netloc.rpartition("@")[2])
    distant = [host for host in named.split(",") if not _is_here(host)]
    if distant and asked.get("sslmode") != "verify-full":
        return [f"{', '.join(distant)} is not on this machine: it needs sslmode=verify-full and sslrootcert=FILE"]
    return []


def _is_here(host: str) -> bool:
    """Tell whether it is a socket's directory or an address of this machine; no name at all is libpq's local one."""
    if not host or host.startswith(("/", ":", "%2F", "%2f")):
        return True
    bare = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if host.count(":") > 1 and not host.startswith("["):
        bare = host
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return bare == "localhost"
