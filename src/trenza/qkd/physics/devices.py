"""The catalogue of device classes: what a pair of QKD devices gives over a channel of so much loss.

Pure values. Every figure here is estimated, chosen so that the rates are of the order of the published field links
named beside it; none is a vendor's specification. Callers use `DeviceClass.expected` alone, so that numbers and
models may be replaced without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from trenza.base.units import BitsPerSecond, Decibel
from trenza.qkd.physics.decoy_bb84 import DecoyBb84

BB84_QBER_LIMIT = 0.110028
"""Above it BB84 with one-way post-processing has no key: 1 - 2 h(E) = 0 (Shor and Preskill, PRL 85, 441, 2000)."""


class LinkExpectation(NamedTuple):
    """What a link should give; a reading far from it deserves a look."""

    secret_bits_per_second: BitsPerSecond
    qber: float


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """A kind of QKD device pair.

    Args:
        name: how scenarios name it.
        description: what it stands for and where its figures come from, in a sentence or two.
        model: the physics of its quantum channel.
        ceiling: bits a second that detectors' dead time and post-processing never exceed.
        qber_limit: error rate above which the devices abort.
    """

    name: str
    description: str
    model: DecoyBb84
    ceiling: BitsPerSecond
    qber_limit: float = BB84_QBER_LIMIT

    def expected(self, loss_db: Decibel) -> LinkExpectation:
        """Return rate and error rate of a healthy link over a channel of `loss_db`."""
        return self._expect(self.model, loss_db)

    def expected_at_qber(self, loss_db: Decibel, qber: float) -> LinkExpectation:
        """Return the same when something on the line raises the error rate to `qber`; it is never below healthy."""
        return self._expect(self.model.with_qber(qber, loss_db), loss_db)

    def _expect(self, model: DecoyBb84, loss_db: Decibel) -> LinkExpectation:
        qber = model.expected_qber(loss_db)
        rate = min(self.ceiling, model.secret_bits_per_second(loss_db))
        return LinkExpectation(BitsPerSecond(rate if qber <= self.qber_limit else 0.0), qber)


_ALL = (
    DeviceClass(
        name="decoy-bb84-1ghz",
        description=(
            "Decoy BB84 clocked at 1 GHz with gated avalanche diodes. Estimated, of the order of published links:"
            " Cambridge 2019: 2.58 Mbit/s at 3.9 dB, 2.40 at 4.2, 2.22 at 2.5 (Dynes et al., npj QI 5, 101);"
            " Tokyo 2010, 304 kbit/s at 14.5 dB (Sasaki et al., Opt. Express 19, 10387)."
        ),
        model=DecoyBb84(
            signal_photons=0.4,
            decoy_photons=0.1,
            detector_efficiency=0.045,
            background_yield=2e-6,
            misalignment=0.025,
            reconciliation_efficiency=1.16,
            sifting=0.9,
            pulse_rate_hz=1e9,
        ),
        ceiling=BitsPerSecond(3e6),
    ),
    DeviceClass(
        name="decoy-bb84-slow",
        description=(
            "Decoy BB84 of the first generation, clocked at some MHz. Estimated, of the order of published links:"
            " SECOQC 2008, 3.1 kbit/s at 7.5 dB, QBER 2.6 % (Peev et al., New J. Phys. 11, 075001);"
            " Tokyo 2010, 2 kbit/s at 13 dB (Sasaki et al., Opt. Express 19, 10387)."
        ),
        model=DecoyBb84(
            signal_photons=0.45,
            decoy_photons=0.1,
            detector_efficiency=0.045,
            background_yield=1e-5,
            misalignment=0.024,
            reconciliation_efficiency=1.2,
            sifting=0.5,
            pulse_rate_hz=7e6,
        ),
        ceiling=BitsPerSecond(10e3),
    ),
    DeviceClass(
        name="cow-class",
        description=(
            "Stand-in for a commercial coherent-one-way link: COW itself is not modelled. The rate is that of a decoy"
            " BB84 link at an effective pulse rate, with the low error rate of COW's bits. Estimated, of the order"
            " of a 46 km metropolitan link in Singapore, 2024: 7.4 kbit/s, QBER 0.8 % (its loss is not published)."
        ),
        model=DecoyBb84(
            signal_photons=0.45,
            decoy_photons=0.1,
            detector_efficiency=0.1,
            background_yield=5e-6,
            misalignment=0.008,
            reconciliation_efficiency=1.2,
            sifting=0.9,
            pulse_rate_hz=3e6,
        ),
        ceiling=BitsPerSecond(8e3),
    ),
)

DEVICE_CLASSES: Mapping[str, DeviceClass] = MappingProxyType({each.name: each for each in _ALL})
"""Every class by the name that scenarios use."""
