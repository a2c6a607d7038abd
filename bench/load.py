"""The load: clients that fetch each key at both ends and compare, as fast as they are answered.

A process of its own. Each client holds one connection to the initiator's node and one to the target's, and asks for
one thing at a time: a key (`enc_keys`), then the same key by its ID (`dec_keys`); that is one *pair*. Every pair is
compared, and over the whole life of the process no key ID and no key may come twice.

    python bench/load.py READY.json --initiator sae-alice --target sae-bob --clients 16 --seconds 5

READY.json is what `trenza up --ready-file` writes. With `--rounds`, each line of the standard input is one more plan,
such as {"clients": 16, "seconds": 5}, and each is answered by one line.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import msgspec
import uvloop

sys.path.insert(0, str(Path(__file__).parent))
import measure

from trenza.net.tls import TlsIdentity, client_context
from trenza.net.tls_transport import Terms, TlsTransport, connect
from trenza.wire.etsi014 import Method, path_of

PAUSE_AFTER_REFUSAL_S = 0.005
KEY = b'{"number":1,"size":256}'


class KeyEntry(msgspec.Struct, rename={"key_id": "key_ID"}):
    key_id: str
    key: str


class Container(msgspec.Struct):
    keys: list[KeyEntry]


_read_container = msgspec.json.Decoder(Container).decode


class Plan(msgspec.Struct, forbid_unknown_fields=True):
    clients: int
    seconds: float
    warm_up_s: float = 0.5
    watched: tuple[int, ...] = ()  # processes whose CPU time is read when the clock starts and stops


class Latency(msgspec.Struct):
    """Milliseconds, of the requests that were answered 200."""

    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Result(msgspec.Struct):
    clients: int
    seconds: float
    pairs: int
    requests: int
    missing: int  # dec_keys refused (400, 401), of a key that enc_keys had just given
    different: int
    repeated: int
    refused: int  # 503
    failed: int  # any other answer, and connections that ended
    pairs_per_s: float
    requests_per_s: float
    enc: Latency | None
    dec: Latency | None
    client_cpu_us_per_request: float
    client_cpu_share: float
    watched_cpu_s: float


class Line(asyncio.Protocol):
    """One kept connection: one question at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: TlsTransport | None = None
        self._answered: Callable[[int, bytes], None] | None = None
        self._body: list[bytes] = []
        self.asked_ns = 0

    def ask(self, request: bytes, answered: Callable[[int, bytes], None]) -> None:
        self._answered = answered
        if self._transport is None:
            self._end(0)
            return
        self._body = []
        self.asked_ns = time.perf_counter_ns()
        self._transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("TlsTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._end(0)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._end(self._parser.get_status_code())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _end(self, status: int) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(status, b"".join(self._body))


class Tally:
    """What all clients saw while the clock ran."""

    def __init__(self) -> None:
        self.running = False
        self.counts: Counter[str] = Counter()
        self.enc_ns = array("q")
        self.dec_ns = array("q")
        self.seen: set[str] = set()  # key IDs and keys, for the whole life of the process

    def start(self) -> None:
        self.running = True
        self.counts.clear()
        self.enc_ns = array("q")
        self.dec_ns = array("q")

    def count(self, what: str) -> None:
        if self.running:
            self.counts[what] += 1


class Client:
    """Asks both ends in turn until told to stop."""

    def __init__(self, tally: Tally, initiator: Line, target: Line, *, enc: bytes, dec_head: bytes) -> None:
        self._tally = tally
        self._initiator = initiator
        self._target = target
        self._enc = enc
        self._dec_head = dec_head
        self._issued = KeyEntry("", "")
        self._stopping = False
        self.stopped = asyncio.get_running_loop().create_future()

    def once(self) -> None:
        self._stopping = True
        self.start()

    def start(self) -> None:
        self._initiator.ask(self._enc, self._enc_answered)

    def stop(self) -> None:
        self._stopping = True

    def _next(self) -> None:
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
        for text in (self._issued.key_id, self._issued.key):
            if text in tally.seen:
                tally.counts["repeated"] += 1
            tally.seen.add(text)
        self._target.ask(self._dec_head + self._issued.key_id.encode() + b'"}]}', self._dec_answered)

    def _dec_answered(self, status: int, body: bytes) -> None:
        if status in {400, 401}:
            self._tally.counts["missing"] += 1  # a fault of the service, whether or not the clock runs
            self._next()
            return
        if status != 200:
            self._not_served(status)
            return
        if self._tally.running:
            self._tally.dec_ns.append(time.perf_counter_ns() - self._target.asked_ns)
            self._tally.counts["pairs"] += 1
        (fetched,) = _read_container(body).keys
        if fetched != self._issued:
            self._tally.counts["different"] += 1
        self._next()

    def _not_served(self, status: int) -> None:
        self._tally.count("refused" if status == 503 else "failed")
        if status == 0:  # the line is gone
            self.stopped.set_result(None)
            return
        asyncio.get_running_loop().call_later(PAUSE_AFTER_REFUSAL_S, self._next)


class Load:
    """The two ends of one SAE pair, found in a ready document."""

    def __init__(self, ready: dict[str, Any], initiator: str, target: str) -> None:
        self._ready = ready
        self._initiator = initiator
        self._target = target
        self._tally = Tally()
        self._lines: list[Line] = []

    async def run(self, plan: Plan) -> Result:
        """Run one closed loop; connect before the clock starts, and let it run warm."""
        clients = [await self._client() for _ in range(plan.clients)]
        for client in clients:
            client.start()
        await asyncio.sleep(plan.warm_up_s)
        gc.collect()
        gc.freeze()  # what earlier rounds saw only grows; to walk it again would be our pause, not the server's
        self._tally.start()
        watched = sum(map(measure.cpu_s, plan.watched))
        cpu, began = _cpu_s(), time.perf_counter()
        await asyncio.sleep(plan.seconds)
        self._tally.running = False
        lasted, cpu = time.perf_counter() - began, _cpu_s() - cpu
        watched = sum(map(measure.cpu_s, plan.watched)) - watched
        for client in clients:
            client.stop()
        await asyncio.gather(*(client.stopped for client in clients))
        for line in self._lines:
            line.close()
        self._lines.clear()
        return self._result(plan, lasted, cpu, watched)

    async def first(self) -> bool:
        """Fetch one key at both ends; tell whether they are equal."""
        client = await self._client()
        self._tally.start()
        client.once()
        await client.stopped
        for line in self._lines:
            line.close()
        self._lines.clear()
        return self._tally.counts == Counter(pairs=1)

    async def _client(self) -> Client:
        initiator, enc = await self._line(self._initiator, Method.GET_KEY, self._target)
        target, dec = await self._line(self._target, Method.GET_KEY_WITH_IDS, self._initiator)
        enc_request = enc + b"content-length: %d\r\n\r\n%b" % (len(KEY), KEY)
        body_bytes = len('{"key_IDs":[{"key_ID":""}]}') + 36
        dec_head = dec + b'content-length: %d\r\n\r\n{"key_IDs":[{"key_ID":"' % body_bytes
        return Client(self._tally, initiator, target, enc=enc_request, dec_head=dec_head)

    async def _line(self, caller: str, method: Method, other: str) -> tuple[Line, bytes]:
        sae = self._ready["saes"][caller]
        url = urlsplit(self._ready["nodes"][sae["node"]]["etsi014"])
        host, port = url.hostname or "", url.port or 443
        identity = TlsIdentity(Path(sae["certificate"]), Path(sae["private_key"]), Path(sae["ca"]))
        terms = Terms(expected_name=host)
        line = await connect(Line, client_context(identity), host, port, terms=terms, timeout_s=10.0)
        self._lines.append(line)
        head = f"POST {path_of(method, other)} HTTP/1.1\r\nhost: {url.netloc}\r\ncontent-type: application/json\r\n"
        return line, head.encode()

    def _result(self, plan: Plan, lasted: float, cpu: float, watched: float) -> Result:
        tally, counts = self._tally, self._tally.counts
        requests = len(tally.enc_ns) + len(tally.dec_ns)
        return Result(
            clients=plan.clients,
            seconds=lasted,
            pairs=counts["pairs"],
            requests=requests,
            missing=counts["missing"],
            different=counts["different"],
            repeated=counts["repeated"],
            refused=counts["refused"],
            failed=counts["failed"],
            pairs_per_s=counts["pairs"] / lasted,
            requests_per_s=requests / lasted,
            enc=_latency(tally.enc_ns),
            dec=_latency(tally.dec_ns),
            client_cpu_us_per_request=1e6 * cpu / max(requests, 1),
            client_cpu_share=cpu / lasted,
            watched_cpu_s=watched,
        )


def _latency(nanoseconds: array[int]) -> Latency | None:
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
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", action="store_true", help="read plans from the standard input")
    parser.add_argument(
        "--first", action="store_true", help="fetch one pair only, and fail unless its ends are equal"
    )
    asked = parser.parse_args()
    load = Load(msgspec.json.decode(asked.ready.read_bytes()), asked.initiator, asked.target)
    if asked.first:
        work = _first(load)
    else:
        work = _answer_plans(load) if asked.rounds else _once(load, Plan(asked.clients, asked.seconds))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


if __name__ == "__main__":
    main()
