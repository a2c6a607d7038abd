"""The line of a pair, its two devices' health included: what has happened to it, and what follows from that.

Four independent facts (cut, disabled, dead ends, forced error rate) and a loss; state, rate and alarms are derived
and never stored. No clock: the caller says what time it is.
"""

from __future__ import annotations

from trenza.base.units import BitsPerSecond, Decibel, Seconds
from trenza.qkd.emulator import reading as alarms
from trenza.qkd.emulator.reading import Alarm, DeviceState
from trenza.qkd.emulator.settings import End, PairSettings

_NOTABLE_RISE = 0.005
"""Error rates wander; only half a point above the healthy line is worth an alarm."""


class Line:
    """What joins the two stores. Assign the facts, then read what they lead to."""

    def __init__(self, settings: PairSettings, now: Seconds) -> None:
        self._settings = settings
        self._healthy_qber = settings.device_class.expected(settings.loss_db).qber
        self.aligned_at = Seconds(now + settings.startup)
        self.loss_db: Decibel = settings.loss_db
        self.forced_qber: float | None = None
        self.is_cut = False
        self.is_disabled = False
        self.dead: frozenset[End] = frozenset()

    @property
    def is_lit(self) -> bool:
        """Whether light goes from a working device to a working device."""
        return not (self.is_cut or self.is_disabled or self.dead)

    def align(self, now: Seconds) -> None:
        """Start anew: light came back."""
        self.aligned_at = Seconds(now + self._settings.startup)

    def qber(self) -> float:
        """Return the error rate that the devices measure when lit."""
        device_class = self._settings.device_class
        if self.forced_qber is None:
            return device_class.expected(self.loss_db).qber
        return device_class.expected_at_qber(self.loss_db, self.forced_qber).qber

    def rate(self) -> BitsPerSecond:
        """Return what the line gives, time factor included: 0 when dark, and when errors leave no secret bit.

        A fixed rate flows in place of the physics' rate up to the error limit of the device class.
        """
        if not self.is_lit:
            return BitsPerSecond(0.0)
        device_class, fixed = self._settings.device_class, self._settings.fixed_rate
        if fixed is not None:
            rate = fixed if self.qber() <= device_class.qber_limit else BitsPerSecond(0.0)
        elif self.forced_qber is None:
            rate = device_class.expected(self.loss_db).secret_bits_per_second
        else:
            rate = device_class.expected_at_qber(self.loss_db, self.forced_qber).secret_bits_per_second
        return BitsPerSecond(rate * self._settings.time_factor)

    def state(self, now: Seconds) -> DeviceState:
        """Return what the pair is doing; where several hold, the first of the enumeration's order."""
        if self.dead:
            return DeviceState.DEAD
        if self.is_disabled:
            return DeviceState.DISABLED
        if self.is_cut:
            return DeviceState.CUT
        if now < self.aligned_at:
            return DeviceState.STARTING
        return DeviceState.RUNNING if self.rate() > 0.0 else DeviceState.QBER_HIGH

    def alarms(self, now: Seconds) -> tuple[Alarm, ...]:
        """Return every alarm that holds, the gravest first."""
        state = self.state(now)
        raised = self.qber() > self._healthy_qber + _NOTABLE_RISE
        facts = (
            (bool(self.dead), alarms.DEVICE_DEAD),
            (self.is_cut, alarms.NO_LIGHT),
            (state is DeviceState.QBER_HIGH, alarms.QBER_HIGH),
            (state is DeviceState.RUNNING and raised, alarms.QBER_RAISED),
            (self.is_disabled, alarms.SWITCHED_OFF),
        )
        return tuple(alarm for holds, alarm in facts if holds)
