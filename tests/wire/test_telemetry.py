"""The telemetry document: what is written is read back, anything else is refused by name."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from trenza.base.errors import RemoteProtocolError
from trenza.qkd.emulator.reading import DeviceState, Severity
from trenza.wire.telemetry import (
    MOST_BYTES,
    TelemetryAlarm,
    TelemetryReading,
    TelemetrySeverity,
    TelemetryState,
    decode_reading,
    encode_reading,
)

READING = TelemetryReading(
    state=TelemetryState.CUT,
    qber=None,
    secret_bits_per_second=0.0,
    loss_db=None,
    stored_bits=51_200,
    alarms=(TelemetryAlarm(code="no-light", severity=TelemetrySeverity.CRITICAL, text="no light arrives"),),
    time_ns=1_760_000_000_000_000_000,
)


def altered(**changes):
    return json.dumps(json.loads(encode_reading(READING)) | changes).encode()


figures = st.floats(0.0, 1e12)


@given(
    st.builds(
        TelemetryReading,
        state=st.sampled_from(TelemetryState),
        qber=st.none() | st.floats(0.0, 0.5),
        secret_bits_per_second=figures,
        loss_db=st.none() | figures,
        stored_bits=st.integers(0, 2**53),
        alarms=st.just(()) | st.just(READING.alarms),
        time_ns=st.integers(0, 2**63 - 1),
    )
)
def test_what_is_written_is_read_back(reading):
    assert decode_reading(encode_reading(reading)) == reading


def test_the_document_of_version_1_stays_as_it_is():
    assert encode_reading(READING) == (
        b'{"state":"cut","qber":null,"secret_bits_per_second":0.0,"loss_db":null,"stored_bits":51200,'
        b'"alarms":[{"code":"no-light","severity":"critical","text":"no light arrives"}],'
        b'"time_ns":1760000000000000000,"version":1}'
    )


def test_a_field_of_a_later_edition_is_ignored():
    assert decode_reading(altered(temperature_c=21.5)) == READING


def test_another_version_is_named_and_refused_even_if_all_else_is_strange():
    with pytest.raises(RemoteProtocolError, match="of version 2"):
        decode_reading(b'{"version":2,"mood":"fine"}')


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"qber": 0.51}, "qber"),
        ({"qber": "low"}, "qber"),
        ({"state": "tired"}, "state"),
        ({"secret_bits_per_second": -1}, "secret_bits_per_second"),
        ({"stored_bits": 1.5}, "stored_bits"),
        ({"loss_db": -3}, "loss_db"),
        ({"alarms": [{"code": "", "severity": "major", "text": "x"}]}, "code"),
        ({"alarms": [{"code": "x", "severity": "major", "text": "x"}] * 65}, "alarms"),
        ({"version": None}, "version"),
    ],
)
def test_a_field_outside_its_range_is_named(changes, complaint):
    with pytest.raises(RemoteProtocolError, match=complaint):
        decode_reading(altered(**changes))


@pytest.mark.parametrize(
    "document", [b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"version":1}', b'{"version":1,"qber":NaN}']
)
def test_what_is_no_reading_is_refused(document):
    with pytest.raises(RemoteProtocolError, match="not a telemetry reading"):
        decode_reading(document)


@given(st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_else(document):
    with pytest.raises(RemoteProtocolError):
        decode_reading(document)


def test_a_document_of_endless_length_is_refused_unread():
    with pytest.raises(RemoteProtocolError, match="longer than"):
        decode_reading(b" " * (MOST_BYTES + 1))


@pytest.mark.parametrize(
    "wrong", [{"qber": math.nan}, {"qber": 0.7}, {"secret_bits_per_second": math.inf}, {"stored_bits": -1}]
)
def test_a_reading_that_nobody_could_decode_is_never_sent(wrong):
    with pytest.raises(ValueError, match="not a telemetry reading"):
        encode_reading(replace(READING, **wrong))


def test_the_words_are_those_of_the_emulator():
    assert {each.value for each in TelemetryState} == {each.value for each in DeviceState}
    assert {each.value for each in TelemetrySeverity} == {each.value for each in Severity}
