"""What a QKD device tells of itself, in our own small JSON: the telemetry port of emulated devices.

Bytes and values only. Real devices speak GS QKD 015, SNMP, gNMI or nothing; each gets a codec of its own. Never a
key bit: the document has no field that could carry one. Fields that we do not know are ignored; another `version`
is refused, since then a field that we know may mean something else.
"""

from __future__ import annotations

from enum import StrEnum, unique
from typing import Annotated

import msgspec

from trenza.base.errors import RemoteProtocolError

VERSION = 1
MOST_BYTES = 65_536
"""Longer documents are refused unread: a reading takes a few hundred bytes."""

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
NotNegative = Annotated[float, msgspec.Meta(ge=0.0)]


@unique
class TelemetryState(StrEnum):
    """What the device says it is doing."""

    STARTING = "starting"
    RUNNING = "running"
    CUT = "cut"
    QBER_HIGH = "qber-high"
    DEAD = "dead"
    DISABLED = "disabled"


@unique
class TelemetrySeverity(StrEnum):
    """How urgent an alarm is (the words of ITU-T X.733)."""

    CRITICAL = "critical"
    MAJOR = "major"
    MINOR = "minor"
    WARNING = "warning"


class TelemetryAlarm(msgspec.Struct, frozen=True, kw_only=True):
    """Something that holds at the time of the reading."""

    code: Text
    severity: TelemetrySeverity
    text: Text


class TelemetryReading(msgspec.Struct, frozen=True, kw_only=True):
    """One reading. `qber` (0 to 0.5) and `loss_db` are null where the device cannot measure them."""

    state: TelemetryState
    qber: Annotated[float, msgspec.Meta(ge=0.0, le=0.5)] | None
    secret_bits_per_second: NotNegative
    loss_db: NotNegative | None
    stored_bits: Annotated[int, msgspec.Meta(ge=0)]
    alarms: Annotated[tuple[TelemetryAlarm, ...], msgspec.Meta(max_length=64)]
    time_ns: Annotated[int, msgspec.Meta(ge=0)]  # since 1970-01-01T00:00:00Z, on the device's clock
    version: int = msgspec.field(default=VERSION)


class _Edition(msgspec.Struct):
    """Read first: a document of another edition is named as such, whatever else it holds."""

    version: int


_EDITION = msgspec.json.Decoder(_Edition)
_READING = msgspec.json.Decoder(TelemetryReading)


def encode_reading(reading: TelemetryReading) -> bytes:
    """Return the document of `reading`.

    Raises:
        ValueError: a field is outside its range; nobody could decode it.
    """
    document = msgspec.json.encode(reading)
    try:
        same = decode_reading(document) == reading  # a struct made in code is unchecked; not-a-number becomes null
    except RemoteProtocolError as error:
        raise ValueError(error.message) from None
    if not same:
        raise ValueError("not a telemetry reading: a figure is not a number")
    return document


def decode_reading(document: bytes) -> TelemetryReading:
    """Return the reading that another party sent.

    Raises:
        RemoteProtocolError: too long, not JSON, of another version, or a field is missing or outside its range.
    """
    if len(document) > MOST_BYTES:
        raise RemoteProtocolError(f"the telemetry reading is longer than {MOST_BYTES} bytes")
    try:
        edition = _EDITION.decode(document).version
        if edition != VERSION:
            raise RemoteProtocolError(f"the telemetry reading is of version {edition}; this is version {VERSION}")
        return _READING.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"not a telemetry reading: {error}") from None
