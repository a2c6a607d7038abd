"""What several pairs of SAEs may draw from one lot of slots: floors for higher classes, fair shares under scarcity.

A *lot* is what one node can issue to one peer, with QKD strands or without. Pure bookkeeping: time is an argument and
levels are told; which SAEs there are, and what their refusal is called, is `kms.shares`.
Why so: docs/adr/0016-shares.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum, unique

from trenza.base.names import TenantId
from trenza.base.units import Seconds
from trenza.core.policy import TenantEntry
from trenza.core.priority import Priority

HORIZON = Seconds(10.0)
"""Over how long a scarce stock that is not refilled is stretched."""

ACTIVE = Seconds(10.0)
"""Who has not asked for so long is not counted among those who share."""

_LONGEST_DEBT = Seconds(600.0)
_SMOOTHING = Seconds(5.0)
_CLASSES = len(Priority)


@unique
class Verdict(Enum):
    """What becomes of a request."""

    GRANTED = "granted"
    KEPT = "kept for higher priority"
    BEYOND_SHARE = "beyond its share"


@dataclass(slots=True)
class Claim:
    """One pair's part of a scarce lot: a bucket whose rate follows the lot."""

    tenant: TenantId
    weight: int
    asked: Seconds
    at: Seconds
    rate: float = 0.0  # slots a second
    credit: float = 1.0  # slots; negative after a request that was larger than what the bucket held

    def settle(self, now: Seconds) -> float:
        """Return the credit at `now`; no more than a second's worth is saved up."""
        self.credit = min(max(1.0, self.rate), self.credit + (now - self.at) * self.rate)
        self.at = now
        return self.credit


@dataclass(slots=True, eq=False)
class Lot:
    """The slots that one node can issue to one peer, of one kind, and who draws on them."""

    floors: Sequence[int]  # by class: slots that it leaves to higher classes
    rivals: Sequence[int]  # by class: how many pairs may draw at all
    low_water: int  # slots above the floor below which they are shared out
    due: Seconds = Seconds(0.0)  # when to look again how much there is
    stock: int = 0  # slots that can be issued, or only need a window for it
    refill: float = 0.0  # slots a second, as observed
    drawn: list[int] = field(default_factory=lambda: [0] * _CLASSES)  # since the last look
    _used: list[float] = field(default_factory=lambda: [0.0] * _CLASSES)  # slots a second
    _claims: dict[Hashable, Claim] = field(default_factory=dict)
    _class_of: dict[Hashable, int] = field(default_factory=dict)
    _gained: int = 0
    _looked: Seconds | None = None

    # --- drawing

    def draw(
        self, who: Hashable, priority: int, slots: int, now: Seconds, tenant: TenantEntry, *, times: int = 1
    ) -> Verdict:
        """Take `slots` out of the count for a pair, unless they are kept for others.

        Args:
            who: the pair.
            priority: its class.
            slots: of the whole request.
            now: on a clock that does not jump.
            tenant: of its initiator.
            times: so many such requests are granted all or none, and only if one after the other they would be too.
        """
        before = slots * (times - 1)
        floor, slots = self.floors[priority], slots * times
        if floor and self.stock - slots < floor:
            return Verdict.KEPT
        if self.stock - slots < floor + self.low_water and self.rivals[priority] > 1:
            claim = self._claim(who, priority, now, tenant)
            if claim.settle(now) < 1.0 + before:
                return Verdict.BEYOND_SHARE
            claim.credit -= slots
        self.stock -= slots
        self.drawn[priority] += slots
        return Verdict.GRANTED

    def give_back(self, who: Hashable, priority: int, slots: int) -> None:
        """Take back a draw that came to nothing."""
        self.stock += slots
        self.drawn[priority] -= slots
        claim = self._claims.get(who)
        if claim is not None:
            claim.credit += slots

    def wait(self, who: Hashable) -> Seconds:
        """Return how long a pair that is beyond its share had better wait."""
        claim = self._claims.get(who)
        if claim is None or claim.rate <= 0.0:
            return ACTIVE
        return Seconds(min(ACTIVE, (1.0 - claim.credit) / claim.rate))

    def _claim(self, who: Hashable, priority: int, now: Seconds, tenant: TenantEntry) -> Claim:
        claim = self._claims.get(who)
        if claim is None:
            claim = self._claims[who] = Claim(tenant.name, tenant.weight, asked=now, at=now)
            self._class_of[who] = priority
        claim.asked = now
        return claim

    # --- looking

    def look(self, stock: int, now: Seconds) -> None:
        """Take in how much there really is, and share it out anew."""
        if self._looked is None:
            self._looked = now
        else:
            self._gained += max(0, stock - self.stock)  # `stock` had gone down by what was drawn
        self.stock = stock
        if (passed := now - self._looked) > 0:
            self._looked = now
            self._average(passed)
        self._share_out(now)

    def _average(self, passed: float) -> None:
        old = 0.5 ** (passed / _SMOOTHING)
        self.refill = old * self.refill + (1.0 - old) * self._gained / passed
        pairs = zip(self._used, self.drawn, strict=True)
        self._used = [old * used + (1.0 - old) * drawn / passed for used, drawn in pairs]
        self._gained, self.drawn = 0, [0] * _CLASSES

    @property
    def _horizon(self) -> float:
        """Return over how many seconds the stock is stretched: so many that it settles well below the low-water mark.

        Above the mark, whoever is first is served first; there nothing would be shared.
        """
        return min(HORIZON, self.low_water / (2.0 * self.refill)) if self.refill > 0.0 else HORIZON

    def _share_out(self, now: Seconds) -> None:
        for who in [who for who, claim in self._claims.items() if self._is_over(claim, now)]:
            del self._claims[who], self._class_of[who]
        for priority in sorted(set(self._class_of.values())):
            claims = [claim for who, claim in self._claims.items() if self._class_of[who] == priority]
            beside = sum(self._used[priority + 1 :])
            spare = max(0, self.stock - self.floors[priority])
            count = len(claims)
            budget = count / (count + 1) * (max(0.0, self.refill - beside) + spare / self._horizon)
            pairs = Counter(claim.tenant for claim in claims)
            weights = sum({claim.tenant: claim.weight for claim in claims}.values())
            for claim in claims:
                claim.settle(now)
                claim.rate = budget * claim.weight / weights / pairs[claim.tenant]

    @staticmethod
    def _is_over(claim: Claim, now: Seconds) -> bool:
        """Tell whether a pair has stopped asking; one that had more than its share in advance pays back first."""
        silent = now - claim.asked
        return silent > _LONGEST_DEBT or (silent > ACTIVE and claim.settle(now) >= 1.0)
