"""The device and telemetry adapters before an emulated device's own doors, and before devices that misbehave.

The wire is a plain call here; tests/net has the sockets. The last test goes over real ones.
"""

import asyncio
import json
import random
from datetime import UTC, datetime
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from trenza.adapters.etsi014_device import Etsi014Device
from trenza.adapters.telemetry_http import TelemetryHttp
from trenza.app.pki import CertificateAuthority, KeyType
from trenza.base.errors import AuthenticationError, DeviceUnavailableError, PeerUnavailableError
from trenza.base.names import SaeId
from trenza.base.units import Bits, Decibel, Nanoseconds, Seconds
from trenza.core.strand import Supply
from trenza.kms.ports import DeviceLimits, LinkReading
from trenza.net.http import Request
from trenza.net.http_client import HttpClient, HttpResponse
from trenza.net.http_server import HttpServer
from trenza.net.tls import PeerIdentity, TlsIdentity, client_context, server_context
from trenza.qkd.emulator.pair import EmulatedPair
from trenza.qkd.emulator.settings import End, KeyLimits, PairSettings
from trenza.qkd.physics.devices import DEVICE_CLASSES
from trenza.serve.device import DeviceNames, TelemetryDoor, device_key_door

SIZE = Bits(256)
STOCK = Bits(256 * 100)
ONE = UUID("bc490419-7d60-487f-adc1-4ddcc177c139")
TWO = UUID("0a782fb5-3434-48fe-aa4d-14f41d46cf92")


class StandingClock:
    def now(self):
        return Nanoseconds(1_760_000_000_000_000_000)

    def elapsed(self):
        return Seconds(1000.0)


class SeededEntropy:
    def __init__(self):
        self._random = random.Random(1)

    def token(self, count):
        return bytearray(self._random.randbytes(count))


def node_identity(name):
    key = ec.generate_private_key(ec.SECP256R1())
    uri = f"urn:trenza:node:{name}"
    certificate = (
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
    return PeerIdentity(certificate, f"fingerprint of {name}", (uri,), "X25519MLKEM768", "TLSv1.3")


NODES = {name: node_identity(name) for name in ("norte", "sur")}


class DirectClient:
    """What net.http_client is to the adapters, with the server's door called in its place."""

    def __init__(self, door, node):
        self._door = door
        self._peer = NODES[node]
        self.calls = 0

    async def request(self, method, target, body=None, *, content_type="application/json", timeout_s=10.0):
        self.calls += 1
        path, _, query = target.encode().partition(b"?")
        headers = {} if body is None else {b"content-type": content_type.encode()}
        answer = self._door(Request(method.encode(), path, query, headers, body or b"", self._peer))
        response = await answer if asyncio.iscoroutine(answer) else answer
        return HttpResponse(response.status, {}, response.body)


class ScriptedClient:
    """A device that gives these answers, one after the other, and counts how often it was asked."""

    def __init__(self, *answers):
        self._answers = list(answers)
        self.calls = 0

    async def request(self, method, target, body=None, *, content_type="application/json", timeout_s=10.0):
        self.calls += 1
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, said = answer
        return HttpResponse(status, {}, said if isinstance(said, bytes) else json.dumps(said).encode())


def a_pair():
    settings = PairSettings(
        device_class=DEVICE_CLASSES["decoy-bb84-1ghz"],
        loss_db=Decibel(14.3),
        initial_stock=STOCK,
        limits=KeyLimits(max_keys_per_request=8),
    )
    return EmulatedPair(settings, clock=StandingClock(), entropy=SeededEntropy())


def client_of(pair, end):
    here, there = ("norte", "sur") if end is End.A else ("sur", "norte")
    names = DeviceNames(f"qkd-{here}", f"qkd-{there}", SaeId(here), SaeId(there), f"urn:trenza:node:{here}")
    return DirectClient(device_key_door(pair.end(end), names), here)


def device(client, far="sur"):
    return Etsi014Device(client, slave_sae_id=far, master_sae_id=far)


def material(keys):
    return [(key.key_id, bytes(key.key.view()), key.supply) for key in keys]


# Before an emulated device


def test_what_is_drawn_here_is_fetched_there_bit_for_bit_and_once():
    async def story():
        pair = a_pair()
        near, far = device(client_of(pair, End.A)), device(client_of(pair, End.B), "norte")
        drawn = await near.draw(number=3, size=SIZE)
        wanted = [key.key_id for key in reversed(drawn)]
        assert material(await far.fetch(wanted)) == material(reversed(drawn))
        assert {key.supply for key in drawn} == {Supply.WARM}
        with pytest.raises(DeviceUnavailableError, match="not found"):
            await far.fetch(wanted)

    asyncio.run(story())


def test_more_than_the_device_gives_at_once_is_asked_for_in_parts():
    async def story():
        pair = a_pair()
        client = client_of(pair, End.A)
        drawn = await device(client).draw(number=20, size=SIZE)
        assert client.calls == 1 + 3  # its limits, then 8 + 8 + 4
        fetched = await device(client_of(pair, End.B), "norte").fetch([key.key_id for key in drawn])
        assert material(fetched) == material(drawn)

    asyncio.run(story())


def test_the_limits_are_those_of_the_status():
    limits = asyncio.run(device(client_of(a_pair(), End.A)).limits())
    assert limits == DeviceLimits(STOCK, 8, Bits(1024), Bits(64))


def test_an_empty_device_is_unavailable():
    with pytest.raises(DeviceUnavailableError, match="503"):
        asyncio.run(device(client_of(a_pair(), End.A)).draw(number=101, size=SIZE))


# Before devices that misbehave


STATUS = {
    "source_KME_ID": "a",
    "target_KME_ID": "b",
    "master_SAE_ID": "norte",
    "slave_SAE_ID": "sur",
    "key_size": 256,
    "stored_key_count": 10,
    "max_key_count": 10,
    "max_key_per_request": 2,
    "max_key_size": 1024,
    "min_key_size": 64,
    "max_SAE_ID_count": 0,
}
KEY = "A" * 43 + "="  # 32 bytes


def container(*ids, key=KEY, name="keys"):
    return {name: [{"key_ID": str(key_id), "key": key} for key_id in ids]}


def test_a_device_that_says_nothing_of_its_supply_gives_live_key():
    client = ScriptedClient((200, STATUS), (200, container(ONE, TWO, name="Keys")))
    drawn = asyncio.run(device(client).draw(number=2, size=SIZE))
    assert [(key.key_id, key.supply) for key in drawn] == [(ONE, Supply.LIVE), (TWO, Supply.LIVE)]


@pytest.mark.parametrize(
    "answer",
    [
        (200, container(ONE)),  # too few
        (200, container(ONE, TWO, UUID(int=3))),  # too many
        (200, container(ONE, ONE)),
        (200, container(ONE, TWO, key="AAAA")),  # too short
        (200, container(ONE, TWO, key="")),
        (200, {}),
        (200, b"<html>"),
        (200, {"keys": [{"key_ID": str(ONE), "key": KEY, "key_extension": {"trenza_supply": "moon"}}] * 2}),
        (400, {"message": "size shall be a multiple of 8"}),
        (401, b""),
        (302, b""),
        (500, b"\xff"),
        PeerUnavailableError("no answer"),
        AuthenticationError("not the device we know"),
    ],
)
def test_whatever_a_device_does_wrong_it_is_asked_once(answer):
    client = ScriptedClient((200, STATUS), answer)
    with pytest.raises(DeviceUnavailableError) as trouble:
        asyncio.run(device(client).draw(number=2, size=SIZE))
    assert client.calls == 2
    assert KEY not in str(trouble.value)


def test_a_device_that_repeats_an_id_in_a_later_part_is_not_believed():
    client = ScriptedClient((200, STATUS), (200, container(ONE, TWO)), (200, container(ONE)))
    with pytest.raises(DeviceUnavailableError, match="other keys"):
        asyncio.run(device(client).draw(number=3, size=SIZE))


@pytest.mark.parametrize("given", [(ONE,), (ONE, UUID(int=3)), (ONE, TWO, UUID(int=3))])
def test_a_device_that_gives_other_keys_than_named_is_not_believed(given):
    client = ScriptedClient((200, STATUS), (200, container(*given)))
    with pytest.raises(DeviceUnavailableError, match="other keys"):
        asyncio.run(device(client).fetch([ONE, TWO]))


@pytest.mark.parametrize("status", [{}, STATUS | {"key_size": "256"}, STATUS | {"max_key_per_request": 0}])
def test_a_status_that_makes_no_sense_is_not_believed(status):
    with pytest.raises(DeviceUnavailableError):
        asyncio.run(device(ScriptedClient((200, status))).limits())


# Telemetry


def telemetry(pair):
    return TelemetryHttp(DirectClient(TelemetryDoor(pair.a, readers=frozenset({"urn:trenza:node:norte"})), "norte"))


def test_the_telemetry_is_read():
    pair = a_pair()
    reading = asyncio.run(telemetry(pair).read())
    assert (reading.state, reading.loss_db, reading.alarms) == ("running", 14.3, ())
    pair.cut()
    assert asyncio.run(telemetry(pair).read()) == LinkReading("cut", None, 0.0, None, ("no-light",))


def test_too_many_errors_are_called_an_attack():
    pair = a_pair()
    pair.set_qber(0.25)
    assert asyncio.run(telemetry(pair).read()).state == "attacked"


@pytest.mark.parametrize(
    "answer", [(503, b""), (200, b"{}"), (200, {"version": 2}), PeerUnavailableError("no answer")]
)
def test_telemetry_that_says_nothing_sensible_is_unavailable(answer):
    with pytest.raises(DeviceUnavailableError):
        asyncio.run(TelemetryHttp(ScriptedClient(answer)).read())


# Over real sockets


def test_keys_and_telemetry_come_over_mutual_tls(tmp_path):
    authority = CertificateAuthority.create("Test network", KeyType.ML_DSA_65)
    authority.save(tmp_path / "ca.pem", tmp_path / "ca.key")

    def party(kind, name):
        files = (tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        authority.issue(name, uris=[f"urn:trenza:{kind}:{name}"]).save(*files)
        return TlsIdentity(*files, tmp_path / "ca.pem")

    async def story():
        pair = a_pair()
        names = DeviceNames("qkd-norte", "qkd-sur", SaeId("norte"), SaeId("sur"), "urn:trenza:node:norte")
        telemetry_door = TelemetryDoor(pair.a, readers=frozenset({"urn:trenza:node:norte"}))
        own = server_context(party("device", "qkd-norte"))
        mine = client_context(party("node", "norte"))
        doors = (device_key_door(pair.a, names), telemetry_door)
        servers = [HttpServer(door, lambda: own, door.error_response) for door in doors]
        clients = [
            HttpClient(
                mine, "127.0.0.1", await server.start("127.0.0.1"), expected_name="urn:trenza:device:qkd-norte"
            )
            for server in servers
        ]
        try:
            drawn = await device(clients[0]).draw(number=10, size=SIZE)
            reading = await TelemetryHttp(clients[1]).read()
        finally:
            for part in clients:
                await part.aclose()
            for server in servers:
                await server.stop()
        far = device(client_of(pair, End.B), "norte")
        assert material(await far.fetch([key.key_id for key in drawn])) == material(drawn)
        assert reading.state == "running"

    asyncio.run(story())
