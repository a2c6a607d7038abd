"""Two nodes, their pools and what moves slots between them, on fakes: no clock of its own, no network but a dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tests.kms.fakes import FakeClock, FakeNetwork, FakeSealer, FakeStore, make_context, open_session
from tests.simulation.networks import network

from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.base.units import Seconds
from trenza.core.policy import Book
from trenza.core.provenance import FORMAT_VERSION, Hop, Lineage, SegmentRecord
from trenza.core.segment import FULL_ORIGINS
from trenza.core.strand import STRAND_BYTES, TRANSCRIPT_BYTES, Supply
from trenza.kms.cede import Cedes
from trenza.kms.context import Settings
from trenza.kms.demand import Demand
from trenza.kms.journal import Journal
from trenza.kms.pairs import Pair
from trenza.kms.pools import Pools
from trenza.kms.stock import Segment
from trenza.wire.peer import Cede, Done, Leave, PeerMessage, Presence, WindowAnswer, WindowMark, WindowRequest

A, B = NodeId("A"), NodeId("B")
T = TypeVar("T")


def any_strands(_facts: object) -> bool:
    return True


def a_book() -> Book:
    return network("AB", "AB", {"A1 B1": "default"}).book(1, {A: "a:1", B: "b:1"})


class End:
    """One of the two nodes."""

    def __init__(self, world: PairWorld, name: NodeId) -> None:
        self.world, self.name = world, name
        self.peer = B if name == A else A
        self.store, self.sealer = FakeStore(), FakeSealer()
        self.lives = 0
        self.live()

    def live(self) -> None:
        """Begin a life on what the disk holds; `load` comes next."""
        self.lives += 1
        nonce = f"{self.name} lives {self.lives}".encode().ljust(16)
        self.ctx = make_context(
            self.name,
            self.world.network,
            clock=self.world.clock,
            settings=self.world.settings,
            store=self.store,
            sealer=self.sealer,
            book=a_book(),
            presence=Presence(1, self.lives, nonce),
            seed=self.lives,
        )
        self.pools = Pools(self.ctx, journal=Journal(self.ctx))
        self.demand = Demand(self.ctx, pools=self.pools)
        self.cedes = Cedes(self.ctx, pools=self.pools, demand=self.demand)
        self.world.network.handlers[self.name] = self.handle

    async def handle(self, peer: NodeId, message: PeerMessage) -> PeerMessage:
        match message:
            case Cede():
                return await self.cedes.handle(peer, message)
            case Leave():
                await self.cedes.take_back(peer, message)
                self.ctx.sessions.pop(peer, None)
                return Done()
            case WindowRequest(full=full, slots=slots):
                return WindowAnswer(await self.pools.granting.grant(peer, full=full, slots=slots, accept=any_strands))
            case _:
                raise AssertionError(message)

    async def restart(self, store: FakeStore | None = None) -> None:
        """Die, and begin another life on the disk, or on an older copy of it."""
        self.store = (store or self.store).after_crash()
        self.live()
        await self.pools.load()

    async def stop(self) -> None:
        """Stop in good order, as Node.leave does."""
        session = self.ctx.session(self.peer)
        told = await self.pools.release_reserved()
        await self.say(Leave(session.id, told.get(self.peer, ())))

    async def say(self, message: PeerMessage) -> PeerMessage:
        return await self.ctx.peers.call(self.peer, message, timeout=Seconds(1.0))

    # --- what there is

    @property
    def pair(self) -> Pair:
        return self.pools.pair(self.peer)

    @property
    def segment(self) -> Segment:
        (segment,) = self.pair.segments.values()
        return segment

    def free(self) -> tuple[set[int], set[int]]:
        """Return which slots this node may still give, and which it may still be given."""
        return slots_in(self.segment.mine.ranges), slots_in(self.segment.theirs.ranges)

    def issuable(self) -> set[int]:
        return {slot for window in self.pair.issuer for slot in range(window.next, window.end)}

    async def get_window(self, slots: int) -> None:
        """Ask the other end for a window and take it over."""
        answer = await self.say(WindowRequest(self.ctx.session(self.peer).id, True, 9, (), 0, slots))
        assert isinstance(answer, WindowAnswer)
        assert await self.pools.taking.accept(self.peer, answer.grants) == []

    async def issue(self, count: int) -> list[tuple[int, int]]:
        """Issue keys of one slot each; return window and slot of each."""
        await self.pools.reserving.reserve(self.peer, count, full=True, accept=any_strands)
        takes = self.pair.issuer.take(count, full=True, slots=1, accept=any_strands)
        self.demand.note_issued(self.peer, full=True, slots=len(takes))
        return [(take.window.number, take.slot) for take in takes]

    def marks(self) -> tuple[WindowMark, ...]:
        return self.pools.marks(self.peer)


class PairWorld:
    """Both, and a session between them. Segments are issued from by B at first: A grants."""

    def __init__(self, *, settings: Settings | None = None) -> None:
        self.settings = settings or Settings(stock_target=64, window_slots=8, segment_min=8, segment_max=64)
        self.clock, self.network = FakeClock(), FakeNetwork()
        self.a, self.b = End(self, A), End(self, B)
        self.sessions = 0
        self.meet()

    def meet(self) -> None:
        """Make a session, as `kms.sessions` does."""
        self.sessions += 1
        open_session(self.a.ctx, self.b.ctx, self.sessions)
        for end in (self.a, self.b):
            end.ctx.sessions[end.peer].lease_until = Seconds(1e9)

    async def fill(self, slots: int, *, number: int = 1, issuer: NodeId = B, strands: bytes = b"\0") -> None:
        """Give both ends the same segment, as filling does."""
        record = SegmentRecord(
            version=FORMAT_VERSION,
            segment=bytes([number]) * 16,
            leader=A,
            follower=B,
            issuer=issuer,
            slots=slots,
            origins=FULL_ORIGINS,
            lineage=Lineage(bytes(16), "scheme", bytes(96), ("ml-dsa-65",)),
            hops=(Hop("AB", A, B, Supply.LIVE, True, "computational", None),),
            created=self.clock.now(),
            uncertainty=0,
        )
        for end in (self.a, self.b):
            size = 2 * TRANSCRIPT_BYTES + slots * STRAND_BYTES * len(FULL_ORIGINS)
            material = Secret(bytearray(strands * size))
            await end.pools.add_segment(end.peer, record.encode(), material)


def slots_in(ranges: tuple[tuple[int, int], ...]) -> set[int]:
    return {slot for first, count in ranges for slot in range(first, first + count)}


def lived(story: Callable[[PairWorld], T]) -> T:
    """Run a story of two nodes."""
    import asyncio

    async def live() -> T:
        return await story(PairWorld())  # type: ignore[misc]

    return asyncio.run(live())
