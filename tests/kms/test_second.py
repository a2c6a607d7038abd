"""An instance beside the one that leads: what it does when it ends."""

from __future__ import annotations

import asyncio

from tests.kms.fakes import FakeClock, FakeNetwork, FakeStore, make_context, open_session
from tests.kms.pair_world import A, B, a_book
from tests.kms.test_journal import heading

from trenza.base.units import Seconds
from trenza.kms.second import Second


def test_an_instance_that_ends_issues_nothing_while_its_last_records_are_written() -> None:
    async def story() -> None:
        clock, network, store = FakeClock(), FakeNetwork(), FakeStore()
        ctx = make_context(A, network, clock=clock, store=store, book=a_book())
        ctx.shared = store  # type: ignore[assignment]  # nothing of what makes it shared is asked for here
        second = Second(ctx, anchor=None)  # type: ignore[arg-type]  # nobody asks it
        open_session(ctx, make_context(B, network, clock=clock, book=a_book()))
        ctx.sessions[B].lease_until = Seconds(1e9)
        assert second.node.sessions.has_lease(B)
        second.node.journal.page(heading()).note(1, clock.now())
        seen: list[bool] = []
        commit = store.commit

        async def watched(changes: object) -> None:
            seen.append(second.node.sessions.has_lease(B))
            await commit(changes)  # type: ignore[arg-type]

        store.commit = watched  # type: ignore[method-assign]
        await second.end()
        assert seen == [False]
        assert second.node.journal.pending == 0

    asyncio.run(story())
