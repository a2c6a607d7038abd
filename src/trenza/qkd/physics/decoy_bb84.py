"""The secret-key rate of decoy-state BB84 with weak laser pulses and threshold detectors.

Pure arithmetic: no clock, no randomness. Asymptotic (blocks of unlimited length): a rate of this module is what a
link tends to, not a finite-key proof. Source: X. Ma, B. Qi, Y. Zhao, H.-K. Lo, "Practical decoy state for quantum key
distribution", Phys. Rev. A 72, 012326 (2005), arXiv:quant-ph/0503005; its symbols are given in brackets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from trenza.base.units import BitsPerSecond, Decibel

ERROR_OF_BACKGROUND = 0.5
"""e0: a click without a photon falls on either detector."""


def binary_entropy(probability: float) -> float:
    """Return the entropy in bits of a coin that falls one way with `probability`."""
    if probability <= 0.0 or probability >= 1.0:
        return 0.0
    rest = 1.0 - probability
    return -probability * math.log2(probability) - rest * math.log2(rest)


@dataclass(frozen=True, slots=True)
class DecoyBb84:
    """One transmitter and receiver running vacuum + weak decoy BB84.

    The gain is that of the paper, Y0 + 1 - exp(-eta mu), whose n-photon yields are Y0 + 1 - (1 - eta)^n. The exact
    form 1 - (1 - Y0) exp(-eta mu) must not be mixed with it: the bound on Y1 could then exceed Y1 itself.

    Args:
        signal_photons: mean photons of a signal pulse (mu).
        decoy_photons: mean photons of a decoy pulse (nu); below `signal_photons`.
        detector_efficiency: transmittance of the receiver's optics times its detectors' efficiency (eta_Bob).
        background_yield: probability of a click without a photon, in a gate, all detectors together (Y0).
        misalignment: probability that a photon hits the wrong detector (e_d).
        reconciliation_efficiency: disclosed bits over the Shannon limit (f_EC); 1 or more.
        sifting: share of the clicks that are kept as signal in the same basis (q).
        pulse_rate_hz: pulses sent in a second.
    """

    signal_photons: float
    decoy_photons: float
    detector_efficiency: float
    background_yield: float
    misalignment: float
    reconciliation_efficiency: float
    sifting: float
    pulse_rate_hz: float

    def __post_init__(self) -> None:
        limits = (
            (0.0 < self.decoy_photons < self.signal_photons, "0 < decoy_photons < signal_photons"),
            (0.0 < self.detector_efficiency <= 1.0, "0 < detector_efficiency <= 1"),
            (0.0 <= self.background_yield <= 0.01, "0 <= background_yield <= 0.01"),  # the paper's Y0 << 1
            (0.0 <= self.misalignment <= 0.5, "0 <= misalignment <= 0.5"),
            (self.reconciliation_efficiency >= 1.0, "reconciliation_efficiency >= 1"),
            (0.0 < self.sifting <= 1.0, "0 < sifting <= 1"),
            (self.pulse_rate_hz > 0.0, "pulse_rate_hz > 0"),
        )
        for holds, rule in limits:
            if not holds:
                raise ValueError(f"no such link: {rule}")

    def secret_bits_per_second(self, loss_db: Decibel) -> BitsPerSecond:
        """Return the secret bits a second over a channel of `loss_db`."""
        return BitsPerSecond(self.secret_key_rate(loss_db) * self.pulse_rate_hz)

    def expected_qber(self, loss_db: Decibel) -> float:
        """Return the error rate of the sifted signal bits, 0 to 0.5."""
        return self.qber(self.signal_photons, loss_db)

    def secret_key_rate(self, loss_db: Decibel) -> float:
        """Return secret bits per pulse with one weak decoy and vacuum; 0 where there are none."""
        return self._rate(loss_db, self.single_photon_yield_bound(loss_db), self.single_photon_error_bound(loss_db))

    def secret_key_rate_with_infinite_decoys(self, loss_db: Decibel) -> float:
        """Return secret bits per pulse if the single-photon part were known exactly: the ceiling of decoy methods."""
        return self._rate(loss_db, self.single_photon_yield(loss_db), self.single_photon_error(loss_db))

    def gain(self, photons: float, loss_db: Decibel) -> float:
        """Return the probability that a pulse of `photons` mean photons clicks, Q."""
        return self.background_yield - math.expm1(-self.transmittance(loss_db) * photons)

    def qber(self, photons: float, loss_db: Decibel) -> float:
        """Return the error rate of clicks of pulses of `photons` mean photons, E."""
        clicks = -math.expm1(-self.transmittance(loss_db) * photons)
        wrong = ERROR_OF_BACKGROUND * self.background_yield + self.misalignment * clicks
        gain = self.gain(photons, loss_db)
        return wrong / gain if gain > 0.0 else ERROR_OF_BACKGROUND

    def single_photon_yield(self, loss_db: Decibel) -> float:
        """Return the true probability that a single photon clicks, Y1."""
        return self.background_yield + self.transmittance(loss_db)

    def single_photon_error(self, loss_db: Decibel) -> float:
        """Return the true error rate of single photons, e1."""
        single = self.single_photon_yield(loss_db)
        wrong = ERROR_OF_BACKGROUND * self.background_yield + self.misalignment * self.transmittance(loss_db)
        return wrong / single if single > 0.0 else ERROR_OF_BACKGROUND

    def single_photon_yield_bound(self, loss_db: Decibel) -> float:
        """Return the lower bound on Y1 that vacuum + weak decoy proves; 0 if it proves none."""
        mu, nu = self.signal_photons, self.decoy_photons
        weak = self.gain(nu, loss_db) * math.exp(nu)
        signal = self.gain(mu, loss_db) * math.exp(mu) * nu**2 / mu**2
        vacuum = (mu**2 - nu**2) / mu**2 * self.background_yield
        return max(0.0, mu / (mu * nu - nu**2) * (weak - signal - vacuum))

    def single_photon_error_bound(self, loss_db: Decibel) -> float:
        """Return the upper bound on e1 that vacuum + weak decoy proves; at most 0.5."""
        single = self.single_photon_yield_bound(loss_db)
        if single <= 0.0:
            return ERROR_OF_BACKGROUND
        nu = self.decoy_photons
        wrong = self.qber(nu, loss_db) * self.gain(nu, loss_db) * math.exp(nu)
        return min(ERROR_OF_BACKGROUND, (wrong - ERROR_OF_BACKGROUND * self.background_yield) / (single * nu))

    def transmittance(self, loss_db: Decibel) -> float:
        """Return the probability that a photon sent is detected, channel and receiver together, eta.

        Raises:
            ValueError: a channel does not amplify: `loss_db` is negative or not a number.
        """
        if not loss_db >= 0.0:
            raise ValueError(f"a channel of {loss_db} dB does not exist")
        return float(10.0 ** (-loss_db / 10.0) * self.detector_efficiency)

    def with_qber(self, qber: float, loss_db: Decibel) -> DecoyBb84:
        """Return this link disturbed until its signal errs at `qber`: how an intercept-resend attack appears.

        A `qber` below what the link has by itself changes nothing: nobody improves a link by listening.
        """
        if qber <= self.expected_qber(loss_db):
            return self
        background = ERROR_OF_BACKGROUND * self.background_yield
        clicks = self.gain(self.signal_photons, loss_db) - self.background_yield
        if clicks <= 0.0:
            return self
        wrong = min(qber, ERROR_OF_BACKGROUND) * (clicks + self.background_yield) - background
        return replace(self, misalignment=min(ERROR_OF_BACKGROUND, wrong / clicks))

    def _rate(self, loss_db: Decibel, single_yield: float, single_error: float) -> float:
        mu = self.signal_photons
        disclosed = self.reconciliation_efficiency * binary_entropy(self.expected_qber(loss_db))
        single = single_yield * mu * math.exp(-mu) * (1.0 - binary_entropy(single_error))
        return max(0.0, self.sifting * (single - self.gain(mu, loss_db) * disclosed))
