"""Running the joint exchange between two nodes, and keeping the end-to-end root that authenticates it.

The leader offers, the follower answers; both then hold the same two secrets and the same transcript, and the root has
moved on. When an answer is lost the follower has a root the leader does not know of: it keeps it as a *candidate*
until the leader's next offer shows which of the two the leader has (design decision 2).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from trenza.base.errors import AuthenticationError, RemoteProtocolError, StaleError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.core.exchange import (
    NO_ROOT,
    ExchangeSecrets,
    answer_message,
    check_root_tag,
    next_root,
    offer_message,
    root_tag,
    transcript_of,
)
from trenza.core.strand import Transcript
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.ports import Delete, Offer, Put, Sealed, Table
from trenza.wire.peer import ExchangeAnswer, ExchangeOffer

_REMEMBERED = 64
"""Exchange IDs a follower remembers to have answered: an offer that arrives twice must not move the root again."""


@dataclass(slots=True)
class Root:
    """The end-to-end root of one pair, and its candidate successor on the follower's side."""

    generation: int
    secret: Secret = field(repr=False)
    preshared: bool = False  # whether it began from a secret that was installed by hand
    sealed: Sealed | None = None
    candidate: Secret | None = field(default=None, repr=False)
    candidate_sealed: Sealed | None = None


@dataclass(slots=True)
class Begun:
    """An exchange the leader has offered and not finished."""

    exchange_id: bytes
    offer: Offer = field(repr=False)
    message: bytes = field(repr=False)  # MA
    root: Root  # the one that authenticates it


@dataclass(slots=True)
class Agreed:
    """A finished exchange. Whoever asked for it wipes it."""

    exchange_id: bytes
    secrets: ExchangeSecrets = field(repr=False)
    transcript: Transcript
    root_before: Secret = field(repr=False)
    authentication: tuple[str, ...]

    def wipe(self) -> None:
        self.secrets.wipe()
        self.root_before.wipe()


class Exchanges:
    """This node's exchanges with all others. One at a time per pair, begun by the leader only."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._roots: dict[NodeId, Root] = {}
        self._answering: defaultdict[NodeId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._answered: defaultdict[NodeId, deque[bytes]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))

    async def load(self) -> None:
        """Read the roots that the last incarnation left."""
        for key, value in await self._ctx.store.scan(Table.SESSION, b"root"):
            peer, _ = rows.split_peer(key[4:])
            row = rows.decode(value, rows.RootRow)
            try:
                self._roots[peer] = await self._opened(peer, row)
            except AuthenticationError:  # as after a crash in the midst of `forget`: keys go first, then the row
                self._ctx.counters["roots_unreadable"] += 1
                await self._forget(peer, (each.sealed for each in (row.root, row.candidate) if each is not None))
                continue
            if peer in self._ctx.preshared and not row.preshared:
                await self.forget(peer)  # a secret was installed since: only certificates vouched for this root

    async def _opened(self, peer: NodeId, row: rows.RootRow) -> Root:
        root = self._first_root(peer)
        root.generation, root.preshared = row.generation, row.preshared
        if row.root is not None:
            root.sealed = row.root.sealed
            root.secret = await self._unseal(peer, row.root.sealed)
        if row.candidate is not None:
            root.candidate_sealed = row.candidate.sealed
            try:
                root.candidate = await self._unseal(peer, row.candidate.sealed)
            except AuthenticationError:
                root.secret.wipe()
                raise
        return root

    def root(self, peer: NodeId) -> Root:
        """Return the pair's root; before the first exchange it is what was preshared, or nothing."""
        if peer not in self._roots:
            self._roots[peer] = self._first_root(peer)
        return self._roots[peer]

    def _first_root(self, peer: NodeId) -> Root:
        preshared = self._ctx.preshared.get(peer)
        return Root(0, Secret.of(NO_ROOT if preshared is None else preshared.view()), preshared is not None)

    async def forget(self, peer: NodeId) -> None:
        """Drop the pair's root: part of dropping all strands."""
        old = self._roots.pop(peer, None)
        if old is not None:
            old.secret.wipe()
            if old.candidate is not None:
                old.candidate.wipe()
        await self._forget(peer, () if old is None else (old.sealed, old.candidate_sealed))

    async def _forget(self, peer: NodeId, sealed: Iterable[Sealed | None]) -> None:
        await self._ctx.sealer.erase([one.handle for one in sealed if one is not None])
        await self._ctx.store.commit([Delete(Table.SESSION, self._key(peer))])
        self._ctx.counters["roots_reset"] += 1

    async def forget_all(self) -> None:
        """Begin every root anew: part of dropping all strands."""
        for peer in sorted(self._roots):
            await self.forget(peer)

    # --- the leader's side

    def begin(self, peer: NodeId, *, context: bytes, anew: bool = False) -> tuple[ExchangeOffer, Begun]:
        """Return the offer to send; `context` is everything else the message says, which the offer then covers.

        `anew` begins from the preshared root because one of the two lost its memory; the root we have stays in force
        until the follower has proved itself.
        """
        root = self._first_root(peer) if anew else self.root(peer)
        exchange_id = bytes(self._ctx.entropy.token(16))
        offer = self._ctx.agreement.offer()
        message = offer_message(self._ctx.name, peer, exchange_id, root.generation, offer.public, context=context)
        tagged = ExchangeOffer(
            exchange_id,
            offer.public,
            root.generation,
            root_tag(root.secret, message),
            self._ctx.signer.sign(message),
        )
        return tagged, Begun(exchange_id, offer, message, root)

    async def finish(self, peer: NodeId, begun: Begun, answer: ExchangeAnswer, *, context: bytes) -> Agreed:
        """Check the follower's answer and move the root on, durably.

        Raises:
            AuthenticationError: the answer is not the follower's, or not of this root.
        """
        root = begun.root
        message = answer_message(begun.message, answer.public, context=context)
        check_root_tag(root.secret, message, answer.root_tag)
        self._ctx.verifier.verify(peer, message, answer.signature)
        classical, pqc = self._ctx.agreement.finish(begun.offer, answer.public)
        agreed = self._agreed(root, begun.exchange_id, ExchangeSecrets(classical, pqc), begun.message, message)
        successor = next_root(root.secret, agreed.secrets, agreed.transcript)
        sealed = await self._seal(peer, successor)
        await self._replace(peer, Root(root.generation + 1, successor, root.preshared, sealed))
        return agreed

    # --- the follower's side

    async def answer(
        self,
        peer: NodeId,
        offer: ExchangeOffer,
        *,
        context: bytes,
        answer_context: bytes = b"",
        anew: bool = False,
    ) -> tuple[ExchangeAnswer, Agreed]:
        """Check the leader's offer, answer it, and keep the successor root as a candidate, durably.

        `anew`: the leader begins from the preshared root; ours is dropped once its offer has been verified.

        Raises:
            StaleError: the leader's root is of a generation this node does not hold.
            AuthenticationError: the offer is not the leader's.
            RemoteProtocolError: it was answered before.
        """
        # Offers that overtook a deadline are answered in order; the last one counts.
        async with self._answering[peer]:
            return await self._answer(peer, offer, context, answer_context, anew=anew)

    async def _answer(
        self, peer: NodeId, offer: ExchangeOffer, context: bytes, answer_context: bytes, *, anew: bool
    ) -> tuple[ExchangeAnswer, Agreed]:
        if offer.exchange_id in self._answered[peer]:
            raise RemoteProtocolError(f"node {peer} offers an exchange that was answered before")
        root = self._first_root(peer) if anew else self._root_of_generation(peer, offer.root_generation)
        message = offer_message(
            peer, self._ctx.name, offer.exchange_id, offer.root_generation, offer.public, context=context
        )
        check_root_tag(root.secret, message, offer.root_tag)
        self._ctx.verifier.verify(peer, message, offer.signature)
        self._answered[peer].append(offer.exchange_id)
        if anew and self.root(peer).generation:
            self._ctx.counters["roots_reset"] += 1
        public, classical, pqc = self._ctx.agreement.answer(offer.public)
        reply = answer_message(message, public, context=answer_context)
        agreed = self._agreed(root, offer.exchange_id, ExchangeSecrets(classical, pqc), message, reply)
        successor = next_root(root.secret, agreed.secrets, agreed.transcript)
        sealed = await self._seal(peer, successor)
        await self._replace(peer, Root(root.generation, root.secret, root.preshared, root.sealed, successor, sealed))
        answer = ExchangeAnswer(public, root_tag(root.secret, reply), self._ctx.signer.sign(reply))
        return answer, agreed

    def _root_of_generation(self, peer: NodeId, generation: int) -> Root:
        """Return the root that the leader used, which shows whether it got our last answer."""
        root = self.root(peer)
        if generation == root.generation:
            return Root(root.generation, root.secret, root.preshared, root.sealed)
        if root.candidate is not None and generation == root.generation + 1:
            return Root(generation, root.candidate, root.preshared, root.candidate_sealed)
        raise StaleError(f"node {peer} uses root generation {generation}; this node has {root.generation}")

    # --- common

    def _agreed(
        self, root: Root, exchange_id: bytes, secrets: ExchangeSecrets, offer: bytes, answer: bytes
    ) -> Agreed:
        before = Secret.of(root.secret.view())
        return Agreed(exchange_id, secrets, transcript_of(offer, answer), before, _authentication(root))

    async def _replace(self, peer: NodeId, new: Root) -> None:
        old = self.root(peer)
        row = rows.RootRow(
            new.generation,
            None if new.sealed is None else rows.SealedRow.of(new.sealed),
            None if new.candidate_sealed is None else rows.SealedRow.of(new.candidate_sealed),
            new.preshared,
        )
        await self._ctx.store.commit([Put(Table.SESSION, self._key(peer), rows.encode(row))])
        self._roots[peer] = new
        kept = {s.handle for s in (new.sealed, new.candidate_sealed) if s is not None}
        gone = [s.handle for s in (old.sealed, old.candidate_sealed) if s is not None and s.handle not in kept]
        if gone:
            await self._ctx.sealer.erase(gone)

    async def _seal(self, peer: NodeId, secret: Secret) -> Sealed:
        return await self._ctx.sealer.seal(secret, associated=self._associated(peer))

    async def _unseal(self, peer: NodeId, sealed: Sealed) -> Secret:
        return await self._ctx.sealer.unseal(sealed, associated=self._associated(peer))

    def _associated(self, peer: NodeId) -> bytes:
        return b"root" + self._ctx.name.encode() + b"\0" + peer.encode()

    @staticmethod
    def _key(peer: NodeId) -> bytes:
        return b"root" + rows.peer_prefix(peer)


def _authentication(root: Root) -> tuple[str, ...]:
    """Return what vouched for an exchange, in provenance's words.

    "root-preshared": the end-to-end root began from a secret installed by hand. "root-continuity": it began with a
    first exchange that certificates alone vouched for, so it only proves that the other end is still the same.
    """
    if root.preshared:
        return ("ml-dsa-65", "root-preshared")
    return ("ml-dsa-65", "root-continuity") if root.generation else ("ml-dsa-65",)
