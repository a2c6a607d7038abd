"""The doors of an emulated device, over a real emulated pair."""

import asyncio
import json
import random
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from trenza.base.names import SaeId
from trenza.base.units import Bits, Decibel, Nanoseconds, Seconds
from trenza.net.http import Request
from trenza.net.tls import PeerIdentity
from trenza.qkd.emulator.pair import EmulatedPair
from trenza.qkd.emulator.settings import End, KeyLimits, PairSettings
from trenza.qkd.physics.devices import DEVICE_CLASSES
from trenza.serve.device import DeviceNames, TelemetryDoor, device_key_door
from trenza.wire import etsi014
from trenza.wire.telemetry import TelemetryState, decode_reading

JSON = {b"content-type": b"application/json"}
STOCK = Bits(256 * 100)


class HandClock:
    seconds = 1000.0

    def now(self):
        return Nanoseconds(1_760_000_000_000_000_000 + round(self.seconds * 1e9))

    def elapsed(self):
        return Seconds(self.seconds)


class SeededEntropy:
    def __init__(self):
        self._random = random.Random(1)

    def token(self, count):
        return bytearray(self._random.randbytes(count))


def certificate(uri):
    key = ec.generate_private_key(ec.SECP256R1())
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .sign(key, hashes.SHA256())
    )


URIS = {name: f"urn:trenza:node:{name}" for name in ("norte", "sur", "este")} | {"operator": "urn:trenza:operator:1"}
PEERS = {
    name: PeerIdentity(certificate(uri), f"fingerprint of {name}", (uri,), "X25519MLKEM768", "TLSv1.3")
    for name, uri in URIS.items()
}


def a_pair(clock=None):
    settings = PairSettings(
        device_class=DEVICE_CLASSES["decoy-bb84-1ghz"],
        loss_db=Decibel(14.3),
        initial_stock=STOCK,
        capacity=Bits(STOCK * 2),
        limits=KeyLimits(max_keys_per_request=8),
    )
    return EmulatedPair(settings, clock=clock or HandClock(), entropy=SeededEntropy())


def key_door(pair, end):
    here, there = ("norte", "sur") if end is End.A else ("sur", "norte")
    names = DeviceNames(f"qkd-{here}", f"qkd-{there}", SaeId(here), SaeId(there), URIS[here])
    return device_key_door(pair.end(end), names)


def ask(door, method, target, caller, body=b""):
    path, _, query = target.encode().partition(b"?")
    answer = door(Request(method.encode(), path, query, JSON, body, PEERS[caller]))
    return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer


def test_what_one_end_draws_the_other_fetches_once():
    pair = a_pair()
    drawn = etsi014.decode_container(
        ask(key_door(pair, End.A), "GET", "/api/v1/keys/sur/enc_keys?number=3", "norte").body
    )
    wanted = etsi014.encode_key_ids([key.key_id for key in drawn])
    far = key_door(pair, End.B)
    fetched = ask(far, "POST", "/api/v1/keys/norte/dec_keys", "sur", wanted)
    assert etsi014.decode_container(fetched.body) == drawn
    assert drawn[0].extension == etsi014.KeyExtension(supply="warm")

    again = ask(far, "POST", "/api/v1/keys/norte/dec_keys", "sur", wanted)
    assert (again.status, json.loads(again.body)["message"]) == (400, etsi014.KEYS_NOT_FOUND)


def test_the_status_counts_what_is_there():
    door = key_door(a_pair(), End.A)
    ask(door, "GET", "/api/v1/keys/sur/enc_keys?number=3", "norte")
    status = etsi014.decode_status(ask(door, "GET", "/api/v1/keys/sur/status", "norte").body)
    assert status == etsi014.Status("qkd-norte", "qkd-sur", "norte", "sur", 256, 97, 200, 8, 1024, 64, 0)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (("GET", "/api/v1/keys/sur/enc_keys", "sur"), 401),  # the node at the far end
        (("GET", "/api/v1/keys/sur/enc_keys", "este"), 401),
        (("GET", "/api/v1/keys/este/enc_keys", "norte"), 401),
        (("GET", "/api/v1/keys/este/status", "norte"), 401),
        (("GET", "/api/v1/keys/norte/enc_keys", "norte"), 401),
        (("POST", "/api/v1/keys/este/dec_keys", "norte", b"{"), 401),
        (("GET", "/api/v1/keys/sur/enc_keys?number=9", "norte"), 400),
        (("GET", "/api/v1/keys/sur/enc_keys?size=2048", "norte"), 400),
        (("POST", "/api/v1/keys/sur/enc_keys", "norte", b'{"additional_slave_SAE_IDs":["este"]}'), 400),
        (("POST", "/api/v1/keys/sur/enc_keys", "norte", b'{"extension_mandatory":[{"trenza_max_hops":1}]}'), 400),
    ],
)
def test_a_wrong_request_draws_nothing(asked, status):
    pair = a_pair()
    assert ask(key_door(pair, End.A), *asked).status == status
    assert pair.observe().stored_bits == STOCK


def test_an_empty_store_and_a_dead_device_are_unavailable():
    pair = a_pair()
    door = key_door(pair, End.A)
    statuses = {ask(door, "GET", "/api/v1/keys/sur/enc_keys?number=8", "norte").status for _ in range(13)}
    assert statuses == {200, 503}
    pair.kill(End.A)
    assert ask(door, "GET", "/api/v1/keys/sur/status", "norte").status == 503


def telemetry_door(pair):
    return TelemetryDoor(
        pair.a, readers=frozenset({URIS["norte"], URIS["este"]}), operators=frozenset({URIS["operator"]})
    )


def test_the_telemetry_is_what_the_device_shows():
    clock = HandClock()
    pair = a_pair(clock)
    door = telemetry_door(pair)
    reading = decode_reading(ask(door, "GET", "/telemetry/v1/reading", "norte").body)
    assert (reading.state, reading.loss_db, reading.stored_bits) == (TelemetryState.RUNNING, 14.3, STOCK)

    pair.set_qber(0.25)
    reading = decode_reading(ask(door, "GET", "/telemetry/v1/reading", "norte").body)
    assert (reading.state, [alarm.code for alarm in reading.alarms]) == (TelemetryState.QBER_HIGH, ["qber-high"])


def test_a_mute_device_says_nothing():
    pair = a_pair()
    pair.mute()
    assert ask(telemetry_door(pair), "GET", "/telemetry/v1/reading", "norte").status == 503


def test_an_operator_cuts_and_repairs():
    pair = a_pair()
    door = telemetry_door(pair)
    states = [
        decode_reading(ask(door, "POST", f"/emulator/v1/{verb}", "operator").body).state
        for verb in ("cut", "repair", "disable", "enable")
    ]
    assert states == ["cut", "running", "disabled", "running"]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (("GET", "/telemetry/v1/reading", "sur"), 401),
        (("POST", "/emulator/v1/cut", "norte"), 401),
        (("POST", "/telemetry/v1/reading", "norte"), 405),
        (("GET", "/emulator/v1/cut", "operator"), 405),
        (("POST", "/emulator/v1/explode", "operator"), 404),
        (("GET", "/api/v1/keys/sur/enc_keys", "norte"), 404),
    ],
)
def test_what_the_telemetry_port_does_not_offer_is_refused(asked, status):
    pair = a_pair()
    assert ask(telemetry_door(pair), *asked).status == status
    assert pair.observe().state == "running"
