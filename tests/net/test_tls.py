from pathlib import Path

import pytest

from trenza.net.tls import Groups, OldestTls, TlsIdentity, client_context, server_context


def test_hybrid_groups_below_tls_1_3_are_a_contradiction(pki):
    with pytest.raises(ValueError, match=r"TLS 1\.3 only"):
        server_context(pki.identity("norte"), groups=Groups.HYBRID_ONLY, oldest=OldestTls.TLS_1_2)


def test_a_key_that_is_not_the_certificates_is_refused(pki):
    norte, sur = pki.identity("norte"), pki.identity("sur")
    with pytest.raises(ValueError, match="cannot use the TLS files"):
        client_context(TlsIdentity(norte.certificate_file, sur.private_key_file, norte.trust_file))


def test_a_missing_file_is_named(pki):
    norte = pki.identity("norte")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pem"):
        server_context(TlsIdentity(norte.certificate_file, norte.private_key_file, Path("/nowhere.pem")))


def test_a_context_shows_no_more_than_its_policy(pki):
    assert "openssl" not in repr(server_context(pki.identity("norte")))
