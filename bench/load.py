"""The load: clients that ask for keys, fetch them at the other end and compare, as fast as they are answered.

A process of its own. Each client holds one connection to each node that it speaks with and asks one thing at a time.
What it asks is the plan's *kind*:

    pairs     a key (`enc_keys`), then the same key by its ID (`dec_keys`): one pair, both ends compared
    issue     a key, again and again; nobody fetches it
    constant  as `issue`, of a server that always answers the same

Over the whole life of the process no key ID and no key may come twice, except from a constant.

    python bench/load.py READY.json --initiator sae-alice --target sae-bob --connections 16 --seconds 5

READY.json is what `trenza up --ready-file` writes. With `--rounds`, each line of the standard input is one more plan,
such as {"kind": "issue", "connections": 16, "seconds": 5}, and each is answered by one line.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import resource
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import measure
import msgspec
import uvloop
from client import Doors, Line

from trenza.wire.etsi014 import Method

PAUSE_AFTER_REFUSAL_S = 0.005
KEY = b'{"number":1,"size":256}'
KEY_ID_BODY_BYTES = len('{"key_IDs":[{"key_ID":""}]}') + 36
DIGEST_BYTES = 16

Kind = Literal["pairs", "issue", "constant"]


class KeyEntry(msgspec.Struct, rename={"key_id": "key_ID"}):
    key_id: str
    key: str


class Container(msgspec.Struct):
    keys: list[KeyEntry]


_read_container = msgspec.json.Decoder(Container).decode


class Plan(msgspec.Struct, forbid_unknown_fields=True):
    kind: Kind
    connections: int
    seconds: float
    per_second: float = 0.0  # requests for a key, of all connections together; 0: as fast as they are answered
    warm_up_s: float = 0.5
    saes: tuple[tuple[str, tuple[str, ...]], ...] = ()  # initiators, each with its targets in turn; empty: as started
    watched: dict[str, int] = {}  # processes whose CPU time is read when the clock starts and stops


class Latency(msgspec.Struct):
    """Milliseconds, of the requests that were answered 200."""

    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Result(msgspec.Struct):
    kind: Kind
    connections: int
    seconds: float
    issued: int  # enc_keys answered 200 while the clock ran
    pairs: int
    missing: int  # dec_keys refused (400, 401), of a key that enc_keys had just given
    different: int
    repeated: int
    refused: int  # 503
    failed: int  # any other answer, and connections that ended
    enc: Latency | None
    dec: Latency | None
    client_cpu_s: float
    cpu_s: dict[str, float]  # of the watched processes
    machine_busy_s: float  # of all processes of this machine

    @property
    def issued_per_s(self) -> float:
        return self.issued / self.seconds

    @property
    def pairs_per_s(self) -> float:
        return self.pairs / self.seconds

    @property
    def client_share(self) -> float:
        """Return how much of one CPU the load used: near 1, it is the load that was measured."""
        return self.client_cpu_s / self.seconds

    @property
    def others_share(self) -> float:
        """Return how many CPUs were used by processes that have nothing to do with this."""
        ours = self.client_cpu_s + sum(self.cpu_s.values())
        return max(0.0, self.machine_busy_s - ours) / self.seconds

    def cpu_us(self, *servers: str) -> float:
        """Return the CPU time that the named servers spent per key issued."""
        return 1e6 * sum(self.cpu_s[name] for name in servers) / max(self.issued, 1)


class Seen:
    """Every key ID and every key, for the whole life of the process: 16 bytes of each."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_new(self, entry: KeyEntry) -> bool:
        """Take a key in; tell whether neither it nor its ID was there."""
        before = len(self._seen)
        self._seen.add(bytes.fromhex(entry.key_id.replace("-", "")))
        self._seen.add(hashlib.blake2b(entry.key.encode(), digest_size=DIGEST_BYTES).digest())
        return len(self._seen) == before + 2


class Tally:
    """What all clients saw. Faults count always, everything else while the clock runs."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.begin(running=False)

    def begin(self, *, running: bool) -> None:
        self.running = running
        self.counts: Counter[str] = Counter()
        self.enc_ns = array("q")
        self.dec_ns = array("q")

    def count(self, what: str) -> None:
        if self.running:
            self.counts[what] += 1


class Pace:
    """When one client may ask again."""

    def __init__(self, interval_s: float, offset_s: float) -> None:
        self._interval_s = interval_s
        self._due = asyncio.get_running_loop().time() + offset_s

    def wait_s(self) -> float:
        """Return how long to wait now; what came too late is not made up for beyond one interval."""
        if not self._interval_s:
            return 0.0
        now = asyncio.get_running_loop().time()
        self._due = max(self._due + self._interval_s, now - self._interval_s)
        return self._due - now


class Target:
    """The requests of one initiator for one target."""

    def __init__(self, doors: Doors, initiator: str, target: str) -> None:
        self.enc = doors.head(initiator, Method.GET_KEY, target) + b"%d\r\n\r\n%b" % (len(KEY), KEY)
        head = doors.head(target, Method.GET_KEY_WITH_IDS, initiator)
        self._dec = head + b'%d\r\n\r\n{"key_IDs":[{"key_ID":"' % KEY_ID_BODY_BYTES

    def dec(self, key_id: str) -> bytes:
        return self._dec + key_id.encode() + b'"}]}'


class Client:
    """Asks again and again until told to stop."""

    def __init__(
        self, tally: Tally, kind: Kind, targets: Sequence[tuple[Target, Line | None]], initiator: Line, pace: Pace
    ) -> None:
        self._tally = tally
        self._checks = kind != "constant"
        self._targets = cycle(targets)
        self._initiator = initiator
        self._pace = pace
        self._issued = KeyEntry("", "")
        self._stopping = False
        self.stopped = asyncio.get_running_loop().create_future()
        self._target, self._fetcher = next(self._targets)

    def start(self) -> None:
        self._target, self._fetcher = next(self._targets)
        self._initiator.ask(self._target.enc, self._enc_answered)

    def stop(self) -> None:
        self._stopping = True

    def _next(self) -> None:
        if self._stopping:
            self.stopped.set_result(None)
        elif (wait_s := self._pace.wait_s()) > 0:
            asyncio.get_running_loop().call_later(wait_s, self._start_unless_stopped)
        else:
            self.start()

    def _start_unless_stopped(self) -> None:
        if self._stopping:
            self.stopped.set_result(None)
        else:
            self.start()

    def _enc_answered(self, status: int, body: bytes) -> None:
        if status != 200:
            self._not_served(status)
            return
        tally = self._tally
        if tally.running:
            tally.enc_ns.append(time.perf_counter_ns() - self._initiator.asked_ns)
        (self._issued,) = _read_container(body).keys
        if self._checks and not tally.seen.is_new(self._issued):
            tally.counts["repeated"] += 1
        if self._fetcher is None:
            self._next()
        else:
            self._fetcher.ask(self._target.dec(self._issued.key_id), self._dec_answered)

    def _dec_answered(self, status: int, body: bytes) -> None:
        assert self._fetcher is not None
        if status in {400, 401}:
            self._tally.counts["missing"] += 1
            self._next()
            return
        if status != 200:
            self._not_served(status)
            return
        if self._tally.running:
            self._tally.dec_ns.append(time.perf_counter_ns() - self._fetcher.asked_ns)
        (fetched,) = _read_container(body).keys
        if fetched != self._issued:
            self._tally.counts["different"] += 1
        self._next()

    def _not_served(self, status: int) -> None:
        if status != 503:
            self._tally.counts["failed"] += 1
        else:
            self._tally.count("refused")
        if status == 0:  # the line is gone
            self.stopped.set_result(None)
            return
        asyncio.get_running_loop().call_later(PAUSE_AFTER_REFUSAL_S, self._next)


class Load:
    """The applications of a ready document."""

    def __init__(self, ready: dict[str, Any], initiator: str, target: str) -> None:
        self._doors = Doors(ready)
        self._default = ((initiator, (target,)),)
        self._tally = Tally()
        self._lines: list[Line] = []

    async def run(self, plan: Plan) -> Result:
        """Run one closed loop; connect before the clock starts, and let it run warm."""
        clients = await self._clients(plan)
        self._tally.begin(running=False)
        for client in clients:
            client.start()
        await asyncio.sleep(plan.warm_up_s)
        faults = self._tally.counts
        gc.collect()
        gc.freeze()  # what earlier rounds saw only grows; to walk it again would be our pause, not the server's
        self._tally.begin(running=True)
        self._tally.counts = faults
        watched, busy = measure.cpus_s(plan.watched), measure.machine_busy_s()
        cpu, began = _cpu_s(), time.perf_counter()
        await asyncio.sleep(plan.seconds)
        self._tally.running = False
        lasted, cpu = time.perf_counter() - began, _cpu_s() - cpu
        busy = measure.machine_busy_s() - busy
        spent = {name: after - watched[name] for name, after in measure.cpus_s(plan.watched).items()}
        for client in clients:
            client.stop()
        await asyncio.gather(*(client.stopped for client in clients))
        self._hang_up()
        return self._result(plan, lasted, client_cpu_s=cpu, cpu_s=spent, machine_busy_s=busy)

    async def first(self) -> bool:
        """Fetch one key at both ends; tell whether they are equal."""
        (client,) = await self._clients(Plan("pairs", 1, 0.0))
        self._tally.begin(running=True)
        client.stop()
        client.start()
        await client.stopped
        self._hang_up()
        return len(self._tally.dec_ns) == 1 and not self._tally.counts

    def _hang_up(self) -> None:
        for line in self._lines:
            line.close()
        self._lines.clear()

    async def _clients(self, plan: Plan) -> list[Client]:
        served = cycle(plan.saes or self._default)
        interval_s = plan.connections / plan.per_second if plan.per_second else 0.0
        clients = []
        for number, (initiator, targets) in zip(range(plan.connections), served, strict=False):
            line = await self._line(initiator)
            asked = [Target(self._doors, initiator, target) for target in targets]
            fetchers = [await self._line(target) if plan.kind == "pairs" else None for target in targets]
            pace = Pace(interval_s, interval_s * number / plan.connections)
            clients.append(Client(self._tally, plan.kind, list(zip(asked, fetchers, strict=True)), line, pace))
        return clients

    async def _line(self, caller: str) -> Line:
        line = await self._doors.line(caller)
        self._lines.append(line)
        return line

    def _result(
        self, plan: Plan, lasted: float, *, client_cpu_s: float, cpu_s: dict[str, float], machine_busy_s: float
    ) -> Result:
        tally, counts = self._tally, self._tally.counts
        return Result(
            kind=plan.kind,
            connections=plan.connections,
            seconds=lasted,
            issued=len(tally.enc_ns),
            pairs=len(tally.dec_ns),
            missing=counts["missing"],
            different=counts["different"],
            repeated=counts["repeated"],
            refused=counts["refused"],
            failed=counts["failed"],
            enc=latency(tally.enc_ns),
            dec=latency(tally.dec_ns),
            client_cpu_s=client_cpu_s,
            cpu_s=cpu_s,
            machine_busy_s=machine_busy_s,
        )


def latency(nanoseconds: Sequence[int]) -> Latency | None:
    """Return the quantiles of what was waited; None where nothing was answered."""
    if not nanoseconds:
        return None
    ordered = sorted(nanoseconds)

    def quantile(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6

    return Latency(quantile(0.5), quantile(0.99), quantile(0.999), ordered[-1] / 1e6)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _answer_plans(load: Load) -> None:
    for text in iter(sys.stdin.readline, ""):  # nothing else runs between rounds
        plan = msgspec.json.decode(text, type=Plan)
        print(msgspec.json.encode(await load.run(plan)).decode(), flush=True)


async def _first(load: Load) -> None:
    if not await load.first():
        raise SystemExit("the first key was not the same at both ends")


async def _once(load: Load, plan: Plan) -> None:
    result = await load.run(plan)
    print(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ready", type=Path)
    parser.add_argument("--initiator", default="sae-alice")
    parser.add_argument("--target", default="sae-bob")
    parser.add_argument("--kind", choices=["pairs", "issue", "constant"], default="pairs")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", action="store_true", help="read plans from the standard input")
    parser.add_argument(
        "--first", action="store_true", help="fetch one pair only, and fail unless its ends are equal"
    )
    asked = parser.parse_args()
    load = Load(msgspec.json.decode(asked.ready.read_bytes()), asked.initiator, asked.target)
    if asked.first:
        work: Callable[[], Any] = lambda: _first(load)  # noqa: E731
    elif asked.rounds:
        work = lambda: _answer_plans(load)  # noqa: E731
    else:
        work = lambda: _once(load, Plan(asked.kind, asked.connections, asked.seconds))  # noqa: E731
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


if __name__ == "__main__":
    main()
