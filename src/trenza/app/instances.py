"""One instance of a node that others share the memory with: who leads, and what this one does about it.

The instance that has the lead's lease runs the whole node; it renews the lease, and when another has it, it stops at
once and serves beside that one. The others look five times a second; when the lease is free, one takes it and begins
a new life of the node, while it goes on serving from what it has in hand, until the new life can issue. Why that is
safe whatever pauses or dies: docs/adr, "Several instances of one node".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from trenza.adapters.agreement import X448MlKem1024
from trenza.adapters.identity import CertificateVerifier, MlDsaSigner
from trenza.app.config import NodeConfig
from trenza.app.front import Front
from trenza.app.leading import Leading, Surroundings
from trenza.app.memory import Database, Following, Memory
from trenza.app.pki import load_officer_public_key
from trenza.base.errors import FencedError, NotEnoughKeyError, PeerUnavailableError, StoreUnavailableError
from trenza.base.names import NodeId
from trenza.base.units import Seconds
from trenza.kms.context import Context
from trenza.kms.node import Node
from trenza.kms.second import REFRESH_EVERY, Second
from trenza.wire.management import InstanceStatus
from trenza.wire.peer import PeerMessage

if TYPE_CHECKING:
    from trenza.adapters.postgres import Lead

_RENEW_EVERY_S: Final = 0.5
_AGAIN_S: Final = 0.1
_LOOK_EVERY_S: Final = 2.0
_AHEAD: Final = Seconds(3.0)
"""So many seconds of demand are taken into hand before the lead changes: until the new one has windows."""

_ANXIOUS: Final = Seconds(1.2)
"""A lease that was not renewed until it has no more left than this may be about to end."""

_LOG = logging.getLogger(__name__)


class Instance:
    """One process of a node, leading or not. `open`, then `start`; ended by `end` and `close`."""

    def __init__(self, config: NodeConfig, around: Surroundings, database: Database) -> None:
        self._config = config
        self._around = around
        self._database = database
        self._lease = database.lease
        self._roles = AsyncExitStack()  # what the present role has open
        self._beside: Beside | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._life: asyncio.Task[None] | None = None
        self._known: Node | None = None
        self.leading: Leading | None = None
        self.front = Front()

    @property
    def node(self) -> Node:
        """The stories that answer now; while the role changes, those that knew the node last."""
        if self.leading is not None:
            self._known = self.leading.node
        elif self._beside is not None:
            self._known = self._beside.second.node
        assert self._known is not None, "open comes first"
        return self._known

    def status(self) -> InstanceStatus:
        """Say which instance this is, and what it is just now."""
        return InstanceStatus(self._database.name, "second" if self.leading is None else "lead")

    async def open(self) -> None:
        """Take the lead if it is free, or stand beside the instance that has it."""
        try:
            if await self._lease.acquire():
                await self._lead()
            else:
                await self._stand_beside()
        except BaseException:
            await self.close()
            raise

    def start(self) -> asyncio.Task[None]:
        """Run the role, whichever it is; the task ends when that fails for good."""
        self._life = asyncio.get_running_loop().create_task(self._run(), name=f"instance {self._database.name}")
        return self._life

    async def end(self) -> None:
        """Let go of the lead in good order, and stop serving."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])
            if not self._life.cancelled() and (error := self._life.exception()) is not None:
                _LOG.error("instance %s had failed", self._database.name, exc_info=error)
            self._life = None
        if self.leading is not None:
            with contextlib.suppress(StoreUnavailableError):
                lead = await self._lease.look()
                self.leading.node.says_farewell = len(lead.instances) < 2
            await self.leading.end_life()
            await self._stop_renewing()
            with contextlib.suppress(StoreUnavailableError):
                await self._lease.release()

    async def close(self) -> None:
        """Close everything; may be called twice."""
        await self._stop_renewing()
        if self._beside is not None:
            await self._beside.close()
        if self.leading is not None:
            await self.leading.close()
        await self._roles.aclose()

    # --- the roles

    def _new_leading(self) -> Leading:
        return Leading(self._config, self._around)

    def _new_beside(self) -> Beside:
        return Beside(self._config, self._around, self._database)

    async def _run(self) -> None:
        while True:
            if self.leading is not None:
                await self._while_leading(self.leading)
                await self._resign(self.leading)
                await self._stand_beside()
            assert self._beside is not None
            await self._while_beside(self._beside)

    async def _lead(self) -> None:
        """Begin a life of the node, under the lead that was just acquired."""
        self._renewing = asyncio.get_running_loop().create_task(self._renew(), name="lead's lease")
        stack, leading = AsyncExitStack(), self._new_leading()
        try:
            memory = await self._database.as_lead(stack)
            await leading.open(memory)
        except BaseException:
            await self._stop_renewing()
            await stack.aclose()
            raise
        self._follow_lease(leading)
        if self._beside is None:
            self._take_over(leading, stack)
            return
        leading.start()
        await self._until_it_can_issue(leading, self._beside.second)
        beside, self._beside = self._beside, None
        self._take_over(leading, stack)
        await self.front.drained(beside.second.node.delivery)
        await beside.close()

    def _take_over(self, leading: Leading, stack: AsyncExitStack) -> None:
        self.leading, self._roles = leading, stack
        self.front.turn_to(leading.node.delivery)
        _LOG.info("instance %s leads node %s", self._database.name, self._config.name)

    async def _until_it_can_issue(self, leading: Leading, second: Second) -> None:
        """Wait until the new life can issue whatever the instance beside it still can, but no longer than that."""
        end = asyncio.get_running_loop().time() + self._config.kms_settings().lease
        while asyncio.get_running_loop().time() < end and self._renewing is not None and not self._renewing.done():
            node = leading.node
            if all(
                node.sessions.has_lease(peer)
                and (node.pools.issuable(peer, full=True) or node.pools.issuable(peer, full=False))
                for peer in node.partners()
                if second.node.sessions.has_lease(peer)
            ):
                return
            await asyncio.sleep(_AGAIN_S / 2)

    async def _while_leading(self, leading: Leading) -> None:
        """Return when another instance leads; raise what ended the stories."""
        life = leading.life if leading.life is not None else leading.start()
        loop = asyncio.get_running_loop()
        beside = [
            loop.create_task(leading.tidy(), name="sealed boxes"),
            loop.create_task(self._watch(leading.node), name="other instances"),
        ]
        assert self._renewing is not None
        try:
            await asyncio.wait([life, self._renewing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        if life.done() and not life.cancelled():
            life.result()

    async def _watch(self, node: Node) -> None:
        """Tell the node which instances live, now and then: what one that is gone left unrecorded is to be named."""
        while True:
            with contextlib.suppress(StoreUnavailableError):
                node.debts.note_lives((await self._lease.look()).lives)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _renew(self) -> None:
        """Keep the lease; return when another instance has it."""
        while True:
            pause = _RENEW_EVERY_S
            try:
                await self._lease.renew()
            except FencedError as error:
                _LOG.warning("instance %s leads no more: %s", self._database.name, error.message)
                return
            except StoreUnavailableError:  # it issues nothing after the lease; perhaps it is given more in time
                pause = _AGAIN_S
            if self.leading is not None:
                self._follow_lease(self.leading)
            await asyncio.sleep(pause)

    def _follow_lease(self, leading: Leading) -> None:
        leading.node.ctx.until = self._lease.until

    async def _stop_renewing(self) -> None:
        renewing, self._renewing = self._renewing, None
        if renewing is not None:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _resign(self, leading: Leading) -> None:
        """Stop at once: another instance leads."""
        leading.node.ctx.until = Seconds(0.0)
        self._known = leading.node
        self.front.turn_to(None)
        leading.node.ctx.counters["leads_lost"] += 1
        await self._stop_renewing()
        await leading.close()
        leading.node.ctx.retire()
        self.leading = None
        await self._roles.aclose()

    async def _stand_beside(self) -> None:
        beside = self._new_beside()
        await beside.open()
        self._beside = beside
        self.front.turn_to(beside.second.node.delivery, beside.second.ready)
        _LOG.info("instance %s serves beside the one that leads node %s", self._database.name, self._config.name)

    async def _while_beside(self, beside: Beside) -> None:
        """Follow the lead; return when this instance has it."""
        while self.leading is None:
            try:
                lead = await beside.follow()
                if lead.remaining < _ANXIOUS:
                    with contextlib.suppress(NotEnoughKeyError):
                        await beside.second.stock_up(_AHEAD)
                if lead.is_free:
                    await self._promote(beside, lead)
                    continue
            except FencedError:  # the database is another: what this instance knows of it is worth nothing
                raise
            except StoreUnavailableError as error:
                if self._beside is None:
                    raise
                beside.second.node.troubles["store"] = error.message
            else:
                beside.second.node.troubles.pop("store", None)
            await asyncio.sleep(REFRESH_EVERY)

    async def _promote(self, beside: Beside, lead: Lead) -> None:
        second = beside.second
        if not await self._lease.acquire():
            return
        _LOG.info("instance %s takes the lead of node %s", self._database.name, self._config.name)
        vouches = second.reign is not None and second.reign.token == self._lease.succeeded == lead.reign
        second.under(self._lease.token)
        if not vouches:  # the new life may drop all strands: none of them may be in use here
            self.front.turn_to(None)
            self._known, self._beside = second.node, None
            await beside.close()
        await self._lead()
        assert self.leading is not None
        self.leading.node.ctx.counters["leads_taken"] += 1


class Beside:
    """The parts of an instance that does not lead."""

    def __init__(self, config: NodeConfig, around: Surroundings, database: Database) -> None:
        self._config = config
        self._around = around
        self._database = database
        self._opened = AsyncExitStack()
        self._task: asyncio.Task[None] | None = None
        self.second: Second
        self.store: Following

    async def open(self) -> None:
        try:
            await self._open(await self._database.as_second(self._opened))
        except BaseException:
            await self._opened.aclose()
            raise

    async def _open(self, memory: Memory) -> None:
        assert memory.shared is not None
        self.store = Following(memory.shared, self._database.lease)
        self.second = Second(self._context(memory), anchor=memory.anchor)
        await self.second.node.books.load(None)
        self._task = asyncio.get_running_loop().create_task(self.second.run(), name="journal beside the lead")

    def _context(self, memory: Memory) -> Context:
        config, around = self._config, self._around
        return Context(
            name=config.name,
            store=self.store,
            sealer=memory.sealer,
            peers=Nobody(),
            clock=around.clock,
            entropy=around.entropy,
            signer=MlDsaSigner.load(config.peers.private_key),
            verifier=CertificateVerifier(around.uri_of, is_revoked=around.is_revoked),
            agreement=X448MlKem1024(),
            settings=config.kms_settings(),
            officer=load_officer_public_key(config.officer).public_bytes_raw(),
            shared=self.store,
        )

    async def follow(self) -> Lead:
        """Look who leads, and read what has changed."""
        lead = await self._database.lease.look()
        await self.store.head()  # refuses a database that went back
        await self.second.refresh(lead.token)
        if self.second.is_trusted and self.second.reign is not None:
            self._database.witness(self.second.reign.store, reign=self.second.reign.token)
        return lead

    async def close(self) -> None:
        """Write what is noted, and let go of everything; may be called twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            await self.second.end()
        await self._opened.aclose()


class Nobody:
    """The peers of an instance that does not lead: it speaks to none."""

    async def call(self, peer: NodeId, message: PeerMessage, *, timeout: Seconds) -> PeerMessage:  # noqa: ARG002
        raise PeerUnavailableError(
            f"this instance of the node does not lead, and {peer} listens to the one that does", sent=False
        )


def _can_issue(node: Node, peer: NodeId) -> bool:
    stock = node.pools.issuable(peer, full=True) + node.pools.issuable(peer, full=False)
    return node.sessions.has_lease(peer) and stock > 0
