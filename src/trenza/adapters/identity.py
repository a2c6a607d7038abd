"""A node's signing identity, and the other nodes' as their live connections proved it.

Implements kms.ports.Signer and kms.ports.Verifier. The key that checks a node's signature is that of the certificate
which its own mutually authenticated connection showed: verified by TLS against the internal authority, for the URI
that the policy book gives the node. Nothing is learned from a message. Standard: FIPS 204 (ML-DSA-65).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from trenza.base.errors import AuthenticationError, InvalidDocumentError
from trenza.base.names import NodeId
from trenza.net.tls import PeerIdentity, RevocationCheck, never_revoked


class MlDsaSigner:
    """Signs with a node's private key, the one of its peer certificate."""

    def __init__(self, private_key: bytes) -> None:
        """Take the key out of a PEM text.

        Raises:
            InvalidDocumentError: it holds no ML-DSA-65 private key.
        """
        try:
            key = serialization.load_pem_private_key(private_key, password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, MLDSA65PrivateKey):
            raise InvalidDocumentError("the node's private key", ("it is no unencrypted ML-DSA-65 key in PEM",))
        self._key = key

    @classmethod
    def load(cls, private_key_file: Path) -> MlDsaSigner:
        return cls(private_key_file.read_bytes())

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def recognises(self, message: bytes, signature: bytes) -> bool:
        try:
            self._key.public_key().verify(signature, message)
        except InvalidSignature:
            return False
        return True


class CertificateVerifier:
    """Checks signatures of nodes by the certificates their connections showed; the last one shown counts."""

    def __init__(
        self, uri_of: Callable[[NodeId], str | None], *, is_revoked: RevocationCheck = never_revoked
    ) -> None:
        """Begin knowing nobody.

        Args:
            uri_of: the certificate name that the policy book gives a node now; None where it knows none.
            is_revoked: tells of certificates whose signatures are refused.
        """
        self._uri_of = uri_of
        self._is_revoked = is_revoked
        self._shown: dict[NodeId, PeerIdentity] = {}

    def saw(self, node: NodeId, peer: PeerIdentity) -> None:
        """Remember the certificate of a connection that TLS has verified."""
        known = self._shown.get(node)
        if known is None or known.fingerprint != peer.fingerprint:
            self._shown[node] = peer

    def verify(self, node: NodeId, message: bytes, signature: bytes) -> None:
        peer = self._shown.get(node)
        if peer is None:
            raise AuthenticationError(f"no connection has shown a certificate of node {node} yet")
        if self._uri_of(node) not in peer.uris or self._is_revoked(peer.fingerprint):
            raise AuthenticationError(f"the certificate that was shown for node {node} is not its own any more")
        key = peer.certificate.public_key()
        if not isinstance(key, MLDSA65PublicKey):
            raise AuthenticationError(f"the certificate of node {node} has no ML-DSA-65 key")
        try:
            key.verify(signature, message)
        except InvalidSignature:
            raise AuthenticationError(f"not signed by node {node}") from None
