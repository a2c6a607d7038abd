"""The ring of ID keys, step by step: whatever may still be fetched can be read, restarts and failures included."""

from __future__ import annotations

import hashlib

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from tests.kms.fakes import Fails, FakeClock, FakeNetwork, FakeSealer, FakeStore, make_context
from tests.kms.pair_world import a_book
from tests.machines import QUICK, AsyncMachine

from trenza.base.errors import StoreUnavailableError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.core.exchange import SessionKeys
from trenza.core.keyid import IdKeys
from trenza.kms.id_keys import IdKeyRing, lifetime_of

A, B = NodeId("A"), NodeId("B")


def session(number: int) -> SessionKeys:
    def some(what: str) -> bytes:
        return hashlib.sha256(f"{what} {number}".encode()).digest()

    return SessionKeys(
        some("id")[:16],
        Secret.of(some("verify")),
        IdKeys(some("leader tag"), some("leader mask")),
        IdKeys(some("follower tag"), some("follower mask")),
    )


class Ring(AsyncMachine):
    """One node's ring, over many sessions with one peer."""

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.store, self.sealer = FakeClock(), FakeStore(), FakeSealer()
        self.sessions: list[tuple[SessionKeys, int]] = []  # kept, and when
        self.retired: set[bytes] = set()
        self.begin()

    def begin(self) -> None:
        self.ctx = make_context(
            A, FakeNetwork(), clock=self.clock, store=self.store, sealer=self.sealer, book=a_book()
        )
        self.ring = IdKeyRing(self.ctx)
        self.now(self.ring.load())

    @rule()
    def meet(self) -> None:
        keys = session(len(self.sessions) + 1)
        self.now(self.ring.keep(B, keys))
        self.ring.issue_under(B, keys.session_id)
        self.sessions.append((keys, self.clock.now()))
        self.clock.advance(0.001)

    @rule(failure=st.sampled_from(list(Fails)))
    def meet_while_the_disk_fails(self, failure: Fails) -> None:
        """A session whose keys were not kept is none; if they were after all, they harm nobody."""
        self.store.fail_next = failure
        try:
            self.now(self.ring.keep(B, session(1_000 + len(self.sessions))))
        except StoreUnavailableError:
            return
        raise AssertionError("the failure was hidden")

    @rule(hours=st.sampled_from([0.1, 0.9, 1.1, 30.0]))
    def wait(self, hours: float) -> None:
        self.clock.advance(3_600 * hours)

    @precondition(lambda self: self.sessions)
    @rule()
    def retire(self) -> None:
        self.now(self.ring.retire_all())
        self.retired |= {keys.session_id for keys, _ in self.sessions}

    @rule()
    def restart(self) -> None:
        self.store = self.store.after_crash()
        self.begin()

    @invariant()
    def what_may_be_fetched_can_be_read(self) -> None:
        fetchable = {one.session: one for one in self.ring.fetchable(B)}
        oldest = self.clock.now() - lifetime_of(self.ctx)
        ends = [kept for _, kept in self.sessions[1:]] + [self.clock.now()]
        for (keys, _), ended in zip(self.sessions, ends, strict=False):
            if keys.session_id in self.retired:
                assert keys.session_id not in fetchable
            elif ended >= oldest:
                assert fetchable[keys.session_id].mine == keys.leader_issues
                assert fetchable[keys.session_id].theirs == keys.follower_issues

    @invariant()
    def nothing_is_kept_for_ever(self) -> None:
        assert len(self.ring.all_of(B)) <= 256 + len(self.ring.fetchable(B))


TestRing = Ring.TestCase
TestRing.settings = QUICK
