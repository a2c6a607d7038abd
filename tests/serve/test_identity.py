from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from trenza.base.errors import UnauthorisedError
from trenza.base.names import SaeId
from trenza.net.tls import PeerIdentity, fingerprint_of
from trenza.serve.identity import Callers, NameKind, certificate_identity

KEY = ec.generate_private_key(ec.SECP256R1())
URI = x509.UniformResourceIdentifier
DNS = x509.DNSName


def certificate(*alternatives, names=("bank",)):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False) for name in names])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(7)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(KEY, hashes.SHA256())


def peer(of):
    return PeerIdentity(of, fingerprint_of(of), (), "X25519MLKEM768", "TLSv1.3")


@pytest.mark.parametrize(
    ("shown", "identity"),
    [
        (certificate(URI("urn:trenza:sae:bank")), "urn:trenza:sae:bank"),
        (certificate(URI("urn:trenza:sae:bank"), DNS("a.example"), DNS("b.example")), "urn:trenza:sae:bank"),
        (certificate(DNS("Bank.example")), "bank.example"),
        (certificate(x509.RFC822Name("a@bank.example")), "bank"),
        (certificate(), "bank"),
    ],
)
def test_the_first_kind_of_name_that_is_present_decides(shown, identity):
    assert certificate_identity(shown) == identity


def test_the_order_is_configuration():
    shown = certificate(URI("urn:trenza:sae:bank"), DNS("bank.example"), names=("Bank of Tests",))
    assert certificate_identity(shown, (NameKind.COMMON_NAME, NameKind.URI)) == "Bank of Tests"
    assert certificate_identity(shown, (NameKind.DNS,)) == "bank.example"


@pytest.mark.parametrize(
    "shown",
    [
        certificate(URI("urn:trenza:sae:bank"), URI("urn:trenza:sae:mint"), DNS("bank.example")),
        certificate(DNS("a.example"), DNS("b.example")),
        certificate(names=("bank", "mint")),
        certificate(URI(""), DNS("bank.example")),
        certificate(names=()),
    ],
)
def test_a_certificate_with_two_answers_or_none_is_refused(shown):
    with pytest.raises(UnauthorisedError):
        certificate_identity(shown)


def test_no_other_kind_is_looked_at_than_the_order_names():
    with pytest.raises(UnauthorisedError):
        certificate_identity(certificate(), (NameKind.URI, NameKind.DNS))


def test_a_caller_is_looked_up_on_every_request():
    book = {"urn:trenza:sae:bank": SaeId("bank")}
    callers = Callers(book.get)
    bank = peer(certificate(URI("urn:trenza:sae:bank")))
    assert callers.sae(bank) == "bank"
    book.clear()  # a new book no longer knows the bank, and its connection is still open
    with pytest.raises(UnauthorisedError):
        callers.sae(bank)


def test_a_revoked_certificate_is_refused_on_an_open_connection():
    revoked = set()
    callers = Callers({"bank": SaeId("bank")}.get, is_revoked=revoked.__contains__)
    bank = peer(certificate())
    assert callers.sae(bank) == "bank"
    revoked.add(bank.fingerprint)
    with pytest.raises(UnauthorisedError):
        callers.sae(bank)


def test_who_is_known_is_not_looked_up_again_until_the_book_changes():
    asked, shown = [], peer(certificate(URI("urn:trenza:sae:bank")))
    known = {"urn:trenza:sae:bank": SaeId("bank")}
    book = {"saes": known, "revoked": ()}

    def registry(identity):
        asked.append(identity)
        return book["saes"].get(identity)

    callers = Callers(registry, is_revoked=lambda one: one in book["revoked"], version=lambda: book)
    assert [callers.sae(shown) for _ in range(3)] == [SaeId("bank")] * 3
    assert len(asked) == 1
    book = {"saes": known, "revoked": (shown.fingerprint,)}
    with pytest.raises(UnauthorisedError):
        callers.sae(shown)
    book = {"saes": {}, "revoked": ()}
    with pytest.raises(UnauthorisedError):
        callers.sae(shown)
    book = {"saes": known, "revoked": ()}
    assert callers.sae(shown) == SaeId("bank")
