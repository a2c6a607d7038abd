"""What only the instance that leads has: connections to peers and devices, stories that run, the door for peers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trenza.adapters.agreement import X448MlKem1024
from trenza.adapters.archive import ArchiveDirectory
from trenza.adapters.identity import CertificateVerifier, MlDsaSigner
from trenza.adapters.peers import PeerAddress, PeerConnections
from trenza.app.certificates import Certificates
from trenza.app.config import NodeConfig
from trenza.app.links import LinkClients
from trenza.app.listening import listen
from trenza.app.memory import Memory
from trenza.app.pki import load_officer_public_key
from trenza.app.preshared import preshared_of
from trenza.base.clock import Clock
from trenza.base.entropy import Entropy
from trenza.base.errors import StoreUnavailableError
from trenza.base.names import NodeId
from trenza.core.policy import SignedBook
from trenza.kms.context import Context
from trenza.kms.node import Node
from trenza.net.gate import Gate
from trenza.net.rpc_server import RpcServer
from trenza.net.tls import RevocationCheck
from trenza.serve.peer import PeerDoor

GRACE_S: Final = 5.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a process knows whatever its role is."""

    certificates: Certificates
    clock: Clock
    entropy: Entropy
    is_revoked: RevocationCheck
    uri_of: Callable[[NodeId], str | None]
    address_of: Callable[[NodeId], PeerAddress | None]


class Leading:
    """One node's stories with all that they speak through. `open`, then `start`; ended by `close`."""

    def __init__(self, config: NodeConfig, around: Surroundings) -> None:
        self._config = config
        self._around = around
        self._opened = AsyncExitStack()
        self.life: asyncio.Task[None] | None = None
        self._memory: Memory
        self.node: Node
        self.links: LinkClients
        self.peers: PeerConnections
        self.server: RpcServer

    async def open(self, memory: Memory) -> None:
        """Load the node's memory and listen for peers; the memory stays the caller's."""
        try:
            await self._open(memory)
        except BaseException:
            await self._opened.aclose()
            raise

    async def _open(self, memory: Memory) -> None:
        config, around, stack = self._config, self._around, self._opened
        self._memory = memory
        verifier = CertificateVerifier(around.uri_of, is_revoked=around.is_revoked)
        self.links = LinkClients(around.certificates, is_revoked=around.is_revoked)
        stack.push_async_callback(self.links.aclose)
        self.peers = PeerConnections(
            around.certificates.to_peers, around.address_of, saw=verifier.saw, is_revoked=around.is_revoked
        )
        stack.push_async_callback(self.peers.aclose)
        ctx = Context(
            name=config.name,
            store=memory.store,
            sealer=memory.sealer,
            peers=self.peers,
            clock=around.clock,
            entropy=around.entropy,
            signer=MlDsaSigner.load(config.peers.private_key),
            verifier=verifier,
            agreement=X448MlKem1024(),
            settings=config.kms_settings(),
            officer=load_officer_public_key(config.officer).public_bytes_raw(),
            links=self.links.ends(config),
            preshared=preshared_of(config),
            place=memory.place,
            shared=memory.shared,
            archive=None if config.archive_directory is None else ArchiveDirectory(config.archive_directory),
        )
        ctx.counters["sealed_boxes_leaked"] += memory.leaked
        self.node = Node(ctx, anchor=memory.anchor)
        await self.node.start(signed_book(config.book))
        self.server = RpcServer(
            PeerDoor(self.node.handle, lambda: ctx.book, saw=verifier.saw, is_revoked=around.is_revoked),
            around.certificates.peers,
            gate=Gate(config.peers.limits.gate),
            is_revoked=around.is_revoked,
        )
        await listen(self.server, config.peers.address, setting="peers.address")
        stack.push_async_callback(self.server.stop, GRACE_S)

    def start(self) -> asyncio.Task[None]:
        """Run the stories; the task ends when they fail."""
        self.life = asyncio.get_running_loop().create_task(self.node.run(), name=f"node {self._config.name}")
        return self.life

    async def tidy(self) -> None:
        """Erase the sealed boxes that a crash left, once."""
        if self._memory.tidy is not None:
            with contextlib.suppress(StoreUnavailableError):  # the next life does
                self.node.ctx.counters["sealed_boxes_leaked"] += await self._memory.tidy()

    async def end_life(self) -> None:
        """End the stories, and tell the peers."""
        if self.life is None:
            return
        life, self.life = self.life, None
        life.cancel()
        await asyncio.wait([life])
        if not life.cancelled() and (error := life.exception()) is not None:
            _LOG.error("node %s had failed", self._config.name, exc_info=error)

    async def close(self) -> None:
        """End everything; may be called twice."""
        await self.end_life()
        await self._opened.aclose()


def signed_book(path: Path | None) -> SignedBook | None:
    """Return the book in a file."""
    return None if path is None else SignedBook.decode(path.read_bytes())
