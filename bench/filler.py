"""Puts stock into both ends' stores before a network starts: a day's filling in a minute.

Opens the two nodes as `trenza node` does and gives both the same segments through `Pools.add_segment`, as filling
does; only where the strands come from differs (here: this process). So what lies in the stores afterwards is what
millions of real slots leave there, and the next start finds, compares and grants it like any other.

    python bench/filler.py ISSUER-CONFIG HOLDER-CONFIG --segments 1000
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from trenza.app.build import RunningNode, build_node
from trenza.app.config import load_node_config
from trenza.base.secret import Secret
from trenza.core.exchange import SCHEME
from trenza.core.provenance import FORMAT_VERSION, Hop, Lineage, SegmentRecord
from trenza.core.segment import FULL_ORIGINS
from trenza.core.strand import STRAND_BYTES, TRANSCRIPT_BYTES, Supply

AT_ONCE = 32
SLOTS = 1_024


async def fill(issuer_config: Path, holder_config: Path, segments: int) -> None:
    """Give two nodes `segments` segments from which the first issues."""
    async with AsyncExitStack() as stack:
        issuer, holder = [await _opened(stack, config) for config in (issuer_config, holder_config)]
        for first in range(0, segments, AT_ONCE):
            several = range(first, min(first + AT_ONCE, segments))
            await asyncio.gather(*(_add(issuer, holder) for _ in several))


async def _opened(stack: AsyncExitStack, config: Path) -> RunningNode:
    running = await build_node(load_node_config(config), source=config)
    stack.push_async_callback(running.stop)
    return running


async def _add(issuer: RunningNode, holder: RunningNode) -> None:
    record = _record(issuer, holder).encode()
    strands = os.urandom(2 * TRANSCRIPT_BYTES + SLOTS * STRAND_BYTES * len(FULL_ORIGINS))
    for near, far in ((holder, issuer), (issuer, holder)):
        material = Secret(bytearray(strands))
        await near.node.pools.add_segment(far.name, record, material)
        material.wipe()


def _record(issuer: RunningNode, holder: RunningNode) -> SegmentRecord:
    leader, follower = sorted((issuer.name, holder.name))
    hop = Hop(
        link=f"{leader}-{follower}",
        sender=leader,
        receiver=follower,
        supply=Supply.SYNTHETIC,
        emulated=True,
        bootstrap="computational",
        epsilon=None,
    )
    return SegmentRecord(
        version=FORMAT_VERSION,
        segment=os.urandom(16),
        leader=leader,
        follower=follower,
        issuer=issuer.name,
        slots=SLOTS,
        origins=FULL_ORIGINS,
        lineage=Lineage(os.urandom(16), SCHEME, os.urandom(96), ("ml-dsa-65",)),
        hops=(hop,),
        created=time.time_ns(),
        uncertainty=50_000_000,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("issuer", type=Path, help="configuration of the node that issues")
    parser.add_argument("holder", type=Path, help="configuration of the other one")
    parser.add_argument("--segments", type=int, required=True, help=f"of {SLOTS} slots each")
    asked = parser.parse_args()
    began = time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(fill(asked.issuer, asked.holder, asked.segments))
    print(f"{asked.segments} segments in {time.monotonic() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
