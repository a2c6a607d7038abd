"""What an emulated pair shows of itself: its state, its alarms, its figures.

Values only; never a key bit. A mute device shows nothing of this and still delivers keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique

from trenza.base.units import Bits, BitsPerSecond, Decibel, Nanoseconds


@unique
class DeviceState(StrEnum):
    """What a pair is doing. Where several hold, the first of this order is shown."""

    DEAD = "dead"  # at least one of the two devices is without power or broken
    DISABLED = "disabled"  # switched off by its operator
    CUT = "cut"  # no light arrives
    STARTING = "starting"  # aligning; no key yet
    QBER_HIGH = "qber-high"  # so many errors that no secret bit remains: an eavesdropper, or a sick line
    RUNNING = "running"


@unique
class Severity(StrEnum):
    """How urgent an alarm is (the words of ITU-T X.733)."""

    CRITICAL = "critical"
    MAJOR = "major"
    MINOR = "minor"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something an operator should know, as long as it lasts."""

    code: str
    severity: Severity
    text: str


NO_LIGHT = Alarm("no-light", Severity.CRITICAL, "no light arrives on the quantum channel")
DEVICE_DEAD = Alarm("device-dead", Severity.CRITICAL, "a device of the pair does not answer")
QBER_HIGH = Alarm("qber-high", Severity.CRITICAL, "errors leave no secret bits: eavesdropper or faulty line")
QBER_RAISED = Alarm("qber-raised", Severity.WARNING, "errors are above what this line has when healthy")
SWITCHED_OFF = Alarm("switched-off", Severity.WARNING, "the pair is switched off by its operator")
STORE_FULL = Alarm("store-full", Severity.WARNING, "the key store is full; generation waits")


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a pair.

    `secret_bits_per_second` is what the line gives in this state, also while a full store makes it wait. `qber` and
    `loss_db` are None where nothing can be measured.
    """

    state: DeviceState
    qber: float | None
    secret_bits_per_second: BitsPerSecond
    loss_db: Decibel | None
    stored_bits: Bits
    alarms: tuple[Alarm, ...]
    time: Nanoseconds
