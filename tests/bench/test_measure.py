import os
import time

import measure
import pytest


def test_a_spread_tells_the_median_the_least_and_the_most():
    assert measure.Spread.of([3.0, 1.0, 2.0]) == measure.Spread(2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1.234], "1.23"),
        ([1.231, 1.232, 1.233], "1.23"),
        ([10.04, 12.0, 11.5], "11.5 (10.0 to 12.0)"),
        ([1999.6, 2500.0, 1000.0], "2,000 (1,000 to 2,500)"),
    ],
)
def test_a_spread_is_shown_as_precisely_as_it_is_worth(values, shown):
    assert str(measure.Spread.of(values)) == shown


def test_ratios_are_taken_round_by_round():
    disturbed = measure.ratios([100.0, 300.0, 110.0], [50.0, 150.0, 50.0])
    assert disturbed == measure.Spread(2.0, 2.0, 2.2)


def test_ratios_of_rounds_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="zip"):
        measure.ratios([1.0], [1.0, 2.0])


def test_the_cpu_time_of_a_process_is_seen_from_outside():
    before, own = measure.cpu_s(os.getpid()), time.process_time()
    while time.process_time() - own < 0.1:
        pass
    assert measure.cpu_s(os.getpid()) - before == pytest.approx(0.1, abs=0.03)


def test_the_whole_machine_is_at_least_as_busy_as_one_process():
    before, own = measure.machine_busy_s(), time.process_time()
    while time.process_time() - own < 0.2:
        pass
    assert measure.machine_busy_s() - before >= 0.15


def test_files_count_by_what_they_take_on_disk(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(os.urandom(3 << 20))
    assert measure.files_mib(tmp_path) == pytest.approx(3, abs=0.1)


def test_a_busy_machine_and_a_slow_disk_are_told(tmp_path):
    where = measure.machine(tmp_path)
    where.fdatasync_p50_ms = 6.0
    told = measure.caveats(where, measure.Spread(0.0, 0.0, 0.5))
    assert [line.partition(":")[0] for line in told] == ["NOT QUIET", "SLOW DISK"]
    where.fdatasync_p50_ms = 0.2
    assert measure.caveats(where, measure.Spread(0.0, 0.0, 0.05)) == []
