"""Records that another instance of this node owes: it died before it wrote them.

Each instance writes behind what it issued and delivered. The rows of windows and of deliveries say what was given up,
whoever did it; so the leading instance looks whether the ledger has a record of all that others used of a window, and
names as doubtful what is missing: before it lets go of the window, and when an instance is gone, since windows may
stay for hours (docs/adr/0022-instances.md). Of one that lives and is merely slow, slots may be named that it records
later, or never issued.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from trenza.base.names import NodeId
from trenza.core.provenance import FORMAT_VERSION, DoubtfulRecord, ranges_of
from trenza.core.window import HeldWindow, IssuerWindow
from trenza.kms.context import Context
from trenza.kms.journal import Journal, doubtful_entry
from trenza.kms.ports import Append


class Going(NamedTuple):
    """Slots of a window that goes, some of which another instance gave up."""

    deed: str  # "issued" | "delivered"
    window: int
    segment: bytes
    slots: frozenset[int]


class Debts:
    """What instances that are gone gave out without a record: looked for once after each has gone, by the lead."""

    def __init__(
        self,
        ctx: Context,
        journal: Journal,
        *,
        given_up: Callable[[], Awaitable[Mapping[NodeId, Sequence[Going]]]],
    ) -> None:
        """Owe nothing yet.

        Args:
            ctx: of the node.
            journal: of this instance.
            given_up: says what was issued and delivered by now, of windows that others use too.
        """
        self._ctx = ctx
        self._journal = journal
        self._given_up = given_up
        self._lives: frozenset[bytes] | None = None
        self._is_due = False
        self._found: Mapping[NodeId, Sequence[Going]] | None = None

    def note_lives(self, lives: frozenset[bytes]) -> None:
        """Take in which instances live now, this one among them; some may have gone before the first time."""
        self._is_due = self._is_due or self._lives is None or not self._lives <= lives
        self._lives = lives

    async def step(self) -> None:
        """Find what was given up, or name what of that is still not recorded some seconds later.

        In between, whoever lives has recorded what it was about to.

        Raises:
            StoreUnavailableError: not now; call again.
        """
        if self._found is not None:
            await self._journal.flush()
            entries = [
                entry
                for peer, going in self._found.items()
                for entry in await owed(self._ctx, self._journal, peer, going)
            ]
            if entries:
                await self._ctx.store.commit(entries)
            self._found = None
        elif self._is_due:
            self._is_due = False
            try:
                self._found = await self._given_up()
            except BaseException:
                self._is_due = True
                raise


def issued_of(windows: Iterable[IssuerWindow]) -> list[Going]:
    """Return what was given up of windows that others issued from too; ask before they are removed."""
    return [Going("issued", one.number, one.facts.record.segment, one.given_up) for one in windows if one.shared]


def delivered_of(windows: Iterable[HeldWindow]) -> list[Going]:
    """Return what was delivered of windows that others delivered from too."""
    return [
        Going("delivered", one.number, one.facts.record.segment, frozenset(one.delivered))
        for one in windows
        if one.shared
    ]


async def owed(ctx: Context, journal: Journal, peer: NodeId, going: Iterable[Going]) -> list[Append]:
    """Return entries for what is missing in the ledger, after this instance's own notes were written."""
    entries: list[Append] = []
    for deed, window, segment, slots in going:
        missing = slots - await journal.recorded(deed, peer, window, segment)
        ctx.counters["slots_doubtful"] += len(missing)
        entries += [doubtful_entry(ctx.clock.now(), one) for one in doubts(deed, segment, peer, window, missing)]
    return entries


def doubts(deed: str, segment: bytes, peer: NodeId, window: int, missing: Iterable[int]) -> list[DoubtfulRecord]:
    """Return the record that names these slots, if there are any."""
    ranges = ranges_of(missing)
    return [DoubtfulRecord(FORMAT_VERSION, deed, segment, peer, window, ranges)] if ranges else []
