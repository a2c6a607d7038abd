"""Runs several nodes in one process, from their configurations: the part of a network that nobody measures."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from trenza.app.build import build_node
from trenza.app.config import load_node_config
from trenza.app.process import forbid_core_dumps, raise_file_limit


async def serve(configs: list[Path]) -> None:
    """Run the nodes until a signal comes."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        for config in configs:
            running = await build_node(load_node_config(config), source=config)
            stack.push_async_callback(running.stop)
            await running.start()
        await stop.wait()


if __name__ == "__main__":
    forbid_core_dumps()
    raise_file_limit(8_192)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve([Path(word) for word in sys.argv[1:]]))
