"""The figures of docs/performance.md: what a key costs beside a constant answer, in one run.

Everything is started once, and asked in turn, in interleaved rounds: what disturbs the machine disturbs all alike.

    bare      a bare protocol over the same TLS that answers a constant (bench/bare.py)
    floor     our transport, server, routing and JSON with a constant answer (bench/floor.py)
    issue     enc_keys of a node whose stock was laid in before: two node processes, each with its own store
    refill    the same of a node whose stock is filled while it issues; the load is as fast as it is answered, and the
              table says how many slots were filled per key issued (1: the stock stays level)
    pairs     enc_keys and dec_keys with live refill, every pair compared
    slow      pairs on disks whose every sync takes 4 ms longer (bench/slow_disk.py)

issue, refill and pairs also with the nodes' memory in PostgreSQL, where it is installed: servers made for this run, a
schema for each node. Their processes are counted apart.

CPU time is that of whole processes, with all their threads and whatever else they do; nothing is subtracted and
nothing is pinned. Prints Markdown tables of medians (and the least and the most), writes every round to
bench/results/pairs.json, and ends with status 1 if any key was missing, different or repeated.

    python bench/pairs.py [--seconds 3] [--rounds 3] [--connections 1,16,64] [--store sqlite,postgres] [--only ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import measure
import msgspec
import profiling
from load import Latency, Plan, Result
from nodes import DATABASE, DEVICES, Database, Files, Nodes, servers
from processes import HERE, Constant, LoadProcess
from scenarios import FIRST, HUB, hub_and

KINDS = ("bare", "floor", "issue", "refill", "pairs", "slow")
STORES = ("sqlite", "postgres")
STORED = ("issue", "refill", "pairs")  # what is measured with every store
SETTLE_S = 0.5
SLOW_MS = 4.0
STOCKED_SLOTS = 1_048_576
LIVE_STOCK = 16_384
FILL_SLOTS = 32_768
REQUESTS = ("bare", "floor", "issue", "refill", "issue, postgres", "refill, postgres")
PAIRS = ("pairs", "slow", "pairs, postgres")
FAULTS = ("missing", "different", "repeated", "failed")
Ask = Callable[[int, float], Result]


class Round(msgspec.Struct):
    server: str
    round: int
    result: Result
    filled: int  # slots, between just before and just after the round
    issued: int  # in the same time


class Filling(msgspec.Struct):
    """Filling both ends' pools from emulated devices while nobody asks for a key."""

    slots: int
    seconds: float
    cpu_us_per_slot: dict[str, float]  # by process, less what it uses anyway
    idle_share: dict[str, float]  # of one CPU, with full pools and nobody asking


class Pairs(msgspec.Struct):
    machine: measure.Machine
    load_average_at_end: float
    stores: dict[str, str]  # which server each was
    filling: Filling | None
    rounds: list[Round]


@dataclass(slots=True)
class Server:
    """Something that is asked in every round."""

    name: str
    ask: Callable[[int, float], Round]
    connections: Sequence[int]
    sampled: dict[str, int]  # processes that a profile looks at


def constant(stack: ExitStack, name: str, folder: Path, connections: Sequence[int]) -> Server:
    server = Constant(stack, name, folder)

    def ask(many: int, seconds: float) -> Round:
        result = server.load.ask(Plan("constant", many, seconds, watched=server.pids))
        return Round(name, 0, result, filled=0, issued=result.issued)

    return Server(name, ask, connections, server.pids)


def of_nodes(name: str, nodes: Nodes, load: LoadProcess, plan: Plan, connections: Sequence[int]) -> Server:
    """Return what asks the hub, and the first neighbour where the plan is for pairs."""

    def ask(many: int, seconds: float) -> Round:
        before = nodes.counters(HUB)
        result = load.ask(msgspec.structs.replace(plan, connections=many, seconds=seconds, watched=nodes.pids))
        after = nodes.counters(HUB)
        grown = {what: after.get(what, 0) - before.get(what, 0) for what in ("slots_filled", "keys_issued")}
        return Round(name, 0, result, filled=grown["slots_filled"], issued=grown["keys_issued"])

    return Server(name, ask, connections, {node: nodes.pids[node] for node in (HUB, FIRST)})


# --- the networks


def stocked(stack: ExitStack, folder: Path, database: Database | None = None) -> Nodes:
    """Start two nodes that need not fill: more is in stock than the run takes."""
    folder.mkdir()
    files = Files(hub_and(1), folder, stack, database=database)
    filling = [sys.executable, HERE / "filler.py", files.config(HUB), files.config(FIRST)]
    words = [str(word) for word in [*filling, "--segments", STOCKED_SLOTS // 1_024]]
    subprocess.run(words, check=True)
    nodes = Nodes("stocked", files, stack)
    nodes.wait_until_issuing(HUB, [FIRST])
    return nodes


def live(
    stack: ExitStack, folder: Path, name: str = "live", delay_ms: float = 0.0, database: Database | None = None
) -> Nodes:
    """Start two nodes that begin with nothing and are filled by emulated devices; maybe on slow disks."""
    folder.mkdir()
    files = Files(hub_and(1), folder, stack, {"stock_target": LIVE_STOCK}, database)
    slow = (sys.executable, HERE / "slow_disk.py", str(delay_ms))
    nodes = Nodes(name, files, stack, launcher=slow) if delay_ms else Nodes(name, files, stack)
    nodes.wait_until_issuing(HUB, [FIRST])
    return nodes


def filling(stack: ExitStack, folder: Path) -> Filling:
    """Let two nodes fill their pools, nobody asking; then let them idle, and take that off."""
    folder.mkdir()
    nodes = Nodes("filling", Files(hub_and(1), folder, stack, {"stock_target": FILL_SLOTS}), stack)
    nodes.wait_until_issuing(HUB, [FIRST])
    before, cpu, began = nodes.counters(HUB)["slots_filled"], measure.cpus_s(nodes.pids), time.perf_counter()
    last = nodes.wait_until_filled(HUB)
    lasted = time.perf_counter() - began
    spent = {name: after - cpu[name] for name, after in measure.cpus_s(nodes.pids).items()}
    idle = measure.cpus_s(nodes.pids)
    time.sleep(4.0)
    share = {name: (after - idle[name]) / 4.0 for name, after in measure.cpus_s(nodes.pids).items()}
    slots = last - before
    per_slot = {name: 1e6 * (spent[name] - share[name] * lasted) / max(slots, 1) for name in spent}
    return Filling(slots, lasted, per_slot, share)


def servers_of(
    stack: ExitStack, folder: Path, wanted: Iterable[str], connections: Sequence[int], stores: Iterable[str]
) -> tuple[list[Server], dict[str, str]]:
    """Start what is wanted; also say which server each store is."""
    asked = [constant(stack, name, folder, connections) for name in ("bare", "floor") if name in wanted]
    versions = {}
    if "sqlite" in stores:
        asked += stored(stack, folder, wanted, connections)
        versions["sqlite"] = f"SQLite {sqlite3.sqlite_version}"
    if "postgres" in stores and set(STORED) & set(wanted):
        database, apart = Database.start(stack, folder), folder / "postgres"
        apart.mkdir()
        asked += stored(stack, apart, wanted, connections, database)
        versions["postgres"] = database.version
    if "slow" in wanted and "sqlite" in stores:
        nodes = live(stack, folder / "slow", "slow", SLOW_MS)
        ends = sorted({min(connections), max(connections)})
        asked.append(of_nodes("slow", nodes, nodes.load(), Plan("pairs", 0, 0.0), ends))
    return asked, versions


def stored(
    stack: ExitStack,
    folder: Path,
    wanted: Iterable[str],
    connections: Sequence[int],
    database: Database | None = None,
) -> list[Server]:
    """Start what is measured with every store, with one of them."""
    asked = []
    if "issue" in wanted:
        nodes = stocked(stack, folder / "stocked", database)
        asked.append(of_nodes(named("issue", database), nodes, nodes.load(), Plan("issue", 0, 0.0), connections))
    if {"refill", "pairs"} & set(wanted):
        if database is not None:  # another network of the same names needs another server
            database = Database.start(stack, folder)
        nodes = live(stack, folder / "live", database=database)
        load = nodes.load()
        if "refill" in wanted:
            asked.append(of_nodes(named("refill", database), nodes, load, Plan("issue", 0, 0.0), connections))
        if "pairs" in wanted:
            asked.append(of_nodes(named("pairs", database), nodes, load, Plan("pairs", 0, 0.0), connections))
    return asked


def named(kind: str, database: Database | None) -> str:
    return kind if database is None else f"{kind}, postgres"


def measured(servers: Sequence[Server], connections: Sequence[int], rounds: int, seconds: float) -> list[Round]:
    """Ask all of them in turn, again and again."""
    found: list[Round] = []
    for number in range(rounds):
        for many in connections:
            for server in servers:
                if many not in server.connections:
                    continue
                time.sleep(SETTLE_S)
                one = server.ask(many, seconds)
                one.round = number
                found.append(one)
                told = f"round {number + 1}, {many:2} connections, {server.name}: {one.result.issued_per_s:,.0f}/s"
                print(told, file=sys.stderr)
    return found


# --- the tables


class Tables:
    """What the rounds say."""

    def __init__(self, rounds: Sequence[Round]) -> None:
        self._rounds = rounds
        self.names = list(dict.fromkeys(one.server for one in rounds))

    def of(self, server: str, connections: int) -> list[Round]:
        return [one for one in self._rounds if one.server == server and one.result.connections == connections]

    def connections(self, *servers: str) -> list[int]:
        return sorted({one.result.connections for one in self._rounds if one.server in servers})

    def requests(self) -> str:
        """What one request for a key costs the process that answers it."""
        head = ["connections", "server", "requests/s", "CPU µs/request", "to bare", "to the floor"]
        head += ["database", "p50 / p99 / p99.9 ms", "filled per key", "503", "load busy"]
        rows = [
            self._request_row(name, many)
            for many in self.connections(*REQUESTS)
            for name in REQUESTS
            if self.of(name, many)
        ]
        return measure.table(head, rows)

    def _request_row(self, name: str, many: int) -> list[str]:
        rounds = self.of(name, many)
        return [
            str(many),
            name,
            str(measure.Spread.of(one.result.issued_per_s for one in rounds)),
            str(measure.Spread.of(server_cpu_us(rounds))),
            self._ratio(rounds, "bare", many),
            self._ratio(rounds, "floor", many),
            database_cpu_us(rounds),
            latency_of([one.result.enc for one in rounds]),
            str(measure.Spread.of(one.filled / max(one.issued, 1) for one in rounds))
            if name.startswith("refill")
            else "",
            str(sum(one.result.refused for one in rounds)),
            f"{100 * measure.Spread.of(one.result.client_share for one in rounds).median:.0f} %",
        ]

    def _ratio(self, rounds: list[Round], server: str, many: int) -> str:
        others = self.of(server, many)
        if not others or rounds[0].server == server or rounds[0].server == "bare":
            return ""
        return str(measure.ratios(server_cpu_us(rounds), server_cpu_us(others)))

    def pairs(self) -> str:
        """What a pair costs all processes that it needs."""
        head = ["store", "connections", "pairs/s", "enc_keys p50 / p99 / p99.9 ms", "dec_keys p50 / p99 / p99.9 ms"]
        head += ["CPU µs a pair: initiator's node", "target's node", "devices", "database", "503", "load busy"]
        rows = [
            self._pair_row(name, many) for name in PAIRS for many in self.connections(name) if self.of(name, many)
        ]
        return measure.table(head, rows)

    def _pair_row(self, name: str, many: int) -> list[str]:
        rounds = self.of(name, many)
        cpu = [str(measure.Spread.of(one.result.cpu_us(process) for one in rounds)) for process in processes()]
        return [
            {"pairs": "SQLite", "slow": f"SQLite, +{SLOW_MS:.0f} ms a sync"}.get(name, "PostgreSQL"),
            str(many),
            str(measure.Spread.of(one.result.pairs_per_s for one in rounds)),
            latency_of([one.result.enc for one in rounds]),
            latency_of([one.result.dec for one in rounds]),
            *cpu,
            database_cpu_us(rounds),
            str(sum(one.result.refused for one in rounds)),
            f"{100 * measure.Spread.of(one.result.client_share for one in rounds).median:.0f} %",
        ]

    def slow_gain(self) -> str:
        """How much more a slow disk gives to many than to one."""
        few, many = (self.connections("slow") or [0])[0], (self.connections("slow") or [0])[-1]
        if few == many:
            return ""
        rates = [[one.result.pairs_per_s for one in self.of("slow", connections)] for connections in (many, few)]
        gain = measure.ratios(*rates)
        return f"with {SLOW_MS:.0f} ms more a sync, {many} connections fetch {gain} times the pairs of {few}"


def processes() -> tuple[str, ...]:
    return HUB, FIRST, DEVICES


def server_cpu_us(rounds: Iterable[Round]) -> list[float]:
    """Return what one request cost the process that answered it, round by round."""
    return [one.result.cpu_us(HUB if HUB in one.result.cpu_s else one.server) for one in rounds]


def database_cpu_us(rounds: Sequence[Round]) -> str:
    """Say what one request or pair cost all processes of the database, where there is one."""
    of_server = [[name for name in one.result.cpu_s if name.startswith(DATABASE)] for one in rounds]
    if not any(of_server):
        return ""
    spent = [sum(map(one.result.cpu_us, names)) for one, names in zip(rounds, of_server, strict=True)]
    return str(measure.Spread.of(spent))


def latency_of(several: Iterable[Latency | None]) -> str:
    told = [one for one in several if one is not None]
    if not told:
        return "none"
    shares = ("p50_ms", "p99_ms", "p999_ms")
    medians = [measure.Spread.of(getattr(one, share) for one in told).median for share in shares]
    return " / ".join(f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in medians)


def told_of_filling(filling: Filling) -> str:
    parts = ", ".join(f"{filling.cpu_us_per_slot[name]:.1f} µs in {name}" for name in processes())
    idle = ", ".join(f"{100 * filling.idle_share[name]:.1f} % {name}" for name in processes())
    whole = sum(filling.cpu_us_per_slot.values())
    return (
        f"CPU of filling one 256-bit key: {whole:.1f} µs ({parts}), over {filling.slots:,} slots at "
        f"{filling.slots / filling.seconds:,.0f} a second, nobody asking; idle: {idle} of one CPU"
    )


def faults_of(results: Iterable[Result]) -> dict[str, int]:
    """Count what must never be."""
    ours = [one for one in results if one.kind != "constant"]
    return {name: sum(getattr(one, name) for one in ours) for name in FAULTS}


def report(pairs: Pairs) -> str:
    tables = Tables(pairs.rounds)
    parts = []
    if set(REQUESTS) & set(tables.names):
        parts.append(tables.requests())
    if pairs.filling is not None:
        parts.append(told_of_filling(pairs.filling))
    if set(PAIRS) & set(tables.names):
        parts += [tables.pairs(), tables.slow_gain()]
    others = measure.Spread.of(one.result.others_share for one in pairs.rounds)
    parts += ["\n".join(measure.caveats(pairs.machine, others))]
    parts.append(", ".join(pairs.stores.values()))
    parts.append(f"{pairs.machine}; {pairs.load_average_at_end:.2f} after; others used {others} CPUs meanwhile")
    return "\n\n".join(part for part in parts if part)


def run(asked: argparse.Namespace, folder: Path, stack: ExitStack) -> Pairs:
    connections = [int(many) for many in asked.connections.split(",")]
    where = measure.machine(folder)
    with ExitStack() as apart:  # it ends before the rest begins
        filled = None if asked.no_filling else filling(apart, folder / "filling")
    started, stores = servers_of(stack, folder, asked.only.split(","), connections, asked.store)
    rounds = measured(started, connections, asked.rounds, asked.seconds)
    if asked.profile:
        for server in started:
            with profiling.sampled(server.name, server.sampled, asked.seconds):
                server.ask(max(connections), asked.seconds + 2.0)
    return Pairs(where, os.getloadavg()[0], stores, filled, rounds)


def postgres_missing() -> str | None:
    """Say why no node can have its memory in PostgreSQL here, or None."""
    if importlib.util.find_spec("asyncpg") is None:
        return "the extra `postgres` is not installed"
    return servers.missing()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", default="1,16,64")
    parser.add_argument("--only", default=",".join(KINDS), help=f"of {','.join(KINDS)}")
    parser.add_argument(
        "--store", default=",".join(STORES), help=f"of {','.join(STORES)}; what is not here is left out"
    )
    parser.add_argument("--no-filling", action="store_true", help="leave out the CPU of filling a key")
    parser.add_argument("--profile", action="store_true", help="also sample where the time goes (py-spy or perf)")
    asked = parser.parse_args()
    if unknown := set(asked.only.split(",")) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    asked.store = asked.store.split(",")
    if unknown := set(asked.store) - set(STORES):
        parser.error(f"no such store: {', '.join(sorted(unknown))}")
    if "postgres" in asked.store and (why := postgres_missing()) is not None:
        print(f"postgres: left out, {why}", file=sys.stderr)
        asked.store.remove("postgres")
    with tempfile.TemporaryDirectory(dir=HERE.parent, prefix=".bench-") as name, ExitStack() as stack:
        pairs = run(asked, Path(name), stack)
    found = faults_of(one.result for one in pairs.rounds)
    file = measure.save("pairs", pairs)
    print(report(pairs))
    total = sum(one.result.pairs for one in pairs.rounds)
    issued = sum(one.result.issued for one in pairs.rounds if one.result.kind == "issue")
    told = ", ".join(f"{count} {what}" for what, count in found.items())
    print(f"\n{total:,} pairs compared and {issued:,} keys issued besides: {told}; every round: {file}")
    sys.exit(1 if any(found.values()) else 0)


if __name__ == "__main__":
    main()
