import asyncio
import base64
import uuid

import pytest
from load import KeyEntry, Latency, Pace, Result, Seen, latency


def result(**changed):
    values = {
        "kind": "issue",
        "connections": 16,
        "seconds": 2.0,
        "issued": 1000,
        "pairs": 0,
        "missing": 0,
        "different": 0,
        "repeated": 0,
        "refused": 0,
        "failed": 0,
        "enc": None,
        "dec": None,
        "client_cpu_s": 0.5,
        "cpu_s": {"Alice": 0.1, "Bob": 0.3},
        "machine_busy_s": 1.5,
    }
    return Result(**values | changed)


def entry(number: int, key: bytes) -> KeyEntry:
    return KeyEntry(str(uuid.UUID(int=number)), base64.b64encode(key).decode())


def test_quantiles_are_waits_that_were_measured():
    waits = [number * 1_000_000 for number in range(1, 1001)]
    assert latency(waits) == Latency(501.0, 991.0, 1000.0, 1000.0)


def test_quantiles_of_one_wait_are_that_wait():
    assert latency([2_000_000]) == Latency(2.0, 2.0, 2.0, 2.0)


def test_nothing_answered_has_no_quantiles():
    assert latency([]) is None


def test_cpu_is_told_for_each_key_issued_by_the_processes_asked_for():
    assert result().cpu_us("Alice") == pytest.approx(100.0)
    assert result().cpu_us("Alice", "Bob") == pytest.approx(400.0)


def test_what_nobody_of_the_run_used_is_others():
    assert result().others_share == pytest.approx(0.3)
    assert result(machine_busy_s=0.8).others_share == 0.0


def test_rates_and_the_share_of_the_load():
    one = result(pairs=500)
    assert (one.issued_per_s, one.pairs_per_s, one.client_share) == (500.0, 250.0, 0.25)


def test_a_key_is_new_only_once():
    seen = Seen()
    assert seen.is_new(entry(1, b"a" * 32))
    assert not seen.is_new(entry(1, b"a" * 32))


def test_the_same_id_with_another_key_is_a_repetition():
    seen = Seen()
    assert seen.is_new(entry(1, b"a" * 32))
    assert not seen.is_new(entry(1, b"b" * 32))


def test_the_same_key_under_another_id_is_a_repetition():
    seen = Seen()
    assert seen.is_new(entry(1, b"a" * 32))
    assert not seen.is_new(entry(2, b"a" * 32))


def test_a_pace_asks_at_its_rate_and_does_not_make_up_for_long_delays():
    async def story() -> None:
        clock = asyncio.get_running_loop()
        clock.time = lambda: now  # type: ignore[method-assign]
        now = 100.0
        pace = Pace(0.1, 0.05)
        assert pace.wait_s() == pytest.approx(0.15)
        now = 100.15
        assert pace.wait_s() == pytest.approx(0.1)
        now = 200.0
        assert pace.wait_s() == pytest.approx(-0.1)
        assert pace.wait_s() == pytest.approx(0.0)

    asyncio.run(story())


def test_no_rate_is_no_wait():
    async def story() -> None:
        assert Pace(0.0, 0.0).wait_s() == 0.0

    asyncio.run(story())
