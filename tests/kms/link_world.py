"""Small networks of link layers on fakes: nodes in a row or as the test joins them, stocked on request."""

from __future__ import annotations

from collections.abc import Sequence

from tests.kms.fakes import (
    FakeClock,
    FakeDevicePair,
    FakeNetwork,
    FakeSealer,
    FakeStore,
    join,
    make_book,
    make_context,
    open_session,
)

from trenza.base.errors import RemoteProtocolError
from trenza.base.names import LinkId, NodeId
from trenza.kms.context import Settings
from trenza.kms.ingest import Ingest
from trenza.kms.levels import Levels
from trenza.kms.pads import Pads
from trenza.kms.ports import Table
from trenza.kms.relay import Relays
from trenza.wire.peer import BlockOffer, LinkLevels, PeerMessage, Presence, Relay

SMALL = Settings(link_target_units=32, reserve_units=8, block_units=16)


class LinkNode:
    """One node with its link layer. `crash` and `start` keep the disk and the keyring."""

    def __init__(self, world: World, name: NodeId) -> None:
        self.world = world
        self.name = name
        self.store = FakeStore()
        self.sealer = FakeSealer()
        self.lives = 0
        self._build()

    def _build(self) -> None:
        self.lives += 1
        self.ctx = make_context(
            self.name,
            self.world.network,
            clock=self.world.clock,
            settings=self.world.settings,
            store=self.store,
            sealer=self.sealer,
            book=self.world.book,
            presence=Presence(1, self.lives, bytes(16)),
            seed=self.lives,
        )
        self.pads = Pads(self.ctx)
        self.ingest = Ingest(self.ctx, self.pads)
        self.relays = Relays(self.ctx, self.pads)
        self.levels = Levels(self.ctx, self.pads)
        self.world.network.handlers[self.name] = self.handle

    def crash(self) -> None:
        """Lose everything that is not on the disk; the node is away until `start`."""
        self.world.network.handlers.pop(self.name, None)
        self.store = self.store.after_crash()

    async def start(self) -> None:
        """Come back after `crash`, with sessions as upkeep makes them: common blocks only."""
        links = self.ctx.links
        self._build()
        self.ctx.links = links
        await self.ingest.load()
        for peer in sorted({end.peer for end in links.values()}):
            await self.world.meet(self, self.world.nodes[peer])

    async def handle(self, peer: NodeId, message: PeerMessage) -> PeerMessage:
        match message:
            case BlockOffer():
                return await self.ingest.accept(peer, message)
            case Relay():
                return await self.relays.handle(peer, message)
            case LinkLevels():
                return await self.levels.handle(peer, message)
            case _:
                raise RemoteProtocolError("not of the link layer")

    def free(self, link: str, sender: str, *, reserve: bool = False) -> int:
        return self.pads.stream(LinkId(link), NodeId(sender)).held(reserve=reserve)

    def marks(self) -> dict[bytes, int]:
        """Return which units of each block are used, as this node sees it."""
        streams = self.pads._streams.values()
        return {block.id: block.used for stream in streams for block in stream.blocks.values()}

    def on_disk(self) -> bytes:
        """Return everything this node ever wrote."""
        return b"".join(getattr(change, "value", b"") for change in self.store.history)

    def blocks_on_disk(self) -> tuple[set[bytes], set[bytes]]:
        return set(self.store.tables[Table.LINK_BLOCK]), set(self.store.tables[Table.LINK_USED])


class World:
    """Nodes and links; a link is named by its ends: "a-b"."""

    def __init__(self, names: str, links: Sequence[str], settings: Settings = SMALL) -> None:
        self.clock = FakeClock()
        self.network = FakeNetwork()
        self.settings = settings
        self.book = make_book(list(names), [(link, *link.split("-")[:2]) for link in links])
        self.nodes = {NodeId(name): LinkNode(self, NodeId(name)) for name in names}
        self.devices = {LinkId(link): FakeDevicePair(link) for link in links}
        self.sessions = 0
        for link in self.book.links:
            one, other = (self.nodes[end] for end in link.ends)
            join(one.ctx, other.ctx, link.name, self.devices[link.name])
            self.open_session(one, other)

    def __getitem__(self, name: str) -> LinkNode:
        return self.nodes[NodeId(name)]

    def open_session(self, one: LinkNode, other: LinkNode) -> None:
        self.sessions += 1
        open_session(one.ctx, other.ctx, self.sessions)

    async def meet(self, one: LinkNode, other: LinkNode) -> None:
        """Open a session as upkeep does: what only one end holds is dropped."""
        self.open_session(one, other)
        common = set(one.ingest.blocks_with(other.name)) & set(other.ingest.blocks_with(one.name))
        await one.ingest.keep_only(other.name, sorted(common))
        await other.ingest.keep_only(one.name, sorted(common))

    async def stock(self, *links: str) -> None:
        """Let the links' leaders ingest until nothing is needed."""
        for link in self.book.links:
            if not links or link.name in links:
                leader = self.nodes[min(link.ends)]
                while await leader.ingest.step(link.name):
                    pass
