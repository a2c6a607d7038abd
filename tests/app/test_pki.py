import datetime as dt
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from trenza.app.pki import (
    CertificateAuthority,
    Credential,
    KeyType,
    create_officer_key,
    device_uri,
    load_officer_key,
    load_officer_public_key,
    node_uri,
    operator_uri,
    sae_uri,
    write_private,
)
from trenza.base.names import NodeId, SaeId

BOTH_KEY_TYPES = pytest.mark.parametrize("key_type", list(KeyType))


@BOTH_KEY_TYPES
def test_a_leaf_is_verified_by_its_authority(key_type):
    authority = CertificateAuthority.create("Test network", key_type)
    leaf = authority.issue("norte", uris=[node_uri(NodeId("norte"))], dns_names=["norte.example"])
    verifier = PolicyBuilder().store(Store([authority.credential.certificate])).build_client_verifier()
    names = verifier.verify(leaf.certificate, []).subjects
    assert x509.UniformResourceIdentifier("urn:trenza:node:norte") in names


def test_the_profile_is_that_of_rfc_5280():
    authority = CertificateAuthority.create("Test network", KeyType.ML_DSA_65)
    leaf = authority.issue("norte", uris=["urn:trenza:node:norte"], ips=["127.0.0.1"], server=False).certificate
    root = authority.credential.certificate
    for certificate, is_authority in ((root, True), (leaf, False)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value.ca is is_authority
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value.key_cert_sign is is_authority
        assert usage.value.digital_signature is not is_authority
    subject_key = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    issuer_key = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert issuer_key.key_identifier == subject_key.digest
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_key_types_follow_the_authority():
    nodes = CertificateAuthority.create("nodes", KeyType.ML_DSA_65)
    doors = CertificateAuthority.create("doors", KeyType.ECDSA_P256)
    assert isinstance(nodes.issue("n", uris=["urn:trenza:node:n"]).private_key, mldsa.MLDSA65PrivateKey)
    assert isinstance(doors.issue("s", uris=["urn:trenza:sae:s"]).private_key, ec.EllipticCurvePrivateKey)


def test_a_certificate_can_be_issued_expired():
    authority = CertificateAuthority.create("Test network", KeyType.ECDSA_P256)
    long_ago = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    leaf = authority.issue("old", uris=["urn:x:y"], valid_from=long_ago, valid_for=dt.timedelta(days=1))
    assert leaf.certificate.not_valid_after_utc == dt.datetime(2020, 1, 2, tzinfo=dt.UTC)


def test_a_certificate_without_a_name_or_a_purpose_is_refused():
    authority = CertificateAuthority.create("Test network", KeyType.ECDSA_P256)
    with pytest.raises(ValueError, match="needs a name"):
        authority.issue("nobody")
    with pytest.raises(ValueError, match="needs a purpose"):
        authority.issue("idle", uris=["urn:x:y"], client=False, server=False)


@BOTH_KEY_TYPES
def test_an_authority_survives_its_files(tmp_path, key_type):
    authority = CertificateAuthority.create("Test network", key_type)
    authority.save(tmp_path / "ca.pem", tmp_path / "ca.key")
    again = CertificateAuthority.load(tmp_path / "ca.pem", tmp_path / "ca.key")
    assert again.key_type is key_type
    leaf = again.issue("norte", uris=["urn:trenza:node:norte"])
    leaf.certificate.verify_directly_issued_by(authority.credential.certificate)


def test_private_keys_are_for_their_owner_and_never_overwritten(tmp_path):
    leaf = CertificateAuthority.create("ca", KeyType.ML_DSA_65).issue("n", uris=["urn:trenza:node:n"])
    leaf.save(tmp_path / "n.pem", tmp_path / "n.key")
    assert stat.S_IMODE((tmp_path / "n.key").stat().st_mode) == 0o600
    written = (tmp_path / "n.key").read_bytes()
    with pytest.raises(FileExistsError):
        leaf.save(tmp_path / "other.pem", tmp_path / "n.key")
    assert (tmp_path / "n.key").read_bytes() == written
    assert Credential.load(tmp_path / "n.pem", tmp_path / "n.key").certificate == leaf.certificate
    assert "private_key" not in repr(leaf)


def test_a_link_laid_in_advance_is_not_followed(tmp_path):
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "key", b"private")
    assert not (tmp_path / "elsewhere").exists()


def test_the_officer_key_signs_and_its_public_half_verifies(tmp_path):
    create_officer_key(tmp_path / "officer.key", tmp_path / "officer.pub")
    signature = load_officer_key(tmp_path / "officer.key").sign(b"policy book 7")
    load_officer_public_key(tmp_path / "officer.pub").verify(signature, b"policy book 7")
    assert stat.S_IMODE((tmp_path / "officer.key").stat().st_mode) == 0o600


def test_another_kind_of_key_is_no_officer_key(tmp_path):
    CertificateAuthority.create("ca", KeyType.ECDSA_P256).save(tmp_path / "ca.pem", tmp_path / "ca.key")
    with pytest.raises(ValueError, match="no ML-DSA-65 key"):
        load_officer_key(tmp_path / "ca.key")


def test_names_are_uris_of_their_kind():
    assert node_uri(NodeId("norte")) == "urn:trenza:node:norte"
    assert device_uri("alice-1") == "urn:trenza:device:alice-1"
    assert sae_uri(SaeId("bank")) == "urn:trenza:sae:bank"
    assert operator_uri("ana") == "urn:trenza:operator:ana"
