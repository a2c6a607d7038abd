"""The figures of docs/performance.md: key pairs a second, beside the floor, in one run.

Starts a network as a process of its own, the floor as another, and lets two load processes ask them in turn: the same
requests, with 1, 16 and 64 clients, in interleaved rounds. Nothing is pinned. Prints a Markdown table of medians and
writes every round to bench/results/pairs.json. Ends with status 1 if any key was missing, different or repeated.

    python bench/pairs.py [--seconds 4] [--rounds 3] [--clients 1,16,64]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent))
import measure
from load import Latency, Plan, Result

HERE = Path(__file__).parent
TRENZA = Path(sys.executable).with_name("trenza")
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 20.0
SETTLE_S = 1.0


class Round(msgspec.Struct):
    server: str
    round: int
    idle_cpu_share: float  # of one core, without load, in the same round
    result: Result

    @property
    def cpu_us_per_request(self) -> float:
        """Return what one request cost the server, without what it does anyway."""
        busy = self.result.watched_cpu_s - self.idle_cpu_share * self.result.seconds
        return 1e6 * busy / max(self.result.requests, 1)


class Pairs(msgspec.Struct):
    machine: measure.Machine
    load_average_at_end: float
    rounds: list[Round]


class Server:
    """A server process and the load process that asks it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], load: subprocess.Popen[bytes]) -> None:
        self.name = name
        self._process = process
        self._load = load

    def idle_cpu_share(self, seconds: float) -> float:
        before = measure.cpu_s(self._process.pid)
        time.sleep(seconds)
        return (measure.cpu_s(self._process.pid) - before) / seconds

    def ask(self, clients: int, seconds: float) -> Result:
        assert self._load.stdin is not None
        assert self._load.stdout is not None
        plan = Plan(clients, seconds, watched=(self._process.pid,))
        self._load.stdin.write(msgspec.json.encode(plan) + b"\n")
        self._load.stdin.flush()
        return msgspec.json.decode(self._load.stdout.readline(), type=Result)


@contextmanager
def running(command: Sequence[str | Path], **pipes: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process and stop it in good order."""
    process = subprocess.Popen([str(word) for word in command], **pipes)
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(ready: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for a ready document.

    Raises:
        SystemExit: the process ended first, or took too long.
    """
    deadline = time.monotonic() + START_DEADLINE_S
    while not ready.exists():
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended with status {process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise SystemExit(f"{process.args} was not ready within {START_DEADLINE_S:.0f} s")
        time.sleep(0.02)


def started(stack: ExitStack, name: str, command: Sequence[str | Path], ready: Path) -> Server:
    """Start a server and its load; both end with `stack`."""
    process = stack.enter_context(running([*command, "--ready-file", ready]))
    wait_until_ready(ready, process)
    asking = [sys.executable, HERE / "load.py", ready, "--rounds"]
    load = stack.enter_context(running(asking, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    return Server(name, process, load)


def measured(servers: Sequence[Server], clients: Sequence[int], *, rounds: int, seconds: float) -> Iterator[Round]:
    """Ask the servers in turn."""
    for number in range(rounds):
        time.sleep(SETTLE_S)
        idle = {server.name: server.idle_cpu_share(seconds) for server in servers}
        for many in clients:
            for server in servers:
                one = Round(server.name, number, idle[server.name], server.ask(many, seconds))
                progress(one)
                yield one


def progress(one: Round) -> None:
    said = f"round {one.round + 1}, {one.result.clients:2} clients, {one.server}: {one.result.requests_per_s:,.0f}/s"
    print(said, file=sys.stderr)


def report(pairs: Pairs) -> str:
    """Return the medians over all rounds as Markdown."""
    clients = sorted({one.result.clients for one in pairs.rounds})
    head = ["clients", "pairs/s", "requests/s", "floor requests/s", "CPU µs/request", "floor CPU µs", "ratio"]
    head += ["enc_keys p50 / p99 ms", "dec_keys p50 / p99 ms", "503", "client busy"]
    rows = [_row(many, _of(pairs, "trenza", many), _of(pairs, "floor", many)) for many in clients]
    return measure.table(head, rows)


def _row(clients: int, ours: list[Round], floor: list[Round]) -> list[str]:
    pairs = [one.result.pairs_per_s for one in ours]
    cpu, floor_cpu = _median_cpu(ours), _median_cpu(floor)
    return [
        str(clients),
        f"{statistics.median(pairs):,.0f} ({min(pairs):,.0f} to {max(pairs):,.0f})",
        f"{statistics.median(one.result.requests_per_s for one in ours):,.0f}",
        f"{statistics.median(one.result.requests_per_s for one in floor):,.0f}",
        f"{cpu:.0f}",
        f"{floor_cpu:.0f}",
        f"{cpu / floor_cpu:.1f}",
        _latency([one.result.enc for one in ours]),
        _latency([one.result.dec for one in ours]),
        str(sum(one.result.refused for one in ours)),
        f"{100 * statistics.median(one.result.client_cpu_share for one in ours):.0f} %",
    ]


def _latency(several: list[Latency | None]) -> str:
    told = [one for one in several if one is not None]
    if not told:
        return "none"
    return (
        f"{statistics.median(one.p50_ms for one in told):.2f} / {statistics.median(one.p99_ms for one in told):.1f}"
    )


def _median_cpu(rounds: list[Round]) -> float:
    return statistics.median(one.cpu_us_per_request for one in rounds)


def _of(pairs: Pairs, server: str, clients: int) -> list[Round]:
    return [one for one in pairs.rounds if one.server == server and one.result.clients == clients]


def faults(pairs: Pairs) -> dict[str, int]:
    """Count what must never be."""
    ours = [one.result for one in pairs.rounds if one.server == "trenza"]
    return {name: sum(getattr(one, name) for one in ours) for name in ("missing", "different", "repeated", "failed")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", default="1,16,64")
    asked = parser.parse_args()
    clients = [int(many) for many in asked.clients.split(",")]
    with tempfile.TemporaryDirectory(dir=HERE.parent, prefix=".bench-") as name, ExitStack() as stack:
        folder = Path(name)
        where = measure.machine(folder)
        up = [TRENZA, "up", HERE.parent / "scenarios" / "two-nodes.toml", "--state-dir", folder / "state"]
        up += ["--no-live", "--quiet"]
        servers = [
            started(stack, "trenza", up, folder / "trenza.json"),
            started(stack, "floor", [sys.executable, HERE / "floor.py", folder], folder / "floor.json"),
        ]
        rounds = list(measured(servers, clients, rounds=asked.rounds, seconds=asked.seconds))
        pairs = Pairs(where, measure.machine(folder).load_average, rounds)
    found = faults(pairs)
    idle = statistics.median(one.idle_cpu_share for one in rounds if one.server == "trenza")
    print(report(pairs))
    print(f"\n{where.processor}, {where.cpus} CPUs, {where.system}, Linux {where.kernel}, Python {where.python}")
    print(f"fdatasync p50 {where.fdatasync_p50_ms:.2f} ms, p99 {where.fdatasync_p99_ms:.2f} ms in the same run")
    print(f"without load the network uses {100 * idle:.1f} % of one CPU, which is not counted above")
    print(f"load average {where.load_average:.2f} before, {pairs.load_average_at_end:.2f} after; {where.when}")
    total = sum(one.result.pairs for one in rounds if one.server == "trenza")
    print(f"{total:,} pairs compared: {', '.join(f'{count} {what}' for what, count in found.items())}")
    print(f"every round: {measure.save('pairs', pairs)}")
    sys.exit(1 if any(found.values()) else 0)


if __name__ == "__main__":
    main()
