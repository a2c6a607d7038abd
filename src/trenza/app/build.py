"""One node from its configuration: the only place that picks its concrete parts, and the order they live and die in.

A `RunningNode` opens in two steps, so that a whole network can be opened before any of it speaks: `build_node` loads
everything and listens for peers; `start` runs the stories and lets applications and operators in. What cannot be
opened raises, and everything opened before it is closed again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Final

from trenza.adapters.identity import MlDsaSigner
from trenza.adapters.peers import PeerAddress
from trenza.app.certificates import Certificates
from trenza.app.config import NodeConfig, host_and_port, load_node_config
from trenza.app.instances import Instance
from trenza.app.leading import GRACE_S, Leading, Surroundings, signed_book
from trenza.app.listening import listen
from trenza.app.memory import Database, open_on_disk
from trenza.base.clock import Clock, SystemClock
from trenza.base.entropy import Entropy, SystemEntropy
from trenza.base.errors import InvalidDocumentError, StaleError, UnavailableError
from trenza.base.names import NodeId, SaeId
from trenza.kms.node import Node
from trenza.net.gate import Gate
from trenza.net.http_server import HttpServer
from trenza.net.rpc_frames import MessageCounters
from trenza.net.tls import TlsStatistics
from trenza.serve.etsi014 import application_door
from trenza.serve.identity import Callers
from trenza.serve.management import ManagementDoor

_REQUEST_BYTES: Final = 65_536  # what an application may send: a thousand key IDs
_BOOK_BYTES: Final = 16 * 1024 * 1024  # what an operator may: the policy book of a large network
_FIXED: Final = (
    "name",
    "data_directory",
    "node_key",
    "token",
    "database",
    "anchor",
    "officer",
    "preshared",
    "archive_directory",
)
_DOORS: Final = ("application", "peers", "management")
_LOG = logging.getLogger(__name__)


class RunningNode:
    """One node with all its parts. Made by `build_node`; ended by `stop`."""

    def __init__(self, config: NodeConfig, source: Path | None) -> None:
        self.config = config
        self._source = source
        self._certificates = Certificates(config)
        self._opened = AsyncExitStack()
        self._running = AsyncExitStack()
        self._life: asyncio.Task[None] | None = None
        self._leading: Leading | None = None
        self._instance: Instance | None = None  # of a node whose memory others share; then that says who leads
        self._application: HttpServer
        self._management: HttpServer

    @property
    def name(self) -> NodeId:
        return self.config.name

    @property
    def leading(self) -> Leading | None:
        """What this process has while it leads its node, as it always does where the node is one process."""
        return self._leading if self._instance is None else self._instance.leading

    @property
    def node(self) -> Node:
        """The stories that answer now."""
        if self._instance is not None:
            return self._instance.node
        assert self._leading is not None, "open comes first"
        return self._leading.node

    # --- opening

    async def open(self, clock: Clock, entropy: Entropy) -> None:
        """Open store, keyring and links, load the node's memory, and listen for peers."""
        try:
            await self._open(clock, entropy)
        except BaseException:
            await self._opened.aclose()
            raise

    async def _open(self, clock: Clock, entropy: Entropy) -> None:
        config, stack = self.config, self._opened
        around = Surroundings(self._certificates, clock, entropy, self.is_revoked, self._uri_of, self._address_of)
        if config.database is None:
            self._leading = leading = Leading(config, around)
            await leading.open(await open_on_disk(config, entropy, stack))
            stack.push_async_callback(leading.close)
            return
        self._instance = Instance(config, around, await Database.open(config, clock, entropy, stack))
        await self._instance.open()
        stack.push_async_callback(self._instance.close)

    # --- running

    async def start(self) -> None:
        """Run the stories, and let applications and operators in."""
        try:
            await self._start()
        except BaseException:
            await self._running.aclose()
            raise

    async def _start(self) -> None:
        stack = self._running
        if self._instance is not None:
            self._life = self._instance.start()
            stack.push_async_callback(self._instance.end)
        else:
            assert self._leading is not None
            self._life = self._leading.start()
            stack.push_async_callback(self._leading.end_life)
        management = ManagementDoor(
            lambda: self.node,
            version=version("trenza"),
            tls=self.tls_statistics,
            messages=self.message_counters,
            reload=self.reload,
            is_revoked=self.is_revoked,
            instance=lambda: None if self._instance is None else self._instance.status(),
        )
        self._management = HttpServer(
            management,
            self._certificates.management,
            management.error_response,
            self.config.management.limits.http(max_body_bytes=_BOOK_BYTES),
            Gate(self.config.management.limits.gate),
            is_revoked=self.is_revoked,
        )
        await listen(self._management, self.config.management.address, setting="management.address")
        stack.push_async_callback(self._management.stop, GRACE_S)
        delivery = self.node.delivery if self._instance is None else self._instance.front
        callers = Callers(self._sae_of, is_revoked=self.is_revoked, version=lambda: self.node.ctx.book_in_force)
        door = application_door(delivery, callers)
        self._application = HttpServer(
            door,
            self._certificates.application,
            door.error_response,
            self.config.application.limits.http(max_body_bytes=_REQUEST_BYTES),
            Gate(self.config.application.limits.gate),
            is_revoked=self.is_revoked,
            together=door.together,
        )
        await listen(self._application, self.config.application.address, setting="application.address")
        stack.push_async_callback(self._application.stop, GRACE_S)

    async def serve_forever(self) -> None:
        """Return when the node was stopped; raise what ended it otherwise."""
        assert self._life is not None, "start() comes first"
        await asyncio.wait([self._life])
        if not self._life.cancelled():
            self._life.result()

    @property
    def is_running(self) -> bool:
        return self._life is not None and not self._life.done()

    def raise_failure(self) -> None:
        """Raise what ended the stories, if something did."""
        if self._life is not None and self._life.done() and not self._life.cancelled():
            self._life.result()

    async def leave(self) -> None:
        """Let nobody in any more, end the stories, and tell the peers."""
        await self._running.aclose()

    async def stop(self) -> None:
        """Leave, then close everything; may be called twice."""
        await self.leave()
        await self._opened.aclose()

    # --- what changes while it runs

    async def reload(self) -> Sequence[str]:
        """Read the configuration file anew and follow it; nothing changes where it has mistakes.

        Links are added and removed, certificates and keys swapped for new connections, settings and a newer policy
        book taken. What only a restart can change is refused.

        Returns:
            What changed, in words.

        Raises:
            InvalidDocumentError: the file has mistakes, or asks for what needs a restart.
        """
        if self._source is None:
            raise InvalidDocumentError(f"node {self.name}", ("it was not started from a file",))
        new, old = load_node_config(self._source), self.config
        _refuse_restart(old, new)
        leading = self.leading
        if leading is None:
            raise UnavailableError(
                "this instance of the node does not lead; it follows the file when it is restarted"
            )
        signer = MlDsaSigner.load(new.peers.private_key)
        self._certificates.reload(new)
        self._follow_limits(new)
        ctx = self.node.ctx
        ctx.signer, ctx.settings, self.config = signer, new.kms_settings(), new
        self.node.life.sign()
        changed = ["certificates loaded"]
        leading.peers.reconnect()
        leading.server.renew()
        links = await leading.links.follow(new, ctx.links)
        if links:
            self.node.reload_links()
        if new.settings != old.settings:
            changed.append("settings")
        changed += links
        try:
            signed = signed_book(new.book)
            if signed is not None:
                changed.append(f"policy book version {await self.node.books.install(signed)}")
        except StaleError:
            pass  # the node has that book, or a newer one from a peer or an operator
        return changed

    def _follow_limits(self, config: NodeConfig) -> None:
        """Bound what comes in from now on; who is in stays."""
        application, management = config.application.limits, config.management.limits
        self._application.limits = application.http(max_body_bytes=_REQUEST_BYTES)
        self._management.limits = management.http(max_body_bytes=_BOOK_BYTES)
        self._application.gate.limits, self._management.gate.limits = application.gate, management.gate
        if self.leading is not None:
            self.leading.server.gate.limits = config.peers.limits.gate

    # --- what can be seen

    def tls_statistics(self) -> dict[str, TlsStatistics]:
        """Return what happened at each listener, and at all connections to peers and to devices."""
        doors = {"application": self._application.statistics, "management": self._management.statistics}
        if (leading := self.leading) is None:
            return doors
        return doors | {
            "peers": leading.server.statistics,
            "to peers": _summed(leading.peers.statistics.values()),
            "to devices": _summed(leading.links.statistics()),
        }

    def message_counters(self) -> dict[NodeId, list[MessageCounters]]:
        """Return the frames exchanged with each node, over connections of either's making."""
        found: dict[NodeId, list[MessageCounters]] = {}
        if (leading := self.leading) is None:
            return found
        for peer, counters in leading.peers.counters.items():
            found.setdefault(peer, []).append(counters)
        nodes = self.node.ctx.book.node_by_uri if self.node.ctx.has_book else {}
        for uri, counters in leading.server.counters.items():
            if uri in nodes:
                found.setdefault(nodes[uri].name, []).append(counters)
        return dict(sorted(found.items()))

    def is_revoked(self, fingerprint: str) -> bool:
        """Tell whether the policy book in force revokes a certificate."""
        book = self.node.ctx.book_in_force
        return book is not None and fingerprint in book.revoked_fingerprints

    def _uri_of(self, node: NodeId) -> str | None:
        entry = self.node.ctx.book.node_by_name.get(node)
        return None if entry is None else entry.uri

    def _address_of(self, node: NodeId) -> PeerAddress | None:
        ctx = self.node.ctx
        entry = ctx.book.node_by_name.get(node) if ctx.has_book else None
        if entry is None:
            return None
        return PeerAddress(entry.uri, *host_and_port(entry.peer_address))

    def _sae_of(self, identity: str) -> SaeId | None:
        book = self.node.ctx.book_in_force
        entry = None if book is None else book.sae_by_identity.get(identity)
        return None if entry is None else entry.name


async def build_node(
    config: NodeConfig,
    *,
    source: Path | None = None,
    clock: Clock | None = None,
    entropy: Entropy | None = None,
) -> RunningNode:
    """Open a node and listen for its peers; call `start`, then `serve_forever`, and `stop` in any case.

    Args:
        config: of the node.
        source: the file it came from, for `reload`.
        clock: the system's if None.
        entropy: the system's if None.

    Raises:
        InvalidDocumentError: a certificate, key, book or preshared secret cannot be used.
        StoreUnavailableError: the data directory is in use or cannot be used.
        OSError: an address cannot be bound.
    """
    running = RunningNode(config, source)
    await running.open(clock or SystemClock(), entropy or SystemEntropy())
    return running


def _refuse_restart(old: NodeConfig, new: NodeConfig) -> None:
    fixed = [key for key in _FIXED if getattr(old, key) != getattr(new, key)]
    fixed += [f"{door}.address" for door in _DOORS if getattr(old, door).address != getattr(new, door).address]
    if fixed:
        why = tuple(f"{key}: changes with a restart only" for key in fixed)
        raise InvalidDocumentError(f"the new configuration of node {old.name}", why)


def _summed(parts: Iterable[TlsStatistics]) -> TlsStatistics:
    total = TlsStatistics()
    for one in parts:
        total.completed += one.completed
        total.failed += one.failed
        total.refused += one.refused
        total.connections_open += one.connections_open
    return total
