"""An emulated pair of QKD devices: one source of identical random bits at both ends of a line.

Pure and synchronous: no socket, no task, no clock of its own. Nothing runs between two calls; every call first
credits what the line has given since the last one. Whoever serves the two ends over sockets wraps this.
Physics: trenza.qkd.physics. The key door behaves as a pair of KMEs of ETSI GS QKD 014 seen by one SAE at each end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from trenza.base.clock import Clock
from trenza.base.entropy import Entropy
from trenza.base.errors import DeviceUnavailableError, InvalidRequestError, NotEnoughKeyError
from trenza.base.secret import Secret
from trenza.base.units import Bits, BitsPerSecond, Decibel, Seconds, whole_bytes
from trenza.qkd.emulator.held import DeviceKey, HeldKeys
from trenza.qkd.emulator.line import Line
from trenza.qkd.emulator.reading import STORE_FULL, DeviceState, Reading
from trenza.qkd.emulator.settings import End, KeyLimits, PairSettings
from trenza.qkd.emulator.stock import Stock

_ID_BYTES = 16


class EmulatedPair:
    """Two devices and the line between them; `a` and `b` are the key doors, the other methods what happens."""

    def __init__(self, settings: PairSettings, *, clock: Clock, entropy: Entropy) -> None:
        self._clock = clock
        self._entropy = entropy
        self._line = Line(settings, clock.elapsed())
        self._stock = Stock(
            capacity=settings.capacity,
            warm=settings.initial_stock,
            generated_as=settings.generated_as,
            block_interval=settings.block_interval,
        )
        self._stock.flow(self._line.rate(), start=self._line.aligned_at)
        self._held = {end: HeldKeys(most=settings.max_unfetched, lifetime=settings.unfetched_lifetime) for end in End}
        self._mute = False
        self.limits = settings.limits
        self.capacity = settings.capacity
        self.a = DeviceEnd(self, End.A)
        self.b = DeviceEnd(self, End.B)

    def end(self, end: End) -> DeviceEnd:
        """Return the key door of one end."""
        return self.a if end is End.A else self.b

    # What happens to the devices and the line. Each may be repeated and is undone by its opposite.

    def cut(self) -> None:
        """Cut the fibre: no new key; stored keys stay deliverable."""
        self._settle()
        self._line.is_cut = True
        self._flow()

    def repair(self) -> None:
        """Mend the fibre; the devices align again before they generate."""
        was_lit = self._settle()
        self._line.is_cut = False
        self._flow(was_lit=was_lit)

    def set_qber(self, qber: float | None) -> None:
        """Raise the error rate of the line, as an eavesdropper does; None ends it.

        A value below the healthy rate shows the healthy one. Where no secret bit remains, generation stops.

        Raises:
            ValueError: not an error rate.
        """
        if qber is not None and not 0.0 <= qber <= 0.5:
            raise ValueError(f"{qber} is not an error rate between 0 and 0.5")
        self._settle()
        self._line.forced_qber = qber
        self._flow()

    def set_loss(self, loss_db: Decibel) -> None:
        """Change the loss of the channel: a bent fibre, a dirty connector, an optical switch.

        Raises:
            ValueError: not a loss.
        """
        if not loss_db >= 0.0:
            raise ValueError(f"a channel of {loss_db} dB does not exist")
        self._settle()
        self._line.loss_db = loss_db
        self._flow()

    def disable(self) -> None:
        """Switch generation off, as an operator does; stored keys stay deliverable."""
        self._settle()
        self._line.is_disabled = True
        self._flow()

    def enable(self) -> None:
        """Switch generation on; the devices align first."""
        was_lit = self._settle()
        self._line.is_disabled = False
        self._flow(was_lit=was_lit)

    def kill(self, end: End) -> None:
        """Take the device at `end` out: its doors do not answer, and the other cannot agree on new keys."""
        self._settle()
        self._line.dead |= {end}
        self._flow()

    def revive(self, end: End) -> None:
        """Bring the device at `end` back with the keys it stored; it aligns first."""
        was_lit = self._settle()
        self._line.dead -= {end}
        self._flow(was_lit=was_lit)

    def mute(self) -> None:
        """Silence the telemetry: the devices work and say nothing about it."""
        self._mute = True

    def unmute(self) -> None:
        """Let the telemetry speak again."""
        self._mute = False

    # What can be seen.

    def telemetry(self, end: End) -> Reading | None:
        """Return what the device at `end` tells of itself; None if it is mute or dead."""
        return None if self._mute or end in self._line.dead else self.observe()

    def observe(self) -> Reading:
        """Return the truth about the pair, also where no device would tell it."""
        self._settle()
        now = self._clock.elapsed()
        state = self._line.state(now)
        measuring = state in {DeviceState.RUNNING, DeviceState.QBER_HIGH}
        return Reading(
            state=state,
            qber=self._line.qber() if measuring else None,
            secret_bits_per_second=self._line.rate() if measuring else BitsPerSecond(0.0),
            loss_db=self._line.loss_db if measuring else None,
            stored_bits=self._stock.bits,
            alarms=self._line.alarms(now) + ((STORE_FULL,) if self._stock.full else ()),
            time=self._clock.now(),
        )

    # Keys; reached through `a` and `b`.

    def draw(self, end: End, number: int, size: Bits) -> list[DeviceKey]:
        """Hand `number` new keys of `size` bits to `end`, and hold their twins for the other end.

        Returns:
            The keys; the caller wipes them.

        Raises:
            InvalidRequestError: the request is outside the limits.
            DeviceUnavailableError: a device is dead, or too many keys wait for the other end.
            NotEnoughKeyError: the stores hold less than that. Nothing is consumed.
            EntropyError: the generator is not healthy. Nothing is consumed.

        Standard: ETSI GS QKD 014 V1.1.1 (Get key).
        """
        self._check_size(size)
        self._check_number(number)
        if self._line.dead:
            raise DeviceUnavailableError("a device of the pair does not answer")
        self._settle()
        waiting = self._held[end.other]
        if waiting.room < number:
            raise DeviceUnavailableError("too many keys wait to be fetched at the other end")
        if self._stock.bits < number * size:
            raise NotEnoughKeyError("the QKD device has not generated enough key yet")
        now = self._clock.elapsed()
        keys = []
        for key_id, buffer in self._fresh(number, whole_bytes(size)):
            key = DeviceKey(key_id, Secret(buffer), self._stock.take(size))
            waiting.hold(key._replace(secret=Secret(bytearray(buffer))), now)
            keys.append(key)
        return keys

    def fetch(self, end: End, key_ids: Sequence[UUID]) -> list[DeviceKey]:
        """Hand the keys named to `end`, which the other end drew; each once.

        Raises:
            InvalidRequestError: none or too many are named, or one twice.
            UnknownKeyError: an ID is unknown here, expired or already fetched; nothing is consumed.
            DeviceUnavailableError: the device at `end` is dead.

        Standard: ETSI GS QKD 014 V1.1.1 (Get key with key IDs).
        """
        self._check_number(len(key_ids))
        self._check_alive(end)
        self._settle()
        return self._held[end].fetch(key_ids)

    def stored_key_count(self, end: End, size: Bits) -> int:
        """Return how many keys of `size` bits `end` could draw now.

        Raises:
            InvalidRequestError: the size is outside the limits.
            DeviceUnavailableError: the device at `end` is dead.
        """
        self._check_size(size)
        self._check_alive(end)
        self._settle()
        return 0 if self._line.dead else min(self._stock.bits // size, self._held[end.other].room)

    def _fresh(self, number: int, length: int) -> list[tuple[UUID, bytearray]]:
        """Return random IDs and random bits, from one call of the entropy port: all or nothing."""
        step = _ID_BYTES + length
        material = self._entropy.token(number * step)
        fresh = [
            (UUID(bytes=bytes(material[at : at + _ID_BYTES]), version=4), material[at + _ID_BYTES : at + step])
            for at in range(0, number * step, step)
        ]
        material[:] = bytes(len(material))
        return fresh

    def _settle(self) -> bool:
        """Bring stock and held keys up to this moment; tell whether the line was lit."""
        now = self._clock.elapsed()
        self._stock.advance(now)
        for held in self._held.values():
            held.expire(now)
        return self._line.is_lit

    def _flow(self, *, was_lit: bool = True) -> None:
        """Let the key flow as the line now is; `_settle` was called before the change."""
        now = self._clock.elapsed()
        if self._line.is_lit and not was_lit:
            self._line.align(now)
        self._stock.flow(self._line.rate(), start=Seconds(max(now, self._line.aligned_at)))

    def _check_alive(self, end: End) -> None:
        if end in self._line.dead:
            raise DeviceUnavailableError("the device does not answer")

    def _check_number(self, number: int) -> None:
        most = self.limits.max_keys_per_request
        if not 1 <= number <= most:
            raise InvalidRequestError(f"the number of keys must be between 1 and {most}")

    def _check_size(self, size: Bits) -> None:
        least, most = self.limits.min_size, self.limits.max_size
        if not least <= size <= most or size % 8:
            raise InvalidRequestError(f"the size must be a multiple of 8 between {least} and {most} bits")


@dataclass(frozen=True, slots=True)
class DeviceEnd:
    """The key door of one end: all that the KMS beside this device can reach."""

    pair: EmulatedPair
    end: End

    @property
    def limits(self) -> KeyLimits:
        """What one request may ask for."""
        return self.pair.limits

    def draw(self, number: int, size: Bits) -> list[DeviceKey]:
        """Take new keys here (the initiator's deed); see `EmulatedPair.draw`."""
        return self.pair.draw(self.end, number, size)

    def fetch(self, key_ids: Sequence[UUID]) -> list[DeviceKey]:
        """Take the twins of keys drawn at the other end (the target's deed); see `EmulatedPair.fetch`."""
        return self.pair.fetch(self.end, key_ids)

    def stored_key_count(self, size: Bits) -> int:
        """Return how many keys of `size` bits can be drawn here now."""
        return self.pair.stored_key_count(self.end, size)

    def telemetry(self) -> Reading | None:
        """Return what this device tells of itself; None if it is mute or dead."""
        return self.pair.telemetry(self.end)
