"""The lab's network: messages between nodes, encoded as on the wire, with seeded delay, loss, repetition and cuts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from trenza.base.errors import PeerUnavailableError, RefusedError, TrenzaError
from trenza.base.names import NodeId
from trenza.base.units import Seconds
from trenza.wire.peer import PeerMessage, Relay, decode, encode

Handler = Callable[[NodeId, PeerMessage], Awaitable[PeerMessage]]


@dataclass(slots=True)
class Weather:
    """How bad the network is: probabilities a message, and seconds."""

    lose: float = 0.0  # request or answer; the caller learns of it by its deadline
    repeat: float = 0.0  # the request arrives twice
    delay: tuple[float, float] = (0.0005, 0.01)


@dataclass(slots=True)
class LabNetwork:
    """All wires of a history. `listen` hears every request and answer as it goes out: what an eavesdropper has."""

    chance: random.Random
    on_relay: Callable[[NodeId, Relay], None]
    weather: Weather = field(default_factory=Weather)
    handlers: dict[NodeId, Handler] = field(default_factory=dict)
    cut: set[frozenset[NodeId]] = field(default_factory=set)
    attached: dict[NodeId, LabPeers] = field(default_factory=dict)  # where two processes have one name: who is heard
    listen: Callable[[NodeId, NodeId, bytes], None] = lambda _sender, _receiver, _body: None
    alter: Callable[[NodeId, NodeId, bytes], bytes] = lambda _sender, _receiver, body: body  # a hostile node's words
    counts: dict[str, int] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    async def pause(self) -> None:
        await asyncio.sleep(self.chance.uniform(*self.weather.delay))

    def joined(self, one: NodeId, other: NodeId) -> bool:
        return frozenset((one, other)) not in self.cut and other in self.handlers

    async def carry(self, sender: NodeId, receiver: NodeId, body: bytes) -> PeerMessage:
        """Bring one request to its receiver and the answer back, or lose either."""
        body = self.alter(sender, receiver, body)
        self.listen(sender, receiver, body)
        await self.pause()
        if not self.joined(sender, receiver) or self.chance.random() < self.weather.lose:
            self.count("requests lost")
            await asyncio.Event().wait()
        handler = self.handlers[receiver]
        if self.chance.random() < self.weather.repeat:
            self.count("requests repeated")
            task = asyncio.create_task(self._again(handler, sender, body))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        answer = self.alter(receiver, sender, encode(await handler(sender, decode(body))))
        self.listen(receiver, sender, answer)
        await self.pause()
        if not self.joined(receiver, sender) or self.chance.random() < self.weather.lose:
            self.count("answers lost")
            await asyncio.Event().wait()
        return decode(answer)

    async def _again(self, handler: Handler, sender: NodeId, body: bytes) -> None:
        await self.pause()
        try:
            await handler(sender, decode(body))
        except TrenzaError:
            self.count("repeated requests refused")


class LabPeers:
    """One node's view of the network: the Peers port."""

    def __init__(self, network: LabNetwork, name: NodeId) -> None:
        self._network = network
        self._name = name
        self.dead = False  # the process is gone: whatever of it still unwinds reaches nobody

    async def call(self, peer: NodeId, message: PeerMessage, *, timeout: Seconds) -> PeerMessage:
        if self.dead:
            raise PeerUnavailableError("this process is dead")
        if isinstance(message, Relay):
            self._network.on_relay(self._name, message)
        try:
            async with asyncio.timeout(timeout):
                if self._network.attached.get(self._name, self) is not self:
                    await asyncio.Event().wait()
                return await self._network.carry(self._name, peer, encode(message))
        except TimeoutError:
            raise PeerUnavailableError(f"node {peer} did not answer within {timeout} s") from None
        except RefusedError:
            raise
        except TrenzaError as error:
            raise RefusedError(error.message, remote_code=error.code) from None
