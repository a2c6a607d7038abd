"""Who may speak TLS with us, and with what: contexts, peer identities, names.

No sockets here (`net/tls_transport` has them) and no authorisation: a verified identity is handed upwards, the doors
decide what it may do. Key exchange: X25519MLKEM768 of draft-ietf-tls-ecdhe-mlkem; certificates: X.509 (RFC 5280) with
ML-DSA (RFC 9881) or ECDSA keys; OpenSSL is the one inside the `cryptography` wheels, reached through pyOpenSSL.
pyOpenSSL compares no names, so `verify_name` does: exactly, without wildcards and without the common name (RFC 9525).
"""

from __future__ import annotations

import enum
import ipaddress
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from OpenSSL import SSL

from trenza.base.errors import AuthenticationError

CHAIN_DEPTH = 4
TLS_1_2_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"

RevocationCheck = Callable[[str], bool]
"""Tells whether the certificate of this fingerprint was revoked; asked before any application byte passes."""


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """Files of one party: its certificate chain, its private key and the authorities it trusts (all PEM)."""

    certificate_file: Path
    private_key_file: Path
    trust_file: Path


class Groups(enum.Enum):
    """Key exchanges that a context accepts, best first, in OpenSSL's list syntax."""

    HYBRID_ONLY = "X25519MLKEM768"
    HYBRID_PREFERRED = "X25519MLKEM768:X25519:P-256"


class OldestTls(enum.Enum):
    """The oldest protocol version that a context accepts."""

    TLS_1_3 = SSL.TLS1_3_VERSION
    TLS_1_2 = SSL.TLS1_2_VERSION  # for applications whose ETSI GS QKD 014 client knows no newer


class Side(enum.Enum):
    """Which end of a handshake a context is for."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True, eq=False)
class TlsContext:
    """One end's settings, loaded and checked. New files need a new context: servers ask for it per connection."""

    side: Side
    groups: Groups
    openssl: SSL.Context = field(repr=False)


ContextProvider = Callable[[], TlsContext]
"""Gives the context that is valid now, so that certificates change without a restart."""


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who is at the other end, as OpenSSL verified it."""

    certificate: x509.Certificate = field(repr=False)
    fingerprint: str
    """SHA-256 of the DER certificate, lower-case hexadecimal."""
    uris: tuple[str, ...]
    """The URI names of the certificate, e.g. `urn:trenza:node:norte`."""
    group: str
    """The key exchange that was negotiated, in OpenSSL's spelling: `X25519MLKEM768`, `x25519`, `secp256r1`."""
    tls_version: str
    """`TLSv1.3` or `TLSv1.2`."""

    @property
    def name(self) -> str:
        """Return what to call this peer in logs and counters: its first URI, else its fingerprint."""
        return self.uris[0] if self.uris else self.fingerprint


@dataclass(slots=True)
class TlsStatistics:
    """What happened at one listener or client since it started."""

    completed: Counter[str] = field(default_factory=Counter)
    """Handshakes completed (peer accepted), by negotiated group."""
    failed: Counter[str] = field(default_factory=Counter)
    """Handshakes that failed or were not begun, by reason."""
    refused: Counter[str] = field(default_factory=Counter)
    """Connections and messages of known clients that a limit of the door ended, by reason."""
    connections_open: int = 0
    """Connections that an application protocol holds now."""

    @property
    def handshakes_completed(self) -> int:
        return self.completed.total()

    @property
    def handshakes_failed(self) -> int:
        return self.failed.total()


def never_revoked(_fingerprint: str) -> bool:
    """Revoke nothing: the trust file alone decides."""
    return False


def server_context(
    identity: TlsIdentity, *, groups: Groups = Groups.HYBRID_ONLY, oldest: OldestTls = OldestTls.TLS_1_3
) -> TlsContext:
    """Load a server's side; a client without a valid certificate is refused in the handshake.

    Raises:
        ValueError: the files cannot be used together, or only hybrid groups are allowed below TLS 1.3.
        OSError: a file cannot be read.
    """
    context = _context(identity, groups, oldest)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    context.set_session_id(b"trenza")
    context.load_client_ca(
        bytes(identity.trust_file)
    )  # tells a client that has several certificates which one to show
    return TlsContext(Side.SERVER, groups, context)


def client_context(
    identity: TlsIdentity, *, groups: Groups = Groups.HYBRID_ONLY, oldest: OldestTls = OldestTls.TLS_1_3
) -> TlsContext:
    """Load a client's side.

    Raises:
        ValueError: the files cannot be used together, or only hybrid groups are allowed below TLS 1.3.
        OSError: a file cannot be read.
    """
    context = _context(identity, groups, oldest)
    context.set_verify(SSL.VERIFY_PEER)
    return TlsContext(Side.CLIENT, groups, context)


def _context(identity: TlsIdentity, groups: Groups, oldest: OldestTls) -> SSL.Context:
    if groups is Groups.HYBRID_ONLY and oldest is not OldestTls.TLS_1_3:
        raise ValueError("hybrid groups exist in TLS 1.3 only")
    for file in (identity.certificate_file, identity.private_key_file, identity.trust_file):
        file.open("rb").close()  # OpenSSL's own message names neither the file nor the reason
    context = SSL.Context(SSL.TLS_METHOD)
    try:
        context.use_certificate_chain_file(bytes(identity.certificate_file))
        context.use_privatekey_file(bytes(identity.private_key_file))
        context.check_privatekey()
        context.load_verify_locations(bytes(identity.trust_file))
    except SSL.Error as error:
        raise ValueError(
            f"cannot use the TLS files of {identity.certificate_file}: {openssl_reason(error)}"
        ) from None
    context.set_min_proto_version(oldest.value)
    context.set_cipher_list(TLS_1_2_CIPHERS)
    context.set_verify_depth(CHAIN_DEPTH)
    # No resumption: every connection verifies the certificates that are valid now.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    _set_groups(context, groups)
    return context


def _set_groups(context: SSL.Context, groups: Groups) -> None:
    """Restrict the key exchanges; pyOpenSSL has no public call for it, its binding has (SSL_CTX_set1_groups_list)."""
    binding = SSL._lib  # type: ignore[attr-defined]  # noqa: SLF001
    if binding.SSL_CTX_set1_curves_list(context._context, groups.value.encode()) != 1:  # noqa: SLF001
        raise ValueError(f"this OpenSSL does not know the groups {groups.value}")


def openssl_reason(error: SSL.Error) -> str:
    """Return why OpenSSL refused, in its own words, without its source locations."""
    queue = error.args[0] if error.args else ()
    if isinstance(queue, (list, tuple)) and queue:
        return str(queue[0][2])
    return "unexpected end of stream" if isinstance(error, SSL.SysCallError) else type(error).__name__


def peer_identity(connection: SSL.Connection) -> PeerIdentity:
    """Read who is at the other end of a completed handshake.

    Raises:
        AuthenticationError: it showed no certificate, or one whose names cannot be read.
    """
    certificate = connection.get_peer_certificate(as_cryptography=True)
    if certificate is None:
        raise AuthenticationError("the peer showed no certificate")
    return PeerIdentity(
        certificate=certificate,
        fingerprint=fingerprint_of(certificate),
        uris=tuple(_alternative_names(certificate).get_values_for_type(x509.UniformResourceIdentifier)),
        group=connection.get_group_name() or "unknown",
        tls_version=connection.get_protocol_version_name(),
    )


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the DER certificate in lower-case hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def verify_name(certificate: x509.Certificate, expected: str) -> None:
    """Check that a certificate is for the peer we mean to talk to.

    Args:
        certificate: already verified against the trust file.
        expected: a URI (`urn:trenza:node:norte`), an IP address or a host name; matched exactly against the subject
            alternative names of that type (host names without regard to case). Wildcards match nothing.

    Raises:
        AuthenticationError: the certificate is for somebody else.
    """
    names = _alternative_names(certificate)
    kind = _kind_of_name(expected)
    match kind:
        case _NameKind.URI:
            found = expected in names.get_values_for_type(x509.UniformResourceIdentifier)
        case _NameKind.IP:
            found = ipaddress.ip_address(expected) in names.get_values_for_type(x509.IPAddress)
        case _NameKind.HOST:
            found = expected.lower() in (name.lower() for name in names.get_values_for_type(x509.DNSName))
        case _:
            assert_never(kind)
    if not found:
        raise AuthenticationError(f"the peer's certificate is not for {expected}")


class _NameKind(enum.Enum):
    URI = "uri"
    IP = "ip"
    HOST = "host"


def _kind_of_name(name: str) -> _NameKind:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return _NameKind.URI if ":" in name else _NameKind.HOST
    return _NameKind.IP


def server_name_indication(name: str) -> bytes | None:
    """Return what a client tells the server it looks for: host names only (RFC 6066 clause 3)."""
    return name.encode("idna") if _kind_of_name(name) is _NameKind.HOST else None


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return x509.SubjectAlternativeName([])
    except ValueError as error:
        raise AuthenticationError("the names in the peer's certificate cannot be read") from error
