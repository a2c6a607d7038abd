"""The doors of an emulated QKD device: keys by ETSI GS QKD 014, telemetry by our own small JSON.

A device has two ports, as real ones do, and each end of a pair has its own. The SAEs of the key door are the two
nodes beside the devices. Nothing here knows a KMS: hardware takes the place of the emulator and of these doors.
The operator's verbs (cut, repair, disable, enable) exist on the telemetry port of emulated devices only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from trenza.base.errors import DeviceUnavailableError, InvalidRequestError, TrenzaError, UnauthorisedError
from trenza.base.names import SaeId
from trenza.base.units import Bits
from trenza.net.http import Request, Response
from trenza.net.tls import PeerIdentity, RevocationCheck, never_revoked
from trenza.qkd.emulator.held import DeviceKey
from trenza.qkd.emulator.pair import DeviceEnd, EmulatedPair
from trenza.qkd.emulator.reading import Reading
from trenza.serve._etsi014_http import KeyDoor, answer_to, ok, refusal
from trenza.serve.identity import Callers, certificate_identity
from trenza.wire import telemetry
from trenza.wire.etsi014 import MANDATORY_UNSUPPORTED, Demands, Key, KeyExtension, KeyRequest, Status

READING_PATH: Final = b"/telemetry/v1/reading"
VERB_PATH: Final = b"/emulator/v1/"


@dataclass(frozen=True, slots=True)
class DeviceNames:
    """What one device is called, and the one node that may draw from it."""

    device: str  # its KME ID
    far_device: str
    node: SaeId  # the SAE beside this device
    far_node: SaeId
    node_identity: str  # what the node's certificate says, such as urn:trenza:node:NAME


def device_key_door(end: DeviceEnd, names: DeviceNames, *, is_revoked: RevocationCheck = never_revoked) -> KeyDoor:
    """Return the handler for the key port of one device."""
    callers = Callers({names.node_identity: names.node}.get, is_revoked=is_revoked)
    return KeyDoor(_Device(end, names), callers)


class _Device:
    """GS QKD 014's methods in terms of one end of a pair."""

    def __init__(self, end: DeviceEnd, names: DeviceNames) -> None:
        self._end = end
        self._names = names

    def _authorise(self, caller: SaeId, other: SaeId) -> None:
        if (caller, other) != (self._names.node, self._names.far_node):
            raise UnauthorisedError("this device shares keys between its own two nodes only")

    async def status(self, caller: SaeId, other: SaeId) -> Status:
        self._authorise(caller, other)
        limits = self._end.limits
        return Status(
            source_kme_id=self._names.device,
            target_kme_id=self._names.far_device,
            master_sae_id=caller,
            slave_sae_id=other,
            key_size=limits.default_size,
            stored_key_count=self._end.stored_key_count(limits.default_size),
            max_key_count=self._end.pair.capacity // limits.default_size,
            max_key_per_request=limits.max_keys_per_request,
            max_key_size=limits.max_size,
            min_key_size=limits.min_size,
            max_sae_id_count=0,
        )

    async def get_key(self, caller: SaeId, other: SaeId, request: KeyRequest, *, tls_group: str) -> list[Key]:
        del tls_group  # a device keeps no record of it
        self._authorise(caller, other)
        if request.additional_slave_sae_ids:
            raise InvalidRequestError("max_SAE_ID_count is 0: a device pair has two ends")
        if request.mandatory != Demands():
            raise InvalidRequestError(MANDATORY_UNSUPPORTED)
        size = self._end.limits.default_size if request.size is None else Bits(request.size)
        return _keys(self._end.draw(request.number, size))

    def order(self, caller: SaeId, other: SaeId, request: KeyRequest, *, tls_group: str) -> None:
        """A device answers every request by itself."""
        del caller, other, request, tls_group

    async def get_key_with_ids(
        self, caller: SaeId, other: SaeId, key_ids: Sequence[UUID], *, tls_group: str
    ) -> list[Key]:
        del tls_group
        self._authorise(caller, other)
        return _keys(self._end.fetch(key_ids))


def _keys(drawn: Sequence[DeviceKey]) -> list[Key]:
    return [Key(one.key_id, one.secret, KeyExtension(supply=one.supply.value)) for one in drawn]


class TelemetryDoor:
    """A handler for the telemetry port of one device."""

    def __init__(
        self,
        end: DeviceEnd,
        *,
        readers: frozenset[str],
        operators: frozenset[str] = frozenset(),
        is_revoked: RevocationCheck = never_revoked,
    ) -> None:
        """Open the door.

        Args:
            end: whose telemetry it is.
            readers: certificate identities that may read.
            operators: certificate identities that may read and may cut, repair, disable and enable the pair.
            is_revoked: tells of certificates that are refused.
        """
        self._end = end
        self._readers = readers | operators
        self._operators = operators
        self._is_revoked = is_revoked

    @staticmethod
    def error_response(status: int, sentence: str) -> Response:
        """Return what the HTTP server in front of this door answers where it refuses by itself."""
        return refusal(status, sentence)

    def __call__(self, request: Request) -> Response:
        """Answer one request; refuses by status code, with an Error body as the key port has."""
        try:
            identity = self._reader(request.peer)
            if request.path == READING_PATH:
                return self._reading() if request.method == b"GET" else refusal(405, "read by GET", allow="GET")
            return self._operate(identity, request)
        except TrenzaError as error:
            return answer_to(error)

    def _reader(self, peer: PeerIdentity) -> str:
        identity = certificate_identity(peer.certificate)
        if self._is_revoked(peer.fingerprint) or identity not in self._readers:
            raise UnauthorisedError("not a reader of this device's telemetry")
        return identity

    def _reading(self) -> Response:
        reading = self._end.telemetry()
        if reading is None:
            raise DeviceUnavailableError("the device's telemetry is silent")
        return ok(telemetry.encode_reading(_on_the_wire(reading)))

    def _operate(self, identity: str, request: Request) -> Response:
        verb = _VERBS.get(request.path.removeprefix(VERB_PATH)) if request.path.startswith(VERB_PATH) else None
        if verb is None:
            return refusal(404, "no such path")
        if request.method != b"POST":
            return refusal(405, "asked for by POST", allow="POST")
        if identity not in self._operators:
            raise UnauthorisedError("not an operator of this device")
        verb(self._end.pair)
        return ok(telemetry.encode_reading(_on_the_wire(self._end.pair.observe())))


_VERBS: Final[Mapping[bytes, Callable[[EmulatedPair], None]]] = {
    b"cut": EmulatedPair.cut,
    b"repair": EmulatedPair.repair,
    b"disable": EmulatedPair.disable,
    b"enable": EmulatedPair.enable,
}


def _on_the_wire(reading: Reading) -> telemetry.TelemetryReading:
    return telemetry.TelemetryReading(
        state=telemetry.TelemetryState(reading.state),
        qber=reading.qber,
        secret_bits_per_second=reading.secret_bits_per_second,
        loss_db=reading.loss_db,
        stored_bits=reading.stored_bits,
        alarms=tuple(
            telemetry.TelemetryAlarm(
                code=alarm.code, severity=telemetry.TelemetrySeverity(alarm.severity), text=alarm.text
            )
            for alarm in reading.alarms
        ),
        time_ns=reading.time,
    )
