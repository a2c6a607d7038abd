"""The lab's network: who is heard where two processes have one name."""

from __future__ import annotations

import asyncio
import random

import pytest

from trenza.base.errors import PeerUnavailableError
from trenza.base.names import NodeId
from trenza.base.units import Seconds
from trenza.lab.loop import run
from trenza.lab.network import LabNetwork, LabPeers
from trenza.wire.peer import Done, PadRange, PeerMessage, Relay

A, B = NodeId("A"), NodeId("B")
RELAY = Relay(
    relay=bytes(16),
    segment=bytes(16),
    route=(A, B),
    position=1,
    link="A-B",
    pads=(PadRange(bytes(16), 0, 1),),
    key=PadRange(bytes(16), 1, 1),
    ciphertext=b"",
    hops=(),
    tag=bytes(16),
)


@pytest.mark.parametrize("heard", ["this one", "another", "neither"])
def test_of_two_processes_of_one_name_only_the_one_that_is_heard_has_sent_anything(heard) -> None:
    async def story() -> None:
        told: list[NodeId] = []
        network = LabNetwork(random.Random(1), lambda sender, _: told.append(sender), lambda *_: None)
        one, other = LabPeers(network, A), LabPeers(network, A)
        network.attached[A] = {"this one": one, "another": other, "neither": None}[heard]

        async def answer(_peer: NodeId, _message: PeerMessage) -> PeerMessage:
            return Done()

        network.handlers[B] = answer
        try:
            said = await one.call(B, RELAY, timeout=Seconds(5.0))
        except PeerUnavailableError:
            said = None
        assert (said, told) == ((Done(), [A]) if heard == "this one" else (None, []))

    run(story())


def test_a_process_that_was_replaced_while_it_waits_still_gets_its_answer() -> None:
    async def story() -> None:
        network = LabNetwork(random.Random(1), lambda *_: None, lambda *_: None)
        one = LabPeers(network, A)

        async def answer(_peer: NodeId, _message: PeerMessage) -> PeerMessage:
            network.attached[A] = None
            return Done()

        network.handlers[B] = answer
        assert await asyncio.wait_for(one.call(B, RELAY, timeout=Seconds(5.0)), 6.0) == Done()

    run(story())
