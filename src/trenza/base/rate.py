"""A token bucket: how often something may happen. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass

from trenza.base.units import Seconds


@dataclass(slots=True)
class TokenBucket:
    """Allows `burst` at once and `per_second` in the long run."""

    per_second: float
    burst: float
    _spent: float = 0.0  # what is missing to a full bucket, at `_at`
    _at: float = 0.0

    def allows(self, now: Seconds, count: int = 1) -> bool:
        """Tell whether at least `count` more may happen at `now`."""
        return self.burst - self._owed(now) >= count

    def wait(self, now: Seconds) -> Seconds:
        """Return how long it is until one more may happen."""
        return Seconds(max(0.0, (self._owed(now) + 1.0 - self.burst) / self.per_second))

    def spend(self, count: int, now: Seconds) -> None:
        """Note that `count` happened; more than the bucket held is paid back first. A negative count gives back."""
        self._spent = self._owed(now) + count
        self._at = now

    def _owed(self, now: Seconds) -> float:
        return max(0.0, self._spent - (now - self._at) * self.per_second)
