"""Who calls: one name out of a verified certificate, and the SAE that the policy book knows by it.

The only source of a caller's identity; never a header, a path or a body. A certificate that leaves room for two
answers gets none. ETSI GS QKD 014 V1.1.1 leaves the encoding of SAE IDs in certificates open, and devices in the
field use URIs, DNS names or the common name: the order in which they are looked for is configuration.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Final, assert_never

from cryptography import x509
from cryptography.x509.oid import NameOID

from trenza.base.errors import UnauthorisedError
from trenza.base.names import SaeId
from trenza.net.tls import PeerIdentity, RevocationCheck, never_revoked

_MOST_REMEMBERED: Final = 16_384  # more than may be connected at a time


class NameKind(enum.Enum):
    """Where a certificate may carry the identity."""

    URI = "uri"  # subject alternative name, such as urn:trenza:sae:NAME
    DNS = "dns"  # subject alternative name
    COMMON_NAME = "common-name"  # of the subject


DEFAULT_ORDER: Final = (NameKind.URI, NameKind.DNS, NameKind.COMMON_NAME)

SaeRegistry = Callable[[str], SaeId | None]
"""Tells which SAE has this certificate identity now; None where the policy book knows none."""


def certificate_identity(certificate: x509.Certificate, order: Sequence[NameKind] = DEFAULT_ORDER) -> str:
    """Return the one identity that a certificate carries.

    Args:
        certificate: already verified by the TLS layer.
        order: the kinds of name to look for; the first that is present decides, whatever the others say.

    Raises:
        UnauthorisedError: it carries none of these, or several names of the kind that decides.
    """
    for kind in order:
        names = _names(certificate, kind)
        if not names:
            continue
        if len(names) > 1 or not names[0]:
            raise UnauthorisedError(f"the certificate does not carry exactly one identity of the kind {kind.value}")
        return names[0]
    raise UnauthorisedError("the certificate carries no identity")


class Callers:
    """Recognises SAEs by their certificates: on every request, since books change under open connections."""

    def __init__(
        self,
        registry: SaeRegistry,
        *,
        order: Sequence[NameKind] = DEFAULT_ORDER,
        is_revoked: RevocationCheck = never_revoked,
        version: Callable[[], object] = object,
    ) -> None:
        """Prepare.

        Args:
            registry: the SAE of a name.
            order: the kinds of name to look for, the first that is present decides.
            is_revoked: tells of a certificate's fingerprint.
            version: of what the two answer by: while it is the same object, so are their answers. By default they
                are asked every time.
        """
        self._registry = registry
        self._order = tuple(order)
        self._is_revoked = is_revoked
        self._version = version
        self._known: dict[str, SaeId] = {}  # by fingerprint, in this version
        self._known_in: object = None
        self._identities: dict[str, str] = {}  # by fingerprint; a certificate never changes what it says

    def sae(self, peer: PeerIdentity) -> SaeId:
        """Return the SAE at the other end.

        Raises:
            UnauthorisedError: the certificate is revoked, names nobody clearly, or names nobody the book knows.
        """
        version = self._version()
        if version is not self._known_in:
            self._known.clear()
            self._known_in = version
        sae = self._known.get(peer.fingerprint)
        return self._recognise(peer) if sae is None else sae

    def _recognise(self, peer: PeerIdentity) -> SaeId:
        if self._is_revoked(peer.fingerprint):
            raise UnauthorisedError("the certificate is revoked")
        sae = self._registry(self._identity(peer))
        if sae is None:
            raise UnauthorisedError("the certificate's identity is no SAE of the policy book")
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known[peer.fingerprint] = sae
        return sae

    def _identity(self, peer: PeerIdentity) -> str:
        identity = self._identities.get(peer.fingerprint)
        if identity is None:
            identity = certificate_identity(peer.certificate, self._order)
            if len(self._identities) >= _MOST_REMEMBERED:
                self._identities.clear()
            self._identities[peer.fingerprint] = identity
        return identity


def _names(certificate: x509.Certificate, kind: NameKind) -> list[str]:
    match kind:
        case NameKind.URI:
            return _alternative_names(certificate, x509.UniformResourceIdentifier)
        case NameKind.DNS:
            return [name.lower() for name in _alternative_names(certificate, x509.DNSName)]
        case NameKind.COMMON_NAME:
            return [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        case _:
            assert_never(kind)


def _alternative_names(
    certificate: x509.Certificate, kind: type[x509.UniformResourceIdentifier | x509.DNSName]
) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise UnauthorisedError("the names in the certificate cannot be read") from None
    return names.get_values_for_type(kind)
