"""Everything wrong that a stranger, a broken client or an attacker can say to a door that is open on a real socket.

Every case gets the standard's status and an Error body, nothing is consumed by any of it, and the door goes on.
"""

import contextlib
import datetime as dt
import json
import socket
import ssl
import uuid

import pytest
from tests.e2e.product import JSON, Application, bits_of, until

from trenza.app.pki import CertificateAuthority, KeyType, node_uri, sae_uri

ENC, DEC, STATUS = ("/api/v1/keys/{}/" + name for name in ("enc_keys", "dec_keys", "status"))
TO_BOB = ENC.format("sae-bob")
FROM_BOB = DEC.format("sae-bob")
UNKNOWN = "550e8400-e29b-41d4-a716-446655440000"
NOT_FOUND = "one or more keys specified are not found on KME"
WHOLE_BYTES = "size shall be a multiple of 8"
UNSUPPORTED = "not all extension_mandatory parameters are supported"
UNMET = "not all extension_mandatory request options could be met"


@pytest.fixture(scope="module")
def alice(two_nodes):
    return two_nodes.application("sae-alice")


@pytest.fixture(scope="module")
def bob(two_nodes):
    return two_nodes.application("sae-bob")


@pytest.fixture(autouse=True)
def nothing_is_lost(two_nodes):
    """After every test: no key was issued or delivered that the test did not say, and the next one works."""
    sides = {"sae-alice": two_nodes.application("sae-alice"), "sae-bob": two_nodes.application("sae-bob")}
    before = counted(two_nodes)
    received = {"keys_issued": 0, "keys_delivered": 0}
    yield received
    assert counted(two_nodes) == {name: before[name] + received[name] for name in received}
    given = sides["sae-alice"].keys("sae-bob")
    assert sides["sae-bob"].fetch("sae-alice", *given) == given


def counted(network):
    names = ("keys_issued", "keys_delivered")
    counters = [network.status(node)["counters"] for node in network.ready["nodes"]]
    return {name: sum(one.get(name, 0) for one in counters) for name in names}


def is_error(document, message=None):
    assert set(document) <= {"message", "details"}, document
    assert document["message"]
    assert message is None or message in document["message"], document
    assert all(isinstance(pair, dict) for pair in document.get("details", []))


# --- requests that are wrong ---------------------------------------------------------------------------------------

WRONG_MEMBERS = {
    "size 0": ({"size": 0}, "size"),
    "size -8": ({"size": -8}, "size"),
    "size 257": ({"size": 257}, WHOLE_BYTES),
    "size 7": ({"size": 7}, WHOLE_BYTES),
    "size abc": ({"size": "abc"}, "size"),
    "size as text": ({"size": "256"}, "size"),
    "size 256.0": ('{"size": 256.0}', "size"),
    "size 2.56e2": ('{"size": 2.56e2}', "size"),
    "size true": ({"size": True}, "size"),
    "size null": ({"size": None}, "size"),
    "size an array": ({"size": [256]}, "size"),
    "size 10^9": ({"size": 10**9}, "size"),
    "size 10^30": ({"size": 10**30}, "size"),
    "size below the policy": ({"size": 8}, "size"),
    "number 0": ({"number": 0}, "number"),
    "number -1": ({"number": -1}, "number"),
    "number 10^9": ({"number": 10**9}, "number"),
    "number one more than told": ({"number": 129}, "number"),
    "number as text": ({"number": "1"}, "number"),
    "number 1.5": ({"number": 1.5}, "number"),
    "number false": ({"number": False}, "number"),
    "size twice": ('{"size": 256, "size": 512}', None),
    "number twice": ('{"number": 1, "number": 1}', None),
    "not JSON": ("size=256", None),
    "half of JSON": ('{"size": 25', None),
    "JSON and more": ('{"size": 256} {"size": 256}', None),
    "not a number": ('{"size": NaN}', None),
    "an array": ("[]", None),
    "a string": ('"size"', None),
    "null": ("null", None),
    "not UTF-8": (b'{"a": "\xff\xfe"}', None),
    "nested a thousand times": ("[" * 30_000, None),
    "additional targets as text": ({"additional_slave_SAE_IDs": "sae-bob-2"}, "additional_slave_SAE_IDs"),
    "additional targets as numbers": ({"additional_slave_SAE_IDs": [1]}, "additional_slave_SAE_IDs"),
    "additional target twice": ({"additional_slave_SAE_IDs": ["sae-bob-2", "sae-bob-2"]}, "once"),
    "additional target of no name": ({"additional_slave_SAE_IDs": [""]}, "SAE IDs"),
    "additional target is the slave": ({"additional_slave_SAE_IDs": ["sae-bob"]}, "neither"),
    "additional target is the master": ({"additional_slave_SAE_IDs": ["sae-alice"]}, "neither"),
    "mandatory extension of nobody": ({"extension_mandatory": [{"acme_colour": "red"}]}, UNSUPPORTED),
    "mandatory extension no array": ({"extension_mandatory": {"trenza_max_hops": 1}}, "extension_mandatory"),
    "mandatory extension of no value": ({"extension_mandatory": [{"trenza_max_hops": "one"}]}, UNMET),
    "mandatory extension twice": (
        {"extension_mandatory": [{"trenza_max_hops": 1}, {"trenza_max_hops": 2}]},
        "once",
    ),
    "mandatory recipe of no policy": ({"extension_mandatory": [{"trenza_recipe": "qkd-only"}]}, UNMET),
    "mandatory hops that none have": ({"extension_mandatory": [{"trenza_max_hops": 0}]}, UNMET),
}


@pytest.mark.parametrize(("body", "message"), WRONG_MEMBERS.values(), ids=WRONG_MEMBERS)
def test_a_wrong_key_request_gets_400(alice, body, message):
    code, document = alice.ask("POST", TO_BOB, body)
    assert code == 400, document
    is_error(document, message)


WRONG_IDS = {
    "unknown": ({"key_IDs": [{"key_ID": UNKNOWN}]}, NOT_FOUND),
    "unknown, of all zeros": ({"key_IDs": [{"key_ID": str(uuid.UUID(int=0))}]}, NOT_FOUND),
    "many unknown": ({"key_IDs": [{"key_ID": str(uuid.UUID(int=one))} for one in range(20)]}, NOT_FOUND),
    "too many": ({"key_IDs": [{"key_ID": str(uuid.UUID(int=one))} for one in range(129)]}, "max_key_per_request"),
    "none": ({"key_IDs": []}, "key_IDs"),
    "missing": ({}, "key_IDs"),
    "null": ({"key_IDs": None}, "key_IDs"),
    "bare text": ({"key_IDs": [UNKNOWN]}, "bare string"),
    "no UUID": ({"key_IDs": [{"key_ID": "abc"}]}, "UUID"),
    "a UUID in braces": ({"key_IDs": [{"key_ID": "{" + UNKNOWN + "}"}]}, "UUID"),
    "a UUID without hyphens": ({"key_IDs": [{"key_ID": UNKNOWN.replace("-", "")}]}, "UUID"),
    "a number": ({"key_IDs": [{"key_ID": 7}]}, "UUID"),
    "without key_ID": ({"key_IDs": [{"id": UNKNOWN}]}, "UUID"),
    "one twice": ({"key_IDs": [{"key_ID": UNKNOWN}, {"key_ID": UNKNOWN.upper()}]}, "once"),
    "key_IDs twice": ('{"key_IDs": [], "key_IDs": []}', None),
}


@pytest.mark.parametrize(("body", "message"), WRONG_IDS.values(), ids=WRONG_IDS)
def test_wrong_key_ids_get_400(alice, body, message):
    code, document = alice.ask("POST", FROM_BOB, body)
    assert code == 400, document
    is_error(document, message)


WRONG_REQUESTS = {
    "size in the query 0": ("GET", TO_BOB + "?size=0", 400),
    "size in the query -8": ("GET", TO_BOB + "?size=-8", 400),
    "size in the query abc": ("GET", TO_BOB + "?size=abc", 400),
    "size in the query 257": ("GET", TO_BOB + "?size=257", 400),
    "size in the query 10^9": ("GET", TO_BOB + "?size=1000000000", 400),
    "size in the query twice": ("GET", TO_BOB + "?size=256&size=256", 400),
    "number in the query 0": ("GET", TO_BOB + "?number=0", 400),
    "number in the query of other digits": ("GET", TO_BOB + "?number=%D9%A1", 400),
    "a query that is not percent-encoded": ("GET", TO_BOB + "?number=%zz", 400),
    "a mandatory extension in the query": ("GET", TO_BOB + "?extension_mandatory=x", 400),
    "two key IDs in the query": ("GET", FROM_BOB + f"?key_ID={UNKNOWN}&key_ID={UNKNOWN}", 400),
    "no key ID in the query": ("GET", FROM_BOB, 400),
    "PUT": ("PUT", TO_BOB, 405),
    "DELETE": ("DELETE", FROM_BOB, 405),
    "PATCH": ("PATCH", STATUS.format("sae-bob"), 405),
    "POST of status": ("POST", STATUS.format("sae-bob"), 405),
    "no path": ("GET", "/", 404),
    "another edition's path": ("GET", "/api/v2/keys/sae-bob/status", 404),
    "a slash too many": ("GET", STATUS.format("sae-bob") + "/", 404),
    "another method": ("GET", "/api/v1/keys/sae-bob/void", 404),
    "the management door's path": ("GET", "/v1/status", 404),
    "an SAE that is not percent-encoded": ("GET", STATUS.format("%zz"), 400),
    "an SAE that is not UTF-8": ("GET", STATUS.format("%ff"), 400),
    "an SAE of no name": ("GET", STATUS.format(""), 400),
    "an SAE of a line break": ("GET", STATUS.format("sae-bob%0d%0a"), 400),
    "an unknown SAE": ("GET", STATUS.format("nobody"), 401),
    "an SAE without a rule": ("GET", ENC.format("sae-carol"), 401),
    "itself": ("GET", ENC.format("sae-alice"), 401),
    "a node": ("GET", ENC.format("Bob"), 401),
}


@pytest.mark.parametrize(("verb", "target", "status"), WRONG_REQUESTS.values(), ids=WRONG_REQUESTS)
def test_a_wrong_target_or_verb_is_refused(alice, verb, target, status):
    code, document = alice.ask(verb, target)
    assert code == status, document
    is_error(document, "unauthorised" if status == 401 else None)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": ""},
        {"Content-Encoding": "gzip"},
    ],
    ids=lambda headers: "-".join(headers.values()) or "none",
)
def test_another_media_type_gets_415(alice, headers):
    code, document = alice.ask("POST", TO_BOB, '{"size": 256}', headers=headers)
    assert code == 415
    is_error(document)


def test_a_body_of_two_megabytes_gets_413(alice):
    code, document = alice.ask("POST", TO_BOB, '{"size": 256, "more": "' + "x" * 2_000_000 + '"}')
    assert code == 413
    is_error(document)


def test_an_unknown_additional_target_gets_401(alice):
    code, document = alice.enc("sae-bob", additional_slave_SAE_IDs=["nobody"])
    assert code == 401
    is_error(document, "unauthorised")


# --- keys that are somebody else's ---------------------------------------------------------------------------------


def test_a_good_id_among_bad_ones_is_not_consumed(alice, bob, nothing_is_lost):
    given = alice.keys("sae-bob", number=2)
    for bad in (UNKNOWN, str(uuid.uuid4())):
        for ids in ([*given, bad], [bad, *given]):
            code, document = bob.dec("sae-alice", *ids)
            assert code == 400
            is_error(document, NOT_FOUND)
    assert bob.fetch("sae-alice", *given) == given
    nothing_is_lost.update(keys_issued=2, keys_delivered=2)


def test_a_key_is_fetched_once(alice, bob, nothing_is_lost):
    given = alice.keys("sae-bob", number=2)
    first, second = given
    assert bob.fetch("sae-alice", first) == {first: given[first]}
    for ids in ([first], [second, first]):
        code, document = bob.dec("sae-alice", *ids)
        assert code == 400
        is_error(document, NOT_FOUND)
    assert bob.fetch("sae-alice", second) == {second: given[second]}
    nothing_is_lost.update(keys_issued=2, keys_delivered=2)


def test_nobody_but_its_target_fetches_a_key(two_nodes, alice, bob, nothing_is_lost):
    (key_id,) = given = alice.keys("sae-bob")
    attempts = {
        "the initiator": (alice, "sae-bob"),
        "another target of the initiator": (two_nodes.application("sae-bob-2"), "sae-alice"),
        "another pair": (two_nodes.application("sae-bob-2"), "sae-alice-2"),
        "another pair, at the initiator's node": (two_nodes.application("sae-alice-2"), "sae-bob-2"),
        "its target at another node": (two_nodes.application("sae-bob", node="Alice"), "sae-alice"),
        "its target, for another initiator": (bob, "sae-alice-2"),
    }
    for who, (application, initiator) in attempts.items():
        code, document = application.dec(initiator, key_id)
        assert code in {400, 401}, who
        is_error(document)
    assert bob.fetch("sae-alice", key_id) == given
    nothing_is_lost.update(keys_issued=1, keys_delivered=1)


def test_a_key_id_of_which_one_bit_differs_is_unknown(alice, bob, nothing_is_lost):
    (key_id,) = given = alice.keys("sae-bob")
    for bit in range(0, 128, 11):
        forged = uuid.UUID(int=uuid.UUID(key_id).int ^ (1 << bit))
        code, document = bob.dec("sae-alice", str(forged))
        assert code == 400
        is_error(document, NOT_FOUND)
    assert bob.fetch("sae-alice", key_id) == given
    nothing_is_lost.update(keys_issued=1, keys_delivered=1)


# --- callers who are nobody ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def issue(two_nodes, tmp_path_factory):
    """Issue certificates: by default from the authority that the doors trust."""
    folder = tmp_path_factory.mktemp("strangers")
    pki = two_nodes.state / "pki"
    trusted = CertificateAuthority.load(pki / "application-ca.pem", pki / "application-ca.key")
    count = iter(range(1000))

    def issued(subject="sae-alice", *, authority=trusted, **said):
        stem = folder / str(next(count))
        certificate, key = stem.with_suffix(".pem"), stem.with_suffix(".key")
        authority.issue(subject, **({"uris": [sae_uri("sae-alice")], "server": False} | said)).save(certificate, key)
        return two_nodes.application("sae-alice", certificate=str(certificate), private_key=str(key))

    return issued


UNCLEAR = {
    "two URIs": {"uris": [sae_uri("sae-alice"), sae_uri("sae-bob")]},
    "the same URI twice": {"uris": [sae_uri("sae-alice"), sae_uri("sae-alice")]},
    "a URI of nobody": {"uris": [sae_uri("nobody")], "dns_names": ["sae-alice"]},
    "a URI in other case": {"uris": ["URN:trenza:sae:sae-alice"]},
    "a node's URI": {"uris": [node_uri("Alice")]},
    "an operator's URI": {"uris": ["urn:trenza:operator:local"]},
    "a DNS name": {"uris": [], "dns_names": ["sae-alice"]},
    "an address": {"uris": [], "ips": ["127.0.0.1"]},
    "an SAE of another node": {"uris": [sae_uri("sae-bob")]},
}


@pytest.mark.parametrize("said", UNCLEAR.values(), ids=UNCLEAR)
def test_a_certificate_that_names_nobody_clearly_gets_401(issue, said):
    stranger = issue(**said)
    for code, document in (stranger.status("sae-bob"), stranger.enc("sae-bob"), stranger.dec("sae-bob", UNKNOWN)):
        assert code == 401
        is_error(document, "unauthorised")


def is_refused_in_the_handshake(stranger: Application):
    with pytest.raises((ssl.SSLError, ConnectionError)):
        stranger.status("sae-bob")


def test_an_expired_certificate_is_refused_in_the_handshake(issue):
    day = dt.timedelta(days=1)
    is_refused_in_the_handshake(issue(valid_from=dt.datetime.now(dt.UTC) - 2 * day, valid_for=day))


def test_a_certificate_that_is_not_valid_yet_is_refused_in_the_handshake(issue):
    is_refused_in_the_handshake(issue(valid_from=dt.datetime.now(dt.UTC) + dt.timedelta(days=1)))


def test_a_certificate_of_another_authority_is_refused_in_the_handshake(issue):
    foreign = CertificateAuthority.create("Trenza two-nodes application", KeyType.ECDSA_P256)
    is_refused_in_the_handshake(issue(authority=foreign))


def test_a_servers_certificate_is_refused_in_the_handshake(issue):
    is_refused_in_the_handshake(issue(client=False, server=True))


def test_no_certificate_is_refused_in_the_handshake(two_nodes):
    class Nameless(Application):
        def context(self):
            return ssl.create_default_context(cafile=two_nodes.ready["saes"]["sae-alice"]["ca"])

    is_refused_in_the_handshake(Nameless("", two_nodes.ready["nodes"]["Alice"]["etsi014"], "", "", ""))


def test_an_application_is_no_operator(two_nodes, alice):
    management = two_nodes.ready["nodes"]["Alice"]["management"]
    files = two_nodes.ready["saes"]["sae-alice"]
    internal = two_nodes.ready["operator"]["ca"]
    is_refused_in_the_handshake(Application("", management, files["certificate"], files["private_key"], internal))


# --- what is not HTTP, or hardly ------------------------------------------------------------------------------------


def said_to(application, said: bytes) -> bytes:
    """Say something over a connection of its own; return all that comes until the other side ends it."""
    answer = b""
    with application.socket() as connection:
        connection.sendall(said)
        while more := connection.recv(65_536):
            answer += more
    return answer


def answers_in(text: bytes):
    """Return (status, document) of every response."""
    found = []
    while text:
        head, _, rest = text.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(fields["content-length"])
        found.append((int(lines[0].split()[1]), json.loads(rest[:length])))
        text = rest[length:]
    return found


def request(target=TO_BOB, *fields: str, verb="POST", version="HTTP/1.1", body=b"") -> bytes:
    lines = [f"{verb} {target} {version}", "Host: here", f"Content-Type: {JSON}", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


CLOSE = "Connection: close"
NOT_HTTP = {
    "garbage": (bytes(range(256)) * 4, 405),
    "garbage that begins like a verb": (b"GET\x00/\x00HTTP\r\n\r\n", 405),
    "garbage after a verb": (b"GET \x00\x01\x02\r\n\r\n", 400),
    "another protocol": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "another version": (request(version="HTTP/3.0"), 400),
    "a verb of nobody": (request(verb="BRAID"), 405),
    "no host": (b"POST " + TO_BOB.encode() + b" HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
    "two hosts": (request(TO_BOB, "Host: there", "Content-Length: 0"), 400),
    "Content-Length twice": (request(TO_BOB, "Content-Length: 2", "Content-Length: 2", body=b"{}"), 400),
    "two Content-Lengths": (request(TO_BOB, "Content-Length: 2", "Content-Length: 12", body=b"{}"), 400),
    "a Content-Length below zero": (request(TO_BOB, "Content-Length: -2", body=b"{}"), 400),
    "a Content-Length of letters": (request(TO_BOB, "Content-Length: two", body=b"{}"), 400),
    "a length and chunks": (request(TO_BOB, "Content-Length: 2", "Transfer-Encoding: chunked", body=b"2\r\n{}"), 400),
    "chunks of no size": (request(TO_BOB, "Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n"), 400),
    "a field without a name": (request(TO_BOB, ": x", "Content-Length: 0"), 400),
    "a field over two lines": (request(TO_BOB, "X: a\r\n b", "Content-Length: 0"), 400),
    "a line break in a field": (request(TO_BOB, "X: a\rb", "Content-Length: 0"), 400),
    "a field that never ends": (request(TO_BOB, "X: " + "x" * 40_000), 431),
    "a target that never ends": (request("/" + "x" * 40_000), 414),
    "a body that is announced too large": (request(TO_BOB, "Content-Length: 2000000"), 413),
}


@pytest.mark.parametrize(("said", "status"), NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_is_not_http_gets_one_refusal_and_the_end(alice, said, status):
    ((code, document),) = answers_in(said_to(alice, said))
    assert code == status
    is_error(document)


def test_a_second_request_hidden_behind_a_broken_one_is_not_heard(alice):
    hidden = request(TO_BOB, "Content-Length: 0")
    broken = request(TO_BOB, "Content-Length: 2", "Content-Length: 0", body=b"{}")
    assert [code for code, _ in answers_in(said_to(alice, broken + hidden))] == [400]


def test_garbage_in_place_of_tls_ends_the_connection(alice):
    with socket.create_connection(alice.address, 30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        answer = b""
        while more := connection.recv(4096):
            answer += more
    assert not answer.startswith(b"HTTP")


def test_http_1_0_and_chunks_are_answered(alice, bob, nothing_is_lost):
    body = b'{"size": 256}'
    old = request(TO_BOB, f"Content-Length: {len(body)}", version="HTTP/1.0", body=body)
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    chunked = request(TO_BOB, "Transfer-Encoding: chunked", CLOSE, body=pieces)
    given = {}
    for said in (old, chunked):
        ((code, container),) = answers_in(said_to(alice, said))
        assert code == 200
        given |= bits_of(container)
    assert bob.fetch("sae-alice", *given) == given
    nothing_is_lost.update(keys_issued=2, keys_delivered=2)


def test_a_client_that_closes_its_half_gets_its_answer(alice, bob, nothing_is_lost):
    ((code, container),) = answers_in(said_then_closed(alice, request(TO_BOB, "Content-Length: 0")))
    assert code == 200
    given = bits_of(container)
    assert bob.fetch("sae-alice", *given) == given
    nothing_is_lost.update(keys_issued=1, keys_delivered=1)


def said_then_closed(application, said: bytes) -> bytes:
    """Say something, end our half by TLS's own goodbye, and return all that still comes."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = application.context().wrap_bio(incoming, outgoing, server_hostname=application.address[0])
    with socket.create_connection(application.address, 30) as connection:

        def done(step):
            """Return what a step gives, bringing bytes to and fro until it gives something."""
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    connection.sendall(outgoing.read())
                    more = connection.recv(65_536)
                    incoming.write(more) if more else incoming.write_eof()

        done(tls.do_handshake)
        tls.write(said)
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        connection.sendall(outgoing.read())
        answer = b""
        with contextlib.suppress(ssl.SSLZeroReturnError):
            while more := done(lambda: tls.read(65_536)):
                answer += more
        return answer


def test_a_client_that_goes_away_in_the_middle_takes_nothing(two_nodes, alice):
    open_before = open_connections(two_nodes)
    with alice.socket() as connection:
        connection.sendall(request(TO_BOB, "Content-Length: 13", body=b'{"siz'))
        until("the connection is open", lambda: open_connections(two_nodes) > open_before)
    until("the connection is gone", lambda: open_connections(two_nodes) <= open_before)


def open_connections(network):
    doors = {one["door"]: one["connections"] for one in network.status("Alice")["tls"]}
    return doors["application"]


@pytest.mark.slow
def test_a_client_that_never_finishes_its_request_gets_408(alice):
    """A byte now and then does not keep a request alive: its deadline counts from its first byte."""
    with alice.socket() as connection:
        connection.settimeout(0.5)  # between two bytes, and for the answer to come
        answer = b""
        for byte in request(TO_BOB, "Content-Length: 0")[:100]:
            connection.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65_536)
                break
    ((code, document),) = answers_in(answer)
    assert code == 408
    is_error(document)
