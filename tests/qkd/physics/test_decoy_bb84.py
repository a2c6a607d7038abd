"""The rate model agrees with Ma, Qi, Zhao, Lo (2005), run on the parameters of the GYS experiment they use."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trenza.qkd.physics.decoy_bb84 import DecoyBb84, binary_entropy

DB_PER_KM = 0.21
GYS = DecoyBb84(  # Gobby, Yuan, Shields, Appl. Phys. Lett. 84, 3762 (2004), as used by Ma et al.
    signal_photons=0.48,
    decoy_photons=0.05,
    detector_efficiency=0.045,
    background_yield=1.7e-6,
    misalignment=0.033,
    reconciliation_efficiency=1.22,
    sifting=0.5,
    pulse_rate_hz=2e6,
)


def loss(km):
    return DB_PER_KM * km


def reach_km(rate):
    near, far = 100.0, 200.0
    for _ in range(50):
        middle = (near + far) / 2
        near, far = (middle, far) if rate(loss(middle)) > 0 else (near, middle)
    return near


def best_signal(link, loss_db):
    intensities = [n / 1000 for n in range(300, 700)]
    return max(
        intensities, key=lambda mu: replace(link, signal_photons=mu).secret_key_rate_with_infinite_decoys(loss_db)
    )


def plob(loss_db):
    """Secret-key capacity of a repeaterless channel: Pirandola et al., Nat. Commun. 8, 15043 (2017)."""
    eta = 10 ** (-loss_db / 10)
    return -math.log2(1 - eta) if eta < 1 else math.inf


def test_fifty_kilometres_give_the_figures_of_the_worked_example():
    assert GYS.gain(0.48, loss(50)) == pytest.approx(1.92495e-3, rel=1e-5)
    assert GYS.single_photon_yield_bound(loss(50)) == pytest.approx(3.95481e-3, rel=1e-5)
    assert GYS.single_photon_error_bound(loss(50)) == pytest.approx(0.0353985, rel=1e-5)
    assert GYS.secret_key_rate(loss(50)) == pytest.approx(2.09625e-4, rel=1e-5)
    assert GYS.secret_bits_per_second(loss(50)) == pytest.approx(2.09625e-4 * 2e6, rel=1e-5)


def test_key_ends_where_the_paper_says():
    assert reach_km(GYS.secret_key_rate) == pytest.approx(140.55, abs=0.1)
    assert reach_km(GYS.secret_key_rate_with_infinite_decoys) == pytest.approx(142.05, abs=0.1)


@pytest.mark.parametrize(("efficiency", "printed"), [(1.22, 0.48), (1.0, 0.54)])
def test_the_best_signal_intensity_is_the_one_the_paper_prints(efficiency, printed):
    link = replace(GYS, reconciliation_efficiency=efficiency)
    assert best_signal(link, loss(80)) == pytest.approx(printed, abs=0.005)


def test_a_decoy_of_a_quarter_of_the_signal_bounds_as_tightly_as_the_paper_says_at_40_km():
    link = replace(GYS, decoy_photons=0.48 / 4)
    yield_deficit = 1 - link.single_photon_yield_bound(loss(40)) / link.single_photon_yield(loss(40))
    error_excess = link.single_photon_error_bound(loss(40)) / link.single_photon_error(loss(40)) - 1
    assert 100 * yield_deficit == pytest.approx(3.5, abs=0.2)
    assert 100 * error_excess == pytest.approx(16.8, abs=0.2)


def test_the_experiment_itself_had_an_error_rate_of_8_9_percent_at_122_km():
    assert 100 * GYS.qber(0.1, loss(122)) == pytest.approx(8.9, abs=0.5)  # it sent 0.1 photons a pulse


@st.composite
def links(draw):
    signal = draw(st.floats(0.05, 1.5))
    return DecoyBb84(
        signal_photons=signal,
        decoy_photons=signal * draw(st.floats(0.01, 0.95)),
        detector_efficiency=draw(st.floats(0.001, 1.0)),
        background_yield=draw(st.floats(0.0, 0.01)),
        misalignment=draw(st.floats(0.0, 0.5)),
        reconciliation_efficiency=draw(st.floats(1.0, 2.0)),
        sifting=draw(st.floats(0.01, 1.0)),
        pulse_rate_hz=1e9,
    )


LOSSES = st.floats(0.0, 80.0)


@given(links(), LOSSES)
def test_no_link_beats_the_repeaterless_bound(link, loss_db):
    assert 0.0 <= link.secret_key_rate(loss_db) <= plob(loss_db)
    assert link.secret_key_rate_with_infinite_decoys(loss_db) <= plob(loss_db)


@given(links(), LOSSES)
def test_the_bounds_stay_on_the_safe_side_of_the_truth(link, loss_db):
    slack = 1e-9  # differences of nearly equal gains
    assert link.single_photon_yield_bound(loss_db) <= link.single_photon_yield(loss_db) + slack
    if link.single_photon_yield_bound(loss_db) > 1e-6:
        assert link.single_photon_error_bound(loss_db) >= link.single_photon_error(loss_db) - 1e-6


@given(links(), st.floats(0.0, 0.5), LOSSES)
def test_disturbing_a_link_gives_the_error_rate_asked_for_and_never_more_key(link, qber, loss_db):
    disturbed = link.with_qber(qber, loss_db)
    assert disturbed.expected_qber(loss_db) == pytest.approx(max(qber, link.expected_qber(loss_db)))
    assert disturbed.secret_key_rate(loss_db) <= link.secret_key_rate(loss_db) + 1e-15


@pytest.mark.parametrize(
    "wrong",
    [
        {"decoy_photons": 0.48},
        {"decoy_photons": 0.0},
        {"detector_efficiency": 1.1},
        {"background_yield": -1e-6},
        {"misalignment": 0.6},
        {"reconciliation_efficiency": 0.9},
        {"sifting": 0.0},
        {"pulse_rate_hz": math.nan},
    ],
)
def test_an_impossible_link_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(GYS, **wrong)


@pytest.mark.parametrize("loss_db", [-0.1, math.nan])
def test_a_channel_that_amplifies_is_refused(loss_db):
    with pytest.raises(ValueError, match="does not exist"):
        GYS.secret_key_rate(loss_db)


def test_entropy_of_a_coin():
    assert binary_entropy(0.5) == 1.0
    assert binary_entropy(0.0) == binary_entropy(1.0) == 0.0
    assert binary_entropy(0.11002786443836) == pytest.approx(0.5, abs=1e-9)  # where BB84 ends
