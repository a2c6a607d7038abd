from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.records import hop, record

from trenza.base.errors import RemoteProtocolError
from trenza.core.provenance import SegmentRecord, segment_digest
from trenza.core.strand import Supply

supplies = st.lists(st.sampled_from(Supply), min_size=1, max_size=4)


def route(*supplies, epsilon=None):
    nodes = ["A", *(f"R{number}" for number in range(1, len(supplies))), "Z"]
    pairs = zip(nodes, nodes[1:], supplies, strict=False)
    return [hop(sender, receiver, supply=supply, epsilon=epsilon) for sender, receiver, supply in pairs]


@given(supplies, st.integers(1, 1024), st.binary(min_size=16, max_size=16))
def test_a_record_is_read_back_as_it_was_written(supplies, slots, segment):
    written = record(*route(*supplies), slots=slots, segment=segment)
    assert SegmentRecord.decode(written.encode()) == written


@given(st.data())
def test_a_changed_byte_is_another_digest(data):
    body = record(*route(Supply.LIVE)).encode()
    place, change = data.draw(st.integers(0, len(body) - 1)), data.draw(st.integers(1, 255))
    other = body[:place] + bytes([body[place] ^ change]) + body[place + 1 :]
    assert segment_digest(other) != segment_digest(body)


def test_the_relays_saw_the_strands_and_the_ends_are_not_counted():
    assert record(*route(Supply.LIVE, Supply.LIVE, Supply.LIVE)).known_to == ("R1", "R2")
    assert record(*route(Supply.LIVE)).known_to == ()
    assert record().known_to == ()


def test_the_worst_link_is_the_supply_of_the_whole():
    assert record(*route(Supply.LIVE, Supply.SYNTHETIC, Supply.WARM)).supply is Supply.SYNTHETIC
    assert record().supply is None


def test_epsilon_is_the_sum_over_the_hops_and_not_stated_unless_every_hop_states_one():
    stated, silent = hop("A", "R1", epsilon=1e-9), hop("R1", "Z")
    assert record(stated, hop("R1", "Z", epsilon=2e-9)).epsilon == pytest.approx(3e-9)
    assert record(stated, silent).epsilon is None
    assert record(silent).epsilon is None
    assert record().epsilon is None


@pytest.mark.parametrize("body", [b"", b"\xc1", msgspec.msgpack.encode({"version": 1}), record().encode()[:-1]])
def test_what_is_no_record_is_refused(body):
    with pytest.raises(RemoteProtocolError, match="not a segment record"):
        SegmentRecord.decode(body)


def test_a_record_of_another_format_or_with_more_to_it_is_refused():
    plain = msgspec.to_builtins(record(), builtin_types=(bytes,))
    with pytest.raises(RemoteProtocolError, match="format version 2"):
        SegmentRecord.decode(msgspec.msgpack.encode({**plain, "version": 2}))
    with pytest.raises(RemoteProtocolError, match="not a segment record"):
        SegmentRecord.decode(msgspec.msgpack.encode({**plain, "colour": "blue"}))
