"""Whether a key costs the same whatever there is besides: keys in stock, nodes, pairs of applications.

Grows one thing at a time and asks one node for keys (`issue` of bench/load.py, 16 connections), beside the floor and
beside a network of two nodes with stock to spare, which run all the time and are asked in the same rounds. Stock is
laid into both stores by bench/filler.py. Where it is small it is filled while it is used; what that costs is measured
first, alone, and taken off for each slot filled, as is what a node does when nobody asks: so the columns compare the
issuing of a key, and nothing else.

    stock    slots that the node may issue to its one neighbour
    nodes    nodes with which the hub has a link, a session and a stock of its own
    pairs    pairs of applications between two nodes, all asked for in turn

Prints a Markdown table for each, writes bench/results/growth.json, and ends with status 1 where the CPU time of a
request leaves that of the network beside by more than 15 %.

    python bench/growth.py [--stock 1000,10000,...] [--nodes 2,4,...] [--pairs 1,100,...] [--seconds 4] [--rounds 3]
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import measure
import msgspec
from load import Plan, Result
from nodes import Files, Nodes
from pairs import Filling, faults_of, filling
from processes import HERE, Constant, LoadProcess
from scenarios import FIRST, HUB, hub_and, sae_pairs

from trenza.app.scenario_model import Scenario

FLAT = 0.15
SLOTS = 1_024
BESIDES = 262_144  # slots that every network has at least: a round must not run out of them
CONNECTIONS = 16
SETTLE_S = 0.5
WARM_UP_S = 3.0  # long enough that every pair has asked once: its first request is another thing
DEFAULTS = {"stock": "1e3,1e5,1e7", "nodes": "2,8,32", "pairs": "1,100,10000"}


class Asked(msgspec.Struct):
    """One round of one network."""

    result: Result
    filled: int  # slots, meanwhile

    def cpu_us(self, idle_share: float, fill_us: float) -> float:
        """Return the CPU time of issuing a key, without idling and filling."""
        result = self.result
        apart = 1e6 * idle_share * result.seconds + fill_us * self.filled
        return result.cpu_us(HUB) - apart / max(result.issued, 1)


class Point(msgspec.Struct):
    """One network, after it was grown to `size`."""

    what: str
    size: int
    ready_s: float  # from the start of its processes until it could issue
    resident_mib: float  # of the node asked, then
    disk_mib: float  # of the node asked
    idle_share: float = 0.0  # of one CPU, nobody asking
    idle_share_beside: float = 0.0
    rounds: list[Asked] = []
    beside: list[Asked] = []  # the network beside, in the same rounds
    floor: list[Result] = []


class Growth(msgspec.Struct):
    machine: measure.Machine
    filling: Filling
    points: list[Point]

    def cpu_us(self, point: Point) -> list[float]:
        return [one.cpu_us(point.idle_share, self.filling.cpu_us_per_slot[HUB]) for one in point.rounds]

    def growth(self, point: Point) -> measure.Spread:
        """Return how the cost of a request compares with that of the network beside, round by round."""
        fill_us = self.filling.cpu_us_per_slot[HUB]
        return measure.ratios(
            self.cpu_us(point), [one.cpu_us(point.idle_share_beside, fill_us) for one in point.beside]
        )


@dataclass(slots=True)
class Network:
    """A network to ask."""

    nodes: Nodes
    load: LoadProcess
    saes: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def pid(self) -> int:
        return self.nodes.pids[HUB]

    def ask(self, seconds: float) -> Asked:
        plan = Plan("issue", CONNECTIONS, seconds, saes=self.saes, watched={HUB: self.pid})
        before = self.nodes.counters(HUB).get("slots_filled", 0)
        result = self.load.ask(plan)
        return Asked(result, self.nodes.counters(HUB).get("slots_filled", 0) - before)


def grown(
    stack: ExitStack,
    folder: Path,
    scenario: Scenario,
    slots: int,
    saes: tuple[tuple[str, tuple[str, ...]], ...] = (),
) -> tuple[Network, Point]:
    """Start a network with `slots` in stock from the hub to its first neighbour."""
    folder.mkdir()
    files = Files(scenario, folder, stack)
    words = [sys.executable, HERE / "filler.py", files.config(HUB), files.config(FIRST)]
    subprocess.run([str(word) for word in [*words, "--segments", math.ceil(slots / SLOTS)]], check=True)
    names = [node.name for node in scenario.nodes]
    began = time.perf_counter()
    nodes = Nodes(folder.name, files, stack, together=[name for name in names if name not in {HUB, FIRST}])
    nodes.wait_until_issuing(HUB, [name for name in names if name != HUB])
    point = Point(
        what=folder.name.partition("-")[0],
        size=0,
        ready_s=time.perf_counter() - began,
        resident_mib=measure.resident_mib(nodes.pids[HUB]),
        disk_mib=measure.files_mib(files.data(HUB)),
    )
    return Network(nodes, nodes.load(), saes), point


def network_of(stack: ExitStack, folder: Path, what: str, size: int) -> tuple[Network, Point]:
    where = folder / f"{what}-{size}"
    match what:
        case "stock":
            network, point = grown(stack, where, hub_and(1), size)
        case "nodes":
            network, point = grown(stack, where, hub_and(size - 1), BESIDES)
        case _:
            near = max(many for many in range(1, CONNECTIONS + 1) if size % many == 0)  # each has a connection
            far = size // near
            network, point = grown(stack, where, hub_and(1, near=near, far=far), BESIDES, sae_pairs(near, far))
    point.size = size
    return network, point


def measured(
    network: Network, point: Point, beside: Network, floor: Constant, *, rounds: int, seconds: float
) -> Point:
    """Ask the three in turn."""
    for one in (network, beside):
        one.nodes.wait_until_filled(HUB)
    for one in (network, beside):
        one.ask(WARM_UP_S)
    idle = [measure.cpu_s(one.pid) for one in (network, beside)]
    time.sleep(seconds)
    point.idle_share, point.idle_share_beside = (
        (measure.cpu_s(one.pid) - before) / seconds for one, before in zip((network, beside), idle, strict=True)
    )
    for _ in range(rounds):
        time.sleep(SETTLE_S)
        point.floor.append(floor.load.ask(Plan("constant", CONNECTIONS, seconds, watched=floor.pids)))
        for found, one in ((point.beside, beside), (point.rounds, network)):
            time.sleep(SETTLE_S)
            found.append(one.ask(seconds))
    return point


def report(growth: Growth) -> str:
    """Return a table for each thing that grew."""
    head = [
        "size",
        "CPU µs/request",
        "to the one beside",
        "to the floor",
        "filled per key",
        "requests/s",
        "p50 / p99 ms",
        "503",
    ]
    head += ["idle", "ready s", "resident MiB", "disk MiB"]
    parts = []
    for what in dict.fromkeys(one.what for one in growth.points):
        rows = [_row(growth, one) for one in growth.points if one.what == what]
        parts.append(f"**{what}**\n\n{measure.table(head, rows)}")
    others = measure.Spread.of(one.others_share for point in growth.points for one in point.floor)
    parts += ["\n".join(measure.caveats(growth.machine, others)), str(growth.machine)]
    return "\n\n".join(part for part in parts if part)


def _row(growth: Growth, point: Point) -> list[str]:
    results = [one.result for one in point.rounds]
    waited = [one.enc for one in results if one.enc is not None]
    floor = [one.cpu_us("floor") for one in point.floor]
    return [
        f"{point.size:,}",
        str(measure.Spread.of(growth.cpu_us(point))),
        str(growth.growth(point)),
        str(measure.ratios(growth.cpu_us(point), floor)),
        str(measure.Spread.of(one.filled / max(one.result.issued, 1) for one in point.rounds)),
        str(measure.Spread.of(one.issued_per_s for one in results)),
        " / ".join(
            f"{statistics.median(getattr(one, share) for one in waited):.2f}" for share in ("p50_ms", "p99_ms")
        )
        if waited
        else "none",
        str(sum(one.refused for one in results)),
        f"{100 * point.idle_share:.1f} %",
        f"{point.ready_s:.1f}",
        f"{point.resident_mib:,.0f}",
        f"{point.disk_mib:,.0f}",
    ]


def not_flat(growth: Growth) -> list[str]:
    """Name the points whose requests cost more or less than the smallest network's by more than is allowed."""
    return [
        f"{one.what} {one.size:,}: {growth.growth(one)} times"
        for one in growth.points
        if abs(growth.growth(one).median - 1) > FLAT
    ]


def sizes(text: str) -> list[int]:
    return [int(float(word)) for word in text.split(",") if word]


def run(asked: argparse.Namespace, folder: Path) -> Growth:
    where, points = measure.machine(folder), []
    with ExitStack() as apart:
        filled = filling(apart, folder / "filling")
    with ExitStack() as whole:
        floor = Constant(whole, "floor", folder)
        beside, _ = grown(whole, folder / "beside", hub_and(1), BESIDES)
        for what in DEFAULTS:
            for size in sizes(getattr(asked, what)):
                with ExitStack() as stack:
                    network, point = network_of(stack, folder, what, size)
                    points.append(measured(network, point, beside, floor, rounds=asked.rounds, seconds=asked.seconds))
                print(_told(points[-1]), file=sys.stderr)
    return Growth(where, filled, points)


def _told(point: Point) -> str:
    spent = measure.Spread.of(one.result.cpu_us(HUB) for one in point.rounds)
    return f"{point.what} {point.size:,}: {spent} µs a request, all in all; ready in {point.ready_s:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for what, default in DEFAULTS.items():
        parser.add_argument(f"--{what}", default=default, help="sizes; empty: leave it out")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=HERE.parent, prefix=".bench-") as name:
        growth = run(asked, Path(name))
    print(report(growth))
    print(f"\nevery round: {measure.save('growth', growth)}")
    found = faults_of(one.result for point in growth.points for one in (*point.rounds, *point.beside))
    bent = not_flat(growth)
    print("flat" if not bent else f"NOT FLAT: {'; '.join(bent)}")
    print(", ".join(f"{count} {what}" for what, count in found.items()))
    sys.exit(1 if bent or any(found.values()) else 0)


if __name__ == "__main__":
    main()
