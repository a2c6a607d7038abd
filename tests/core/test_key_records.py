from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trenza.core.key_records import decode_key_records, encode_key_records
from trenza.core.provenance import KEY_RECORD_VERSION, KeyRecord

SEGMENT = bytes(16)


def key_record(slots=(0,), times=(0,), *, segment=SEGMENT, peer="B", window=1, of=("a", "b"), size=256) -> KeyRecord:
    told = "its", size, "p", bytes(48), "X448", 5
    return KeyRecord(KEY_RECORD_VERSION, segment, peer, window, slots, *of, *told, times)


def told_of(records) -> Counter[bytes]:
    return Counter(map(msgspec.msgpack.encode, records))


keys = st.lists(st.tuples(st.integers(0, 1_023), st.integers(0, 10_000)), min_size=1, max_size=40)


@st.composite
def some_records(draw) -> KeyRecord:
    slots, times = zip(*((slot, moment * 1_000) for slot, moment in draw(keys)), strict=True)
    return key_record(
        slots,
        times,
        segment=draw(st.sampled_from((SEGMENT, b"\xff" * 16))),
        peer=draw(st.sampled_from("BC")),
        window=draw(st.integers(0, 3)),
        of=(draw(st.sampled_from("ade")), draw(st.sampled_from("bed"))),
        size=draw(st.sampled_from((64, 256))),
    )


@given(st.lists(some_records(), max_size=20))
def test_the_records_of_a_batch_are_read_back_to_the_millisecond(records):
    assert told_of(decode_key_records(encode_key_records(records))) == told_of(records)


@given(st.lists(some_records(), max_size=20))
def test_those_of_a_window_or_of_a_segment_are_found_and_no_others(records):
    body = encode_key_records(records)
    of_window = [one for one in records if (one.peer, one.window) == ("B", 2)]
    assert told_of(decode_key_records(body, window=("B", 2))) == told_of(of_window)
    of_segment = [one for one in of_window if one.segment == SEGMENT]
    assert told_of(decode_key_records(body, window=("B", 2), segment=SEGMENT)) == told_of(of_segment)


def test_keys_issued_one_after_the_other_take_a_byte_each():
    few, many = (key_record(tuple(range(0, 2 * n, 2)), tuple(range(0, 1_000 * n, 1_000))) for n in (20, 220))
    assert len(encode_key_records([many])) - len(encode_key_records([few])) <= 200 + 4


def test_what_pairs_have_in_common_is_written_once():
    pairs = [key_record((n,), (n,), of=(f"initiator-{n:03}", f"target-{n:03}")) for n in range(256)]
    alone, together = encode_key_records(pairs[:1]), encode_key_records(pairs)
    assert len(together) <= len(alone) + 256 * (len("initiator-000target-000") + 20)


AS_A_MAP = {
    "version": 2,
    "segment": SEGMENT,
    "peer": "B",
    "window": 1,
    "slots": [3, 4],
    "initiator": "a",
    "target": "b",
    "recipe": "its",
    "size": 256,
    "policy": "p",
    "policy_digest": bytes(48),
    "tls_group": "X448",
    "uncertainty": 5,
    "times": [0, 2_000],
}
AS_AN_ARRAY = list((AS_A_MAP | {"version": 3, "slots": [[3, 1, 2]], "times": [0, 2]}).values())


@pytest.mark.parametrize(("version", "members"), [(2, AS_A_MAP), (3, AS_AN_ARRAY)])
def test_records_of_the_versions_before_are_read_as_ever(version, members):
    body = msgspec.msgpack.encode(members)
    expected = msgspec.structs.replace(key_record((3, 4), (0, 2_000)), version=version)
    assert decode_key_records(body) == decode_key_records(body, window=("B", 1), segment=SEGMENT) == (expected,)
    assert decode_key_records(body, window=("B", 2)) == decode_key_records(body, segment=b"other") == ()


def test_a_record_of_the_first_version_has_the_time_of_its_entry():
    members = {name: value for name, value in AS_A_MAP.items() if name != "times"} | {"version": 1}
    (record,) = decode_key_records(msgspec.msgpack.encode(members))
    assert record.time_of(1, 7) == 7
    assert record.only([1]).slots == (4,)


@pytest.mark.parametrize("place", [-1, 2])
def test_a_record_that_names_what_its_entry_does_not_list_is_refused(place):
    version, names, terms, sources = msgspec.msgpack.decode(encode_key_records([key_record()]))
    for index in range(3):
        damaged = msgspec.msgpack.decode(msgspec.msgpack.encode(sources))
        damaged[0][3][0][index] = place
        with pytest.raises(msgspec.ValidationError):
            decode_key_records(msgspec.msgpack.encode([version, names, terms, damaged]))


@pytest.mark.parametrize("body", [b"", b"\x94", b"\x9e\x01", b"\xc1", encode_key_records([key_record()])[:-1]])
def test_what_is_no_body_of_key_records_is_refused(body):
    with pytest.raises(msgspec.DecodeError):
        decode_key_records(body)
