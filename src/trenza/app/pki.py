"""A network's own certificates: enough for the demo, the tests and a small site without a PKI of its own.

Keys are never sent anywhere; files with private keys are created readable by their owner only. Nodes, devices,
management and operators get ML-DSA-65 (FIPS 204, RFC 9881); application doors and SAEs get ECDSA P-256, because
their clients are other people's. Profile: RFC 5280; names are URIs (`urn:trenza:node:norte`) and, for doors that
ordinary clients call, host names or addresses.
"""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, assert_never

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trenza.base.names import NodeId, SaeId

CLOCK_SKEW = dt.timedelta(minutes=5)
AUTHORITY_LIFETIME = dt.timedelta(days=3650)
LEAF_LIFETIME = dt.timedelta(days=365)

PrivateKey = mldsa.MLDSA65PrivateKey | ec.EllipticCurvePrivateKey


class KeyType(enum.Enum):
    """What a certificate's key is."""

    ML_DSA_65 = "ml-dsa-65"
    ECDSA_P256 = "ecdsa-p256"


def node_uri(node: NodeId) -> str:
    """Return the certificate name of a node."""
    return f"urn:trenza:node:{node}"


def device_uri(device: str) -> str:
    """Return the certificate name of a QKD device."""
    return f"urn:trenza:device:{device}"


def sae_uri(sae: SaeId) -> str:
    """Return the certificate name of an application."""
    return f"urn:trenza:sae:{sae}"


def operator_uri(operator: str) -> str:
    """Return the certificate name of a person or tool that operates the network."""
    return f"urn:trenza:operator:{operator}"


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate with its private key."""

    certificate: x509.Certificate
    private_key: PrivateKey = field(repr=False)

    def save(self, certificate_file: Path, private_key_file: Path) -> None:
        """Write both as PEM; neither file may exist.

        Raises:
            FileExistsError: a key is never overwritten.
        """
        write_private(private_key_file, private_pem(self.private_key))
        with certificate_file.open("xb") as file:
            file.write(self.certificate.public_bytes(serialization.Encoding.PEM))

    @classmethod
    def load(cls, certificate_file: Path, private_key_file: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: a file is not PEM, or its key is of another type than ours.
        """
        key = serialization.load_pem_private_key(private_key_file.read_bytes(), password=None)
        if not isinstance(key, PrivateKey):
            raise ValueError(f"{private_key_file} holds neither an ML-DSA-65 nor an ECDSA key")  # noqa: TRY004
        return cls(x509.load_pem_x509_certificate(certificate_file.read_bytes()), key)


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """Issues certificates of its own key type; has no intermediates."""

    credential: Credential
    key_type: KeyType

    @classmethod
    def create(
        cls,
        common_name: str,
        key_type: KeyType,
        *,
        valid_from: dt.datetime | None = None,
        valid_for: dt.timedelta = AUTHORITY_LIFETIME,
    ) -> Self:
        """Make a new authority with a fresh key."""
        key = _new_key(key_type)
        subject = _subject(common_name)
        builder = _builder(subject, subject, key, valid_from, valid_for)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(authority=True), critical=True)
        builder = builder.add_extension(_authority_key_identifier(key), critical=False)
        return cls(Credential(_sign(builder, key), key), key_type)

    def issue(
        self,
        subject: str,
        *,
        uris: Sequence[str] = (),
        dns_names: Sequence[str] = (),
        ips: Sequence[str] = (),
        client: bool = True,
        server: bool = True,
        valid_from: dt.datetime | None = None,
        valid_for: dt.timedelta = LEAF_LIFETIME,
    ) -> Credential:
        """Issue a certificate with a fresh key of the authority's type.

        Args:
            subject: common name, for people; nobody is identified by it.
            uris: names that our own parts look for.
            dns_names: host names that ordinary clients look for.
            ips: addresses that ordinary clients look for.
            client: may open connections.
            server: may accept connections.
            valid_from: default five minutes ago, for clocks that differ.
            valid_for: how long from then.

        Raises:
            ValueError: no name, no purpose, or an address that is none.
        """
        names = _alternative_names(uris, dns_names, ips)
        if not names:
            raise ValueError(f"the certificate of {subject} needs a name")
        purposes = _purposes(client=client, server=server)
        if not purposes:
            raise ValueError(f"the certificate of {subject} needs a purpose")
        key = _new_key(self.key_type)
        issuer = self.credential
        builder = _builder(_subject(subject), issuer.certificate.subject, key, valid_from, valid_for)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(authority=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(_authority_key_identifier(issuer.private_key), critical=False)
        return Credential(_sign(builder, issuer.private_key), key)

    def save(self, certificate_file: Path, private_key_file: Path) -> None:
        """Write the authority; neither file may exist."""
        self.credential.save(certificate_file, private_key_file)

    @classmethod
    def load(cls, certificate_file: Path, private_key_file: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: a file is not PEM, or its key is of another type than ours.
        """
        credential = Credential.load(certificate_file, private_key_file)
        is_ml_dsa = isinstance(credential.private_key, mldsa.MLDSA65PrivateKey)
        return cls(credential, KeyType.ML_DSA_65 if is_ml_dsa else KeyType.ECDSA_P256)


def create_officer_key(private_key_file: Path, public_key_file: Path) -> mldsa.MLDSA65PrivateKey:
    """Make the key officer's signing key (ML-DSA-65) and write both halves as PEM; neither file may exist.

    Raises:
        FileExistsError: a key is never overwritten.
    """
    key = mldsa.MLDSA65PrivateKey.generate()
    write_private(private_key_file, private_pem(key))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with public_key_file.open("xb") as file:
        file.write(public)
    return key


def load_officer_key(private_key_file: Path) -> mldsa.MLDSA65PrivateKey:
    """Read the key officer's signing key.

    Raises:
        ValueError: the file holds something else.
    """
    key = serialization.load_pem_private_key(private_key_file.read_bytes(), password=None)
    if not isinstance(key, mldsa.MLDSA65PrivateKey):
        raise ValueError(f"{private_key_file} holds no ML-DSA-65 key")  # noqa: TRY004
    return key


def load_officer_public_key(public_key_file: Path) -> mldsa.MLDSA65PublicKey:
    """Read what every node needs to check the key officer's signatures.

    Raises:
        ValueError: the file holds something else.
    """
    key = serialization.load_pem_public_key(public_key_file.read_bytes())
    if not isinstance(key, mldsa.MLDSA65PublicKey):
        raise ValueError(f"{public_key_file} holds no ML-DSA-65 key")  # noqa: TRY004
    return key


def write_private(file: Path, content: bytes) -> None:
    """Write a new file that only its owner can read, from its first byte on.

    Raises:
        FileExistsError: it exists already, or somebody put a link there.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def private_pem(key: PrivateKey) -> bytes:
    """Return the private key as unencrypted PKCS#8 PEM (for ML-DSA: the 32-byte seed of RFC 9881)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _new_key(key_type: KeyType) -> PrivateKey:
    match key_type:
        case KeyType.ML_DSA_65:
            return mldsa.MLDSA65PrivateKey.generate()
        case KeyType.ECDSA_P256:
            return ec.generate_private_key(ec.SECP256R1())
        case _:
            assert_never(key_type)


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PrivateKey,
    valid_from: dt.datetime | None,
    valid_for: dt.timedelta,
) -> x509.CertificateBuilder:
    start = valid_from or dt.datetime.now(dt.UTC) - CLOCK_SKEW
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + valid_for)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _purposes(*, client: bool, server: bool) -> list[x509.ObjectIdentifier]:
    wanted = ((client, ExtendedKeyUsageOID.CLIENT_AUTH), (server, ExtendedKeyUsageOID.SERVER_AUTH))
    return [purpose for asked, purpose in wanted if asked]


def _alternative_names(uris: Sequence[str], dns_names: Sequence[str], ips: Sequence[str]) -> list[x509.GeneralName]:
    return [
        *(x509.UniformResourceIdentifier(uri) for uri in uris),
        *(x509.DNSName(name) for name in dns_names),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in ips),
    ]


def _authority_key_identifier(key: PrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _sign(builder: x509.CertificateBuilder, key: PrivateKey) -> x509.Certificate:
    # ML-DSA hashes by itself; ECDSA needs to be told with what.
    return builder.sign(key, None if isinstance(key, mldsa.MLDSA65PrivateKey) else hashes.SHA256())
