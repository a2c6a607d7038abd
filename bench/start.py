"""How long a network takes from its command to its first key, and how much memory it needs: prints JSON.

    python bench/start.py [scenarios/spain.toml]

Starts `trenza up`, waits until it says that it is ready, fetches one key at both ends, lets it run for a while and
looks at its process from outside.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import measure
import msgspec
from processes import HERE, TRENZA, running, wait_until_ready

from trenza.app.scenario import load_scenario
from trenza.cli.first_key import farthest_pair


class Start(msgspec.Struct):
    machine: measure.Machine
    scenario: str
    nodes: int
    links: int
    ready_s: float
    first_key_s: float  # both ends hold the same key
    initiator: str
    target: str
    cpu_until_ready_s: float
    resident_at_first_key_mib: float
    resident_later_mib: float
    peak_mib: float
    watched_s: float
    cpu_share_later: float  # of one CPU, serving nobody


def started(scenario: Path, folder: Path, watch_s: float) -> Start:
    """Start, fetch, watch, stop."""
    read = load_scenario(str(scenario))
    pair = farthest_pair(read)
    if pair is None:
        raise SystemExit(f"{scenario} lets no two applications of different nodes share keys")
    where = measure.machine(folder)
    ready = folder / "ready.json"
    began = time.perf_counter()
    with ExitStack() as stack:
        up = [TRENZA, "up", scenario, "--state-dir", folder / "state", "--ready-file", ready, "--no-live", "--quiet"]
        network = stack.enter_context(running(up))
        wait_until_ready(ready, network)
        ready_s, cpu_s = time.perf_counter() - began, measure.cpu_s(network.pid)
        load = [sys.executable, HERE / "load.py", ready, "--initiator", pair[0], "--target", pair[1], "--first"]
        subprocess.run([str(word) for word in load], check=True, stdout=sys.stderr)
        first_key_s, resident = time.perf_counter() - began, measure.resident_mib(network.pid)
        before = measure.cpu_s(network.pid)
        time.sleep(watch_s)
        return Start(
            machine=where,
            scenario=read.name,
            nodes=len(read.nodes),
            links=len(read.links),
            ready_s=ready_s,
            first_key_s=first_key_s,
            initiator=pair[0],
            target=pair[1],
            cpu_until_ready_s=cpu_s,
            resident_at_first_key_mib=resident,
            resident_later_mib=measure.resident_mib(network.pid),
            peak_mib=measure.peak_mib(network.pid),
            watched_s=watch_s,
            cpu_share_later=(measure.cpu_s(network.pid) - before) / watch_s,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scenario", type=Path, nargs="?", default=HERE.parent / "scenarios" / "spain.toml")
    parser.add_argument("--watch", type=float, default=20.0, help="seconds to watch it after its first key")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=HERE.parent, prefix=".bench-") as folder:
        result = started(asked.scenario, Path(folder), asked.watch)
    measure.save(f"start-{result.scenario}", result)
    print(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())


if __name__ == "__main__":
    main()
