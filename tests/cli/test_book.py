"""The policy book read, signed and handed to the nodes; and applications that come and go with it."""

import json

import msgspec
import pytest

from trenza.app.pki import load_officer_public_key
from trenza.base.errors import InvalidRequestError
from trenza.cli.sae import with_sae, without_sae
from trenza.core.policy import Book, NodeEntry, Policy, Rule, SaeEntry, SignedBook, TenantEntry, open_book
from trenza.net.http import Response

BOOK = Book(
    version=1,
    nodes=(NodeEntry("Alice", "127.0.0.1:1"), NodeEntry("Bob", "127.0.0.1:2")),
    links=(),
    saes=(SaeEntry("sae-alice", "Alice"), SaeEntry("sae-bob", "Bob")),
    policies=(Policy("default", ("hybrid-catkdf",)), Policy("available", ("hybrid-catkdf", "exchange-catkdf"))),
    rules=(Rule(("sae-alice", "sae-bob"), "default"),),
)


def opened(network, signed: bytes) -> Book:
    officer = load_officer_public_key(network.state / "officer.pem").public_bytes_raw()
    return open_book(SignedBook.decode(signed), officer=officer, newer_than=0)


@pytest.fixture
def drawn_up(network, tmp_path):
    """A network whose nodes take any book, and a book in a file."""
    network.answers[("*", "/v1/book")] = lambda _node, _query, body: {"version": opened(network, body).version}
    (network.state / "book.json").write_bytes(msgspec.json.encode(BOOK))
    return network


def sign(network, file, output, *options):
    return network.run_alone(
        "book", "sign", str(file), "--key", str(network.state / "officer.key"), "-o", str(output), *options
    )


def test_a_book_is_shown_edited_signed_and_installed(drawn_up, tmp_path):
    shown = drawn_up.run_json("book", "show")
    shown["rules"][0]["policy"] = "available"
    edited, signed = tmp_path / "edited.json", tmp_path / "signed.json"
    edited.write_text(json.dumps(shown))
    assert sign(drawn_up, edited, signed, "--bump").exit_code == 0
    installed = drawn_up.run_json("book", "install", str(signed))
    assert installed == {"version": 2, "nodes": ["Alice", "Bob"]}
    assert opened(drawn_up, signed.read_bytes()).rules[0].policy == "available"
    assert (drawn_up.state / "book.json").read_bytes() == signed.read_bytes()  # kept as the network's own


def test_people_read_who_may_share_keys_with_whom(drawn_up):
    told = drawn_up.run("book", "show").stdout
    assert "sae-alice" in told
    assert "urn:trenza:sae:sae-bob" in told
    assert "hybrid-catkdf" in told


def test_a_book_with_mistakes_is_not_signed_and_all_of_them_are_listed(drawn_up, tmp_path):
    file = tmp_path / "book.json"
    wrong = msgspec.structs.replace(BOOK, rules=(Rule(("sae-alice", "sae-carol"), "none"),))
    file.write_bytes(msgspec.json.encode(wrong))
    result = sign(drawn_up, file, tmp_path / "signed.json")
    assert result.exit_code == 1
    assert "no SAE is called sae-carol" in result.stderr
    assert "no policy is called none" in result.stderr
    assert not (tmp_path / "signed.json").exists()


def test_another_key_than_the_officers_is_refused_as_such(drawn_up, tmp_path):
    result = drawn_up.run_alone(
        "book", "sign", str(drawn_up.state / "book.json"), "--key", __file__, "-o", str(tmp_path / "signed.json")
    )
    assert result.exit_code == 1
    assert "private key" in result.stderr


def test_a_node_that_has_the_book_from_a_peer_already_is_no_failure(drawn_up, tmp_path):
    stale = Response(409, b'{"error": "stale", "message": "version 1 is not newer than version 1"}')
    drawn_up.answers[("Bob", "/v1/book")] = stale
    sign(drawn_up, drawn_up.state / "book.json", tmp_path / "signed.json")
    assert drawn_up.run("book", "install", str(tmp_path / "signed.json")).exit_code == 0


def test_a_book_that_no_node_takes_is_not_kept(drawn_up, tmp_path):
    drawn_up.answers[("*", "/v1/book")] = Response(409, b'{"error": "stale", "message": "not newer"}')
    sign(drawn_up, drawn_up.state / "book.json", tmp_path / "signed.json", "--bump")
    before = (drawn_up.state / "book.json").read_bytes()
    result = drawn_up.run("book", "install", str(tmp_path / "signed.json"), "--json")
    assert json.loads(result.stderr)["remote_code"] == "stale"
    assert (drawn_up.state / "book.json").read_bytes() == before


def test_an_application_comes_and_goes_without_a_restart(drawn_up):
    added = drawn_up.run_json("sae", "new", "sae-new", "--node", "Alice", "--with", "sae-bob")
    assert added["book_version"] == 2
    key = drawn_up.run_json("key", "get", "--from", "sae-new", "--to", "sae-bob")
    assert key["keys"][0]["equal"]
    drawn_up.run_json("sae", "revoke", "sae-new")
    book = opened(drawn_up, (drawn_up.state / "book.json").read_bytes())
    assert "sae-new" not in book.sae_by_name
    assert len(book.revoked) == 1
    assert "no application is called sae-new" in drawn_up.run("key", "get", "--from", "sae-new", "--to", "x").stderr


def test_an_application_of_no_node_changes_nothing(drawn_up):
    result = drawn_up.run("sae", "new", "sae-new", "--node", "Carol", "--with", "sae-bob")
    assert result.exit_code == 1
    assert "no node is called Carol" in result.stderr
    assert "sae-new" not in (drawn_up.state / "ready.json").read_text()


def test_an_application_is_added_under_the_policy_that_was_asked_for():
    book = with_sae(BOOK, SaeEntry("sae-new", "Alice"), ["sae-bob", "sae-bob"], "available")
    assert book.rules[1:] == (Rule(("sae-new", "sae-bob"), "available"),)
    assert book.version == 2


def test_an_application_is_added_on_the_account_of_a_tenant_that_there_is():
    book = msgspec.structs.replace(BOOK, tenants=(TenantEntry("bank"),))
    found = with_sae(book, SaeEntry("sae-new", "Alice", tenant="bank"), ["sae-bob"], None)
    assert found.tenant_of(found.sae_by_name["sae-new"]).name == "bank"
    with pytest.raises(InvalidRequestError, match="no tenant is called bunk; there are bank, default"):
        with_sae(book, SaeEntry("sae-new", "Alice", tenant="bunk"), ["sae-bob"], None)


def test_names_that_are_taken_or_unknown_are_refused():
    with pytest.raises(InvalidRequestError, match="already"):
        with_sae(BOOK, SaeEntry("sae-bob", "Alice"), ["sae-alice"], None)
    with pytest.raises(InvalidRequestError, match="not a name"):
        with_sae(BOOK, SaeEntry("sae new", "Alice"), ["sae-alice"], None)
    with pytest.raises(InvalidRequestError, match="sae-alice, sae-bob"):
        without_sae(BOOK, "sae-carol", None)


def test_an_application_takes_its_rules_with_it():
    assert without_sae(BOOK, "sae-bob", None).rules == ()
