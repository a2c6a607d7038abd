"""A million pairs over real sockets: every key fetched at both ends, compared, and never seen before.

Two `trenza node` processes with their own stores, emulated devices in a third, filling as they go. The load keeps 16
bytes of every key and of every key ID, so that a repetition is found over the whole run, and works in stretches, so
that what the nodes hold can be looked at in between. Prints a line for each stretch and a summary, writes
bench/results/million.json, and ends with status 1 unless every pair is there, equal and new.

    python bench/million.py [--pairs 1000000] [--connections 64] [--stretch 10]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import measure
import msgspec
from load import Plan, Result
from nodes import Nodes
from pairs import FAULTS, latency_of, live
from processes import HERE
from scenarios import FIRST, HUB


class Stretch(msgspec.Struct):
    """What was seen at the end of one stretch."""

    result: Result
    pairs_so_far: int
    resident_mib: dict[str, float]
    load_mib: float
    ledger_entries: dict[str, int]
    disk_mib: dict[str, float]


class Million(msgspec.Struct):
    machine: measure.Machine
    seconds: float
    load_average_at_end: float
    stretches: list[Stretch]
    counters: dict[str, dict[str, int]]  # of both nodes, at the end

    @property
    def pairs(self) -> int:
        return self.stretches[-1].pairs_so_far

    def faults(self) -> dict[str, int]:
        return {name: sum(getattr(one.result, name) for one in self.stretches) for name in FAULTS}


def run(asked: argparse.Namespace, folder: Path) -> Million:
    where = measure.machine(folder)
    with ExitStack() as stack:
        nodes = live(stack, folder / "live")
        load = nodes.load()
        stretches: list[Stretch] = []
        began, pairs = time.monotonic(), 0
        while pairs < asked.pairs:
            result = load.ask(Plan("pairs", asked.connections, asked.stretch, warm_up_s=0.0, watched=nodes.pids))
            pairs += result.pairs
            stretches.append(seen(nodes, load.pid, result, pairs))
            print(told(stretches[-1], asked.pairs), file=sys.stderr)
            if result.issued == 0:
                raise SystemExit(f"nothing was issued for {asked.stretch} s: see {nodes.log}")
        lasted = time.monotonic() - began
        counters = {node: nodes.counters(node) for node in (HUB, FIRST)}
    return Million(where, lasted, os.getloadavg()[0], stretches, counters)


def seen(nodes: Nodes, load_pid: int, result: Result, pairs: int) -> Stretch:
    entries = {node: status.ledger.sequence for node in (HUB, FIRST) if (status := nodes.status(node)) is not None}
    return Stretch(
        result=result,
        pairs_so_far=pairs,
        resident_mib={name: measure.resident_mib(pid) for name, pid in nodes.pids.items()},
        load_mib=measure.resident_mib(load_pid),
        ledger_entries=entries,
        disk_mib={node: measure.files_mib(nodes.files.data(node)) for node in (HUB, FIRST)},
    )


def told(one: Stretch, wanted: int) -> str:
    resident = ", ".join(f"{name} {mib:.0f}" for name, mib in one.resident_mib.items())
    return f"{one.pairs_so_far:,} of {wanted:,} pairs; {one.result.pairs_per_s:,.0f}/s; resident MiB: {resident}"


def report(million: Million) -> str:
    """Return the summary as Markdown."""
    first, last = million.stretches[0], million.stretches[-1]
    rates = [one.result.pairs_per_s for one in million.stretches]
    rows = [
        ["pairs compared", f"{million.pairs:,}"],
        *([name, str(count)] for name, count in million.faults().items()),
        ["refused for the moment (503)", str(sum(one.result.refused for one in million.stretches))],
        ["pairs/s", str(measure.Spread.of(rates))],
        ["enc_keys p50 / p99 / p99.9 ms", latency_of(one.result.enc for one in million.stretches)],
        ["dec_keys p50 / p99 / p99.9 ms", latency_of(one.result.dec for one in million.stretches)],
    ]
    for node in (HUB, FIRST):
        cpu = statistics.median(one.result.cpu_us(node) for one in million.stretches)
        rows += [
            [f"{node}: CPU µs a pair", f"{cpu:.0f}"],
            [
                f"{node}: resident MiB, first and last",
                f"{first.resident_mib[node]:.0f}, {last.resident_mib[node]:.0f}",
            ],
            [f"{node}: ledger entries", f"{last.ledger_entries.get(node, 0):,}"],
            [f"{node}: MiB on disk, first and last", f"{first.disk_mib[node]:.0f}, {last.disk_mib[node]:.0f}"],
        ]
    rows.append(["the load: resident MiB at the end", f"{last.load_mib:.0f}"])
    others = measure.Spread.of(one.result.others_share for one in million.stretches)
    caveats = "\n".join(measure.caveats(million.machine, others))
    return f"{measure.table(['a run of', f'{million.seconds:.0f} s'], rows)}\n\n{caveats}\n\n{million.machine}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--stretch", type=float, default=10.0, help="seconds between two looks")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=HERE.parent, prefix=".bench-") as name:
        million = run(asked, Path(name))
    print(report(million))
    print(f"\nevery stretch: {measure.save('million', million)}")
    sys.exit(1 if any(million.faults().values()) or million.pairs < asked.pairs else 0)


if __name__ == "__main__":
    main()
