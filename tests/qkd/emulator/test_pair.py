"""An emulated pair: what it generates, hands out, shows, and how it fails."""

from __future__ import annotations

import random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trenza.base.errors import (
    DeviceUnavailableError,
    EntropyError,
    InvalidRequestError,
    NotEnoughKeyError,
    UnknownKeyError,
)
from trenza.base.units import Bits, Nanoseconds, Seconds
from trenza.qkd.emulator.pair import EmulatedPair
from trenza.qkd.emulator.reading import DeviceState
from trenza.qkd.emulator.settings import End, KeyLimits, PairSettings
from trenza.qkd.emulator.stock import Supply
from trenza.qkd.physics.devices import DEVICE_CLASSES

GHZ = DEVICE_CLASSES["decoy-bb84-1ghz"]
LOSS_DB = 14.3
RATE = GHZ.expected(LOSS_DB).secret_bits_per_second
SIZE = Bits(256)


class HandClock:
    """Turned by hand; the two clocks go together."""

    def __init__(self):
        self.seconds = 1000.0

    def now(self):
        return Nanoseconds(1_760_000_000_000_000_000 + round(self.seconds * 1e9))

    def elapsed(self):
        return Seconds(self.seconds)

    def pass_s(self, seconds):
        self.seconds += seconds


class SeededEntropy:
    def __init__(self, seed=1):
        self._random = random.Random(seed)
        self.healthy = True

    def token(self, count):
        if not self.healthy:
            raise EntropyError("the generator failed its health test")
        return bytearray(self._random.randbytes(count))


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
def entropy():
    return SeededEntropy()


@pytest.fixture
def build(clock, entropy):
    def build(**changes):
        settings = PairSettings(**({"device_class": GHZ, "loss_db": LOSS_DB} | changes))
        return EmulatedPair(settings, clock=clock, entropy=entropy)

    return build


def stored(pair):
    return pair.observe().stored_bits


def codes(pair):
    return [alarm.code for alarm in pair.observe().alarms]


def drain(pair):
    """Draw all there is, and fetch it at the other end."""
    while number := min(pair.a.stored_key_count(SIZE), pair.limits.max_keys_per_request):
        pair.b.fetch([key.key_id for key in pair.a.draw(number, SIZE)])


# Generation


def test_a_pair_generates_at_the_rate_of_its_physics(build, clock):
    pair = build()
    clock.pass_s(100)
    assert stored(pair) == pytest.approx(100 * RATE, abs=1)
    assert pair.observe().secret_bits_per_second == RATE


def test_key_becomes_available_in_whole_blocks(build, clock):
    pair = build(block_interval=Seconds(2.0))
    clock.pass_s(1.999)
    assert stored(pair) == 0
    clock.pass_s(0.001)
    assert stored(pair) == int(2 * RATE)


def test_the_time_factor_multiplies_the_rate(build, clock):
    pair = build(time_factor=10.0)
    clock.pass_s(5)
    assert stored(pair) == pytest.approx(50 * RATE, abs=1)


def test_a_fixed_rate_takes_the_place_of_the_physics(build, clock):
    pair = build(fixed_rate=1000.0)
    clock.pass_s(7)
    assert stored(pair) == 7000


@given(st.lists(st.floats(0.0, 20.0), max_size=20))
def test_looking_seldom_or_often_gives_the_same_bits(steps):
    clock = HandClock()
    settings = PairSettings(device_class=GHZ, loss_db=LOSS_DB)
    often, seldom = (EmulatedPair(settings, clock=clock, entropy=SeededEntropy()) for _ in range(2))
    for step in steps:
        clock.pass_s(step)
        stored(often)
    assert stored(often) == stored(seldom)


def test_generation_waits_while_the_store_is_full_and_goes_on_after(build, clock):
    pair = build(capacity=Bits(2560), fixed_rate=1000.0)
    clock.pass_s(60)
    assert stored(pair) == 2560
    assert codes(pair) == ["store-full"]
    pair.a.draw(4, SIZE)
    assert stored(pair) == 2560 - 4 * 256  # a full minute is not made up for
    clock.pass_s(1)
    assert stored(pair) == 2560 - 4 * 256 + 1000


def test_devices_align_before_they_generate(build, clock):
    pair = build(startup=Seconds(30.0))
    clock.pass_s(30)
    assert stored(pair) == 0
    assert pair.observe().state is DeviceState.RUNNING
    clock.pass_s(1)
    assert stored(pair) == int(RATE)


def test_a_device_that_aligns_says_so(build):
    reading = build(startup=Seconds(30.0)).observe()
    assert reading.state is DeviceState.STARTING
    assert reading.secret_bits_per_second == 0.0
    assert reading.qber is None


# Supply


def test_the_initial_stock_is_warm_and_what_follows_is_live(build, clock):
    pair = build(initial_stock=Bits(512))
    clock.pass_s(1)
    assert [key.supply for key in pair.a.draw(3, SIZE)] == [Supply.WARM, Supply.WARM, Supply.LIVE]


@pytest.mark.parametrize("changes", [{"time_factor": 2.0}, {"fixed_rate": 5000.0}])
def test_key_at_a_rate_that_is_not_the_physics_is_synthetic(build, clock, changes):
    pair = build(initial_stock=SIZE, **changes)
    clock.pass_s(1)
    assert [key.supply for key in pair.a.draw(2, SIZE)] == [Supply.WARM, Supply.SYNTHETIC]


@pytest.mark.parametrize(("time_factor", "called"), [(1.0, Supply.WARM), (2.0, Supply.SYNTHETIC)])
def test_a_key_of_two_supplies_is_called_by_its_least_genuine_part(build, clock, time_factor, called):
    pair = build(initial_stock=Bits(128), time_factor=time_factor)
    clock.pass_s(1)
    assert pair.a.draw(1, SIZE)[0].supply is called


def test_both_ends_name_the_same_supply(build):
    pair = build(initial_stock=SIZE)
    (drawn,) = pair.a.draw(1, SIZE)
    assert pair.b.fetch([drawn.key_id])[0].supply is drawn.supply is Supply.WARM


# Delivery


@given(
    st.lists(
        st.tuples(st.sampled_from(End), st.integers(1, 8), st.sampled_from([64, 128, 256, 1024])),
        max_size=12,
    )
)
def test_both_ends_hold_the_same_keys_in_both_directions(draws):
    settings = PairSettings(device_class=GHZ, loss_db=LOSS_DB, initial_stock=Bits(1_000_000))
    pair = EmulatedPair(settings, clock=HandClock(), entropy=SeededEntropy())
    handed_out = []
    for end, number, size in draws:
        drawn = pair.end(end).draw(number, Bits(size))
        twins = pair.end(end.other).fetch([key.key_id for key in drawn])
        assert [twin.key_id for twin in twins] == [key.key_id for key in drawn]
        assert all(twin.secret == key.secret for twin, key in zip(twins, drawn, strict=True))
        assert all(len(key.secret) * 8 == size for key in drawn)
        handed_out += [bytes(key.secret.view()) for key in drawn]
    assert len(set(handed_out)) == len(handed_out)
    assert stored(pair) == 1_000_000 - sum(number * size for _, number, size in draws)


def test_wiping_a_key_at_one_end_leaves_its_twin(build):
    pair = build(initial_stock=SIZE)
    (drawn,) = pair.a.draw(1, SIZE)
    drawn.secret.wipe()
    (twin,) = pair.b.fetch([drawn.key_id])
    assert any(twin.secret.view())


def test_key_ids_are_random_uuids(build):
    pair = build(initial_stock=Bits(2560))
    ids = [key.key_id for key in pair.a.draw(10, SIZE)]
    assert len(set(ids)) == 10
    assert all(key_id.version == 4 for key_id in ids)


def test_a_second_fetch_is_refused(build):
    pair = build(initial_stock=SIZE)
    (drawn,) = pair.a.draw(1, SIZE)
    pair.b.fetch([drawn.key_id])
    with pytest.raises(UnknownKeyError):
        pair.b.fetch([drawn.key_id])


def test_the_end_that_drew_a_key_cannot_fetch_it_too(build):
    pair = build(initial_stock=SIZE)
    (drawn,) = pair.a.draw(1, SIZE)
    with pytest.raises(UnknownKeyError):
        pair.a.fetch([drawn.key_id])


def test_one_unknown_id_refuses_the_whole_request_and_consumes_nothing(build):
    pair = build(initial_stock=Bits(512))
    ids = [key.key_id for key in pair.a.draw(2, SIZE)]
    stranger = UUID(int=7)
    with pytest.raises(UnknownKeyError) as refusal:
        pair.b.fetch([*ids, stranger])
    assert refusal.value.details == ({"key_ID": str(stranger)},)
    assert [key.key_id for key in pair.b.fetch(ids)] == ids


def test_an_id_named_twice_is_refused_and_consumes_nothing(build):
    pair = build(initial_stock=SIZE)
    (drawn,) = pair.a.draw(1, SIZE)
    with pytest.raises(InvalidRequestError, match="twice"):
        pair.b.fetch([drawn.key_id, drawn.key_id])
    assert len(pair.b.fetch([drawn.key_id])) == 1


def test_more_than_is_stored_is_refused_and_consumes_nothing(build):
    pair = build(initial_stock=Bits(300))
    with pytest.raises(NotEnoughKeyError):
        pair.a.draw(2, SIZE)
    assert stored(pair) == 300
    assert pair.a.stored_key_count(SIZE) == pair.b.stored_key_count(SIZE) == 1


def test_a_generator_that_fails_its_health_test_gives_no_key_and_consumes_nothing(build, entropy):
    pair = build(initial_stock=Bits(512))
    entropy.healthy = False
    with pytest.raises(EntropyError):
        pair.a.draw(2, SIZE)
    assert stored(pair) == 512


@pytest.mark.parametrize(("number", "size"), [(0, 256), (129, 256), (1, 56), (1, 1032), (1, 257), (-1, 256)])
def test_a_request_outside_the_limits_is_refused(build, number, size):
    pair = build(initial_stock=Bits(100_000))
    with pytest.raises(InvalidRequestError):
        pair.a.draw(number, Bits(size))


def test_fetching_nothing_is_refused(build):
    with pytest.raises(InvalidRequestError):
        build().a.fetch([])


def test_an_unfetched_key_is_erased_when_its_lifetime_ends(build, clock):
    pair = build(initial_stock=Bits(512), unfetched_lifetime=Seconds(60.0))
    (old,) = pair.a.draw(1, SIZE)
    clock.pass_s(30)
    (young,) = pair.a.draw(1, SIZE)
    clock.pass_s(30)
    with pytest.raises(UnknownKeyError):
        pair.b.fetch([old.key_id])
    assert pair.b.fetch([young.key_id])[0].secret == young.secret


def test_unfetched_keys_are_bounded_and_the_count_says_so(build, clock):
    pair = build(initial_stock=Bits(25_600), max_unfetched=3)
    assert pair.a.stored_key_count(SIZE) == 3
    pair.a.draw(3, SIZE)
    assert pair.a.stored_key_count(SIZE) == 0
    with pytest.raises(DeviceUnavailableError, match="wait to be fetched"):
        pair.a.draw(1, SIZE)
    assert len(pair.b.draw(1, SIZE)) == 1  # the other direction has its own bound
    clock.pass_s(60)
    assert len(pair.a.draw(3, SIZE)) == 3


def test_the_same_clock_and_entropy_give_the_same_keys():
    def keys():
        clock = HandClock()
        settings = PairSettings(device_class=GHZ, loss_db=LOSS_DB)
        pair = EmulatedPair(settings, clock=clock, entropy=SeededEntropy(seed=5))
        clock.pass_s(3)
        return [(key.key_id, bytes(key.secret.view()), key.supply) for key in pair.a.draw(20, SIZE)]

    assert keys() == keys()


# Failing


def test_a_cut_line_still_delivers_what_is_stored_and_makes_no_more(build, clock):
    pair = build()
    clock.pass_s(10)
    before = stored(pair)
    pair.cut()
    clock.pass_s(100)
    assert stored(pair) == before
    (drawn,) = pair.a.draw(1, SIZE)
    assert pair.b.fetch([drawn.key_id])[0].secret == drawn.secret
    drain(pair)
    with pytest.raises(NotEnoughKeyError):
        pair.a.draw(1, SIZE)


def test_a_cut_line_shows_its_state_and_an_alarm(build):
    pair = build()
    pair.cut()
    reading = pair.observe()
    assert reading.state is DeviceState.CUT
    assert (reading.qber, reading.loss_db, reading.secret_bits_per_second) == (None, None, 0.0)
    assert codes(pair) == ["no-light"]


def test_a_repaired_line_aligns_and_generates_again(build, clock):
    pair = build(startup=Seconds(20.0))
    clock.pass_s(20)
    pair.cut()
    clock.pass_s(500)
    pair.repair()
    assert pair.observe().state is DeviceState.STARTING
    clock.pass_s(25)
    assert stored(pair) == pytest.approx(5 * RATE, abs=1)
    assert codes(pair) == []


def test_the_block_that_a_cut_interrupts_is_lost(build, clock):
    pair = build(fixed_rate=1000.0)
    clock.pass_s(1.5)
    pair.cut()
    pair.repair()
    clock.pass_s(0.75)
    assert stored(pair) == 1000
    clock.pass_s(0.25)
    assert stored(pair) == 2000


def test_repairing_a_sound_line_costs_nothing(build, clock):
    pair = build(fixed_rate=1000.0, startup=Seconds(20.0))
    clock.pass_s(21.5)
    pair.repair()
    pair.enable()
    clock.pass_s(0.5)
    assert stored(pair) == 2000


def test_an_eavesdropper_stops_the_key_and_raises_the_alarm(build, clock):
    pair = build()
    pair.set_qber(0.12)
    clock.pass_s(10)
    reading = pair.observe()
    assert reading.state is DeviceState.QBER_HIGH
    assert reading.qber == pytest.approx(0.12)
    assert reading.stored_bits == 0
    assert codes(pair) == ["qber-high"]
    pair.set_qber(None)
    clock.pass_s(1)
    assert stored(pair) == int(RATE)
    assert pair.observe().state is DeviceState.RUNNING


def test_a_raised_error_rate_below_the_limit_costs_key_and_warns(build, clock):
    pair = build()
    pair.set_qber(0.04)
    clock.pass_s(10)
    assert 0 < stored(pair) < 10 * RATE
    assert codes(pair) == ["qber-raised"]


def test_a_fixed_rate_stops_at_the_error_limit_too(build, clock):
    pair = build(fixed_rate=1000.0)
    pair.set_qber(0.12)
    clock.pass_s(10)
    assert stored(pair) == 0


def test_a_line_whose_error_rate_wanders_every_moment_keeps_its_blocks(build, clock):
    pair = build(fixed_rate=1000.0)
    for step in range(40):
        pair.set_qber(0.03 + 0.0001 * (step % 3))
        clock.pass_s(0.25)
    assert stored(pair) == 10_000


def test_more_loss_gives_less_key(build, clock):
    pair = build()
    pair.set_loss(LOSS_DB + 3)
    clock.pass_s(10)
    assert stored(pair) == pytest.approx(10 * GHZ.expected(LOSS_DB + 3).secret_bits_per_second, abs=1)
    assert pair.observe().loss_db == LOSS_DB + 3


def test_a_line_beyond_its_reach_gives_no_key(build, clock):
    pair = build(loss_db=40.0)
    clock.pass_s(10)
    assert stored(pair) == 0
    assert pair.observe().state is DeviceState.QBER_HIGH


def test_a_disabled_pair_delivers_what_is_stored_and_makes_no_more(build, clock):
    pair = build(initial_stock=SIZE)
    pair.disable()
    clock.pass_s(10)
    assert stored(pair) == 256
    assert pair.observe().state is DeviceState.DISABLED
    assert codes(pair) == ["switched-off"]
    assert len(pair.a.draw(1, SIZE)) == 1
    pair.enable()
    clock.pass_s(1)
    assert stored(pair) == int(RATE)


def test_a_dead_device_answers_nothing_and_its_twin_only_hands_out_what_waits_there(build):
    pair = build(initial_stock=Bits(2560))
    (drawn,) = pair.a.draw(1, SIZE)
    pair.kill(End.A)
    for deed in (
        lambda: pair.a.draw(1, SIZE),
        lambda: pair.a.fetch([drawn.key_id]),
        lambda: pair.a.stored_key_count(SIZE),
        lambda: pair.b.draw(1, SIZE),
    ):
        with pytest.raises(DeviceUnavailableError):
            deed()
    assert pair.b.stored_key_count(SIZE) == 0
    assert pair.b.fetch([drawn.key_id])[0].secret == drawn.secret


def test_a_dead_device_is_silent_and_its_twin_raises_the_alarm(build):
    pair = build()
    pair.kill(End.A)
    assert pair.a.telemetry() is None
    told = pair.b.telemetry()
    assert told is not None
    assert told.state is DeviceState.DEAD
    assert codes(pair) == ["device-dead"]


def test_a_revived_device_has_kept_its_keys(build, clock):
    pair = build(initial_stock=SIZE, startup=Seconds(5.0))
    pair.kill(End.B)
    pair.revive(End.B)
    assert pair.observe().state is DeviceState.STARTING
    assert len(pair.a.draw(1, SIZE)) == 1
    clock.pass_s(6)
    assert stored(pair) == int(RATE)


def test_a_mute_device_still_delivers(build, clock):
    pair = build()
    pair.mute()
    clock.pass_s(1)
    assert pair.a.telemetry() is pair.b.telemetry() is None
    (drawn,) = pair.a.draw(1, SIZE)
    assert pair.b.fetch([drawn.key_id])[0].secret == drawn.secret
    pair.unmute()
    assert pair.a.telemetry() == pair.observe()


def test_a_reading_names_its_moment(build, clock):
    assert build().observe().time == clock.now()


def test_faults_overlap_and_the_last_to_go_restores_the_key(build, clock):
    pair = build()
    pair.cut()
    pair.disable()
    pair.kill(End.A)
    pair.repair()
    pair.revive(End.A)
    clock.pass_s(10)
    assert stored(pair) == 0
    pair.enable()
    clock.pass_s(1)
    assert stored(pair) == int(RATE)


DEEDS = {
    "wait": lambda pair, clock: clock.pass_s(0.7),
    "cut": lambda pair, clock: pair.cut(),
    "repair": lambda pair, clock: pair.repair(),
    "listen": lambda pair, clock: pair.set_qber(0.05),
    "leave": lambda pair, clock: pair.set_qber(None),
    "disable": lambda pair, clock: pair.disable(),
    "enable": lambda pair, clock: pair.enable(),
    "kill": lambda pair, clock: pair.kill(End.B),
    "revive": lambda pair, clock: pair.revive(End.B),
}


@given(st.lists(st.sampled_from(sorted(DEEDS)), max_size=60))
def test_no_story_gives_more_key_than_its_time_allows(deeds):
    clock = HandClock()
    pair = EmulatedPair(
        PairSettings(device_class=GHZ, loss_db=LOSS_DB, capacity=Bits(2_000_000)),
        clock=clock,
        entropy=SeededEntropy(),
    )
    before = 0
    for deed in deeds:
        DEEDS[deed](pair, clock)
        assert before <= stored(pair) <= min(2_000_000, (clock.seconds - 1000.0) * RATE + 1)
        before = stored(pair)


# Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial_stock": Bits(26_000_000)},
        {"block_interval": Seconds(0.0)},
        {"time_factor": 0.0},
        {"time_factor": float("nan")},
        {"startup": Seconds(-1.0)},
        {"fixed_rate": -1.0},
        {"fixed_rate": float("inf")},
        {"max_unfetched": 0},
        {"unfetched_lifetime": Seconds(0.0)},
        {"loss_db": -1.0},
    ],
)
def test_impossible_settings_are_refused(build, wrong):
    with pytest.raises(ValueError):
        build(**wrong)


def test_limits_that_exclude_every_request_are_refused():
    with pytest.raises(ValueError, match="exclude"):
        KeyLimits(min_size=Bits(512))


@pytest.mark.parametrize("qber", [-0.1, 0.51, float("nan")])
def test_what_is_no_error_rate_is_refused(build, qber):
    with pytest.raises(ValueError, match="not an error rate"):
        build().set_qber(qber)


def test_what_is_no_loss_is_refused(build):
    with pytest.raises(ValueError, match="does not exist"):
        build().set_loss(-1.0)
