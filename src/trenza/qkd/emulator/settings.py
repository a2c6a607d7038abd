"""How an emulated pair is built: its ends, its line, its stores, the limits of its key doors.

Values only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum, unique

from trenza.base.units import Bits, BitsPerSecond, Decibel, Seconds
from trenza.qkd.emulator.stock import Supply
from trenza.qkd.physics.devices import DeviceClass

NOTHING = Bits(0)
DEFAULT_SIZE = Bits(256)
MIN_SIZE = Bits(64)
MAX_SIZE = Bits(1024)
CAPACITY = Bits(25_600_000)  # 100 000 keys of 256 bits
BLOCK_INTERVAL = Seconds(1.0)
AT_ONCE = Seconds(0.0)
UNFETCHED_LIFETIME = Seconds(60.0)


@unique
class End(StrEnum):
    """The two ends of a pair; neither is special."""

    A = "a"
    B = "b"

    @property
    def other(self) -> End:
        return End.B if self is End.A else End.A


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one request at the key door may ask for."""

    default_size: Bits = DEFAULT_SIZE
    min_size: Bits = MIN_SIZE
    max_size: Bits = MAX_SIZE
    max_keys_per_request: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.min_size <= self.default_size <= self.max_size or self.max_keys_per_request < 1:
            raise ValueError("the limits of the key door exclude every request")


@dataclass(frozen=True, slots=True)
class PairSettings:
    """How one pair is built.

    Args:
        device_class: the kind of devices.
        loss_db: loss of the channel between them.
        initial_stock: bits in both stores when the emulation begins; delivered as `warm`.
        time_factor: multiplies the rate; at any value but 1 what is generated is `synthetic`.
        fixed_rate: bits a second in place of the physics' rate, for benches; what is generated is `synthetic`.
        capacity: bits a store holds; when it is full generation waits.
        block_interval: seconds of running that one block of key takes.
        startup: seconds of aligning before the first block begins, at every start.
        unfetched_lifetime: seconds after which a key that the far end did not fetch is erased.
        max_unfetched: how many keys may wait for one end; then the door refuses to hand out more.
        limits: what one request may ask for.
    """

    device_class: DeviceClass
    loss_db: Decibel
    initial_stock: Bits = NOTHING
    time_factor: float = 1.0
    fixed_rate: BitsPerSecond | None = None
    capacity: Bits = CAPACITY
    block_interval: Seconds = BLOCK_INTERVAL
    startup: Seconds = AT_ONCE
    unfetched_lifetime: Seconds = UNFETCHED_LIFETIME
    max_unfetched: int = 16_384
    limits: KeyLimits = field(default_factory=KeyLimits)

    def __post_init__(self) -> None:
        if not 0.0 < self.time_factor < math.inf or not 0.0 <= self.startup < math.inf:
            raise ValueError("time goes forward")
        if self.fixed_rate is not None and not 0.0 <= self.fixed_rate < math.inf:
            raise ValueError("a rate is neither negative nor endless")

    @property
    def generated_as(self) -> Supply:
        """What key of this pair is called once the initial stock is used up."""
        genuine = self.time_factor == 1.0 and self.fixed_rate is None
        return Supply.LIVE if genuine else Supply.SYNTHETIC
