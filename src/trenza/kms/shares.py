"""Who gets how much: one synchronous question before slots are taken (docs/adr/0016-shares.md).

Keeps the terms of the policy book: rates of pairs and tenants, a tenant's quota of the day, floors for higher
classes, fair shares of what is scarce. Takes no slot and asks nobody; what it admits may still not be there. Counts
are this node's own; the day's quotas are stored now and then, not with every key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from trenza.base.errors import LimitedError, NotEnoughKeyError
from trenza.base.names import NodeId, SaeId, TenantId
from trenza.base.rate import TokenBucket
from trenza.base.units import Bits, Seconds
from trenza.core.policy import Policy, SaeEntry, TenantEntry
from trenza.core.priority import Priority
from trenza.core.recipe import LOCAL
from trenza.core.share import Lot, Verdict
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.ports import Put, Table

LOOK_EVERY: Final = Seconds(0.1)
"""How old a count of what is left may be; between counts it goes down by what is admitted."""

SAVE_EVERY: Final = Seconds(60.0)
_DAY_NS: Final = 86_400 * 10**9
_PAIRS_MAX: Final = 65_536


class Sharer(Protocol):
    """Two SAEs and their policy, as `kms.slots.Pair` has them."""

    @property
    def initiator(self) -> SaeEntry: ...

    @property
    def target(self) -> SaeEntry: ...

    @property
    def policy(self) -> Policy: ...


StockOf = Callable[[NodeId, bool], int]
"""Counts the slots that this node can issue to a peer, with QKD strands (True) or without, some after one round trip
for a window."""


class Asked(NamedTuple):
    """What a request would use."""

    keys: int
    bits: int  # of all keys together
    full: bool | None  # with QKD strands, or without; None: no slots at all (LOCAL)
    slots: int  # of all keys together

    @staticmethod
    def of(number: int, size: Bits, *, full: bool | None = None, slots_per_key: int = 0) -> Asked:
        return Asked(number, number * size, full, number * slots_per_key)


@dataclass(slots=True)
class _Usage:
    """What a tenant has been given today."""

    day: int = -1
    bits: int = 0


@dataclass(slots=True, eq=False)
class _Terms:
    """All that the book says of one pair, looked up once."""

    who: tuple[SaeId, SaeId]
    tenant: TenantEntry
    priority: int
    lots: tuple[Lot, Lot] | None  # without QKD strands, with them; None: both SAEs are this node's
    buckets: tuple[TokenBucket, ...]
    usage: _Usage | None  # None: no quota
    metered: bool


class Shares:
    """The shares of one node."""

    def __init__(self, ctx: Context, *, stock_of: StockOf) -> None:
        self._ctx = ctx
        self.stock_of = stock_of
        self._terms: dict[Sharer, _Terms] = {}
        self._lots: dict[NodeId, tuple[Lot, Lot]] = {}
        self._pair_buckets: dict[tuple[SaeId, SaeId], TokenBucket] = {}
        self._tenant_buckets: dict[TenantId, TokenBucket] = {}
        self._usage: dict[TenantId, _Usage] = {}
        self._book_version = 0
        self._saved_at = Seconds(0.0)
        self._unsaved = False

    # --- asking

    def grants(self, pair: Sharer, asked: Asked, now: Seconds, *, times: int = 1) -> bool:
        """Admit a request or do not, without a word: who then asks with `admit` hears why, and is counted.

        Args:
            pair: as in `admit`.
            asked: by one request.
            now: on Clock.elapsed.
            times: so many such requests at once are admitted all or none, and only if one after the other would be.
        """
        terms = self._terms.get(pair) or self._take_in(pair)
        if terms.metered and self._limit_of(terms, asked, now, times) is not None:
            return False
        if self._draw(pair, terms, asked, now, times) is not Verdict.GRANTED:
            return False
        if terms.metered:
            self._spend(terms, asked.keys * times, asked.bits * times, now)
        return True

    def admit(self, pair: Sharer, asked: Asked, now: Seconds) -> None:
        """See that a request may be served now, and count it as served; `give_back` if it was not.

        Args:
            pair: who asks; its maker keeps it, what follows from it is remembered.
            asked: by one request, all or nothing.
            now: on Clock.elapsed.

        Raises:
            LimitedError: a rate or a quota; no other recipe would change that.
            NotEnoughKeyError: what is left is kept for others; another kind of strands may do.
        """
        terms = self._terms.get(pair) or self._take_in(pair)
        if terms.metered and (limit := self._limit_of(terms, asked, now)) is not None:
            self._ctx.counters["requests_over_quota" if limit is terms.usage else "requests_over_rate"] += 1
            raise self._limited(limit, now)
        verdict = self._draw(pair, terms, asked, now)
        if verdict is not Verdict.GRANTED:
            raise self._refusal(verdict, terms, asked)
        if terms.metered:
            self._spend(terms, asked.keys, asked.bits, now)

    def give_back(self, pair: Sharer, asked: Asked, now: Seconds) -> None:
        """Take back what was admitted and then not served."""
        terms = self._terms.get(pair) or self._take_in(pair)
        if asked.full is not None and terms.lots is not None:
            terms.lots[asked.full].give_back(terms.who, terms.priority, asked.slots)
        if terms.metered:
            self._spend(terms, -asked.keys, -asked.bits, now)

    def admit_all(self, asked: Sequence[tuple[Sharer, Asked]], now: Seconds) -> None:
        """Admit every one of these, or none.

        Raises:
            LimitedError, NotEnoughKeyError: as `admit`.
        """
        for done, (pair, request) in enumerate(asked):
            try:
                self.admit(pair, request, now)
            except (LimitedError, NotEnoughKeyError):
                for before, given in asked[:done]:
                    self.give_back(before, given, now)
                raise

    def floor_of(self, peer: NodeId) -> int:
        """Return the slots to `peer`, of either kind, that the lowest class leaves to the others."""
        self._follow_book()
        return max(lot.floors[0] for lot in self._lots_of(peer))

    # --- rates and quotas

    def _limit_of(self, terms: _Terms, asked: Asked, now: Seconds, times: int = 1) -> TokenBucket | _Usage | None:
        """Return the rate or the quota that a request, the last of so many, would exceed."""
        for bucket in terms.buckets:
            if not bucket.allows(now, 1 + asked.keys * (times - 1)):
                return bucket
        usage = terms.usage
        if usage is not None and self._today(usage) + asked.bits * times > terms.tenant.max_bits_per_day:
            return usage
        return None

    def _limited(self, limit: TokenBucket | _Usage, now: Seconds) -> LimitedError:
        if isinstance(limit, TokenBucket):
            return LimitedError(
                "more keys were asked for than may be had in this time; try again later", retry_after=limit.wait(now)
            )
        return LimitedError(
            "the quota of this day does not suffice for this request; a new day begins at midnight UTC",
            retry_after=Seconds((_DAY_NS - self._ctx.clock.now() % _DAY_NS) / 1e9),
        )

    def _spend(self, terms: _Terms, keys: int, bits: int, now: Seconds) -> None:
        for bucket in terms.buckets:
            bucket.spend(keys, now)
        if terms.usage is not None:
            terms.usage.bits = max(0, self._today(terms.usage) + bits)
            self._unsaved = True

    def _today(self, usage: _Usage) -> int:
        """Return what was used today: a new day begins at midnight UTC, by this node's clock.

        A clock that was set back over midnight begins none: it would be a day's quota twice.
        """
        day = self._ctx.clock.now() // _DAY_NS
        if day not in (usage.day, usage.day - 1):
            usage.day, usage.bits = day, 0
        return usage.bits

    # --- lots

    def _draw(self, pair: Sharer, terms: _Terms, asked: Asked, now: Seconds, times: int = 1) -> Verdict:
        full, lots = asked.full, terms.lots
        if full is None or lots is None:
            return Verdict.GRANTED
        lot = lots[full]
        if now >= lot.due:
            lot.look(self.stock_of(pair.target.node, full), now)
            lot.due = Seconds(now + LOOK_EVERY)
        return lot.draw(terms.who, terms.priority, asked.slots, now, terms.tenant, times=times)

    def _refusal(self, verdict: Verdict, terms: _Terms, asked: Asked) -> NotEnoughKeyError:
        if verdict is Verdict.KEPT:
            self._ctx.counters["requests_kept_for_higher"] += 1
            return NotEnoughKeyError(
                "not enough keys are available now: what is left is kept for higher priority; try again later"
            )
        self._ctx.counters["requests_beyond_share"] += 1
        assert terms.lots is not None
        assert asked.full is not None
        return NotEnoughKeyError(
            "not enough keys are available now: what is left is shared among those who ask; try again later",
            retry_after=terms.lots[asked.full].wait(terms.who),
        )

    # --- the book

    def _take_in(self, pair: Sharer) -> _Terms:
        """Look up what the book says of a pair."""
        self._follow_book()
        if len(self._terms) >= _PAIRS_MAX:
            self._terms.clear()
        tenant = self._ctx.book.tenant_of(pair.initiator)
        who = (pair.initiator.name, pair.target.name)
        peer = pair.target.node
        buckets = (self._bucket_of_pair(who, pair.policy), self._bucket_of_tenant(tenant))
        limits = tuple(bucket for bucket in buckets if bucket is not None)
        usage = self._usage.setdefault(tenant.name, _Usage()) if tenant.max_bits_per_day else None
        self._terms[pair] = terms = _Terms(
            who,
            tenant,
            pair.policy.priority,
            None if peer == self._ctx.name else self._lots_of(peer),
            limits,
            usage,
            metered=bool(limits) or usage is not None,
        )
        return terms

    def _follow_book(self) -> None:
        """Forget what followed from an earlier book; what was used up stays used up."""
        book = self._ctx.book
        if book.version == self._book_version:
            return
        self._book_version = book.version
        self._terms.clear()
        self._lots.clear()
        self._usage = {name: used for name, used in self._usage.items() if name in book.tenant_by_name}
        self._tenant_buckets = {
            name: bucket for name, bucket in self._tenant_buckets.items() if name in book.tenant_by_name
        }
        self._pair_buckets = {
            who: bucket for who, bucket in self._pair_buckets.items() if book.policy_between(*who) is not None
        }

    def _bucket_of_pair(self, who: tuple[SaeId, SaeId], policy: Policy) -> TokenBucket | None:
        if not policy.max_keys_per_second:
            return None
        return _renewed(self._pair_buckets.setdefault(who, TokenBucket(1.0, 1.0)), policy)

    def _bucket_of_tenant(self, tenant: TenantEntry) -> TokenBucket | None:
        if not tenant.max_keys_per_second:
            return None
        return _renewed(self._tenant_buckets.setdefault(tenant.name, TokenBucket(1.0, 1.0)), tenant)

    def _lots_of(self, peer: NodeId) -> tuple[Lot, Lot]:
        lots = self._lots.get(peer)
        if lots is None:
            lots = self._lots[peer] = (self._new_lot(peer, full=False), self._new_lot(peer, full=True))
        return lots

    def _new_lot(self, peer: NodeId, *, full: bool) -> Lot:
        """Return a lot that is counted at its first use, with the floors and rivals that the book makes."""
        settings = self._ctx.settings
        rivals = [0] * len(Priority)
        for _, other, policy in self._ctx.book.pairs_of_node(self._ctx.name):
            if other.node == peer and _draws(policy, full=full):
                rivals[policy.priority] += 1
        own = [int(settings.class_floor * settings.stock_target) if count else 0 for count in rivals]
        if rivals[Priority.EMERGENCY]:
            own[Priority.EMERGENCY] = int(settings.emergency_floor * settings.stock_target)
        floors = [sum(own[priority + 1 :]) for priority in Priority]
        return Lot(floors, rivals, low_water=max(1, int(settings.low_water * settings.stock_target)))

    # --- what survives a restart

    async def load(self) -> None:
        """Read what tenants had used when it was last stored."""
        value = await self._ctx.store.get(Table.META, rows.QUOTAS)
        if value is not None:
            for used in rows.decode(value, rows.QuotasRow).used:
                self._usage[TenantId(used.tenant)] = _Usage(used.day, used.bits)

    async def save_if_due(self) -> None:
        """Store what tenants have used, once in a while."""
        now = self._ctx.clock.elapsed()
        if self._unsaved and now - self._saved_at >= SAVE_EVERY:
            self._saved_at = now
            await self.save()

    async def save(self) -> None:
        """Store what tenants have used."""
        if not self._unsaved:
            return
        self._unsaved = False
        used = tuple(rows.QuotaRow(name, usage.day, usage.bits) for name, usage in sorted(self._usage.items()))
        try:
            await self._ctx.store.commit([Put(Table.META, rows.QUOTAS, rows.encode(rows.QuotasRow(used)))])
        except BaseException:
            self._unsaved = True
            raise


def _draws(policy: Policy, *, full: bool) -> bool:
    return any(recipe is not LOCAL and recipe.needs_qkd is full for recipe in policy.recipes)


def _renewed(bucket: TokenBucket, limited: Policy | TenantEntry) -> TokenBucket:
    """Give a bucket the rate that holds now; what it owes it keeps."""
    bucket.per_second = limited.max_keys_per_second
    bucket.burst = max(1.0, float(limited.burst or limited.max_keys_per_second))
    return bucket
