"""Books arrive in any order, some forged, while the disk fails and the node restarts: the version only grows."""

from __future__ import annotations

import msgspec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from tests.kms.fakes import Fails, FakeClock, FakeNetwork, FakeSealer, FakeStore, make_context
from tests.kms.pair_world import a_book
from tests.machines import QUICK, AsyncMachine

from trenza.adapters.anchor import MemoryAnchor
from trenza.base.errors import (
    AuthenticationError,
    InvalidDocumentError,
    StaleError,
    StoreUnavailableError,
)
from trenza.base.names import NodeId
from trenza.core.policy import SignedBook, bytes_to_sign, message_of
from trenza.kms.node import Node

OFFICER = MLDSA65PrivateKey.from_seed_bytes(bytes(32))
STRANGER = MLDSA65PrivateKey.from_seed_bytes(bytes([1]) * 32)


def signed(version: int, by: MLDSA65PrivateKey, *, sound: bool = True) -> SignedBook:
    book = msgspec.structs.replace(a_book(), version=version)
    if not sound:
        book = msgspec.structs.replace(book, nodes=book.nodes[:1])  # SAEs on a node that is not there
    body = bytes_to_sign(book)
    return SignedBook(body, by.sign(message_of(body)))


BOOKS = {
    (version, by is OFFICER, sound): signed(version, by, sound=sound)
    for version in range(1, 9)
    for by in (OFFICER, STRANGER)
    for sound in (True, False)
}


class Books(AsyncMachine):
    """One node and its policy book."""

    def __init__(self) -> None:
        super().__init__()
        self.store, self.sealer, self.anchor = FakeStore(), FakeSealer(), MemoryAnchor()
        self.lives = 0
        self.version = 0  # in force
        self.durable = {0}  # versions that a restart may find
        self.begin()

    def begin(self) -> None:
        self.lives += 1
        ctx = make_context(
            NodeId("A"),
            FakeNetwork(),
            clock=FakeClock(),
            store=self.store,
            sealer=self.sealer,
            seed=self.lives,
        )
        ctx.officer = OFFICER.public_key().public_bytes_raw()
        self.node = Node(ctx, anchor=self.anchor)
        self.now(self.node.start())

    @property
    def _in_force(self) -> int:
        return self.node.ctx.book.version if self.node.ctx.has_book else 0

    @rule(which=st.sampled_from(sorted(BOOKS)), failure=st.sampled_from([None, None, None, *Fails]))
    def arrive(self, which: tuple[int, bool, bool], failure: Fails | None) -> None:
        version, genuine, sound = which
        self.store.fail_next = failure
        try:
            told = self.now(self.node.books.install(BOOKS[which]))
        except AuthenticationError:
            assert not genuine
        except StaleError:
            assert version <= self.version
        except InvalidDocumentError:
            assert not sound
        except StoreUnavailableError:
            assert failure is not None
            if failure is Fails.AFTER:
                self.durable.add(version)
        else:
            assert (genuine, sound, failure) == (True, True, None)
            assert told == version > self.version
            self.version = version
            self.durable = {version}
        self.store.fail_next = None

    @rule()
    def restart(self) -> None:
        self.store = self.store.after_crash()
        self.begin()
        assert self._in_force in self.durable
        assert self._in_force >= self.version
        self.version = self._in_force
        self.durable = {self.version}

    @invariant()
    def the_book_in_force_is_the_newest_that_was_installed(self) -> None:
        assert self._in_force == self.version


TestBooks = Books.TestCase
TestBooks.settings = QUICK
