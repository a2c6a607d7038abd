"""Device classes are of the order of published field links, and the catalogue says what is estimated."""

from __future__ import annotations

import pytest

from trenza.qkd.physics.devices import BB84_QBER_LIMIT, DEVICE_CLASSES


@pytest.mark.parametrize(
    ("name", "loss_db", "published", "factor"),
    [
        ("decoy-bb84-1ghz", 3.9, 2_580_000, 1.5),  # Cambridge 2019
        ("decoy-bb84-1ghz", 4.2, 2_400_000, 1.5),
        ("decoy-bb84-1ghz", 2.5, 2_220_000, 1.5),
        ("decoy-bb84-1ghz", 14.5, 304_000, 2),  # Tokyo 2010
        ("decoy-bb84-slow", 7.5, 3_100, 1.5),  # SECOQC 2008
        ("decoy-bb84-slow", 13.0, 2_000, 2.5),  # Tokyo 2010
        ("cow-class", 46 * 0.22, 7_400, 2),  # Singapore 2024, 46 km; the loss is our guess
    ],
)
def test_a_class_is_of_the_order_of_the_link_it_stands_for(name, loss_db, published, factor):
    rate = DEVICE_CLASSES[name].expected(loss_db).secret_bits_per_second
    assert published / factor <= rate <= published * factor


@pytest.mark.parametrize(
    ("name", "loss_db", "published"), [("decoy-bb84-slow", 7.5, 0.026), ("cow-class", 46 * 0.22, 0.008)]
)
def test_error_rates_are_those_of_the_published_links(name, loss_db, published):
    assert DEVICE_CLASSES[name].expected(loss_db).qber == pytest.approx(published, abs=0.002)


@pytest.mark.parametrize("device_class", DEVICE_CLASSES.values(), ids=lambda each: each.name)
def test_more_loss_never_gives_more_key(device_class):
    rates = [device_class.expected(loss_db).secret_bits_per_second for loss_db in range(60)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] <= device_class.ceiling
    assert rates[-1] == 0.0


@pytest.mark.parametrize("device_class", DEVICE_CLASSES.values(), ids=lambda each: each.name)
def test_every_class_says_that_its_figures_are_estimated(device_class):
    assert "Estimated" in device_class.description
    assert device_class.name in DEVICE_CLASSES


def test_a_class_that_is_not_modelled_says_that_it_is_a_stand_in():
    assert "Stand-in" in DEVICE_CLASSES["cow-class"].description


@pytest.mark.parametrize("device_class", DEVICE_CLASSES.values(), ids=lambda each: each.name)
def test_errors_above_the_limit_leave_no_key(device_class):
    disturbed = device_class.expected_at_qber(3.0, BB84_QBER_LIMIT + 0.001)
    assert disturbed.secret_bits_per_second == 0.0
    assert disturbed.qber == pytest.approx(BB84_QBER_LIMIT + 0.001)


def test_a_link_is_never_better_than_when_healthy():
    device_class = DEVICE_CLASSES["decoy-bb84-1ghz"]
    assert device_class.expected_at_qber(8.3, 0.0) == device_class.expected(8.3)
