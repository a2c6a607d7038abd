from __future__ import annotations

import pytest
from tests.kms.fakes import FakeClock

from trenza.base.errors import RemoteProtocolError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.kms.arrivals import Arrivals, Carried

ANA, BEA = NodeId("ana"), NodeId("bea")


def strand(octet: int = 7) -> Carried:
    return Carried(Secret(bytearray([octet]) * 32), ())


def is_wiped(carried: Carried) -> bool:
    return bytes(carried.strand.view()) == bytes(32)


def test_what_is_kept_is_taken_once_and_unwiped():
    arrivals, carried = Arrivals(FakeClock()), strand()
    arrivals.keep(ANA, b"1", carried, via=BEA)
    assert arrivals.take(ANA, b"1") is carried
    assert not is_wiped(carried)
    assert arrivals.take(ANA, b"1") is None


def test_a_second_under_the_same_name_is_refused_and_the_first_stays():
    arrivals, first = Arrivals(FakeClock()), strand()
    arrivals.keep(ANA, b"1", first, via=BEA)
    with pytest.raises(RemoteProtocolError):
        arrivals.keep(ANA, b"1", strand(8), via=BEA)
    assert arrivals.take(ANA, b"1") is first


def test_what_waits_too_long_is_wiped():
    clock = FakeClock()
    arrivals, old, young = Arrivals(clock), strand(), strand()
    arrivals.keep(ANA, b"old", old, via=BEA)
    clock.advance(40.0)
    arrivals.keep(ANA, b"young", young, via=BEA)
    clock.advance(40.0)
    assert arrivals.take(ANA, b"old") is None
    assert is_wiped(old)
    assert arrivals.take(ANA, b"young") is young


def test_of_too_many_the_oldest_are_wiped():
    arrivals, kept = Arrivals(FakeClock()), [strand() for _ in range(300)]
    for number, carried in enumerate(kept):
        arrivals.keep(ANA, number.to_bytes(2, "big"), carried, via=BEA)
    assert [is_wiped(carried) for carried in kept] == [True] * 44 + [False] * 256


def test_a_neighbour_that_brings_too_much_pushes_out_nothing_that_came_by_another():
    arrivals, honest = Arrivals(FakeClock()), strand()
    arrivals.keep(ANA, b"1", honest, via=ANA)
    for number in range(1_000):
        arrivals.keep(ANA, b"of bea" + number.to_bytes(2, "big"), strand(), via=BEA)
    assert arrivals.take(ANA, b"1") is honest
    assert not is_wiped(honest)
