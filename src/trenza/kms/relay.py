"""Relay: a strand is carried over trusted nodes, under a fresh pad and a fresh MAC key on every link.

The strand begins as units of the route's first link, so the first hop says which and carries nothing. Each relay
opens it, closes it under the next link's pad, and makes the use of both pads durable in one commit before anything
leaves. Then the receiver has to remember how far the sender's store is: a copy of the sender from before, which would
use the same pads, is found by it (docs/adr/0023-counters-among-peers.md). Each hop answers after its downstream has
answered, so the source knows when the far end has it.

What is uncertain stays used: units of a message that failed, was lost or was altered are burnt at both ends. A relay
keeps nothing: neither the strand nor the outgoing message is ever written down. A retry within one life of the node
resends the identical bytes from memory; after a crash there is nothing to resend, and the far ends burn.

A node carries over any route whose links are in the signed book; which relays a strand may cross is the ends' policy.
Source: design decision 11; ITU-T Y.3803 (key relay); core/hop for the cryptography.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from msgspec.structs import replace

from trenza.base.errors import (
    AuthenticationError,
    NotEnoughKeyError,
    PeerUnavailableError,
    RemoteProtocolError,
    StoreUnavailableError,
    TrenzaError,
    UnavailableError,
)
from trenza.base.names import LinkId, NodeId
from trenza.base.secret import Secret
from trenza.base.units import Seconds
from trenza.core.hop import check_tag, decrypt, encrypt, tag_of
from trenza.core.pads import PadRange, total_units
from trenza.core.strand import worst_of
from trenza.kms.arrivals import Arrivals, Carried
from trenza.kms.context import Context, LinkEnd
from trenza.kms.once import Once
from trenza.kms.pads import Pads
from trenza.kms.relay_checks import check_hops, check_place
from trenza.wire import peer as wire
from trenza.wire.peer import HopRecord, Relay, Relayed, canonical

_ATTEMPTS = 5
_FIRST_PAUSE = 0.05
"""Seconds before the second attempt; each further pause is twice as long, until the deadline."""

_REMEMBERED = 4_096
"""Relays whose outcome a peer may ask for again. One forgotten is refused, as its units are used."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """Units of one link, used from now on: the pad, and one unit of the reserve as the MAC key."""

    end: LinkEnd
    pad: tuple[PadRange, ...]
    key: PadRange
    hop: HopRecord  # what there is to say of a hop over them

    @property
    def ranges(self) -> tuple[PadRange, ...]:
        return (*self.pad, self.key)


class Relays:
    """The story that carries strands, as their source, as a relay on the way, and as their end."""

    def __init__(self, ctx: Context, pads: Pads) -> None:
        self._ctx = ctx
        self._pads = pads
        self._once: Once[Relayed] = Once(_REMEMBERED)
        self._arrivals = Arrivals(ctx.clock)
        self.before_sending: Callable[[NodeId], Awaitable[None]] | None = None
        """Returns when a peer remembers how far this store has got; nothing is sent to it before."""

    # --- the source

    async def carry(self, segment: bytes, route: Sequence[NodeId], units: int) -> Carried:
        """Carry `units` fresh strands of 32 bytes to the end of `route`; the caller wipes them.

        Args:
            segment: what the far end will ask for them by; one that was carried before is refused there.
            route: the nodes from this one to the far end.
            units: at least 1.

        Raises:
            NotEnoughKeyError: the first link has too little key; nothing was used.
            UnavailableError: no link or no lease, and nothing was used; or no answer in time: the units are burnt.
            RemoteProtocolError: a node on the way refused or misbehaved; the units are burnt.
        """
        if len(route) < 2 or route[0] != self._ctx.name or len(set(route)) != len(route):
            raise ValueError("a route begins at this node and passes no node twice")
        taken = self._take(route[1], units)
        try:
            strand, message = await self._begun(taken, segment, tuple(route))
            try:
                answer = await self._send(message)
            except BaseException:
                strand.wipe()
                raise
        except BaseException:
            self._burnt(units + 1)
            raise
        finally:
            await self._pads.sweep()
        self._ctx.counters["relays_carried"] += 1
        return Carried(strand, answer.hops)

    async def _begun(self, taken: _Taken, segment: bytes, route: tuple[NodeId, ...]) -> tuple[Secret, Relay]:
        """Return the strand, which is the pad of the first link, and what may now leave: its use is durable."""
        with self._pads.using(taken.ranges):
            strand = await self._pads.bits(taken.pad)
            try:
                message = await self._message(
                    taken,
                    relay=bytes(self._ctx.entropy.token(16)),
                    segment=segment,
                    route=route,
                    position=1,
                    ciphertext=b"",
                    hops=(taken.hop,),
                )
                await self._ctx.store.commit(self._pads.used_rows(taken.ranges))
            except BaseException:
                strand.wipe()
                raise
        return strand, message

    # --- relays and the end

    async def handle(self, peer: NodeId, message: Relay) -> Relayed:
        """Pass a strand on, or keep it if this is the end of its route; the same message gets the same answer.

        Raises:
            AuthenticationError: the message was altered; the units it names are burnt.
            NotEnoughKeyError: the next link has too little key; the incoming units are burnt.
            RemoteProtocolError: the message makes no sense; nothing changed.
        """
        digest = hashlib.sha256(canonical(message)).digest()
        try:
            return await self._once.answer(peer, message.relay, digest, lambda: self._first(peer, message))
        finally:
            await self._pads.sweep()

    def take_arrived(self, segment: bytes, source: NodeId) -> Carried | None:
        """Return, once, the strands that `source` carried here for `segment`; the caller wipes them."""
        return self._arrivals.take(source, segment)

    def expire(self) -> None:
        """Wipe strands that nobody took in time; call now and then."""
        self._arrivals.expire()

    async def _first(self, peer: NodeId, message: Relay) -> Relayed:
        end = self._ctx.link_with(peer, LinkId(message.link))
        check_place(message, sender=peer, receiver=self._ctx.name, book=self._ctx.book)
        incoming = self._claim(end, tuple(_range(named) for named in message.pads), _range(message.key))
        with self._pads.using(incoming.ranges):
            try:
                return await self._claimed(message, incoming)
            except TrenzaError as error:
                if isinstance(error, AuthenticationError):
                    self._ctx.counters["relays_altered"] += 1
                self._burnt(total_units(incoming.ranges))
                with suppress(StoreUnavailableError):  # then only this life knows; the sender's books know for good
                    await self._ctx.store.commit(self._pads.used_rows(incoming.ranges))
                raise

    async def _claimed(self, message: Relay, incoming: _Taken) -> Relayed:
        """Open the strand, then keep it or send it on. The incoming units are used, whatever happens."""
        strand = await self._opened(message, incoming)
        if message.position == len(message.route) - 1:
            return await self._keep(message, incoming, strand)
        try:
            onward = await self._onward(message, incoming, strand)
        finally:
            strand.wipe()
        answer = await self._send(onward)
        self._ctx.counters["relays_passed_on"] += 1
        return answer

    async def _opened(self, message: Relay, incoming: _Taken) -> Secret:
        key = await self._pads.bits([incoming.key])
        try:
            check_tag(_covered(message), message.tag, key)
        finally:
            key.wipe()
        said, known = message.hops[-1], incoming.hop
        if replace(said, receiver=known.receiver) != known:
            raise RemoteProtocolError(f"link {said.link}: node {said.sender} says of its key what this node does not")
        pad = await self._pads.bits(incoming.pad)
        if message.position == 1:
            return pad  # the strand is the named units themselves
        try:
            return decrypt(message.ciphertext, pad)
        finally:
            pad.wipe()

    async def _keep(self, message: Relay, incoming: _Taken, strand: Secret) -> Relayed:
        try:
            await self._ctx.store.commit(self._pads.used_rows(incoming.ranges))
            source, via = NodeId(message.route[0]), NodeId(message.route[-2])
            self._arrivals.keep(source, message.segment, Carried(strand, message.hops), via=via)
        except BaseException:
            strand.wipe()
            raise
        self._ctx.counters["relays_arrived"] += 1
        return Relayed(message.hops)

    async def _onward(self, message: Relay, incoming: _Taken, strand: Secret) -> Relay:
        """Close the strand under the next link's pad, durably on both sides; return what may now leave."""
        taken = self._take(NodeId(message.route[message.position + 1]), total_units(incoming.pad))
        with self._pads.using(taken.ranges):
            pad = await self._pads.bits(taken.pad)
            try:
                ciphertext = encrypt(strand, pad)
            finally:
                pad.wipe()
            onward = await self._message(
                taken,
                relay=message.relay,
                segment=message.segment,
                route=message.route,
                position=message.position + 1,
                ciphertext=ciphertext,
                hops=(*message.hops, taken.hop),
            )
            await self._ctx.store.commit(self._pads.used_rows((*incoming.ranges, *taken.ranges)))
        return onward

    # --- both

    def _take(self, receiver: NodeId, units: int) -> _Taken:
        """Take a pad and a MAC key for the next hop, from the fullest of the links there.

        Only under a live lease: the receiver lets no other life of this node in while it runs, so of two copies of
        one machine, which hold the same pads, one at a time may send.
        """
        end = self._fullest(receiver)
        self._refuse_without_lease(receiver)
        stream = self._pads.stream(end.link, self._ctx.name)
        if not stream.available(reserve=True):
            self._ctx.counters["relays_without_reserve"] += 1
            raise NotEnoughKeyError(f"link {end.link}: the reserve for authentication is exhausted")
        pad = stream.allocate(units)
        (key,) = stream.allocate(1, reserve=True)
        return _Taken(end, pad, key, self._hop(end, self._ctx.name, pad))

    def _refuse_without_lease(self, receiver: NodeId) -> None:
        session = self._ctx.sessions.get(receiver)
        if session is None or self._ctx.clock.elapsed() >= session.lease_until:
            raise UnavailableError(f"no live lease with node {receiver}: nothing is sent under its links' key")

    def _fullest(self, receiver: NodeId) -> LinkEnd:
        me, book = self._ctx.name, self._ctx.book.link_by_name
        ends = [
            end
            for end in self._ctx.links.values()
            if end.peer == receiver and end.link in book and {me, receiver} == set(book[end.link].ends)
        ]
        if not ends:
            raise UnavailableError(f"no link joins node {me} to {receiver}")
        return min(ends, key=lambda end: (-self._pads.stream(end.link, me).available(), end.link))

    async def _message(
        self,
        taken: _Taken,
        *,
        relay: bytes,
        segment: bytes,
        route: tuple[str, ...],
        position: int,
        ciphertext: bytes,
        hops: tuple[HopRecord, ...],
    ) -> Relay:
        """Return the message for the next hop under its one-time tag."""
        bare = Relay(
            relay=relay,
            segment=segment,
            route=route,
            position=position,
            link=taken.end.link,
            pads=tuple(_named(each) for each in taken.pad),
            key=_named(taken.key),
            ciphertext=ciphertext,
            hops=hops,
            tag=b"",
        )
        key = await self._pads.bits([taken.key])
        try:
            return replace(bare, tag=tag_of(canonical(bare), key))
        finally:
            key.wipe()

    def _hop(self, end: LinkEnd, sender: NodeId, pad: Sequence[PadRange]) -> HopRecord:
        """Return what there is to say of a hop over these units."""
        stream = self._pads.stream(end.link, sender)
        blocks = [stream.blocks[block_id] for block_id in sorted({named.block for named in pad})]
        stated = [block.epsilon for block in blocks if block.epsilon is not None]
        return HopRecord(
            link=end.link,
            sender=sender,
            receiver=end.peer if sender == self._ctx.name else self._ctx.name,
            supply=worst_of(block.supply for block in blocks).value,
            emulated=end.emulated,
            bootstrap="preshared" if end.peer in self._ctx.preshared else "computational",
            epsilon=sum(stated) if len(stated) == len(blocks) else None,
        )

    async def _send(self, message: Relay) -> Relayed:
        """Send, again if need be, until the deadline; nodes nearer the end have shorter ones."""
        ctx, last = self._ctx, len(message.route) - 1
        receiver = NodeId(message.route[message.position])
        self._refuse_without_lease(receiver)  # it may have ended while the use of the pad became durable
        share = (last - message.position + 1) / last
        deadline = ctx.clock.elapsed() + ctx.settings.relay_timeout * share
        pause = _FIRST_PAUSE
        is_known = self.before_sending is None
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if not is_known:
                    await self._make_known(receiver, deadline)
                    is_known = True
                    self._refuse_without_lease(receiver)
                timeout = Seconds(min(deadline - ctx.clock.elapsed(), ctx.settings.call_timeout))
                answer = await ctx.peers.call(receiver, message, timeout=timeout)
                break
            except PeerUnavailableError:
                if attempt == _ATTEMPTS or ctx.clock.elapsed() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)
            pause *= 2
        if not isinstance(answer, Relayed) or answer.hops[: len(message.hops)] != message.hops:
            raise RemoteProtocolError(f"node {receiver} answers a relay with something else")
        check_hops(answer.hops, message.route, ctx.book)
        return answer

    async def _make_known(self, receiver: NodeId, deadline: float) -> None:
        """Return when `receiver` remembers how far this store has got.

        Raises:
            PeerUnavailableError: not in time; nothing was sent.
        """
        assert self.before_sending is not None
        elapsed = self._ctx.clock.elapsed
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline - elapsed()):
                await self.before_sending(receiver)
                if elapsed() < deadline:
                    return
        raise PeerUnavailableError(f"node {receiver} did not remember in time how far this node is", sent=False)

    def _claim(self, end: LinkEnd, pad: tuple[PadRange, ...], key: PadRange) -> _Taken:
        """Take the units that the link's other end names, if all can be; it is told of blocks not held here."""
        stream = self._pads.stream(end.link, end.peer)
        for named in (*pad, key):
            if named.block not in stream.blocks:
                self._pads.tell_gone(end.peer, named.block)
        stream.claim(pad, [key])
        return _Taken(end, pad, key, self._hop(end, end.peer, pad))

    def _burnt(self, units: int) -> None:
        self._ctx.counters["relays_failed"] += 1
        self._ctx.counters["link_units_burnt"] += units


def _covered(message: Relay) -> bytes:
    """Return the bytes under the tag: all of the message but the tag."""
    return canonical(replace(message, tag=b""))


def _named(units: PadRange) -> wire.PadRange:
    return wire.PadRange(units.block, units.first, units.count)


def _range(named: wire.PadRange) -> PadRange:
    return PadRange(named.block, named.first, named.count)
