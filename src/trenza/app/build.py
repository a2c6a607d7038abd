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

from trenza.adapters.agreement import X448MlKem1024
from trenza.adapters.anchor import PERSISTENT, FileAnchor
from trenza.adapters.archive import ArchiveDirectory
from trenza.adapters.identity import CertificateVerifier, MlDsaSigner
from trenza.adapters.keyring import KEYRING_NAME, KeyringSealer
from trenza.adapters.peers import PeerAddress, PeerConnections
from trenza.adapters.sqlite import LOCK_NAME, SqliteStore
from trenza.app.certificates import Certificates
from trenza.app.config import NodeConfig, host_and_port, load_node_config
from trenza.app.keeping import GroupAnchor, handles_in_use, place_of
from trenza.app.links import LinkClients
from trenza.app.node_key import open_node_key
from trenza.app.pki import load_officer_public_key
from trenza.base.clock import Clock, SystemClock
from trenza.base.entropy import Entropy, SystemEntropy
from trenza.base.errors import InvalidDocumentError, StaleError
from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.core.policy import SignedBook
from trenza.kms.context import Context
from trenza.kms.node import Node
from trenza.net.gate import Gate
from trenza.net.http_server import HttpServer
from trenza.net.rpc import RpcServer
from trenza.net.rpc_frames import MessageCounters
from trenza.net.tls import TlsStatistics
from trenza.serve.etsi014 import application_door
from trenza.serve.identity import Callers
from trenza.serve.management import ManagementDoor
from trenza.serve.peer import PeerDoor

_GRACE_S: Final = 5.0
_REQUEST_BYTES: Final = 65_536  # what an application may send: a thousand key IDs
_BOOK_BYTES: Final = 16 * 1024 * 1024  # what an operator may: the policy book of a large network
_PRESHARED_BYTES: Final = range(32, 65)
_FIXED: Final = ("name", "data_directory", "node_key", "token", "anchor", "officer", "preshared", "archive_directory")
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
        self.node: Node
        self._links: LinkClients
        self._peers: PeerConnections
        self._peer_server: RpcServer
        self._application: HttpServer
        self._management: HttpServer

    @property
    def name(self) -> NodeId:
        return self.config.name

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
        anchor = FileAnchor(config.anchor, boot_id=PERSISTENT)
        stack.callback(anchor.close)
        kept = GroupAnchor(anchor)
        node_key = open_node_key(config, entropy)
        stack.callback(node_key.close)
        store = SqliteStore.open(config.data_directory, on_group=kept.committed)
        stack.push_async_callback(store.close)
        sealer = KeyringSealer.open(config.data_directory / KEYRING_NAME, node_key=node_key, entropy=entropy)
        stack.push_async_callback(sealer.close)
        leaked = await sealer.retain(await handles_in_use(store))
        verifier = CertificateVerifier(self._uri_of, is_revoked=self.is_revoked)
        self._links = LinkClients(self._certificates, is_revoked=self.is_revoked)
        stack.push_async_callback(self._links.aclose)
        self._peers = PeerConnections(
            self._certificates.to_peers, self._address_of, saw=verifier.saw, is_revoked=self.is_revoked
        )
        stack.push_async_callback(self._peers.aclose)
        ctx = Context(
            name=config.name,
            store=store,
            sealer=sealer,
            peers=self._peers,
            clock=clock,
            entropy=entropy,
            signer=MlDsaSigner.load(config.peers.private_key),
            verifier=verifier,
            agreement=X448MlKem1024(),
            settings=config.kms_settings(),
            officer=load_officer_public_key(config.officer).public_bytes_raw(),
            links=self._links.ends(config),
            preshared=_preshared(config),
            archive=None if config.archive_directory is None else ArchiveDirectory(config.archive_directory),
            place=place_of(config.data_directory, config.data_directory / LOCK_NAME),
        )
        ctx.counters["sealed_boxes_leaked"] += leaked
        self.node = Node(ctx, anchor=kept)
        await self.node.start(_signed_book(config.book))
        self._peer_server = RpcServer(
            PeerDoor(self.node.handle, lambda: ctx.book, saw=verifier.saw, is_revoked=self.is_revoked),
            self._certificates.peers,
            gate=Gate(config.peers.limits.gate),
            is_revoked=self.is_revoked,
        )
        await self._peer_server.start(*config.peers.host_and_port)
        stack.push_async_callback(self._peer_server.stop, _GRACE_S)

    # --- running

    async def start(self) -> None:
        """Run the stories, and let applications and operators in."""
        try:
            await self._start()
        except BaseException:
            await self._running.aclose()
            raise

    async def _start(self) -> None:
        node, stack = self.node, self._running
        self._life = asyncio.get_running_loop().create_task(node.run(), name=f"node {self.name}")
        stack.push_async_callback(self._end_life)
        management = ManagementDoor(
            node,
            version=version("trenza"),
            tls=self.tls_statistics,
            messages=self.message_counters,
            reload=self.reload,
            is_revoked=self.is_revoked,
        )
        self._management = HttpServer(
            management,
            self._certificates.management,
            management.error_response,
            self.config.management.limits.http(max_body_bytes=_BOOK_BYTES),
            Gate(self.config.management.limits.gate),
            is_revoked=self.is_revoked,
        )
        await self._management.start(*self.config.management.host_and_port)
        stack.push_async_callback(self._management.stop, _GRACE_S)
        door = application_door(node.delivery, Callers(self._sae_of, is_revoked=self.is_revoked))
        self._application = HttpServer(
            door,
            self._certificates.application,
            door.error_response,
            self.config.application.limits.http(max_body_bytes=_REQUEST_BYTES),
            Gate(self.config.application.limits.gate),
            is_revoked=self.is_revoked,
        )
        await self._application.start(*self.config.application.host_and_port)
        stack.push_async_callback(self._application.stop, _GRACE_S)

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

    async def _end_life(self) -> None:
        assert self._life is not None
        self._life.cancel()
        await asyncio.wait([self._life])
        if not self._life.cancelled() and (error := self._life.exception()) is not None:
            _LOG.error("node %s had failed", self.name, exc_info=error)

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
        signer = MlDsaSigner.load(new.peers.private_key)
        self._certificates.reload(new)
        self._follow_limits(new)
        ctx = self.node.ctx
        ctx.signer, ctx.settings, self.config = signer, new.kms_settings(), new
        self.node.sessions.sign_life()
        changed = ["certificates loaded"]
        self._peers.reconnect()
        self._peer_server.renew()
        links = await self._links.follow(new, ctx.links)
        if links:
            self.node.reload_links()
        if new.settings != old.settings:
            changed.append("settings")
        changed += links
        try:
            signed = _signed_book(new.book)
            if signed is not None:
                changed.append(f"policy book version {await self.node.install_book(signed)}")
        except StaleError:
            pass  # the node has that book, or a newer one from a peer or an operator
        return changed

    def _follow_limits(self, config: NodeConfig) -> None:
        """Bound what comes in from now on; who is in stays."""
        application, management = config.application.limits, config.management.limits
        self._application.limits = application.http(max_body_bytes=_REQUEST_BYTES)
        self._management.limits = management.http(max_body_bytes=_BOOK_BYTES)
        self._application.gate.limits, self._management.gate.limits = application.gate, management.gate
        self._peer_server.gate.limits = config.peers.limits.gate

    # --- what can be seen

    def tls_statistics(self) -> dict[str, TlsStatistics]:
        """Return what happened at each listener, and at all connections to peers and to devices."""
        return {
            "application": self._application.statistics,
            "management": self._management.statistics,
            "peers": self._peer_server.statistics,
            "to peers": _summed(self._peers.statistics.values()),
            "to devices": _summed(self._links.statistics()),
        }

    def message_counters(self) -> dict[NodeId, list[MessageCounters]]:
        """Return the frames exchanged with each node, over connections of either's making."""
        found: dict[NodeId, list[MessageCounters]] = {}
        for peer, counters in self._peers.counters.items():
            found.setdefault(peer, []).append(counters)
        nodes = self.node.ctx.book.node_by_uri if self.node.ctx.has_book else {}
        for uri, counters in self._peer_server.counters.items():
            if uri in nodes:
                found.setdefault(nodes[uri].name, []).append(counters)
        return dict(sorted(found.items()))

    def is_revoked(self, fingerprint: str) -> bool:
        """Tell whether the policy book in force revokes a certificate."""
        ctx = self.node.ctx
        return ctx.has_book and fingerprint in ctx.book.revoked_fingerprints

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
        ctx = self.node.ctx
        entry = ctx.book.sae_by_identity.get(identity) if ctx.has_book else None
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


def _signed_book(path: Path | None) -> SignedBook | None:
    return None if path is None else SignedBook.decode(path.read_bytes())


def _preshared(config: NodeConfig) -> dict[NodeId, Secret]:
    return {one.node: _preshared_secret(one.file) for one in config.preshared}


def _preshared_secret(file: Path) -> Secret:
    with file.open("rb", buffering=0) as opened:
        buffer = bytearray(_PRESHARED_BYTES.stop)
        length = opened.readinto(buffer)
    mistakes = []
    if file.stat().st_mode & 0o077:
        mistakes.append("others than its owner may read it: chmod 600")
    if length not in _PRESHARED_BYTES:
        mistakes.append(f"it does not hold {_PRESHARED_BYTES.start} to {_PRESHARED_BYTES.stop - 1} bytes")
    if mistakes:
        buffer[:] = bytes(len(buffer))
        raise InvalidDocumentError(f"the preshared secret {file}", tuple(mistakes))
    secret = Secret(buffer[:length])
    buffer[:] = bytes(len(buffer))
    return secret


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
