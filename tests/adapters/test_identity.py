"""Signatures of nodes are checked by the certificates that their connections showed."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from trenza.adapters.identity import CertificateVerifier, MlDsaSigner
from trenza.app.pki import CertificateAuthority, KeyType, private_pem
from trenza.base.errors import AuthenticationError, InvalidDocumentError
from trenza.base.names import NodeId
from trenza.net.tls import PeerIdentity, fingerprint_of

ALICE, BOB = NodeId("Alice"), NodeId("Bob")
MESSAGE = b"an offer"


@pytest.fixture(scope="module")
def authority():
    return CertificateAuthority.create("Test network", KeyType.ML_DSA_65)


def uri_of(node):
    return f"urn:trenza:node:{node}"


def identity_of(credential, name=ALICE):
    certificate = credential.certificate
    return PeerIdentity(certificate, fingerprint_of(certificate), (uri_of(name),), "X25519MLKEM768", "TLSv1.3")


@pytest.fixture(scope="module")
def alice(authority):
    return authority.issue("Alice", uris=[uri_of(ALICE)])


def test_a_signature_verifies_once_a_connection_showed_the_certificate(alice):
    verifier = CertificateVerifier(uri_of)
    signature = MlDsaSigner(private_pem(alice.private_key)).sign(MESSAGE)
    with pytest.raises(AuthenticationError, match="no connection"):
        verifier.verify(ALICE, MESSAGE, signature)
    verifier.saw(ALICE, identity_of(alice))
    verifier.verify(ALICE, MESSAGE, signature)


def test_another_message_or_another_nodes_signature_is_refused(authority, alice):
    mallory = MlDsaSigner(private_pem(authority.issue("Mallory", uris=[uri_of("Mallory")]).private_key))
    verifier = CertificateVerifier(uri_of)
    verifier.saw(ALICE, identity_of(alice))
    with pytest.raises(AuthenticationError, match="not signed by node Alice"):
        verifier.verify(ALICE, MESSAGE, mallory.sign(MESSAGE))
    with pytest.raises(AuthenticationError, match="not signed by node Alice"):
        verifier.verify(ALICE, b"else", MlDsaSigner(private_pem(alice.private_key)).sign(MESSAGE))


def test_a_certificate_of_one_node_vouches_for_no_other(alice):
    verifier = CertificateVerifier(uri_of)
    verifier.saw(BOB, identity_of(alice))
    with pytest.raises(AuthenticationError, match="not its own"):
        verifier.verify(BOB, MESSAGE, MlDsaSigner(private_pem(alice.private_key)).sign(MESSAGE))


def test_a_revoked_certificate_vouches_for_nothing(alice):
    revoked = set()
    verifier = CertificateVerifier(uri_of, is_revoked=revoked.__contains__)
    verifier.saw(ALICE, identity_of(alice))
    signature = MlDsaSigner(private_pem(alice.private_key)).sign(MESSAGE)
    verifier.verify(ALICE, MESSAGE, signature)
    revoked.add(fingerprint_of(alice.certificate))
    with pytest.raises(AuthenticationError):
        verifier.verify(ALICE, MESSAGE, signature)


def test_a_renewed_certificate_takes_the_place_of_the_old(authority, alice):
    renewed = authority.issue("Alice", uris=[uri_of(ALICE)])
    verifier = CertificateVerifier(uri_of)
    verifier.saw(ALICE, identity_of(alice))
    verifier.saw(ALICE, identity_of(renewed))
    verifier.verify(ALICE, MESSAGE, MlDsaSigner(private_pem(renewed.private_key)).sign(MESSAGE))
    with pytest.raises(AuthenticationError):
        verifier.verify(ALICE, MESSAGE, MlDsaSigner(private_pem(alice.private_key)).sign(MESSAGE))


@pytest.mark.parametrize("pem", [b"not PEM", private_pem(generate_private_key(SECP256R1()))], ids=["text", "ecdsa"])
def test_a_signer_takes_ml_dsa_keys_only(pem):
    with pytest.raises(InvalidDocumentError, match="ML-DSA-65"):
        MlDsaSigner(pem)
