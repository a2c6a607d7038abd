"""The lab's network: messages between nodes, encoded as on the wire, with seeded delay, loss, repetition and cuts.

A message once sent goes its way whatever becomes of its sender; one that comes late finds a receiver that may have
died and come back in the meantime. Whoever is not answered learns of it by its deadline.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial

from trenza.base.errors import PeerUnavailableError, RefusedError, TrenzaError
from trenza.base.names import NodeId
from trenza.base.units import Seconds
from trenza.wire.peer import PeerMessage, Relay, decode, encode

Handler = Callable[[NodeId, PeerMessage], Awaitable[PeerMessage]]
Answer = asyncio.Future[PeerMessage]


@dataclass(slots=True)
class Weather:
    """How bad the network is: probabilities a message, and seconds."""

    lose: float = 0.0  # request or answer; the caller learns of it by its deadline
    repeat: float = 0.0  # the request arrives twice
    late: float = 0.0  # the request or the answer takes as long as `lateness`
    delay: tuple[float, float] = (0.0005, 0.01)
    lateness: tuple[float, float] = (0.3, 9.0)


@dataclass(slots=True)
class LabNetwork:
    """All wires of a history. `listen` hears every request and answer as it goes out: what an eavesdropper has."""

    chance: random.Random
    on_relay: Callable[[NodeId, Relay], None]
    on_failure: Callable[[NodeId, BaseException], None]  # a handler raised what no peer may be told
    fired: Counter[str] = field(default_factory=Counter)  # faults by kind
    weather: Weather = field(default_factory=Weather)
    handlers: dict[NodeId, Handler] = field(default_factory=dict)
    cut: set[frozenset[NodeId]] = field(default_factory=set)
    cut_ways: set[tuple[NodeId, NodeId]] = field(default_factory=set)  # from the first to the second nothing arrives
    cut_off: set[tuple[NodeId, NodeId]] = field(default_factory=set)  # the same, of a node that is away for long
    attached: dict[NodeId, LabPeers | None] = field(default_factory=dict)
    """Who is heard where two processes have one name; None: neither."""

    listen: Callable[[NodeId, NodeId, bytes], None] = lambda _sender, _receiver, _body: None
    alter: Callable[[NodeId, NodeId, bytes], bytes] = lambda _sender, _receiver, body: body  # a hostile node's words
    _context: Context = field(
        default_factory=copy_context
    )  # what is on its way arrives whatever became of its sender
    _sent: Counter[tuple[NodeId, NodeId]] = field(default_factory=Counter)
    _arrived: dict[tuple[NodeId, NodeId], int] = field(default_factory=dict)

    def send(self, sender: NodeId, receiver: NodeId, body: bytes, answer: Answer) -> None:
        """Bring one request to its receiver, once, twice or never, and the answer back, or not."""
        body = self.alter(sender, receiver, body)
        self.listen(sender, receiver, body)
        self._sent[sender, receiver] += 1
        number = self._sent[sender, receiver]
        if self.chance.random() < self.weather.repeat:
            self.fired["message repeated"] += 1
            self._post(sender, receiver, partial(self._heard, sender, receiver, body, number, None))
        self._post(sender, receiver, partial(self._heard, sender, receiver, body, number, answer))

    def _post(self, sender: NodeId, receiver: NodeId, arrive: Callable[[], None]) -> None:
        if self.chance.random() < self.weather.lose:
            self.fired["message lost"] += 1
            return
        delay = self.chance.uniform(*self.weather.delay)
        if self.chance.random() < self.weather.late:
            self.fired["message late"] += 1
            delay = self.chance.uniform(*self.weather.lateness)
        loop = asyncio.get_running_loop()
        loop.call_later(delay, self._pass, sender, receiver, arrive, context=self._context)

    def _pass(self, sender: NodeId, receiver: NodeId, arrive: Callable[[], None]) -> None:
        if frozenset((sender, receiver)) in self.cut:
            self.fired["network cut"] += 1
        elif (sender, receiver) in self.cut_ways:
            self.fired["network cut one way"] += 1
        elif (sender, receiver) not in self.cut_off:
            arrive()

    def _heard(self, sender: NodeId, receiver: NodeId, body: bytes, number: int, answer: Answer | None) -> None:
        handler = self.handlers.get(receiver)
        if handler is None:
            return
        if number < self._arrived.get((sender, receiver), 0):
            self.fired["messages reordered"] += 1
        else:
            self._arrived[sender, receiver] = number
        try:
            working = asyncio.ensure_future(handler(sender, decode(body)))
        except TrenzaError as error:
            self._reply(sender, receiver, error, answer)
            return
        working.add_done_callback(partial(self._done, sender, receiver, answer))

    def _done(
        self, sender: NodeId, receiver: NodeId, answer: Answer | None, working: asyncio.Future[PeerMessage]
    ) -> None:
        if working.cancelled():
            return  # the process died at it
        error = working.exception()
        if error is not None and not isinstance(error, TrenzaError):
            self.on_failure(receiver, error)
            return
        self._reply(sender, receiver, error or working.result(), answer)

    def _reply(
        self, sender: NodeId, receiver: NodeId, said: TrenzaError | PeerMessage, answer: Answer | None
    ) -> None:
        if answer is None:
            return
        if isinstance(said, TrenzaError):
            self._post(receiver, sender, partial(_refuse, answer, said))
            return
        body = self.alter(receiver, sender, encode(said))
        self.listen(receiver, sender, body)
        self._post(receiver, sender, partial(_answer, answer, body))


def _refuse(answer: Answer, error: TrenzaError) -> None:
    if answer.done():
        return
    refusal = error if isinstance(error, RefusedError) else RefusedError(error.message, remote_code=error.code)
    answer.set_exception(refusal)


def _answer(answer: Answer, body: bytes) -> None:
    if answer.done():
        return
    try:
        answer.set_result(decode(body))
    except TrenzaError as error:
        _refuse(answer, error)


def _give_up(answer: Answer, peer: NodeId, timeout: Seconds) -> None:
    if not answer.done():
        answer.set_exception(PeerUnavailableError(f"node {peer} did not answer within {timeout} s"))


class LabPeers:
    """One process's view of the network: the Peers port."""

    def __init__(self, network: LabNetwork, name: NodeId) -> None:
        self._network = network
        self._name = name
        self.dead = False  # the process is gone: whatever of it still unwinds reaches nobody

    async def call(self, peer: NodeId, message: PeerMessage, *, timeout: Seconds) -> PeerMessage:
        if self.dead:
            raise PeerUnavailableError("this process is dead")
        loop = asyncio.get_running_loop()
        answer: Answer = loop.create_future()
        deadline = loop.call_later(max(0.0, timeout), _give_up, answer, peer, timeout)
        if self._network.attached.get(self._name, self) is self:  # else nothing of it comes to any wire
            if isinstance(message, Relay):
                self._network.on_relay(self._name, message)
            self._network.send(self._name, peer, encode(message), answer)
        try:
            return await answer
        finally:
            deadline.cancel()
