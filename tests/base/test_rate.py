from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trenza.base.rate import TokenBucket
from trenza.base.units import Seconds

arrivals = st.lists(st.floats(0.0, 5.0), max_size=200)


@given(arrivals, st.integers(1, 20), st.integers(1, 20))
def test_no_more_than_the_burst_and_what_has_trickled_in_since(gaps, burst, per_second):
    bucket, now, passed = TokenBucket(float(per_second), float(burst)), 0.0, 0
    for gap in gaps:
        now += gap
        if bucket.allows(Seconds(now)):
            bucket.spend(1, Seconds(now))
            passed += 1
    assert passed <= burst + per_second * now + 1e-6


def test_the_burst_is_there_at_once_and_then_one_for_each_step():
    bucket = TokenBucket(per_second=10.0, burst=3.0)
    for _ in range(3):
        assert bucket.allows(Seconds(0.0))
        bucket.spend(1, Seconds(0.0))
    assert not bucket.allows(Seconds(0.0))
    assert not bucket.allows(Seconds(0.09))
    assert bucket.allows(Seconds(0.11))


def test_what_was_overspent_is_paid_back_first():
    bucket = TokenBucket(per_second=1.0, burst=2.0)
    bucket.spend(10, Seconds(0.0))
    assert not bucket.allows(Seconds(8.5))
    assert bucket.allows(Seconds(9.5))


def test_a_long_rest_saves_up_no_more_than_the_burst():
    bucket = TokenBucket(per_second=1.0, burst=2.0)
    bucket.spend(2, Seconds(0.0))
    bucket.spend(2, Seconds(1e6))
    assert not bucket.allows(Seconds(1e6))
