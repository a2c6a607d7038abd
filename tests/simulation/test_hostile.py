"""No message or answer of a peer ends a node.

One node of a running network says what no honest node would: each field of each of its messages and answers in turn
is put to values that make no sense, on the wire, behind its back. Whoever hears it may refuse, burn what was being
made and lose the session, but must live; and when the node is honest again, all must work as before.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator

import msgspec
import pytest
from tests.simulation.acts import judged, started
from tests.simulation.networks import network

from trenza.base.errors import RefusedError
from trenza.base.names import NodeId, SaeId
from trenza.core.delivery import IssueRequest
from trenza.kms.demand import Want
from trenza.lab.client import Client
from trenza.lab.loop import run
from trenza.lab.plan import SMALL
from trenza.lab.world import World
from trenza.wire.peer import SegmentDrop

NET = network("ABC", "AB BC", {"A1 B1": "default", "B1 C1": "default", "A1 C1": "default", "A2 C2": "default"})
PAIRS = [(SaeId(one), SaeId(other)) for rule in NET.rules for one, other in (rule.between, rule.between[::-1])]
B = NodeId("B")

NUMBERS = (-1, 0, 1, 2**20, 2**26 - 1, 2**26, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
FLOATS = (math.inf, -math.inf, math.nan, -1.0, 0.0, 1e300)
BYTES = (b"", b"short", b"\0" * 16, b"\xff" * 16, b"\xff" * 48, b"x" * 70_000)
TEXTS = ("", "A", "C", "live", "synthetic", "computational", "bogus", "x" * 64, "x" * 65, "\0", "A\n")
Path = tuple[object, ...]


def paths(value: object, here: Path = ()) -> Iterator[Path]:
    """Yield where there is something to change: every member, and the first of items alike."""
    if here:
        yield here
    if isinstance(value, dict):
        for key in value:
            if key != "type":
                yield from paths(value[key], (*here, key))
    elif isinstance(value, list) and value:
        alike = len({type(one) for one in value}) == 1 and not isinstance(value[0], int)
        for place in range(1 if alike else len(value)):
            yield from paths(value[place], (*here, place))


def others(value: object) -> list[object]:
    """Return what to say instead of `value`."""
    nonsense: list[object] = [None, {}, []]
    match value:
        case bool():
            return [*nonsense, not value, 2]
        case int():
            return [*nonsense, *NUMBERS, value + 1, 0.5, "1"]
        case float():
            return [*nonsense, *FLOATS, 2**64 - 1]
        case bytes():
            return [*nonsense, *BYTES, value[::-1], value[:-1], value + b"\0", "text"]
        case str():
            return [*nonsense, *TEXTS, msgspec.Raw(b"\xa2\xff\xff"), b"bytes"]
        case list():
            return [None, {}, [], value * 2, value[:1] * 5_000, [None], [0] * 3, [[]], value[::-1]]
        case _:
            return [*nonsense, 0, b"", "text", [-1, -1, b"", b""]]


def changed(value: object, path: Path, other: object) -> object:
    """Return `value` with `other` at `path`."""
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)  # type: ignore[call-overload]
    copy[path[0]] = changed(copy[path[0]], path[1:], other)
    return copy


class Liar:
    """Changes what one node says, whenever chance has it.

    Mostly to the next untried change of that kind of message; now and then to another that it sent before.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(f"liar {seed}")
        self.lies = 0.0
        self.told: Counter[str] = Counter()
        self._sent: dict[str, bytes] = {}
        self._tried: defaultdict[tuple[str, Path], int] = defaultdict(int)

    def __call__(self, sender: NodeId, _receiver: NodeId, body: bytes) -> bytes:
        if sender != B or self.chance.random() >= self.lies:
            return body
        said = msgspec.msgpack.decode(body)
        kind = said["type"]
        self._sent[kind] = body
        if self.chance.random() < 0.1:
            return self.chance.choice(list(self._sent.values()))
        places = list(paths(said))
        if not places:
            return body
        least = min(self._tried[kind, place] for place in places)
        place = self.chance.choice([place for place in places if self._tried[kind, place] == least])
        was = said
        for step in place:
            was = was[step]
        choices = others(was)
        number = self._tried[kind, place]
        self._tried[kind, place] += 1
        self.told[kind] += 1
        order = random.Random(f"{kind} {place}").sample(range(len(choices)), len(choices))
        return msgspec.msgpack.encode(changed(said, place, choices[order[number % len(choices)]]))


async def lied_to(seed: int, seconds: int) -> Counter[str]:
    """Live with a liar for so long, then see that all is well; return how often it lied in which message."""
    world = World(NET, seed=seed, settings=SMALL)
    liar = world.network.alter = Liar(seed)
    await world.start_all()
    await world.until_ready(within=60.0)
    client = Client(world)
    for second in range(seconds):
        liar.lies = (0.1, 0.5, 1.0)[second // 20 % 3]
        for one, other in PAIRS:
            more = (SaeId("C1"),) if (one, other) == ("A1", "B1") else ()
            keys = await client.issue(one, IssueRequest(other, number=3, additional_targets=more))
            await client.fetch(other, one, [key.key_id for key in keys])
        if second % 3 == 0:
            liar.chance.choice([world.node("A").sessions, world.node("C").sessions]).end(B)
        if second % 7 == 0:
            world.node("B").sessions.end(liar.chance.choice([NodeId("A"), NodeId("C")]))
        await asyncio.sleep(1.0)
        assert world.failures == {}
    liar.lies = 0.0
    await asyncio.sleep(60.0)
    await world.until_ready(within=120.0)
    for one, other in PAIRS:
        keys = await client.issue(one, IssueRequest(other))
        assert len(await client.fetch(other, one, [key.key_id for key in keys])) == 1
    await world.stop_all()
    assert world.failures == {}
    return liar.told


def test_no_message_or_answer_of_a_peer_ends_a_node() -> None:
    told = run(lied_to(1, seconds=40)) + run(lied_to(2, seconds=40))
    assert {"hello", "helloanswer", "beat", "beatanswer", "relayed", "segmentcommit"} <= set(told)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 16))
def test_no_message_or_answer_of_a_peer_ends_a_node_for_long(seed) -> None:
    told = run(lied_to(seed, seconds=600))
    assert told.total() > 2_000


def test_a_segment_whose_strands_are_fewer_than_its_slots_is_refused() -> None:
    async def story() -> None:
        world = await started(NET)
        leader, follower = world.node("A"), world.node("B")
        carry, refused = leader.relays.carry, follower.ctx.counters["segments_refused"]
        leader.relays.carry = lambda segment, route, units: carry(segment, route, units // 2)  # type: ignore[method-assign]
        with pytest.raises(RefusedError):
            await leader.fill.fill(B, Want(NodeId("A"), leader.demand.kinds(B)[0], slots=32, stock=0))
        assert follower.ctx.counters["segments_refused"] == refused + 1
        leader.relays.carry = carry  # type: ignore[method-assign]
        await judged(world, ("A1", "B1"))

    run(story())


def test_what_one_leader_has_begun_is_not_for_another_to_drop_or_to_push_out() -> None:
    async def story() -> None:
        world = await started(NET)
        one, other, follower = world.node("A"), world.node("B"), world.node("C")
        segment = b"the first leader"
        await one.fill._exchange(NodeId("C"), one.ctx.session(NodeId("C")).id, segment)
        for number in range(20):
            await other.fill._exchange(NodeId("C"), other.ctx.session(NodeId("C")).id, number.to_bytes(16, "big"))
        await follower.handle(B, SegmentDrop(segment))
        assert segment in follower.fill._pending[NodeId("A")]
        assert len(follower.fill._pending[B]) <= 8
        await judged(world, ("A1", "C1"), ("B1", "C1"))

    run(story())


def test_a_leader_fills_no_more_than_a_node_would_ever_use() -> None:
    async def story() -> None:
        world = await started(network("AB", "AB", {"A1 B1": "emergency"}))
        leader, follower = world.node("A"), world.node("B")
        (plain,) = (kind for kind in leader.demand.kinds(B) if not kind.full)
        with pytest.raises(RefusedError, match="as many strands of that kind as it will"):
            [await leader.fill.fill(B, Want(NodeId("A"), plain, slots=1_024, stock=0)) for _ in range(1_000)]
        held = follower.pools.ungranted(NodeId("A"), NodeId("A"), full=False)
        assert held <= 65 * SMALL.stock_target + SMALL.segment_max
        assert follower.ctx.counters["segments_beyond_stock"] == 1
        await judged(world, ("A1", "B1"))

    run(story())
