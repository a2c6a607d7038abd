"""Ingest: raw key from a link's two devices becomes blocks that both ends hold, compared and durable.

The link's leader (the smaller name) draws from its device, makes the block durable as *on offer*, and offers it; the
other end fetches the same keys from its device, compares, makes the block durable, and answers. The other end may
send under it from then on; the leader when it has the answer. Without an answer the very same block is offered again.
A block that differs at the two ends is dropped by both: a device that alters bits is found here (decision 7).

The comparison is HMAC-SHA384 under the session's key, off the QKD path. Its two tags are the only thing about the
bits that ever leaves: 96 bytes about a block, to someone who breaks both the transport and the session.

What a device hands out and the other end does not take is lost, never asked for twice (kms/ports: LinkDevice).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from msgspec.structs import replace

from trenza.base.errors import (
    AuthenticationError,
    DeviceUnavailableError,
    RefusedError,
    RemoteProtocolError,
    UnavailableError,
)
from trenza.base.names import LinkId, NodeId
from trenza.base.secret import Secret
from trenza.base.units import Bits, Nanoseconds, bits_of_bytes
from trenza.core.pads import BLOCK_ID_BYTES, UNIT_BYTES, PadBlock, PadRange
from trenza.core.strand import Supply, worst_of
from trenza.kms.context import Context, LinkEnd, Session
from trenza.kms.pads import Pads, RawBlock
from trenza.kms.ports import DeviceLimits, RawKey
from trenza.wire.peer import BlockAccepted, BlockOffer, canonical

_T = TypeVar("_T")

_WORTHWHILE = 16
"""A block is made once the device has a 16th of it: smaller ones are not worth a row and a sealing key each."""

_BLOCK_UNITS_MAX = 65_536
"""A larger offer is refused: 2 MiB."""

_ASK_AGAIN = frozenset({"unavailable", "peer-unavailable"})
"""Refusals that say nothing about the block: it stays on offer."""

_LEADER, _FOLLOWER = b"trenza block v1 leader\0", b"trenza block v1 follower\0"


@dataclass(frozen=True, slots=True)
class Draw:
    """What to ask a device for."""

    number: int
    size: Bits

    @property
    def units(self) -> int:
        """Whole units in it; what is over is dropped at both ends."""
        return self.number * self.size // bits_of_bytes(UNIT_BYTES)


def draw_for(limits: DeviceLimits, units: int) -> Draw | None:
    """Return the request that gets up to `units` within what the device allows, or None if that is too little now."""
    wanted = units * bits_of_bytes(UNIT_BYTES)
    size = min(limits.max_key_size, max(limits.min_key_size, wanted)) // 8 * 8
    if size < 8:
        return None
    number = min(-(-wanted // size), limits.max_keys_per_request)
    most, now = Draw(number, Bits(size)), Draw(min(number, limits.stored_bits // size), Bits(size))
    return now if now.units >= max(1, min(units // _WORTHWHILE, most.units)) else None


class Ingest:
    """The story that keeps this node's links stocked."""

    def __init__(self, ctx: Context, pads: Pads) -> None:
        self._ctx = ctx
        self._pads = pads
        self._stepping: set[LinkId] = set()
        self._accepting: dict[bytes, asyncio.Event] = {}

    # --- for the sessions

    async def load(self) -> None:
        """Read the blocks that the last process left; the context's presence is set."""
        await self._pads.load()

    def blocks_with(self, peer: NodeId) -> tuple[bytes, ...]:
        """Return the IDs of all blocks of links shared with `peer`, in order."""
        return self._pads.blocks_with(peer)

    async def keep_only(self, peer: NodeId, block_ids: Iterable[bytes]) -> None:
        """Drop, durably, every block shared with `peer` that is not named: the other end does not hold it."""
        kept = frozenset(block_ids)
        await self._pads.drop([block_id for block_id in self.blocks_with(peer) if block_id not in kept])

    async def drop_all(self) -> None:
        """Drop every block: this node's memory went back in time, so it cannot tell what was used."""
        for end in self._ctx.links.values():
            await self.keep_only(end.peer, ())

    # --- the leader

    async def step(self, link: LinkId) -> bool:
        """Do one thing for the stock of `link`: offer a block again, or make the one that is needed most.

        Returns:
            Whether a block was made ready, so that another step may be worthwhile at once. False where there is
            nothing to do now: enough stock, no session, a device that is empty or silent, or the other end leads.
        """
        await self._pads.sweep()
        end = self._ctx.links[link]
        if not self._ctx.leads(end.peer) or end.peer not in self._ctx.sessions or link in self._stepping:
            return False
        self._stepping.add(link)
        try:
            block = self._pads.offered(link) or await self._drawn(end)
            return block is not None and await self._offer(end, block)
        except DeviceUnavailableError:
            self._ctx.counters["device_unavailable"] += 1
            return False
        except UnavailableError:  # the peer, the session or the store: the block, if there is one, is offered again
            return False
        finally:
            self._stepping.discard(link)

    def _needed(self, end: LinkEnd) -> tuple[NodeId, bool, int] | None:
        """Return the sender, the purpose and the size of the block that is needed most: the reserve goes first."""
        settings, ends = self._ctx.settings, sorted((self._ctx.name, end.peer))
        for reserve, target, size in (
            (True, settings.reserve_units, settings.reserve_units),
            (False, settings.link_target_units, min(settings.block_units, settings.link_target_units)),
        ):
            stock, sender = min((self._stock(end, sender, target, reserve=reserve), sender) for sender in ends)
            if stock < target:
                return sender, reserve, size
        return None

    def _stock(self, end: LinkEnd, sender: NodeId, target: int, *, reserve: bool) -> int:
        """Return the units `sender` can still use, believing the far end where it says that it has fewer than we see.

        It knows which units it burnt. But what it says is older than our newest blocks, so beyond twice the target
        our own count ends the matter.
        """
        held = self._pads.stream(end.link, sender).held(reserve=reserve)
        said = self._pads.said.get((end.link, sender))
        if sender == self._ctx.name or said is None or held >= 2 * target:
            return held
        return min(held, said.reserve if reserve else said.traffic)

    async def _drawn(self, end: LinkEnd) -> PadBlock | None:
        """Draw a block from the device and make it durable as on offer; None when nothing is needed or to be had."""
        needed = self._needed(end)
        if needed is None:
            return None
        sender, reserve, size = needed
        draw = draw_for(await self._in_time(end, end.device.limits()), size)
        if draw is None:
            return None
        keys = await self._in_time(end, end.device.draw(number=draw.number, size=draw.size))
        bits = joined(keys, draw)
        try:
            block = PadBlock(
                id=bytes(self._ctx.entropy.token(BLOCK_ID_BYTES)),
                link=end.link,
                sender=sender,
                reserve=reserve,
                units=draw.units,
                supply=worst_of(key.supply for key in keys),
                created=self._ctx.clock.now(),
                ready=False,
            )
            key_ids = tuple(key.key_id.bytes for key in keys)
            await self._pads.add(RawBlock(block, bits, key_ids, draw.size // 8), end.peer)
        finally:
            bits.wipe()
        return block

    async def _offer(self, end: LinkEnd, block: PadBlock) -> bool:
        """Offer a block and see it through; what is refused or differs is dropped."""
        whole = (PadRange(block.id, 0, block.units),)
        with self._pads.using(whole):
            bits = await self._pads.bits(whole)
            try:
                await self._compare(end, block, bits)
            except RemoteProtocolError as error:
                code = error.remote_code if isinstance(error, RefusedError) else error.code
                if code in _ASK_AGAIN:
                    return False
                altered = code == AuthenticationError.code
                self._ctx.counters["link_blocks_altered" if altered else "link_blocks_lost"] += 1
                await self._pads.drop([block.id], tell=True)
                return False
            finally:
                bits.wipe()
            if not self._pads.holds(block.id):  # dropped while it was under way, and the other end took it
                self._pads.tell_gone(end.peer, block.id)
                return False
            await self._pads.set_ready(block)
        self._pads.stocked(block)
        self._ctx.counters["link_blocks_made"] += 1
        return True

    async def _compare(self, end: LinkEnd, block: PadBlock, bits: Secret) -> None:
        """Send the offer and check the answer's tag.

        Raises:
            AuthenticationError: the far end's bits, or its answer, differ.
        """
        session = self._ctx.session(end.peer)
        key_ids, key_bytes = self._pads.made_of(block.id)
        bare = BlockOffer(
            session=session.id,
            link=end.link,
            block=block.id,
            from_leader=block.sender == self._ctx.name,
            reserve=block.reserve,
            key_ids=key_ids,
            key_bytes=key_bytes,
            supply=block.supply.value,
            created=block.created,
            tag=b"",
        )
        offer = replace(bare, tag=_tag(session.verify_key, _LEADER, bare, bits))
        answer = await self._ctx.peers.call(end.peer, offer, timeout=self._ctx.settings.call_timeout)
        if not isinstance(answer, BlockAccepted):
            raise RemoteProtocolError(f"node {end.peer} answers a block offer with something else")
        session = self._ctx.session_of(end.peer, session.id)  # a key that was wiped meanwhile compares nothing
        if not hmac.compare_digest(answer.tag, _tag(session.verify_key, _FOLLOWER, bare, bits)):
            raise AuthenticationError(f"link {end.link}: node {end.peer} does not hold the same block")

    async def _in_time(self, end: LinkEnd, call: Awaitable[_T]) -> _T:
        """Return the device's answer; one that hangs is as good as one that is silent."""
        try:
            async with asyncio.timeout(self._ctx.settings.call_timeout):
                return await call
        except TimeoutError:
            raise DeviceUnavailableError(f"link {end.link}: the device does not answer in time") from None

    # --- the follower

    async def accept(self, peer: NodeId, offer: BlockOffer) -> BlockAccepted:
        """Fetch, compare and keep the block that the link's leader offers; the same offer gets the same answer.

        Raises:
            UnavailableError: the session has ended; offer it again in the next.
            DeviceUnavailableError: the device does not hand the keys out (any more): the block is lost.
            AuthenticationError: the bits differ from the leader's.
            RemoteProtocolError: the offer makes no sense, or this end's device says another supply.
        """
        end = self._ctx.link_with(peer, LinkId(offer.link))
        block = _block_of(offer, self._ctx.name, peer)
        if self._ctx.leads(peer):
            raise RemoteProtocolError(f"link {offer.link}: this node leads it, and node {peer} offers a block")
        self._ctx.session_of(peer, offer.session)
        while under_way := self._accepting.get(block.id):
            await under_way.wait()
        under_way = self._accepting[block.id] = asyncio.Event()
        try:
            if not self._pads.holds(block.id):
                await self._take(end, block, offer)
            return await self._acceptance(peer, block, offer)
        finally:
            del self._accepting[block.id]
            under_way.set()

    async def _take(self, end: LinkEnd, block: PadBlock, offer: BlockOffer) -> None:
        keys = await self._in_time(end, end.device.fetch([UUID(bytes=key_id) for key_id in offer.key_ids]))
        bits = joined(keys, Draw(len(offer.key_ids), bits_of_bytes(offer.key_bytes)))
        try:
            self._check(end.peer, offer, bits)
            supply = worst_of(key.supply for key in keys)
            if supply is not block.supply:  # it goes into the records of both ends, so neither may just believe it
                raise RemoteProtocolError(
                    f"link {end.link}: the ends' devices disagree about supply: {block.supply.value} at node "
                    f"{end.peer}, {supply.value} here"
                )
            await self._pads.add(RawBlock(block, bits, (), 0), end.peer)
        finally:
            bits.wipe()

    async def _acceptance(self, peer: NodeId, block: PadBlock, offer: BlockOffer) -> BlockAccepted:
        bits = await self._pads.bits((PadRange(block.id, 0, block.units),))
        try:
            session = self._check(peer, offer, bits)
            return BlockAccepted(_tag(session.verify_key, _FOLLOWER, replace(offer, tag=b""), bits))
        finally:
            bits.wipe()

    def _check(self, peer: NodeId, offer: BlockOffer, bits: Secret) -> Session:
        session = self._ctx.session_of(peer, offer.session)
        tag = _tag(session.verify_key, _LEADER, replace(offer, tag=b""), bits)
        if not hmac.compare_digest(tag, offer.tag):
            self._ctx.counters["link_blocks_altered"] += 1
            raise AuthenticationError(f"link {offer.link}: the devices of the two ends handed out different bits")
        return session


def joined(keys: Sequence[RawKey], draw: Draw) -> Secret:
    """Return the whole units of a device's keys, end to end, and wipe the keys.

    Raises:
        DeviceUnavailableError: the device handed out something else than it was asked for, or no random bits.
    """
    bits = bytearray(draw.number * draw.size // 8)
    place = 0
    try:
        if [len(key.key) * 8 for key in keys] != [draw.size] * draw.number:
            raise DeviceUnavailableError("the device handed out other keys than it was asked for")
        for key in keys:
            bits[place : place + len(key.key)] = key.key.view()
            place += len(key.key)
    finally:
        for key in keys:
            key.key.wipe()
    if bytes(UNIT_BYTES) in bits:
        raise DeviceUnavailableError("the device handed out 256 zero bits in a row: it is broken")
    whole = Secret(bits)
    units = whole.cut(0, draw.units * UNIT_BYTES)
    whole.wipe()
    return units


def _block_of(offer: BlockOffer, me: NodeId, leader: NodeId) -> PadBlock:
    """Return the block an offer speaks of, in the follower's books.

    Raises:
        RemoteProtocolError: there can be no such block.
    """
    units = Draw(len(offer.key_ids), bits_of_bytes(offer.key_bytes)).units
    supplies = {supply.value: supply for supply in Supply}
    if (
        len(offer.block) != BLOCK_ID_BYTES
        or any(len(key_id) != 16 for key_id in offer.key_ids)
        or not 1 <= units <= _BLOCK_UNITS_MAX
        or offer.supply not in supplies
    ):
        raise RemoteProtocolError(f"link {offer.link}: node {leader} offers what cannot be a block")
    return PadBlock(
        id=offer.block,
        link=LinkId(offer.link),
        sender=leader if offer.from_leader else me,
        reserve=offer.reserve,
        units=units,
        supply=supplies[offer.supply],
        created=Nanoseconds(offer.created),
        ready=True,
    )


def _tag(verify_key: Secret, label: bytes, bare: BlockOffer, bits: Secret) -> bytes:
    """Return the tag of an offer (without its tag) and the bits; the labels keep one end from echoing the other."""
    key = bytearray(verify_key.view())
    mac = hmac.new(key, label + canonical(bare), "sha384")
    key[:] = bytes(len(key))
    mac.update(bits.view())
    return mac.digest()
